"""`ClusterMap`: the two-level table from guest offsets to extents (QEMU docs/interop/qcow2, "Cluster mapping").

An active disk and a snapshot differ in their L1 table only, so each has a map of its own over the same file. L2
tables are read when they are needed and kept in bounded memory, as arrays of 64-bit words: one word an entry, or two
where the image has subclusters (extended L2): the descriptor and a bitmap, bits 0-31 "allocated" and 32-63 "reads as
zeros".
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator

from vdisk.block.extent import Encoded, Extent, Kind
from vdisk.errors import Corrupt
from vdisk.formats.qcow2.header import DATA_FILE, Header
from vdisk.formats.qcow2.words import load_big_endian
from vdisk.formats.runs import end_of_equal, numpy_pays
from vdisk.storage.base import Storage

OFFSET_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO_FLAG = 1

SUBCLUSTERS = 32
ALL_ALLOCATED = (1 << 32) - 1
ALL_ZERO = ALL_ALLOCATED << 32

AES_CODEC = "qcow2-aes"
"""The codec's name of clusters under qcow2's own encryption, which only the image can decode."""

_L2_CACHE_BYTES = 32 << 20
_UNALLOCATED, _ZERO, _DATA, _ENCODED = Kind.UNALLOCATED, Kind.ZERO, Kind.DATA, Kind.ENCODED
_MIXED = 4
"""Where runs are sought: a cluster whose subclusters differ."""


class ClusterMap:
    """The tables of one disk of an image: the active one, or a snapshot's."""

    def __init__(self, storage: Storage, data: Storage, header: Header, l1_offset: int, l1_entries: int) -> None:
        """`data` is where guest clusters lie: `storage`, its decrypted view, or the data file."""
        self.storage = storage
        self.data = data
        self.name = storage.name
        self.header = header
        self.cluster_bits = header.cluster_bits
        self.cluster_bytes = header.cluster_bytes
        self.l2_bits = header.l2_entries.bit_length() - 1
        self.l2_mask = header.l2_entries - 1
        self.words = header.l2_entry_bytes // 8
        self.size_shift = 62 - (header.cluster_bits - 8)
        self.zero_flag = ZERO_FLAG if header.version >= 3 and self.words == 1 else 0
        self.has_data_file = bool(header.incompatible & DATA_FILE)
        self.subcluster_bytes = header.cluster_bytes // (SUBCLUSTERS if self.words == 2 else 1)
        self._inside_mask = header.cluster_bytes - 1
        self._is_aes = header.crypt_method == 1
        self._data_mask = OFFSET_MASK | COPIED if self.has_data_file else OFFSET_MASK
        """What of an entry tells that there is a cluster: offset 0 is a good one in a data file."""
        self.l1_offset = l1_offset
        length = l1_entries * 8
        raw = storage.read(l1_offset, length)
        if len(raw) < length:
            raise Corrupt(storage.name, "L1 table", expected=f"{length} bytes at {l1_offset}", found=len(raw))
        self.l1 = load_big_endian(raw, "Q")
        self.cache: dict[int, array[int]] = {}
        """L2 tables by L1 index, oldest first."""
        self.dirty: set[int] = set()
        """L1 indexes of tables in the cache that the file has not got yet: they stay."""
        self._cache_most = max(4, _L2_CACHE_BYTES // self.cluster_bytes)
        self._cache_lock = threading.Lock()

    # Tables ----------------------------------------------------------------------------------------------------

    def table(self, l1_index: int) -> array[int] | None:
        """An L2 table, from the cache or the file; None where the L1 entry is empty."""
        table = self.cache.get(l1_index)
        if table is not None:
            return table
        if not self.l1[l1_index] & OFFSET_MASK:
            return None
        table = self.read_table(l1_index)
        with self._cache_lock:
            present = self.cache.get(l1_index)
            if present is not None:
                return present
            if len(self.cache) >= self._cache_most:
                self._drop_tables()
            self.cache[l1_index] = table
        return table

    def read_table(self, l1_index: int) -> array[int]:
        """An L2 table from the file."""
        host = self.l1[l1_index] & OFFSET_MASK
        if host & self._inside_mask:
            raise Corrupt(self.name, f"L1 entry {l1_index}", expected="an offset of a cluster", found=host)
        raw = self.storage.read(host, self.cluster_bytes)
        if len(raw) < self.cluster_bytes:
            raise Corrupt(
                self.name,
                f"L2 table at {host}",
                expected=f"{self.cluster_bytes} bytes",
                found=f"{len(raw)} in the file",
            )
        return load_big_endian(raw, "Q")

    def _drop_tables(self) -> None:
        """Drop the oldest quarter of what is clean."""
        clean = [index for index in self.cache if index not in self.dirty]
        for index in clean[: max(1, self._cache_most // 4)]:
            del self.cache[index]

    # From tables to extents ------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterable[Extent]:
        """The extents of a range inside the disk, clipped to it."""
        inside = offset & self._inside_mask
        if inside + length <= self.cluster_bytes:
            cluster = offset >> self.cluster_bits
            l1_index = cluster >> self.l2_bits
            table = self.cache.get(l1_index)
            if table is None:
                table = self.table(l1_index)
                if table is None:
                    return (Extent(offset, length, _UNALLOCATED),)
            if self.words == 1:
                return (self._extent(offset, length, table[cluster & self.l2_mask], inside),)
            return self._subclusters(offset, length, table, (cluster & self.l2_mask) * 2, inside)
        return self._walk(offset, length)

    def _walk(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of a range, neighbours mostly joined."""
        end = offset + length
        span = self.cluster_bytes << self.l2_bits
        l1, cache = self.l1, self.cache
        while offset < end:
            l1_index = offset // span
            stop = min(end, (l1_index + 1) * span)
            if not l1[l1_index] & OFFSET_MASK and l1_index not in cache:
                while stop < end and not l1[stop // span] & OFFSET_MASK and stop // span not in cache:
                    stop = min(end, (stop // span + 1) * span)
                yield Extent(offset, stop - offset, _UNALLOCATED)
                offset = stop
                continue
            table = cache.get(l1_index)
            if table is None:
                # A long walk would wash the cache out; a short one warms it.
                table = self.read_table(l1_index) if length > 4 * span else self.table(l1_index)
                assert table is not None
            yield from self._walk_table(table, offset, stop)
            offset = stop

    def _walk_table(self, table: array[int], offset: int, end: int) -> Iterator[Extent]:
        """The extents of a range that one L2 table maps."""
        cluster_bytes, mask, words = self.cluster_bytes, self._inside_mask, self.words
        index = (offset >> self.cluster_bits) & self.l2_mask
        last = ((end - 1) >> self.cluster_bits) & self.l2_mask
        for run_end, kind in self._runs(table, index, last + 1):
            stop = min(end, (offset & ~mask) + (run_end - index) * cluster_bytes)
            if kind in (_ENCODED, _MIXED) or (kind == _DATA and self._is_aes):
                while offset < stop:
                    inside = offset & mask
                    unit_end = min(stop, offset - inside + cluster_bytes)
                    if words == 1 or kind != _MIXED:
                        yield self._extent(offset, unit_end - offset, table[index * words], inside)
                    else:
                        yield from self._subclusters(offset, unit_end - offset, table, index * 2, inside)
                    offset = unit_end
                    index += 1
            elif kind == _DATA:
                yield self._extent(offset, stop - offset, table[index * words], offset & mask)
            else:
                yield Extent(offset, stop - offset, Kind(kind))
            offset, index = stop, run_end

    def _runs(self, table: array[int], first: int, end: int) -> Iterator[tuple[int, int]]:
        """(index behind the run, kind) for runs of equal kind; of data, the next entry is one cluster further."""
        if not numpy_pays(end - first):
            yield from self._walk_runs(table, first, end)
            return
        import numpy

        both = numpy.frombuffer(table, numpy.uint64)
        words = self.words
        entries = both[first * words : end * words : words]
        kinds = numpy.where((entries & numpy.uint64(self._data_mask)) != 0, int(_DATA), int(_UNALLOCATED))
        if words == 2:
            bitmaps = both[first * 2 + 1 : end * 2 : 2]
            uniform = ((kinds == _DATA) & (bitmaps == ALL_ALLOCATED)) | (bitmaps == 0) | (bitmaps == ALL_ZERO)
            kinds = numpy.where(bitmaps == 0, int(_UNALLOCATED), kinds)
            kinds = numpy.where(bitmaps == ALL_ZERO, int(_ZERO), kinds)
            kinds = numpy.where(uniform, kinds, _MIXED)
        elif self.zero_flag:
            kinds = numpy.where((entries & numpy.uint64(self.zero_flag)) != 0, int(_ZERO), kinds)
        kinds = numpy.where((entries & numpy.uint64(COMPRESSED)) != 0, int(_ENCODED), kinds)
        goes_on = (kinds[1:] == kinds[:-1]) & ((kinds[1:] != _DATA) | (numpy.diff(entries) == self.cluster_bytes))
        breaks: list[int] = numpy.flatnonzero(~goes_on).tolist()
        for at in (*breaks, end - first - 1):
            yield at + first + 1, int(kinds[at])

    def _walk_runs(self, table: array[int], index: int, end: int) -> Iterator[tuple[int, int]]:
        """`_runs` in Python."""
        words, cluster_bytes = self.words, self.cluster_bytes
        while index < end:
            kind, entry = self._kind(table, index), table[index * words]
            index += 1
            if words == 2:
                while index < end and self._kind(table, index) == kind:
                    entry += cluster_bytes
                    if kind == _DATA and table[index * 2] != entry:
                        break
                    index += 1
            elif kind == _DATA:
                entry += cluster_bytes
                while index < end and table[index] == entry:
                    entry += cluster_bytes
                    index += 1
            elif kind == _ENCODED:
                while index < end and table[index] & COMPRESSED:
                    index += 1
            else:
                index = end_of_equal(table, index - 1, end)
                while index < end and self._kind(table, index) == kind:
                    index = end_of_equal(table, index, end)
            yield index, kind

    def _kind(self, table: array[int], index: int) -> int:
        """What a cluster's entry is: a `Kind`, or `_MIXED`."""
        entry = table[index * self.words]
        if entry & COMPRESSED:
            return _ENCODED
        if self.words == 2:
            bitmap = table[index * 2 + 1]
            if bitmap == 0:
                return _UNALLOCATED
            if bitmap == ALL_ZERO:
                return _ZERO
            return _DATA if bitmap == ALL_ALLOCATED and entry & self._data_mask else _MIXED
        if entry & self.zero_flag:
            return _ZERO
        return _DATA if entry & self._data_mask else _UNALLOCATED

    def _extent(self, offset: int, length: int, entry: int, inside: int) -> Extent:
        """What a descriptor without subclusters says, for `length` bytes from `inside` of its cluster on."""
        if entry & COMPRESSED:
            host, host_length = self.compressed_range(entry)
            encoded = Encoded(self.header.codec, host, host_length, offset - inside, self.cluster_bytes)
            return Extent(offset, length, _ENCODED, self.storage, 0, 0, None, encoded)
        if entry & self.zero_flag:
            return Extent(offset, length, _ZERO)
        if not entry & self._data_mask:
            return Extent(offset, length, _UNALLOCATED)
        host = entry & OFFSET_MASK
        if host & self._inside_mask or (self.has_data_file and host != offset - inside):
            self._refuse_host(offset - inside, host)
        if self._is_aes:
            encoded = Encoded(AES_CODEC, host, self.cluster_bytes, offset - inside, self.cluster_bytes)
            return Extent(offset, length, _ENCODED, self.storage, 0, 0, None, encoded)
        return Extent(offset, length, _DATA, self.data, host + inside, 0, None, None, entry & COPIED != 0)

    def _subclusters(self, offset: int, length: int, table: array[int], at: int, inside: int) -> Iterable[Extent]:
        """The extents of a range in one cluster that has subclusters; `at` is its place in the table."""
        entry, bitmap = table[at], table[at + 1]
        while (entry, bitmap) != (table[at], table[at + 1]):  # another thread was about to change them
            entry, bitmap = table[at], table[at + 1]
        if entry & COMPRESSED or (bitmap == ALL_ALLOCATED and entry & self._data_mask):
            return (self._extent(offset, length, entry, inside),)
        allocated, zero = bitmap & ALL_ALLOCATED, bitmap >> 32
        if allocated & zero or (allocated and not entry & self._data_mask):
            raise Corrupt(
                self.name,
                f"L2 entry of guest offset {offset - inside}",
                expected="subclusters that are allocated or zero, not both",
                found=f"{entry:#x} {bitmap:#x}",
            )
        size = self.subcluster_bytes
        number, last = inside // size, (inside + length - 1) // size
        found = []
        base = offset - inside
        while number <= last:
            start = number
            is_data, is_zero = allocated >> number & 1, zero >> number & 1
            while number <= last and (allocated >> number & 1, zero >> number & 1) == (is_data, is_zero):
                number += 1
            begin, stop = max(offset, base + start * size), min(offset + length, base + number * size)
            if is_data:
                found.append(self._extent(begin, stop - begin, entry, begin - base))
            else:
                found.append(Extent(begin, stop - begin, _ZERO if is_zero else _UNALLOCATED))
        return found

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """(offset, bytes at most) of the compressed data that a descriptor names."""
        host = entry & ((1 << self.size_shift) - 1)
        sectors = ((entry & ~(COPIED | COMPRESSED)) >> self.size_shift) + 1
        return host, sectors * 512 - (host & 511)

    def _refuse_host(self, guest_offset: int, host: int) -> None:
        expected = "the guest's offset" if self.has_data_file else "an offset of a cluster"
        raise Corrupt(self.name, f"L2 entry of guest offset {guest_offset}", expected=expected, found=host)
