"""The header of dynamic and differencing disks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vhd import structs
from vdisk.formats.vhd.footer import NO_OFFSET, SECTOR_BYTES, checksum, sealed
from vdisk.storage.base import Storage

HEADER_BYTES = 1024
COOKIE = b"cxsparse"
FREE = 0xFFFFFFFF
"""The BAT's entry of a block that the file does not have."""
NO_PARENT = UUID(int=0)
MAX_BLOCK_BYTES = 256 << 20
MAX_ENTRIES = 1 << 25
"""Of a BAT, 128 MiB: 2 TiB in blocks of 64 KiB."""

_CHECKSUM_OFFSET = 36
_MOST_LOCATORS = 8
_NO_CODE = bytes(4)


class Locator(NamedTuple):
    """Where the file says in what words a platform finds the parent."""

    code: bytes
    space: int
    """Room for the words, in bytes; some programs count sectors here."""
    length: int
    """Bytes of the words."""
    offset: int


@dataclass(slots=True)
class DynamicHeader:
    """What the header says. Sizes and offsets are bytes."""

    table_offset: int
    table_entries: int
    block_bytes: int
    parent_unique_id: UUID = NO_PARENT
    parent_timestamp: int = 0
    parent_name: str = ""
    parent_locators: list[Locator] = field(default_factory=list)
    rest: bytes = bytes(256)
    is_sound: bool = True
    """Whether the checksum held."""

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of the sector bitmap in front of each block: a bit a sector, filled to whole sectors."""
        bits = self.block_bytes // SECTOR_BYTES
        return -(-bits // 8 // SECTOR_BYTES) * SECTOR_BYTES

    @property
    def table_end(self) -> int:
        """Offset behind the BAT, in whole sectors."""
        return self.table_offset + -(-4 * self.table_entries // SECTOR_BYTES) * SECTOR_BYTES

    def blocks_of(self, disk_bytes: int) -> int:
        """How many blocks a disk has."""
        return -(-disk_bytes // self.block_bytes)

    @classmethod
    def read(cls, storage: Storage, offset: int, disk_bytes: int) -> Self:
        """The header at `offset`; every number is within what the file can mean."""
        file = storage.name

        def expect(holds: bool, what: str, expected: object, found: object) -> None:
            if not holds:
                raise Corrupt(file, what, expected=expected, found=found)

        expect(offset % SECTOR_BYTES == 0 and 0 < offset < storage.size, "data_offset", "an offset in the file", offset)
        raw = storage.read(offset, HEADER_BYTES)
        expect(raw[:8] == COOKIE, "dynamic header cookie", "cxsparse", raw[:8].hex() or "nothing")
        found = parse(structs.DynamicHeader, raw, file, "dynamic header")
        block = found.block_bytes
        expect(block >= 512 and block & (block - 1) == 0, "block_size", "a power of two", block)
        expect(block <= MAX_BLOCK_BYTES, "block_size", f"at most {MAX_BLOCK_BYTES}", block)
        needed = -(-disk_bytes // block)
        expect(found.table_entries >= needed, "max_table_entries", f"at least {needed}", found.table_entries)
        expect(found.table_offset % SECTOR_BYTES == 0, "table_offset", "a multiple of 512", found.table_offset)
        expect(found.table_offset >= SECTOR_BYTES, "table_offset", "at least 512", found.table_offset)
        most = (storage.size - found.table_offset) // 4
        expect(found.table_entries <= most, "max_table_entries", f"at most {most} in the file", found.table_entries)
        if needed > MAX_ENTRIES:
            raise Unsupported(file, "vhd", f"a BAT of {needed} entries")
        locators = [
            Locator(one.code, one.data_space, one.data_bytes, one.data_offset)
            for one in found.parent_locators
            if one.code != _NO_CODE
        ]
        return cls(
            found.table_offset,
            found.table_entries,
            block,
            UUID(bytes=found.parent_unique_id),
            found.parent_timestamp,
            found.parent_name.decode("utf-16-be", "replace").split("\0")[0],
            locators,
            found.rest,
            found.checksum == checksum(raw, _CHECKSUM_OFFSET),
        )

    def to_bytes(self) -> bytes:
        """1024 bytes, checksum included."""
        locators = [*self.parent_locators, *[Locator(_NO_CODE, 0, 0, 0)] * _MOST_LOCATORS][:_MOST_LOCATORS]
        fields: dict[str, Any] = {
            "cookie": COOKIE,
            "data_offset": NO_OFFSET,
            "table_offset": self.table_offset,
            "version": 0x00010000,
            "table_entries": self.table_entries,
            "block_bytes": self.block_bytes,
            "checksum": 0,
            "parent_unique_id": self.parent_unique_id.bytes,
            "parent_timestamp": self.parent_timestamp & 0xFFFFFFFF,
            "reserved": 0,
            "parent_name": self.parent_name.encode("utf-16-be", "surrogatepass")[:510].ljust(512, b"\0"),
            "parent_locators": [
                {
                    "code": one.code,
                    "data_space": one.space,
                    "data_bytes": one.length,
                    "reserved": 0,
                    "data_offset": one.offset,
                }
                for one in locators
            ],
            "rest": self.rest,
        }
        return sealed(structs.DynamicHeader.build(fields), _CHECKSUM_OFFSET)
