"""`Qcow2Image`: clusters behind a two-level table (QEMU docs/interop/qcow2, "Cluster mapping")."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Self

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Encoded, Extent, Kind
from vdisk.errors import Corrupt, PolicyError, Unsupported
from vdisk.formats import open_behind
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.qcow2.header import CORRUPT, DIRTY, LAZY_REFCOUNTS, Header
from vdisk.formats.qcow2.refcounts import Refcounts, load_big_endian, store_big_endian
from vdisk.storage.base import Storage

OFFSET_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO_FLAG = 1

_L2_CACHE_BYTES = 32 << 20
_DIRTY_L2_BYTES = 8 << 20


class Qcow2Image(StorageDevice, Image):
    """Versions 2 and 3: compressed clusters, backing files, shared clusters of internal snapshots.

    Metadata changes stay in memory until `flush`: data first, then reference counts, then the tables that point to the
    data, then the counts of what is no longer used. A kill in between leaks clusters and loses nothing flushed.
    """

    format_name = "qcow2"

    def __init__(self, storage: Storage, header: Header, *, writable: bool, backing: BlockDevice | None) -> None:
        super().__init__(
            storage, header.disk_bytes, writable=writable, block_size=header.cluster_bytes, backing=backing
        )
        self.header = header
        self._cluster_bits = header.cluster_bits
        self._cluster_bytes = header.cluster_bytes
        self._l2_bits = header.cluster_bits - 3
        self._l2_mask = (1 << self._l2_bits) - 1
        self._size_shift = 62 - (header.cluster_bits - 8)
        self._zero_flag = ZERO_FLAG if header.version >= 3 else 0
        length = header.l1_entries * 8
        raw = storage.read(header.l1_offset, length)
        if len(raw) < length:
            raise Corrupt(storage.name, "L1 table", expected=f"{length} bytes at {header.l1_offset}", found=len(raw))
        self._l1 = load_big_endian(raw, "Q")
        self._l2_cache: dict[int, array[int]] = {}
        self._l2_cache_most = max(4, _L2_CACHE_BYTES // self._cluster_bytes)
        self._l2_lock = threading.Lock()
        self._dirty_l2: set[int] = set()
        self._dirty_l1: set[int] = set()
        self._no_longer_used: list[tuple[int, int]] = []
        self._refcounts_or_none: Refcounts | None = None

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        backing: BlockDevice | None = None
        try:
            header = Header.read(storage)
            if request.writable and header.incompatible & CORRUPT:
                raise Corrupt(storage.name, "corrupt bit", "set: vdisk check --repair all, or open it for reading")
            if request.writable and header.incompatible & DIRTY:
                raise Unsupported(storage.name, "qcow2", "writing an image whose dirty bit is set")
            if header.backing_name is not None and request.with_backing:
                backing = _open_backing(header.backing_name, header.backing_format, storage, request)
            return cls(storage, header, writable=request.writable, backing=backing)
        except BaseException:
            storage.close()
            if backing is not None:
                backing.close()
            raise

    def describe(self) -> Description:
        header = self.header
        specific: dict[str, Any] = {"compat": "1.1" if header.version >= 3 else "0.10"}
        specific["compression-type"] = {"deflate": "zlib"}.get(header.codec, header.codec)
        if header.version >= 3:
            specific["lazy-refcounts"] = bool(header.compatible & LAZY_REFCOUNTS)
        specific["refcount-bits"] = header.refcount_bits
        if header.version >= 3:
            specific["corrupt"] = bool(header.incompatible & CORRUPT)
            specific["extended-l2"] = header.has_subclusters
        return Description(
            cluster_size=header.cluster_bytes,
            is_dirty=bool(header.incompatible & DIRTY),
            backing_name=header.backing_name,
            backing_format=header.backing_format,
            specific=specific,
        )

    # Tables ----------------------------------------------------------------------------------------------------

    def _l2_table(self, l1_index: int) -> array[int] | None:
        """An L2 table, from the cache or the file; None where the L1 entry is empty."""
        table = self._l2_cache.get(l1_index)
        if table is not None:
            return table
        if not self._l1[l1_index] & OFFSET_MASK:
            return None
        table = self._read_l2(l1_index)
        with self._l2_lock:
            present = self._l2_cache.get(l1_index)
            if present is not None:
                return present
            if len(self._l2_cache) >= self._l2_cache_most:
                self._drop_l2_tables()
            self._l2_cache[l1_index] = table
        return table

    def _read_l2(self, l1_index: int) -> array[int]:
        host = self._l1[l1_index] & OFFSET_MASK
        if host & (self._cluster_bytes - 1):
            raise Corrupt(self.name, f"L1 entry {l1_index}", expected="an offset of a cluster", found=host)
        raw = self.storage.read(host, self._cluster_bytes)
        if len(raw) < self._cluster_bytes:
            raise Corrupt(
                self.name,
                f"L2 table at {host}",
                expected=f"{self._cluster_bytes} bytes",
                found=f"{len(raw)} in the file",
            )
        return load_big_endian(raw, "Q")

    def _drop_l2_tables(self) -> None:
        """Drop the oldest quarter of what is clean."""
        clean = [index for index in self._l2_cache if index not in self._dirty_l2]
        for index in clean[: max(1, self._l2_cache_most // 4)]:
            del self._l2_cache[index]

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        bits = self._cluster_bits
        cluster = offset >> bits
        inside = offset & (self._cluster_bytes - 1)
        if inside + length <= self._cluster_bytes:
            table = self._l2_table(cluster >> self._l2_bits)
            if table is None:
                return (Extent(offset, length, Kind.UNALLOCATED),)
            return (self._extent(offset, length, table[cluster & self._l2_mask], inside),)
        return self._walk(offset, length)

    def _walk(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of a range, neighbours joined."""
        end = offset + length
        span = self._cluster_bytes << self._l2_bits
        while offset < end:
            l1_index = offset // span
            stop = min(end, (l1_index + 1) * span)
            if not self._l1[l1_index] & OFFSET_MASK and l1_index not in self._l2_cache:
                while stop < end and not self._l1[stop // span] & OFFSET_MASK and stop // span not in self._l2_cache:
                    stop = min(end, stop + span)
                yield Extent(offset, stop - offset, Kind.UNALLOCATED)
                offset = stop
                continue
            table = self._l2_cache.get(l1_index)
            if table is None:
                # A long walk would wash the cache out; a short one warms it.
                table = self._read_l2(l1_index) if length > 4 * span else self._l2_table(l1_index)
                assert table is not None
            yield from self._walk_table(table, offset, stop)
            offset = stop

    def _walk_table(self, table: array[int], offset: int, end: int) -> Iterator[Extent]:
        """The extents of a range that one L2 table maps."""
        bits, cluster_bytes, zero_flag = self._cluster_bits, self._cluster_bytes, self._zero_flag
        index = (offset >> bits) & self._l2_mask
        last = ((end - 1) >> bits) & self._l2_mask
        run_ends = _run_ends(table, index, last + 1, cluster_bytes, zero_flag)
        for run_end in run_ends:
            stop = min(end, (offset & ~(cluster_bytes - 1)) + (run_end - index) * cluster_bytes)
            entry = table[index]
            if entry & COMPRESSED:
                while offset < stop:
                    unit_end = min(stop, (offset & ~(cluster_bytes - 1)) + cluster_bytes)
                    yield self._extent(offset, unit_end - offset, table[index], offset & (cluster_bytes - 1))
                    offset = unit_end
                    index += 1
            else:
                yield self._extent(offset, stop - offset, entry, offset & (cluster_bytes - 1))
            offset, index = stop, run_end

    def _extent(self, offset: int, length: int, entry: int, inside: int) -> Extent:
        """What an L2 entry says, for `length` bytes from `inside` of its cluster on."""
        if entry & COMPRESSED:
            host = entry & ((1 << self._size_shift) - 1)
            sectors = ((entry & ~(COPIED | COMPRESSED)) >> self._size_shift) + 1
            encoded = Encoded(
                self.header.codec, host, sectors * 512 - (host & 511), offset - inside, self._cluster_bytes
            )
            return Extent(offset, length, Kind.ENCODED, self.storage, encoded=encoded)
        if entry & self._zero_flag:
            return Extent(offset, length, Kind.ZERO)
        host = entry & OFFSET_MASK
        if not host:
            return Extent(offset, length, Kind.UNALLOCATED)
        if host & (self._cluster_bytes - 1):
            raise Corrupt(
                self.name, f"L2 entry of guest offset {offset - inside}", expected="an offset of a cluster", found=host
            )
        return Extent(offset, length, Kind.DATA, self.storage, host + inside, in_place=bool(entry & COPIED))

    # Writing ---------------------------------------------------------------------------------------------------

    @property
    def _refcounts(self) -> Refcounts:
        if self._refcounts_or_none is None:
            self._refcounts_or_none = Refcounts(self.storage, self.header)
        return self._refcounts_or_none

    def _begin_write(self) -> None:
        refcounts = self._refcounts
        header = self.header
        for what, offset in (("header", 0), ("L1 table", header.l1_offset),
                             ("refcount table", header.refcount_table_offset)):  # fmt: skip
            if refcounts.get(offset // self._cluster_bytes) == 0:
                raise Corrupt(
                    self.name, f"refcount of the {what}", "expected 1, found 0; vdisk check --repair all counts anew"
                )
        if header.autoclear:
            header.autoclear = 0
            header.write_fields(self.storage)

    def _place(self, offset: int, data: memoryview) -> None:
        cluster_bytes = self._cluster_bytes
        position = 0
        while position < len(data):
            count = -(-(len(data) - position) // cluster_bytes)
            guest_cluster = (offset + position) >> self._cluster_bits
            count = min(count, (self._l2_mask + 1) - (guest_cluster & self._l2_mask))
            table = self._writable_l2(guest_cluster >> self._l2_bits)
            host = self._refcounts.allocate(count) * cluster_bytes
            part = data[position : position + count * cluster_bytes]
            self.storage.write(host, part)
            if len(part) < count * cluster_bytes:
                self.storage.write(host + count * cluster_bytes - 1, b"\0")
            index = guest_cluster & self._l2_mask
            for number in range(index, index + count):
                self._release_entry(table[number])
            table[index : index + count] = array(
                "Q", range(host | COPIED, (host | COPIED) + count * cluster_bytes, cluster_bytes)
            )
            position += count * cluster_bytes
        self._bound_dirty()

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if not self._zero_flag and self.backing is not None:
            return False
        first = offset >> self._cluster_bits
        end = -(-(offset + length) // self._cluster_bytes)
        self._set_entries(first, end, self._zero_flag if self.backing is not None else None)
        return True

    def _discard(self, offset: int, length: int) -> None:
        first = offset >> self._cluster_bits
        end = -(-(offset + length) // self._cluster_bytes)
        if self._zero_flag or self.backing is None:
            self._set_entries(first, end, self._zero_flag if self.backing is not None else None)

    def _set_entries(self, first: int, end: int, entry: int | None) -> None:
        """Give up the clusters of a range; with `entry`, their tables say that, else nothing, where no backing shows."""
        while first < end:
            l1_index = first >> self._l2_bits
            stop = min(end, (l1_index + 1) << self._l2_bits)
            table = self._l2_table(l1_index)
            if table is None and not entry:
                first = stop
                continue
            index, last = first & self._l2_mask, (first & self._l2_mask) + stop - first
            if table is not None and all(found == (entry or 0) for found in table[index:last]):
                first = stop
                continue
            table = self._writable_l2(l1_index)
            for number in range(index, last):
                self._release_entry(table[number])
            table[index:last] = array("Q", (entry or 0,)) * (last - index)
            first = stop
        self._bound_dirty()

    def _writable_l2(self, l1_index: int) -> array[int]:
        """An L2 table that may be changed: a new one where there is none, a copy where a snapshot shares it."""
        entry = self._l1[l1_index]
        if entry & COPIED:
            table = self._l2_table(l1_index)
            assert table is not None
            self._dirty_l2.add(l1_index)
            self._l2_cache[l1_index] = table
            return table
        shared = self._l2_table(l1_index)
        table = array("Q", bytes(self._cluster_bytes)) if shared is None else shared[:]
        if shared is not None:
            self._no_longer_used.append((entry & OFFSET_MASK, 1))
        self._l1[l1_index] = self._refcounts.allocate(1) * self._cluster_bytes | COPIED
        self._dirty_l1.add(l1_index)
        self._dirty_l2.add(l1_index)
        self._l2_cache[l1_index] = table
        return table

    def _release_entry(self, entry: int) -> None:
        """Remember what an L2 entry that is about to go refers to: its count goes down once the table is written."""
        if entry & COMPRESSED:
            host = entry & ((1 << self._size_shift) - 1)
            sectors = ((entry & ~(COPIED | COMPRESSED)) >> self._size_shift) + 1
            last = (host & ~511) + sectors * 512 - 1
            first_cluster, last_cluster = host >> self._cluster_bits, last >> self._cluster_bits
            self._no_longer_used.append((first_cluster << self._cluster_bits, last_cluster - first_cluster + 1))
        elif entry & OFFSET_MASK:
            self._no_longer_used.append((entry & OFFSET_MASK, 1))

    def _bound_dirty(self) -> None:
        if len(self._dirty_l2) * self._cluster_bytes > _DIRTY_L2_BYTES or len(self._no_longer_used) > 100_000:
            self._flush()

    def _flush(self) -> None:
        storage = self.storage
        storage.flush()
        if self._refcounts_or_none is not None:
            self._refcounts.write_back()
        if self._dirty_l2:
            for index in sorted(self._dirty_l2):
                storage.write(self._l1[index] & OFFSET_MASK, store_big_endian(self._l2_cache[index]))
            self._dirty_l2.clear()
            storage.flush()
        if self._dirty_l1:
            first, last = min(self._dirty_l1), max(self._dirty_l1)
            storage.write(self.header.l1_offset + 8 * first, store_big_endian(self._l1[first : last + 1]))
            self._dirty_l1.clear()
            storage.flush()
        if self._no_longer_used:
            for host, count in self._no_longer_used:
                for cluster in range(host >> self._cluster_bits, (host >> self._cluster_bits) + count):
                    self._refcounts.add(cluster, -1)
            self._no_longer_used.clear()
            self._refcounts.write_back()


def _run_ends(table: array[int], first: int, end: int, cluster_bytes: int, zero_flag: int) -> list[int]:
    """Where runs of entries end: equal kinds, and for data the next entry is one cluster further."""
    if end - first < 64:
        ends = []
        entry = table[first]
        for index in range(first + 1, end):
            after = table[index]
            if _mark(entry, zero_flag):
                same = _mark(after, zero_flag) == _mark(entry, zero_flag)
            else:
                same = after == entry + cluster_bytes
            if not same:
                ends.append(index)
            entry = after
        ends.append(end)
        return ends
    import numpy

    entries = numpy.frombuffer(table, numpy.uint64)[first:end]
    compressed = (entries & numpy.uint64(COMPRESSED)) != 0
    zero = ~compressed & ((entries & numpy.uint64(zero_flag)) != 0)
    data = ~compressed & ~zero & ((entries & numpy.uint64(OFFSET_MASK)) != 0)
    kind = compressed * 1 + zero * 2 + data * 3
    goes_on = (kind[1:] == kind[:-1]) & (~data[1:] | (numpy.diff(entries) == cluster_bytes))
    breaks: list[int] = (numpy.flatnonzero(~goes_on) + first + 1).tolist()
    return [*breaks, end]


def _mark(entry: int, zero_flag: int) -> int:
    """What an entry says beside a plain host offset: 0 for data, else compressed, zero or empty."""
    if entry & COMPRESSED:
        return 1
    if entry & zero_flag:
        return 2
    return 0 if entry & OFFSET_MASK else 3


def _open_backing(name: str, format: str | None, storage: Storage, request: OpenRequest) -> BlockDevice:
    """The image behind this one; its format is never guessed."""
    format = format or request.backing_format
    if format is None:
        raise PolicyError(
            storage.name, "backing format", name, "the image does not name it, and it is not guessed",
            "name it with --backing-format",
        )  # fmt: skip
    return open_behind(request.gate, "backing file", name, format)
