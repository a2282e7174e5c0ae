"""The metadata region: what the disk is ([MS-VHDX] 2.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import Region
from vdisk.formats.vhdx.structs import NO_GUID
from vdisk.storage.base import Storage


@dataclass(slots=True)
class Item:
    """A metadata item as it is stored."""

    guid: UUID
    flags: int
    data: bytes


@dataclass(slots=True)
class Metadata:
    """The items, read."""

    block_bytes: int
    disk_bytes: int
    logical_sector_bytes: int
    physical_sector_bytes: int
    leaves_blocks_allocated: bool = False
    has_parent: bool = False
    page_83_data: UUID = NO_GUID
    locator: dict[str, str] = field(default_factory=dict)
    """The parent locator's keys and values."""
    others: list[Item] = field(default_factory=list)
    """Items that this version does not know, and keeps."""

    @property
    def block_count(self) -> int:
        """Payload blocks of the disk."""
        return -(-self.disk_bytes // self.block_bytes)

    @property
    def chunk_blocks(self) -> int:
        """Payload blocks to one sector bitmap block: the chunk ratio (2.5)."""
        return structs.CHUNK_SECTORS * self.logical_sector_bytes // self.block_bytes

    @property
    def bat_entries(self) -> int:
        """Entries of the BAT, those of sector bitmap blocks included."""
        chunks = -(-self.block_count // self.chunk_blocks)
        if self.has_parent:
            return chunks * (self.chunk_blocks + 1)
        return self.block_count + max(0, chunks - 1)

    def check_bat(self, storage: Storage, region: Region) -> None:
        """`Corrupt` unless the BAT's region and the file have all of the entries."""
        needed = self.bat_entries * 8
        if needed > region.length:
            raise Corrupt(storage.name, "BAT region length", expected=f"at least {needed}", found=region.length)
        if region.offset + needed > storage.size:
            where = f"{needed} bytes at {region.offset}"
            raise Corrupt(storage.name, "BAT region", expected=where, found=f"a file of {storage.size} bytes")


_NAMES = {
    structs.FILE_PARAMETERS: "file parameters",
    structs.VIRTUAL_DISK_SIZE: "virtual disk size",
    structs.PAGE_83_DATA: "page 83 data",
    structs.LOGICAL_SECTOR_SIZE: "logical sector size",
    structs.PHYSICAL_SECTOR_SIZE: "physical sector size",
    structs.PARENT_LOCATOR: "parent locator",
}


def read_metadata(storage: Storage, region: Region) -> Metadata:
    """The metadata, checked. An unknown required item is `Unsupported`."""
    file = storage.name
    stored = _read_items(storage, region)
    items = {item.guid: item for item in stored if _is_known(item.guid, item.flags)}
    parameters = parse(
        structs.FILE_PARAMETERS_ITEM, _data(file, items, structs.FILE_PARAMETERS, 8), file, "file parameters"
    )
    unknown_flags = parameters.flags & ~(structs.LEAVE_BLOCKS_ALLOCATED | structs.HAS_PARENT)
    if unknown_flags:
        raise Unsupported(file, "vhdx", f"file parameters flags {unknown_flags:#x}")
    found = Metadata(
        block_bytes=parameters.block_bytes,
        disk_bytes=int.from_bytes(_data(file, items, structs.VIRTUAL_DISK_SIZE, 8), "little"),
        logical_sector_bytes=int.from_bytes(_data(file, items, structs.LOGICAL_SECTOR_SIZE, 4), "little"),
        physical_sector_bytes=512,
        # A file with a parent ignores this flag (2.6.2.1).
        leaves_blocks_allocated=parameters.flags & (structs.LEAVE_BLOCKS_ALLOCATED | structs.HAS_PARENT)
        == structs.LEAVE_BLOCKS_ALLOCATED,
        has_parent=bool(parameters.flags & structs.HAS_PARENT),
        others=[item for item in stored if not _is_known(item.guid, item.flags)],
    )
    if structs.PHYSICAL_SECTOR_SIZE in items:
        data = _data(file, items, structs.PHYSICAL_SECTOR_SIZE, 4)
        found.physical_sector_bytes = int.from_bytes(data, "little")
    if structs.PAGE_83_DATA in items:
        found.page_83_data = UUID(bytes_le=_data(file, items, structs.PAGE_83_DATA, 16))
    _check(file, found)
    if found.has_parent:
        if structs.PARENT_LOCATOR not in items:
            raise Corrupt(file, "parent locator", expected="one, as the file has a parent", found="none")
        found.locator = _parse_locator(file, items[structs.PARENT_LOCATOR].data)
    return found


def _is_known(guid: UUID, flags: int) -> bool:
    return guid in _NAMES and not flags & structs.IS_USER_ITEM


def _read_items(storage: Storage, region: Region) -> list[Item]:
    file = storage.name
    table = storage.read(region.offset, structs.METADATA_TABLE_BYTES)
    head_bytes, entry_bytes = structs.METADATA_TABLE_HEADER.sizeof(), structs.METADATA_ENTRY.sizeof()
    count = parse(structs.METADATA_TABLE_HEADER, table[:head_bytes], file, "metadata table").entry_count
    if count > structs.MAX_TABLE_ENTRIES:
        raise Corrupt(file, "metadata table entries", expected=f"at most {structs.MAX_TABLE_ENTRIES}", found=count)
    items = []
    total_bytes = 0
    for index in range(count):
        at = head_bytes + index * entry_bytes
        raw = parse(structs.METADATA_ENTRY, table[at : at + entry_bytes], file, "metadata entry")
        guid = UUID(bytes_le=raw.item_id)
        if guid == NO_GUID and not raw.length:
            continue
        name = _NAMES.get(guid, f"metadata item {guid}")
        if not _is_known(guid, raw.flags) and raw.flags & structs.IS_REQUIRED_ITEM:
            raise Unsupported(file, "vhdx", f"required metadata item {guid}")
        if raw.length:
            if raw.offset < structs.METADATA_TABLE_BYTES or raw.offset + raw.length > region.length:
                raise Corrupt(file, f"{name} offset", expected="an offset in the metadata region", found=raw.offset)
            total_bytes += raw.length
            if raw.length > structs.MAX_ITEM_BYTES or total_bytes > region.length:
                raise Corrupt(
                    file, f"{name} length", expected=f"at most {structs.MAX_ITEM_BYTES} bytes", found=raw.length
                )
        items.append(Item(guid, raw.flags, storage.read(region.offset + raw.offset, raw.length)))
    return items


def _data(file: str, items: dict[UUID, Item], guid: UUID, length: int) -> bytes:
    if guid not in items:
        raise Corrupt(file, "metadata table", f"the {_NAMES[guid]} item is missing")
    data = items[guid].data
    if len(data) < length:
        raise Corrupt(file, f"{_NAMES[guid]} length", expected=length, found=len(data))
    return data[:length]


def _check(file: str, found: Metadata) -> None:
    block, sector = found.block_bytes, found.logical_sector_bytes
    if block & (block - 1) or not structs.MIN_BLOCK_BYTES <= block <= structs.MAX_BLOCK_BYTES:
        raise Corrupt(file, "block size", expected="a power of two from 1 MiB to 256 MiB", found=block)
    if sector not in (512, 4096):
        raise Corrupt(file, "logical sector size", expected="512 or 4096", found=sector)
    if found.physical_sector_bytes not in (512, 4096):
        raise Corrupt(file, "physical sector size", expected="512 or 4096", found=found.physical_sector_bytes)
    if found.disk_bytes % sector or found.disk_bytes > structs.MAX_DISK_BYTES:
        raise Corrupt(
            file, "virtual disk size", expected=f"a multiple of {sector}, at most 64 TiB", found=found.disk_bytes
        )


def _parse_locator(file: str, data: bytes) -> dict[str, str]:
    head_bytes, entry_bytes = structs.PARENT_LOCATOR_HEADER.sizeof(), structs.PARENT_LOCATOR_ENTRY.sizeof()
    head = parse(structs.PARENT_LOCATOR_HEADER, data[:head_bytes], file, "parent locator")
    if UUID(bytes_le=head.locator_type) != structs.VHDX_LOCATOR_TYPE:
        raise Unsupported(file, "vhdx", f"parent locator type {UUID(bytes_le=head.locator_type)}")
    found: dict[str, str] = {}
    for index in range(min(head.key_value_count, (len(data) - head_bytes) // entry_bytes)):
        at = head_bytes + index * entry_bytes
        entry = parse(structs.PARENT_LOCATOR_ENTRY, data[at : at + entry_bytes], file, "parent locator entry")
        texts = []
        for what, offset, length in (
            ("key", entry.key_offset, entry.key_length),
            ("value", entry.value_offset, entry.value_length),
        ):
            raw = data[offset : offset + length]
            if len(raw) != length or length % 2:
                raise Corrupt(
                    file, f"parent locator {what}", expected="UTF-16 text in the item", found=f"{length} bytes"
                )
            texts.append(raw.decode("utf-16-le", "replace").rstrip("\0"))
        found[texts[0]] = texts[1]
    return found


def _build_locator(locator: dict[str, str]) -> bytes:
    head_bytes, entry_bytes = structs.PARENT_LOCATOR_HEADER.sizeof(), structs.PARENT_LOCATOR_ENTRY.sizeof()
    head: bytes = structs.PARENT_LOCATOR_HEADER.build(
        {"locator_type": structs.VHDX_LOCATOR_TYPE.bytes_le, "reserved": 0, "key_value_count": len(locator)}
    )
    entries = texts = b""
    texts_at = head_bytes + entry_bytes * len(locator)
    for key, value in locator.items():
        key_data, value_data = key.encode("utf-16-le", "replace"), value.encode("utf-16-le", "replace")
        key_at = texts_at + len(texts)
        entries += structs.PARENT_LOCATOR_ENTRY.build(
            {
                "key_offset": key_at,
                "value_offset": key_at + len(key_data),
                "key_length": len(key_data),
                "value_length": len(value_data),
            }
        )
        texts += key_data + value_data
    return head + entries + texts


def build_metadata(metadata: Metadata) -> bytes:
    """The table and its items, to be written at the start of the metadata region."""
    flags = structs.LEAVE_BLOCKS_ALLOCATED if metadata.leaves_blocks_allocated else 0
    flags |= structs.HAS_PARENT if metadata.has_parent else 0
    required, of_disk = structs.IS_REQUIRED_ITEM, structs.IS_VIRTUAL_DISK_ITEM
    items = [
        Item(
            structs.FILE_PARAMETERS,
            required,
            structs.FILE_PARAMETERS_ITEM.build({"block_bytes": metadata.block_bytes, "flags": flags}),
        ),
        Item(structs.VIRTUAL_DISK_SIZE, required | of_disk, metadata.disk_bytes.to_bytes(8, "little")),
        Item(structs.PAGE_83_DATA, required | of_disk, metadata.page_83_data.bytes_le),
        Item(structs.LOGICAL_SECTOR_SIZE, required | of_disk, metadata.logical_sector_bytes.to_bytes(4, "little")),
        Item(structs.PHYSICAL_SECTOR_SIZE, required | of_disk, metadata.physical_sector_bytes.to_bytes(4, "little")),
    ]
    if metadata.has_parent:
        items.append(Item(structs.PARENT_LOCATOR, required, _build_locator(metadata.locator)))
    items += metadata.others
    table: bytes = structs.METADATA_TABLE_HEADER.build({"reserved": 0, "entry_count": len(items)})
    body = b""
    for item in items:
        at = structs.METADATA_TABLE_BYTES + len(body)
        table += structs.METADATA_ENTRY.build(
            {
                "item_id": item.guid.bytes_le,
                "offset": at if item.data else 0,
                "length": len(item.data),
                "flags": item.flags,
                "reserved": 0,
            }
        )
        body += item.data
    return table.ljust(structs.METADATA_TABLE_BYTES, b"\0") + body
