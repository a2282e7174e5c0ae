"""Reference counts: the two-level table that says how often each host cluster is used, and room for new clusters.

Follows QEMU docs/interop/qcow2, "Host cluster management". Blocks are read when they are needed and held as arrays,
one item a cluster, whatever the width on disk. Changes stay in memory until `write_back`: the image writes them
before the tables that point to new clusters.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from vdisk.errors import Corrupt, StorageError
from vdisk.formats.qcow2.header import MAX_REFCOUNT_TABLE_BYTES, Header
from vdisk.formats.qcow2.words import TYPECODES, load_big_endian, pack_counts, store_big_endian, unpack_counts
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    import numpy

_OFFSET_MASK = ~0x1FF & (1 << 64) - 1
_CLEAN_BLOCKS_KEPT = 256


class Refcounts:
    """The counts of one image's host clusters."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._header = header
        self._bits = header.refcount_bits
        self.cluster_bytes = header.cluster_bytes
        self.block_entries = self.cluster_bytes * 8 // self._bits
        self.largest = (1 << self._bits) - 1
        length = header.refcount_table_clusters * self.cluster_bytes
        raw = storage.read(header.refcount_table_offset, length)
        if len(raw) < length:
            raise Corrupt(storage.name, "refcount table", expected=f"{length} bytes", found=f"{len(raw)} in the file")
        self.table = load_big_endian(raw, "Q")
        self._blocks: dict[int, array[int]] = {}
        self._dirty_blocks: set[int] = set()
        self._dirty_table: set[int] = set()
        self._moved_table_from: tuple[int, int] | None = None
        self._search_from = 0

    # Looking up ------------------------------------------------------------------------------------------------

    def get(self, cluster: int) -> int:
        """How often a host cluster, by its index, is used."""
        block_index, index = divmod(cluster, self.block_entries)
        block = self._block(block_index)
        return 0 if block is None else block[index]

    def _block(self, block_index: int) -> array[int] | None:
        """The counts that a table entry points to, or None where there is none."""
        block = self._blocks.get(block_index)
        if block is not None:
            return block
        if block_index >= len(self.table):
            return None
        host = self.table[block_index] & _OFFSET_MASK
        if host == 0:
            return None
        if host % self.cluster_bytes or host >= self._storage.size:
            raise Corrupt(
                self._storage.name,
                f"refcount table entry {block_index}",
                expected=f"a multiple of {self.cluster_bytes} in the file",
                found=host,
            )
        raw = self._storage.read(host, self.cluster_bytes)
        block = unpack_counts(raw.ljust(self.cluster_bytes, b"\0"), self._bits)
        self._drop_clean_blocks()
        self._blocks[block_index] = block
        return block

    def _drop_clean_blocks(self) -> None:
        if len(self._blocks) - len(self._dirty_blocks) >= _CLEAN_BLOCKS_KEPT:
            for index in [index for index in self._blocks if index not in self._dirty_blocks]:
                del self._blocks[index]

    # Changing --------------------------------------------------------------------------------------------------

    def add(self, cluster: int, amount: int) -> int:
        """Change a count; returns the new one."""
        block_index, index = divmod(cluster, self.block_entries)
        block = self._ensure_block(block_index)
        count = block[index] + amount
        if not 0 <= count <= self.largest:
            self._refuse_count(cluster, count)
        block[index] = count
        self._dirty_blocks.add(block_index)
        if count == 0:
            self._search_from = min(self._search_from, cluster)
        return count

    def allocate(self, count: int) -> int:
        """Find `count` free host clusters in a row and count each as used once; returns the first's index."""
        while True:
            first = self._find_free(count)
            # Counting may itself take clusters, for refcount blocks: those first, outside the run, then look again.
            for block_index in range(first // self.block_entries, (first + count - 1) // self.block_entries + 1):
                self._ensure_block(block_index, first + count)
            if self._is_free(first, count):
                break
        for block_index in range(first // self.block_entries, (first + count - 1) // self.block_entries + 1):
            block = self._ensure_block(block_index)
            base = block_index * self.block_entries
            start, end = max(first - base, 0), min(first + count - base, self.block_entries)
            block[start:end] = array(block.typecode, (1,)) * (end - start)
            self._dirty_blocks.add(block_index)
        self._search_from = first + count
        return first

    def _is_free(self, first: int, count: int) -> bool:
        for block_index in range(first // self.block_entries, (first + count - 1) // self.block_entries + 1):
            block = self._block(block_index)
            if block is None:
                continue
            base = block_index * self.block_entries
            start, end = max(first - base, 0), min(first + count - base, self.block_entries)
            if any(block[start:end]):
                return False
        return True

    def _find_free(self, count: int) -> int:
        """The first of `count` clusters in a row whose count is 0, from where the last search ended."""
        cluster = self._search_from
        run_start, run = cluster, 0
        while run < count:
            block_index, index = divmod(cluster, self.block_entries)
            if block_index >= len(self.table):
                return run_start  # nothing behind the table is counted
            block = self._block(block_index)
            if block is None:
                run += self.block_entries - index
                cluster += self.block_entries - index
                continue
            if block[index] == 0:
                run += 1
                cluster += 1
                continue
            try:
                index = block.index(0, index)
            except ValueError:
                index = self.block_entries
            cluster = block_index * self.block_entries + index
            run_start, run = cluster, 0
        return run_start

    def _ensure_block(self, block_index: int, keep_free_to: int = 0) -> array[int]:
        """The counts of a stretch of the file; where there are none, a new block behind cluster `keep_free_to`."""
        block = self._block(block_index)
        if block is not None:
            return block
        if block_index >= len(self.table):
            self._grow_table(block_index)
            return self._ensure_block(block_index, keep_free_to)
        first, end_of_file = block_index * self.block_entries, -(-self._storage.size // self.cluster_bytes)
        # Behind the last block a file may have a tail that was written and never counted, when its writer was killed:
        # free room. A gap before it is another matter.
        if end_of_file >= first + self.block_entries and any(self.table[block_index + 1 :]):
            raise Corrupt(
                self._storage.name,
                f"refcount table entry {block_index}",
                "clusters of the file are not counted; vdisk check --repair all counts them",
            )
        own = max(first, keep_free_to)
        if own // self.block_entries != block_index:
            self._ensure_block(own // self.block_entries, keep_free_to)
            while self.get(own):
                own += 1
        typecode = TYPECODES.get(self._bits, "B")
        block = array(typecode, bytes(self.block_entries * array(typecode).itemsize))
        self._blocks[block_index] = block
        self._dirty_blocks.add(block_index)
        self.table[block_index] = own * self.cluster_bytes
        self._dirty_table.add(block_index)
        self.add(own, 1)  # mostly the new block counts itself
        return block

    def _grow_table(self, block_index: int) -> None:
        """Make the refcount table long enough for `block_index`: a longer one at another place."""
        entries_a_cluster = self.cluster_bytes // 8
        wanted = max(block_index + 2, len(self.table) + len(self.table) // 2)
        clusters = -(-wanted // entries_a_cluster)
        if clusters * self.cluster_bytes > MAX_REFCOUNT_TABLE_BYTES:
            clusters = MAX_REFCOUNT_TABLE_BYTES // self.cluster_bytes
            if clusters * entries_a_cluster <= block_index:
                raise StorageError(self._storage.name, "allocate", "the refcount table cannot grow any further")
        if self._moved_table_from is None:
            header = self._header
            self._moved_table_from = (header.refcount_table_offset, header.refcount_table_clusters)
            outdated = None
        else:
            outdated = (self._header.refcount_table_offset, self._header.refcount_table_clusters)
        self.table.extend(array("Q", bytes(8 * (clusters * entries_a_cluster - len(self.table)))))
        self._header.refcount_table_clusters = clusters
        self._header.refcount_table_offset = self.allocate(clusters) * self.cluster_bytes
        if outdated is not None:
            self._release(*outdated)

    def _release(self, offset: int, clusters: int) -> None:
        first = offset // self.cluster_bytes
        for cluster in range(first, first + clusters):
            self.add(cluster, -1)

    def get_many(self, clusters: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Counts of many host clusters, as unsigned 64-bit numbers in the order asked."""
        import numpy

        found = numpy.zeros(len(clusters), numpy.uint64)
        block_of = clusters // self.block_entries
        for block_index in numpy.unique(block_of).tolist():
            block = self._block(block_index)
            if block is not None:
                mine = block_of == block_index
                found[mine] = numpy.asarray(block)[clusters[mine] - block_index * self.block_entries]
        return found

    def add_many(self, clusters: numpy.ndarray[Any, Any], amount: int, *, only_try: bool = False) -> None:
        """Change the counts of many host clusters, one that is named twice by twice the amount.

        Nothing changes when one of them would leave the width's range; with `only_try`, nothing changes at all.
        """
        import numpy

        unique, times = numpy.unique(clusters, return_counts=True)
        old = self.get_many(unique)
        new = old.astype(numpy.int64) + times * amount
        wrong = (new < 0) | (new > min(self.largest, (1 << 63) - 1)) | (old >= 1 << 62)
        if wrong.any():
            at = int(numpy.flatnonzero(wrong)[0])
            self._refuse_count(int(unique[at]), int(new[at]))
        if only_try:
            return
        block_of = unique // self.block_entries
        for block_index in numpy.unique(block_of).tolist():
            block = self._ensure_block(block_index)
            mine = block_of == block_index
            counts = numpy.asarray(block)
            counts[unique[mine] - block_index * self.block_entries] = new[mine].astype(counts.dtype)
            self._dirty_blocks.add(block_index)
        if amount < 0 and len(unique):
            self._search_from = min(self._search_from, int(unique[0]))

    def _refuse_count(self, cluster: int, count: int) -> None:
        raise Corrupt(
            self._storage.name,
            f"refcount of the cluster at {cluster * self.cluster_bytes}",
            expected=f"0 to {self.largest}",
            found=count,
        )

    # Writing back ----------------------------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        """Whether there is anything to write back."""
        return bool(self._dirty_blocks or self._dirty_table or self._moved_table_from)

    @property
    def dirty_bytes(self) -> int:
        """Bytes of the blocks that the file has not got yet."""
        return len(self._dirty_blocks) * self.cluster_bytes

    def write_blocks(self) -> None:
        """Write the blocks that changed. Nothing is flushed."""
        for index in sorted(self._dirty_blocks):
            self._storage.write(self.table[index] & _OFFSET_MASK, pack_counts(self._blocks[index], self._bits))
        self._dirty_blocks.clear()

    def write_table(self) -> None:
        """Write and flush the table where it changed, and the header where the table moved.

        Call it when the blocks have been written and flushed. The counts of the old table's place go down in memory
        only: the next `write_blocks` writes them.
        """
        storage = self._storage
        if self._moved_table_from is not None:
            storage.write(self._header.refcount_table_offset, store_big_endian(self.table))
            storage.flush()
            self._header.write_fields(storage)
            storage.flush()
            moved, self._moved_table_from = self._moved_table_from, None
            self._dirty_table.clear()
            self._release(*moved)
        elif self._dirty_table:
            for index in sorted(self._dirty_table):
                storage.write(self._header.refcount_table_offset + 8 * index, self.table[index].to_bytes(8, "big"))
            self._dirty_table.clear()
            storage.flush()

    def write_back(self) -> None:
        """Write and flush blocks, then the table."""
        while self.is_dirty:
            if self._dirty_blocks:
                self.write_blocks()
                self._storage.flush()
            self.write_table()
