"""`SeSparseExtent`: VMware's space-efficient sparse extent, read only.

Entries of 64 bits: a directory entry is 0 or has 1 in its top nibble and a table's number below; a table entry's top
nibble says 0 not allocated, 1 unmapped, 2 zero, 3 data, and of the grain's number the low 12 bits come first.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Extent, Kind, coalesce
from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.header import LARGEST_DIRECTORY_ENTRIES
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Storage

_TABLE_MARK = 0x10000000
_TYPE_SHIFT = 60
_FREE, _UNMAPPED, _ZERO, _DATA = range(4)
_TABLES_KEPT_BYTES = 16 << 20


class SeSparseExtent(StorageDevice):
    """The grains of one seSparse extent file, offsets counted from the extent's start. Owns its storage."""

    def __init__(self, storage: Storage, *, backing: BlockDevice | None = None) -> None:
        header = parse(structs.SeSparseHeader, _checked_head(storage), storage.name, "header")
        self._check(storage, header)
        super().__init__(
            storage,
            header.capacity_sectors * SECTOR_BYTES,
            block_size=header.grain_sectors * SECTOR_BYTES,
            writable=False,
            backing=backing,
        )
        self._grain_bytes = header.grain_sectors * SECTOR_BYTES
        self._table_bytes = header.table_sectors * SECTOR_BYTES
        self._entries_per_table = self._table_bytes // 8
        self._tables_start = header.tables_sector * SECTOR_BYTES
        self._tables_count = header.tables_sectors // header.table_sectors
        self._grains_start = header.grains_sector * SECTOR_BYTES
        self._grains_end = min(self._grains_start + header.grains_sectors * SECTOR_BYTES, storage.size)
        count = -(-self.size // (self._grain_bytes * self._entries_per_table))
        self._directory = _entries(storage.read(header.directory_sector * SECTOR_BYTES, 8 * count))
        self._tables: dict[int, array[int]] = {}

    def _check(self, storage: Storage, header: object) -> None:
        name = storage.name

        def expect(holds: bool, field: str, expected: object) -> None:
            if not holds:
                raise Corrupt(name, f"header: {field}", expected=expected, found=getattr(header, field))

        def field(what: str) -> int:
            return int(getattr(header, what))

        if field("version") != structs.SESPARSE_VERSION:
            raise Unsupported(name, "vmdk", f"seSparse version {field('version'):#x}")
        grain, table = field("grain_sectors"), field("table_sectors")
        expect(0 < grain <= 1 << 15 and grain & (grain - 1) == 0, "grain_sectors", "a power of two up to 32768")
        expect(0 < table <= 1 << 12, "table_sectors", "1 to 4096")
        expect(field("capacity_sectors") < 1 << 53, "capacity_sectors", "less than 2^53")
        for what in ("tables_sector", "tables_sectors", "grains_sector", "grains_sectors", "directory_sector"):
            expect(field(what) < 1 << 53, what, "less than 2^53")
        count = -(-field("capacity_sectors") // (grain * table * (SECTOR_BYTES // 8)))
        expect(count <= LARGEST_DIRECTORY_ENTRIES, "capacity_sectors", f"at most {LARGEST_DIRECTORY_ENTRIES} tables")
        expect(
            count * 8 <= field("directory_sectors") * SECTOR_BYTES
            and field("directory_sector") * SECTOR_BYTES + count * 8 <= storage.size,
            "directory_sectors",
            f"a directory of {count} entries inside the file of {storage.size} bytes",
        )
        at = field("volatile_header_sector")
        expect(at < 1 << 53, "volatile_header_sector", "less than 2^53")
        raw = storage.read(at * SECTOR_BYTES, SECTOR_BYTES)
        volatile = parse(structs.SeSparseVolatileHeader, raw, name, "volatile header")
        if volatile.magic != structs.SESPARSE_VOLATILE_MAGIC:
            raise Corrupt(
                name, "volatile header: magic", expected=hex(structs.SESPARSE_VOLATILE_MAGIC), found=hex(volatile.magic)
            )
        if volatile.replay_journal:
            raise Unsupported(name, "vmdk", "seSparse with a journal that is to be replayed")

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        grain, inside = divmod(offset, self._grain_bytes)
        if inside + length <= self._grain_bytes:
            index, slot = divmod(grain, self._entries_per_table)
            table = self._tables.get(index) or self._load(index)
            return (self._extent(offset, length, table[slot], inside),)
        return self._survey(offset, length)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        return coalesce(self._pieces(offset, offset + length))

    def _pieces(self, offset: int, end: int) -> Iterator[Extent]:
        span = self._grain_bytes * self._entries_per_table
        while offset < end:
            index, inside_table = divmod(offset, span)
            stop = min(end, (index + 1) * span)
            if self._directory[index] == 0:
                yield Extent(offset, stop - offset, Kind.UNALLOCATED)
                offset = stop
                continue
            table = self._tables.get(index) or self._load(index)
            slot, inside = divmod(inside_table, self._grain_bytes)
            while offset < stop:
                length = min(self._grain_bytes - inside, stop - offset)
                yield self._extent(offset, length, table[slot], inside)
                offset += length
                slot, inside = slot + 1, 0

    def _extent(self, start: int, length: int, entry: int, inside: int) -> Extent:
        if entry == 0:
            return Extent(start, length, Kind.UNALLOCATED)
        kind = entry >> _TYPE_SHIFT
        if kind in (_UNMAPPED, _ZERO):
            return Extent(start, length, Kind.ZERO)
        grain = (entry >> 48 & 0xFFF) | (entry & 0xFFFFFFFFFFFF) << 12
        host = self._grains_start + grain * self._grain_bytes + inside
        if kind != _DATA or host + length > self._grains_end:
            raise Corrupt(
                self.name,
                f"grain table entry of guest offset {start}",
                expected=f"a grain inside the file of {self._grains_end} bytes",
                found=hex(entry),
            )
        return Extent(start, length, Kind.DATA, self.storage, host)

    def _load(self, index: int) -> array[int]:
        entry = self._directory[index]
        if entry == 0:
            return array("Q", bytes(self._table_bytes))
        number = entry & 0xFFFFFFFF
        raw = self.storage.read(self._tables_start + number * self._table_bytes, self._table_bytes)
        if entry >> 32 != _TABLE_MARK or number >= self._tables_count or len(raw) < self._table_bytes:
            raise Corrupt(
                self.name,
                f"grain directory entry {index}",
                expected=f"one of {self._tables_count} tables",
                found=hex(entry),
            )
        table = _entries(raw)
        with self._lock:
            if len(self._tables) * self._table_bytes >= _TABLES_KEPT_BYTES:
                for old in list(self._tables)[: len(self._tables) // 2 + 1]:
                    del self._tables[old]
            self._tables[index] = table
        return table


def _checked_head(storage: Storage) -> bytes:
    raw = storage.read(0, SECTOR_BYTES)
    magic = structs.SESPARSE_MAGIC.to_bytes(8, "little")
    if raw[:8] != magic:
        raise NotThisFormat(storage.name, "magic", expected=magic.hex(), found=raw[:8].hex())
    return raw


def _entries(raw: bytes) -> array[int]:
    table = array("Q")
    table.frombytes(raw)
    if sys.byteorder == "big":
        table.byteswap()
    return table
