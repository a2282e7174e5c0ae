"""`MapEditor`: changes to the active disk's tables, in an order that a kill at any point cannot harm.

Changes stay in memory until `flush`, which writes: data and reference counts; then the refcount table; then L2 tables
that point to the data; then the L1 table; and last the lower counts of what is no longer used. A kill in between
leaks clusters and loses nothing that an earlier flush has returned for. (L2 tables are copied only where a snapshot
shares them.)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from vdisk.formats.qcow2.header import Header
from vdisk.formats.qcow2.refcounts import Refcounts
from vdisk.formats.qcow2.tables import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ClusterMap,
)
from vdisk.formats.qcow2.words import store_big_endian
from vdisk.storage.base import Storage

_DIRTY_L2_BYTES = 8 << 20
_RELEASES_KEPT = 100_000


class MapEditor:
    """Places, zeroes and forgets whole blocks (clusters, or subclusters where there are any)."""

    def __init__(
        self,
        storage: Storage,
        header: Header,
        cluster_map: ClusterMap,
        refcounts: Refcounts,
        read: Callable[[int, memoryview], None],
    ) -> None:
        """`read` fills memory from the disk as a guest sees it."""
        self.storage = storage
        self.header = header
        self.map = cluster_map
        self.refcounts = refcounts
        self._read = read
        self._dirty_l1: set[int] = set()
        self._no_longer_used: list[tuple[int, int]] = []
        """(host offset, clusters) whose counts go down once the tables that named them are replaced on disk."""

    # What the device asks for ----------------------------------------------------------------------------------

    def place(self, offset: int, data: memoryview) -> None:
        """Store whole blocks; see `BlockDevice._place`."""
        if self.map.words == 2:
            self._place_subclusters(offset, data)
        else:
            self._place_clusters(offset, data)
        self._bound_dirty()

    def _place_clusters(self, offset: int, data: memoryview) -> None:
        cluster_map = self.map
        cluster_bytes, bits = cluster_map.cluster_bytes, cluster_map.cluster_bits
        position = 0
        while position < len(data):
            count = -(-(len(data) - position) // cluster_bytes)
            guest_cluster = (offset + position) >> bits
            index = guest_cluster & cluster_map.l2_mask
            count = min(count, cluster_map.l2_mask + 1 - index)
            table = self.writable_table(guest_cluster >> cluster_map.l2_bits)
            host = self._room(guest_cluster, count)
            self._write_data(host, data[position : position + count * cluster_bytes], count * cluster_bytes)
            for number in range(index, index + count):
                self._release_entry(table[number])
            first = host | COPIED
            table[index : index + count] = array("Q", range(first, first + count * cluster_bytes, cluster_bytes))
            position += count * cluster_bytes

    def place_part(self, offset: int, data: memoryview) -> bool:
        """Store a part of one cluster that holds nothing and reads as zeros; False where it is not so.

        Saves the writing of the zeros around it: behind the end of the file they are there already.
        """
        cluster_map = self.map
        cluster_bytes = cluster_map.cluster_bytes
        guest_cluster, inside = offset >> cluster_map.cluster_bits, offset & (cluster_bytes - 1)
        if (
            cluster_map.words == 2
            or inside + len(data) > cluster_bytes
            or len(data) == cluster_bytes
            or cluster_map.data is not self.storage
            or self.header.backing_name is not None
        ):
            return False
        l1_index, index = guest_cluster >> cluster_map.l2_bits, guest_cluster & cluster_map.l2_mask
        table = cluster_map.cache.get(l1_index) or cluster_map.table(l1_index)
        if table is not None and table[index]:
            return False
        table = self.writable_table(l1_index)
        host = self.refcounts.allocate(1) << cluster_map.cluster_bits
        if host >= self.storage.size:
            self.storage.write(host + inside, data)
        else:
            self.storage.write(host, b"".join((bytes(inside), data, bytes(cluster_bytes - inside - len(data)))))
        table[index] = host | COPIED
        self._bound_dirty()
        return True

    def _place_subclusters(self, offset: int, data: memoryview) -> None:
        """Cluster by cluster: into the cluster that is there, or into a new one with the rest copied."""
        cluster_map = self.map
        cluster_bytes, size = cluster_map.cluster_bytes, cluster_map.subcluster_bytes
        position = 0
        while position < len(data):
            guest_cluster, inside = divmod(offset + position, cluster_bytes)
            part = data[position : position + cluster_bytes - inside]
            first, count = inside // size, -(-len(part) // size)
            bits = (1 << count) - 1 << first
            table = self.writable_table(guest_cluster >> cluster_map.l2_bits)
            at = (guest_cluster & cluster_map.l2_mask) * 2
            entry, bitmap = table[at], table[at + 1]
            if entry & COPIED and not entry & COMPRESSED:
                self._write_data((entry & OFFSET_MASK) + inside, part, count * size)
                table[at + 1] = (bitmap | bits) & ~(bits << 32)
            else:
                kept = ALL_ALLOCATED if entry & COMPRESSED else bitmap & ALL_ALLOCATED
                host = self._room(guest_cluster, 1)
                self._copy_subclusters(guest_cluster * cluster_bytes, host, kept & ~bits)
                self._write_data(host + inside, part, count * size)
                self._release_entry(entry)
                zero = 0 if entry & COMPRESSED else bitmap & ALL_ZERO & ~(bits << 32)
                table[at] = host | COPIED
                table[at + 1] = zero | kept | bits
            position += len(part)

    def _copy_subclusters(self, guest_offset: int, host: int, which: int) -> None:
        """Copy the subclusters whose bits are set from where the guest has them to a new cluster."""
        if not which:
            return
        size = self.map.subcluster_bytes
        for number in range(SUBCLUSTERS):
            start = guest_offset + number * size
            if which >> number & 1 and start < self.header.disk_bytes:
                block = memoryview(bytearray(min(size, self.header.disk_bytes - start)))
                self._read(start, block)
                self._write_data(host + number * size, block, size)

    def _room(self, guest_cluster: int, count: int) -> int:
        """Where `count` clusters shall lie in a row: new ones, or their own place in a data file."""
        if self.map.has_data_file:
            return guest_cluster << self.map.cluster_bits
        return self.refcounts.allocate(count) << self.map.cluster_bits

    def _write_data(self, host: int, data: memoryview, length: int) -> None:
        """Write guest data; of the disk's last cluster the rest too, so that the file holds it whole."""
        data_storage = self.map.data
        if len(data) < length and not self.map.has_data_file:
            data_storage.write(host, bytes(data) + bytes(length - len(data)))
        else:
            data_storage.write(host, data)

    def zero(self, offset: int, length: int, *, marks: bool, unmap: bool) -> None:
        """Give blocks up so that they read as zeros by a mark, or, without `marks`, by holding nothing."""
        cluster_map = self.map
        if cluster_map.has_data_file:
            end = min(offset + length, self.header.disk_bytes, cluster_map.data.size)
            if offset < end:
                cluster_map.data.zero(offset, end - offset, unmap=unmap)
        bits, cluster_bytes = cluster_map.cluster_bits, cluster_map.cluster_bytes
        end = offset + length
        if cluster_map.words == 1:
            mark = cluster_map.zero_flag if marks else 0
            self._set_clusters(offset >> bits, -(-end // cluster_bytes), (mark,))
        else:
            first, last = -(-offset // cluster_bytes), end // cluster_bytes
            if end == self.header.disk_bytes:
                last = -(-end // cluster_bytes)
            if first > last:  # inside one cluster
                self._zero_subclusters(offset, end, marks)
            else:
                if offset < first * cluster_bytes:
                    self._zero_subclusters(offset, first * cluster_bytes, marks)
                self._set_clusters(first, last, (0, ALL_ZERO if marks else 0))
                if end > last * cluster_bytes:
                    self._zero_subclusters(last * cluster_bytes, end, marks)
        self._bound_dirty()

    def forget(self, first: int, end: int) -> None:
        """Empty the entries of guest clusters [first, end), which lie or are to lie past the end of the disk."""
        end = min(end, len(self.map.l1) << self.map.l2_bits)
        self._set_clusters(first, end, (0,) * self.map.words)

    def _set_clusters(self, first: int, end: int, words: tuple[int, ...]) -> None:
        """Give up the clusters of a range; their entries become `words`."""
        cluster_map = self.map
        width = cluster_map.words
        while first < end:
            l1_index = first >> cluster_map.l2_bits
            stop = min(end, (l1_index + 1) << cluster_map.l2_bits)
            table = cluster_map.table(l1_index)
            if table is not None or any(words):
                index, last = first & cluster_map.l2_mask, (first & cluster_map.l2_mask) + stop - first
                wanted = array("Q", words) * (last - index)
                if table is None or table[index * width : last * width] != wanted:
                    table = self.writable_table(l1_index)
                    for number in range(index, last):
                        self._release_entry(table[number * width])
                    if width == 2:  # a reader that comes between must not find allocated subclusters of no cluster
                        for number in range(index, last):
                            table[number * 2 + 1] = words[1]
                    table[index * width : last * width] = wanted
            elif not cluster_map.l1[l1_index] & OFFSET_MASK:
                empty = l1_index + 1
                while empty << cluster_map.l2_bits < end and not cluster_map.l1[empty] & OFFSET_MASK:
                    empty += 1
                stop = min(end, empty << cluster_map.l2_bits)
            first = stop

    def _zero_subclusters(self, offset: int, end: int, marks: bool) -> None:
        """The same for a part of one cluster."""
        cluster_map = self.map
        size = cluster_map.subcluster_bytes
        guest_cluster, inside = divmod(offset, cluster_map.cluster_bytes)
        l1_index = guest_cluster >> cluster_map.l2_bits
        at = (guest_cluster & cluster_map.l2_mask) * 2
        table = cluster_map.table(l1_index)
        if table is None and not marks:
            return
        if table is not None and table[at] & COMPRESSED:
            self._place_subclusters(offset, memoryview(bytes(end - offset)))
            return
        bits = (1 << -(-(end - offset) // size)) - 1 << inside // size
        table = self.writable_table(l1_index)
        # Where the cluster is shared, its other subclusters go on being read from it: no copy is needed.
        table[at + 1] = table[at + 1] & ~(bits | bits << 32) | (bits << 32 if marks else 0)

    # Tables ----------------------------------------------------------------------------------------------------

    def writable_table(self, l1_index: int) -> array[int]:
        """An L2 table that may be changed: a new one where there is none, a copy where a snapshot shares it."""
        cluster_map = self.map
        entry = cluster_map.l1[l1_index]
        if entry & COPIED and entry & OFFSET_MASK:
            table = cluster_map.table(l1_index)
            assert table is not None
            cluster_map.dirty.add(l1_index)
            cluster_map.cache[l1_index] = table
            return table
        shared = cluster_map.table(l1_index)
        table = array("Q", bytes(cluster_map.cluster_bytes)) if shared is None else shared[:]
        if shared is not None:
            self._no_longer_used.append((entry & OFFSET_MASK, 1))
        host = self.refcounts.allocate(1) << cluster_map.cluster_bits
        cluster_map.dirty.add(l1_index)
        cluster_map.cache[l1_index] = table
        cluster_map.l1[l1_index] = host | COPIED
        self._dirty_l1.add(l1_index)
        return table

    def _release_entry(self, entry: int) -> None:
        """Remember what a descriptor that is about to go refers to: its count goes down once the table is written."""
        if entry & COMPRESSED:
            self._no_longer_used.append(self.compressed_clusters(entry))
        elif entry & OFFSET_MASK and not self.map.has_data_file:
            self._no_longer_used.append((entry & OFFSET_MASK, 1))

    def compressed_clusters(self, entry: int) -> tuple[int, int]:
        """(offset, count) of the host clusters in which a compressed cluster lies."""
        host, length = self.map.compressed_range(entry)
        first, last = host >> self.map.cluster_bits, (host + length - 1) >> self.map.cluster_bits
        return first << self.map.cluster_bits, last - first + 1

    def release(self, host: int, clusters: int) -> None:
        """Give up host clusters at the next flush, once nothing on disk names them."""
        self._no_longer_used.append((host, clusters))

    # Bringing it to the file -----------------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        """Whether the file lacks any change of the tables."""
        return bool(self.map.dirty or self._dirty_l1 or self._no_longer_used or self.refcounts.is_dirty)

    def _bound_dirty(self) -> None:
        if (
            len(self.map.dirty) << self.map.cluster_bits > _DIRTY_L2_BYTES
            or len(self._no_longer_used) > _RELEASES_KEPT
            or self.refcounts.dirty_bytes > _DIRTY_L2_BYTES
        ):
            self.flush()

    def flush(self) -> None:
        """Bring all changes to the file, in the order above."""
        storage, cluster_map = self.storage, self.map
        self.refcounts.write_blocks()
        if cluster_map.has_data_file:
            cluster_map.data.flush()
        storage.flush()
        self.refcounts.write_table()
        if cluster_map.dirty:
            for index in sorted(cluster_map.dirty):
                storage.write(cluster_map.l1[index] & OFFSET_MASK, store_big_endian(cluster_map.cache[index]))
            cluster_map.dirty.clear()
            storage.flush()
        if self._dirty_l1:
            first, last = min(self._dirty_l1), max(self._dirty_l1)
            storage.write(self.header.l1_offset + 8 * first, store_big_endian(cluster_map.l1[first : last + 1]))
            self._dirty_l1.clear()
            storage.flush()
        if self._no_longer_used:
            bits = cluster_map.cluster_bits
            for host, count in self._no_longer_used:
                for cluster in range(host >> bits, (host >> bits) + count):
                    self.refcounts.add(cluster, -1)
            self._no_longer_used.clear()
        self.refcounts.write_blocks()  # lower counts only: no harm is done when they get lost
