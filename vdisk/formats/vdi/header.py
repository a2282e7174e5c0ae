"""The header as a dataclass, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from uuid import UUID

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vdi import structs
from vdisk.storage.base import Storage

FREE = 0xFFFFFFFF
ZERO = 0xFFFFFFFE

DYNAMIC, STATIC, UNDO, DIFFERENCING = 1, 2, 3, 4
TYPE_NAMES = {DYNAMIC: "dynamic", STATIC: "static", UNDO: "undo", DIFFERENCING: "differencing"}

MAX_BLOCKS = 1 << 26
"""A table of 256 MiB: 64 TiB in blocks of 1 MiB."""
MAX_BLOCK_BYTES = 256 << 20
NULL_UUID = UUID(int=0)
SECTOR_BYTES = 512
ALLOCATED_COUNT_OFFSET = 388
"""Where the number of blocks in use stands."""

_CHANGED_FROM = 340
"""Offset of the first field that is written anew: what stands in front stays as it is."""


@dataclass(slots=True)
class Header:
    """What a VDI says of itself. Sizes and offsets are bytes."""

    image_type: int
    table_offset: int
    data_offset: int
    disk_bytes: int
    block_bytes: int
    block_count: int
    allocated_count: int
    uuid: UUID
    modification_uuid: UUID
    block_extra_bytes: int = 0
    parent_uuid: UUID = NULL_UUID
    parent_modification_uuid: UUID = NULL_UUID
    description: str = ""
    geometry: tuple[int, int, int, int] = (0, 0, 0, 512)

    @property
    def stride_bytes(self) -> int:
        """From one block to the next in the file."""
        return self.block_bytes + self.block_extra_bytes

    @property
    def has_parent(self) -> bool:
        """Whether what the image does not have is another's."""
        return self.image_type in (DIFFERENCING, UNDO) or self.parent_uuid != NULL_UUID

    @property
    def disk_blocks(self) -> int:
        """How many blocks the disk has; the table may have more."""
        return -(-self.disk_bytes // self.block_bytes)

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """The header of a file; every number is within what the file can mean."""
        name = storage.name
        raw = storage.read(0, structs.Header.sizeof())
        if raw[64:68] != structs.SIGNATURE.to_bytes(4, "little"):
            raise NotThisFormat(name, "signature", expected=hex(structs.SIGNATURE), found=raw[64:68].hex() or "nothing")
        found = parse(structs.Header, raw, name, "header")
        if found.version >> 16 != structs.VERSION_1_1 >> 16:
            raise Unsupported(name, "vdi", f"version {found.version >> 16}.{found.version & 0xFFFF}")
        geometry = found.geometry
        header = cls(
            found.image_type,
            found.table_offset,
            found.data_offset,
            found.disk_bytes,
            found.block_bytes,
            found.block_count,
            found.allocated_count,
            UUID(bytes_le=found.uuid),
            UUID(bytes_le=found.modification_uuid),
            found.block_extra_bytes,
            UUID(bytes_le=found.parent_uuid),
            UUID(bytes_le=found.parent_modification_uuid),
            found.description.split(b"\0")[0].decode("utf-8", "replace"),
            (geometry.cylinders, geometry.heads, geometry.sectors, geometry.sector_bytes),
        )
        header._check(name)
        return header

    def _check(self, name: str) -> None:
        def expect(holds: bool, field: str, expected: object, found: object) -> None:
            if not holds:
                raise Corrupt(name, field, expected=expected, found=found)

        expect(self.image_type in TYPE_NAMES, "image_type", "1 to 4", self.image_type)
        block = self.block_bytes
        expect(block >= 512 and block & (block - 1) == 0, "block_size", "a power of two", block)
        expect(block <= MAX_BLOCK_BYTES, "block_size", f"at most {MAX_BLOCK_BYTES}", block)
        expect(self.block_extra_bytes <= block, "block_extra", f"at most {block}", self.block_extra_bytes)
        expect(self.disk_bytes < 1 << 62, "disk_size", "less than 4 EiB", self.disk_bytes)
        needed = self.disk_blocks
        expect(self.block_count >= needed, "blocks", f"at least {needed} for the disk's size", self.block_count)
        expect(self.table_offset >= 512, "offset_blocks", "at least 512", self.table_offset)
        table_end = self.table_offset + 4 * self.block_count
        expect(self.data_offset >= table_end, "offset_data", f"at least {table_end}", self.data_offset)
        if needed > MAX_BLOCKS:
            raise Unsupported(name, "vdi", f"a table of {needed} blocks")

    def to_bytes(self) -> bytes:
        """The first 512 bytes of a new file."""
        raw: bytes = structs.Header.build(
            {
                "text": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0"),
                "signature": structs.SIGNATURE,
                "version": structs.VERSION_1_1,
                "header_bytes": structs.HEADER_BYTES,
                "image_type": self.image_type,
                "flags": 0,
                "description": self.description.encode("utf-8", "replace")[:255].ljust(256, b"\0"),
                "table_offset": self.table_offset,
                "data_offset": self.data_offset,
                "geometry": dict(
                    zip(("cylinders", "heads", "sectors", "sector_bytes"), self.geometry, strict=True),
                ),
                "unused": 0,
                "disk_bytes": self.disk_bytes,
                "block_bytes": self.block_bytes,
                "block_extra_bytes": self.block_extra_bytes,
                "block_count": self.block_count,
                "allocated_count": self.allocated_count,
                "uuid": self.uuid.bytes_le,
                "modification_uuid": self.modification_uuid.bytes_le,
                "parent_uuid": self.parent_uuid.bytes_le,
                "parent_modification_uuid": self.parent_modification_uuid.bytes_le,
            }
        )
        return raw.ljust(512, b"\0")

    def write(self, storage: Storage) -> None:
        """Bring the fields that change into the file, in one write inside its first sector.

        Type, description and what follows the fields stay as they are, except that a type may change.
        """
        raw = self.to_bytes()
        first = storage.read(0, structs.Header.sizeof())
        changed = first[:76] + raw[76:80] + first[80:_CHANGED_FROM] + raw[_CHANGED_FROM : structs.Header.sizeof()]
        storage.write(0, changed)
