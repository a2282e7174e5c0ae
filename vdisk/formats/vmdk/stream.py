"""`StreamWriter`: a streamOptimized extent, laid out so that it could be written to a pipe.

Header, descriptor, then grains; a grain table follows the last of its grains, the directory all tables, and a footer
that says where the directory is ends the file. Tables without a grain are left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vdisk.errors import OptionError
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.descriptor import sectors_for
from vdisk.formats.vmdk.layout import ENTRIES_PER_TABLE, GRAIN_SECTORS, ExtentWriter, hosted_header
from vdisk.formats.vmdk.sparse import entry_bytes
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Buffer, Storage

_VERSION = 3
"""What ESXi's import asks for."""
_LAST_SECTOR = (1 << 32) - 1


class StreamWriter(ExtentWriter):
    """Every byte is written once, in ascending order; `place_encoded` gives the places of the grains."""

    unit_bytes = GRAIN_SECTORS * SECTOR_BYTES

    def __init__(self, storage: Storage, sectors: int, descriptor: bytes) -> None:
        self.storage = storage
        self._sectors = sectors
        descriptor_sectors = sectors_for(descriptor)
        overhead = -(-(1 + descriptor_sectors) // GRAIN_SECTORS) * GRAIN_SECTORS
        self._descriptor_sectors = descriptor_sectors
        self._overhead_sectors = overhead
        tables = -(-sectors // (GRAIN_SECTORS * ENTRIES_PER_TABLE))
        self._directory = array("I", bytes(4 * tables))
        self._table = array("I", bytes(4 * ENTRIES_PER_TABLE))
        self._table_index = 0
        self._table_is_used = False
        self._last_grain = -1
        self._next_sector = overhead
        head = self._header(structs.GD_AT_END) + descriptor
        storage.write(0, head.ljust(overhead * SECTOR_BYTES, b"\0"))

    def _header(self, directory_sector: int) -> bytes:
        return hosted_header(
            version=_VERSION,
            flags=structs.FLAG_NEWLINES | structs.FLAG_COMPRESSED | structs.FLAG_MARKERS,
            capacity_sectors=self._sectors,
            descriptor_sector=1,
            descriptor_sectors=self._descriptor_sectors,
            redundant_directory_sector=0,
            directory_sector=directory_sector,
            overhead_sectors=self._overhead_sectors,
            compression=structs.COMPRESSION_DEFLATE,
        )

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        raise OptionError("vmdk: every grain of streamOptimized is compressed")

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[int, Buffer]:
        """Room for a grain's zlib stream: (host, the table before it if that is full, marker, stream and padding)."""
        grain = offset // self.unit_bytes
        if grain <= self._last_grain:
            raise OptionError(f"vmdk: streamOptimized is written in order: offset {offset} comes too late")
        self._last_grain = grain
        index, slot = divmod(grain, ENTRIES_PER_TABLE)
        table, table_sector = b"", self._next_sector
        if index != self._table_index:
            table = self._finished_table()
            self._table_index = index
        sector = self._next_sector
        framed_bytes = structs.GRAIN_MARKER_BYTES + len(payload)
        sectors = -(-framed_bytes // SECTOR_BYTES)
        if sector + sectors > _LAST_SECTOR:
            raise OptionError("vmdk: more data than the 2 TiB that a streamOptimized file can hold")
        self._next_sector += sectors
        self._table[slot] = sector
        self._table_is_used = True
        framed = bytearray(sectors * SECTOR_BYTES)
        framed[0:8] = (offset // SECTOR_BYTES).to_bytes(8, "little")
        framed[8:12] = len(payload).to_bytes(4, "little")
        framed[12:framed_bytes] = payload
        return table_sector * SECTOR_BYTES, table + framed

    def _finished_table(self) -> bytes:
        """The table of the grains so far, with its marker, given its place at the end; nothing where it has none."""
        if not self._table_is_used:
            return b""
        raw = entry_bytes(self._table)
        self._directory[self._table_index] = self._next_sector + 1
        self._table = array("I", bytes(4 * ENTRIES_PER_TABLE))
        self._table_is_used = False
        framed = _marker(len(raw) // SECTOR_BYTES, structs.MARKER_TABLE) + raw
        self._next_sector += len(framed) // SECTOR_BYTES
        return framed

    def _append(self, raw: bytes) -> None:
        self.storage.write(self._next_sector * SECTOR_BYTES, raw)
        self._next_sector += len(raw) // SECTOR_BYTES

    def finish(self) -> None:
        table_sector = self._next_sector
        table = self._finished_table()
        if table:
            self.storage.write(table_sector * SECTOR_BYTES, table)
        raw = entry_bytes(self._directory)
        raw = raw.ljust(max(1, -(-len(raw) // SECTOR_BYTES)) * SECTOR_BYTES, b"\0")
        directory_sector = self._next_sector + 1
        self._append(_marker(len(raw) // SECTOR_BYTES, structs.MARKER_DIRECTORY) + raw)
        self._append(_marker(1, structs.MARKER_FOOTER) + self._header(directory_sector))
        self._append(_marker(0, structs.MARKER_END_OF_STREAM))


def _marker(sectors: int, kind: int) -> bytes:
    """A sector that announces `sectors` of metadata."""
    raw: bytes = structs.Marker.build({"value": sectors, "length": 0, "type": kind})
    return raw.ljust(SECTOR_BYTES, b"\0")
