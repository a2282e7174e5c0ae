"""The header section: the two headers and the two region tables ([MS-VHDX] 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.crc32c import crc32c
from vdisk.formats.vhdx.structs import MIB, NO_GUID
from vdisk.storage.base import MAX_OFFSET, Storage

_LOG_PIECE_BYTES = MIB


@dataclass(slots=True)
class Header:
    """The fields of a header that stand for something."""

    sequence_number: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_guid: UUID
    log_offset: int
    log_bytes: int
    log_version: int = 0
    version: int = 1

    def to_bytes(self) -> bytes:
        """The 4 KiB of it, checksum included."""
        return sealed(
            structs.HEADER.build(
                {
                    "checksum": 0,
                    "sequence_number": self.sequence_number,
                    "file_write_guid": self.file_write_guid.bytes_le,
                    "data_write_guid": self.data_write_guid.bytes_le,
                    "log_guid": self.log_guid.bytes_le,
                    "log_version": self.log_version,
                    "version": self.version,
                    "log_length": self.log_bytes,
                    "log_offset": self.log_offset,
                }
            )
        )


@dataclass(slots=True, frozen=True)
class Region:
    """A stretch of the file that holds one structure."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self.offset + self.length

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether a stretch of the file has a byte in common with it."""
        return offset < self.end and self.offset < offset + length


@dataclass(slots=True)
class RegionTable:
    """Where the two structures lie that every file has."""

    bat: Region
    metadata: Region
    optional: list[Region]
    """Regions that this version does not know and may leave alone."""


def sealed(data: bytes) -> bytes:
    """`data` with its CRC-32C put in at byte 4, where all of VHDX's structures have it."""
    changed = bytearray(data)
    changed[4:8] = bytes(4)
    changed[4:8] = crc32c(changed).to_bytes(4, "little")
    return bytes(changed)


def is_sealed(data: bytes | bytearray | memoryview) -> bool:
    """Whether the CRC-32C at byte 4 is right."""
    changed = bytearray(data)
    changed[4:8] = bytes(4)
    return crc32c(changed) == int.from_bytes(data[4:8], "little")


def check_signature(storage: Storage) -> None:
    """`NotThisFormat` when the file is no VHDX."""
    if storage.read(0, 8) != structs.FILE_SIGNATURE:
        raise NotThisFormat(storage.name, "signature", expected=structs.FILE_SIGNATURE, found=storage.read(0, 8))


def read_creator(storage: Storage) -> str:
    """Who made the file, as it says (2.2.1)."""
    text = storage.read(8, structs.CREATOR_BYTES).decode("utf-16-le", "replace")
    return text.partition("\0")[0]


def read_headers(storage: Storage) -> list[Header | None]:
    """Both headers; None for one whose signature or checksum is wrong."""
    found: list[Header | None] = []
    for offset in structs.HEADER_OFFSETS:
        data = storage.read(offset, structs.HEADER_BYTES)
        if len(data) < structs.HEADER_BYTES or data[:4] != b"head" or not is_sealed(data):
            found.append(None)
            continue
        raw = parse(structs.HEADER, data, storage.name, "header")
        found.append(
            Header(
                raw.sequence_number,
                UUID(bytes_le=raw.file_write_guid),
                UUID(bytes_le=raw.data_write_guid),
                UUID(bytes_le=raw.log_guid),
                raw.log_offset,
                raw.log_length,
                raw.log_version,
                raw.version,
            )
        )
    return found


def current_header(storage: Storage) -> tuple[int, Header]:
    """The index and content of the valid header with the higher sequence number (2.2.2.1), checked."""
    headers = read_headers(storage)
    first, second = headers
    if first is None and second is None:
        raise Corrupt(storage.name, "header", expected="one of two with a right checksum", found="neither")
    if first is not None and second is not None and first.sequence_number == second.sequence_number:
        if first != second:
            raise Corrupt(storage.name, "header", "two different headers have the same sequence number")
        second = None
    if first is None or (second is not None and second.sequence_number > first.sequence_number):
        assert second is not None
        index, header = 1, second
    else:
        index, header = 0, first
    _check_header(storage, header)
    return index, header


def _check_header(storage: Storage, header: Header) -> None:
    file = storage.name
    if header.version != 1:
        raise Unsupported(file, "vhdx", f"version {header.version}")
    if header.log_guid != NO_GUID and header.log_version != 0:
        raise Unsupported(file, "vhdx", f"log version {header.log_version}")
    if header.log_bytes % MIB:
        raise Corrupt(file, "log length", expected="a multiple of 1 MiB", found=header.log_bytes)
    if header.log_bytes and (header.log_offset % MIB or header.log_offset < structs.HEADER_SECTION_BYTES):
        raise Corrupt(file, "log offset", expected="a multiple of 1 MiB, not 0", found=header.log_offset)
    if header.log_offset + header.log_bytes > MAX_OFFSET:
        raise Corrupt(file, "log offset", expected="an offset in the file", found=header.log_offset)


class HeaderWriter:
    """Puts headers in place so that one is whole at any moment: the older first, then, for good measure, the other."""

    def __init__(self, storage: Storage, index: int, header: Header) -> None:
        self.storage = storage
        self.header = header
        self._index = index

    def update(self, **fields: object) -> None:
        """Change `fields` of the header, lastingly."""
        if self.header.sequence_number + len(structs.HEADER_OFFSETS) >= 1 << 64:
            raise Corrupt(
                self.storage.name,
                "header SequenceNumber",
                expected="one that can grow",
                found=self.header.sequence_number,
            )
        for _ in structs.HEADER_OFFSETS:
            self._index ^= 1
            self.header = replace(self.header, **fields, sequence_number=self.header.sequence_number + 1)  # type: ignore[arg-type]
            self.storage.write(structs.HEADER_OFFSETS[self._index], self.header.to_bytes())
            self.storage.flush()


def read_region_table(storage: Storage) -> RegionTable:
    """The region table, from the first of its copies that is whole (2.2.3)."""
    for offset in structs.REGION_OFFSETS:
        data = storage.read(offset, structs.REGION_BYTES)
        if len(data) == structs.REGION_BYTES and data[:4] == b"regi" and is_sealed(data):
            return parse_region_table(storage.name, data)
    raise Corrupt(storage.name, "region table", expected="one of two with a right checksum", found="neither")


def parse_region_table(file: str, data: bytes) -> RegionTable:
    """A region table's 64 KiB as regions. An unknown one that is required is `Unsupported`."""
    head_bytes, entry_bytes = structs.REGION_TABLE_HEADER.sizeof(), structs.REGION_ENTRY.sizeof()
    count = parse(structs.REGION_TABLE_HEADER, data[:head_bytes], file, "region table").entry_count
    if count > structs.MAX_TABLE_ENTRIES:
        raise Corrupt(file, "region table entries", expected=f"at most {structs.MAX_TABLE_ENTRIES}", found=count)
    known: dict[UUID, Region] = {}
    names = {structs.BAT_REGION: "BAT", structs.METADATA_REGION: "metadata"}
    optional = []
    for index in range(count):
        at = head_bytes + index * entry_bytes
        raw = parse(structs.REGION_ENTRY, data[at : at + entry_bytes], file, "region entry")
        guid = UUID(bytes_le=raw.guid)
        region = Region(names.get(guid, str(guid)), raw.file_offset, raw.length)
        if guid not in names and raw.required & structs.IS_REQUIRED_REGION:
            raise Unsupported(file, "vhdx", f"required region {guid}")
        _check_region(file, region)
        if guid not in names:
            optional.append(region)
        elif guid in known:
            raise Corrupt(file, "region table", f"the {region.name} region stands in it twice")
        else:
            known[guid] = region
    for guid, name in names.items():
        if guid not in known:
            raise Corrupt(file, "region table", f"the {name} region is missing")
    return RegionTable(known[structs.BAT_REGION], known[structs.METADATA_REGION], optional)


def _check_region(file: str, region: Region) -> None:
    field = f"{region.name} region"
    if region.offset % MIB or region.offset < structs.HEADER_SECTION_BYTES or region.end > MAX_OFFSET:
        raise Corrupt(file, f"{field} offset", expected="a multiple of 1 MiB in the file, not 0", found=region.offset)
    if region.length % MIB or not region.length:
        raise Corrupt(file, f"{field} length", expected="a multiple of 1 MiB", found=region.length)


def build_region_table(bat: Region, metadata: Region) -> bytes:
    """The 64 KiB of a region table of the two known regions."""
    data = structs.REGION_TABLE_HEADER.build({"checksum": 0, "entry_count": 2, "reserved": 0})
    for guid, region in ((structs.BAT_REGION, bat), (structs.METADATA_REGION, metadata)):
        data += structs.REGION_ENTRY.build(
            {
                "guid": guid.bytes_le,
                "file_offset": region.offset,
                "length": region.length,
                "required": structs.IS_REQUIRED_REGION,
            }
        )
    return sealed(data.ljust(structs.REGION_BYTES, b"\0"))


def table_with_bat_at(storage: Storage, bat: Region) -> bytes:
    """The region table in `storage` with another place for the BAT; all else in it stays."""
    data = next(
        table
        for table in (bytearray(storage.read(offset, structs.REGION_BYTES)) for offset in structs.REGION_OFFSETS)
        if table[:4] == b"regi" and is_sealed(table)
    )
    at = data.index(structs.BAT_REGION.bytes_le)
    data[at + 16 : at + 28] = bat.offset.to_bytes(8, "little") + bat.length.to_bytes(4, "little")
    return sealed(bytes(data))
