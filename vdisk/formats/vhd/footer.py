"""Footer, dynamic header and geometry as dataclasses, checked and back to bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID, uuid4

from vdisk.errors import Corrupt
from vdisk.formats.parse import parse
from vdisk.formats.vhd import structs

SECTOR_BYTES = 512
FOOTER_BYTES = 512
HEADER_BYTES = 1024
COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TYPE_NAMES = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
NO_OFFSET = (1 << 64) - 1

LARGEST_BYTES = 2040 << 30
"""Virtual Server and Hyper-V open nothing longer."""

_EPOCH = 946_684_800
"""2000-01-01 in Unix time, from which timestamps count."""

_CREATORS_BY_GEOMETRY = {b"vpc ", b"vs  ", b"qemu"}
"""Programs whose disks are as long as their geometry says; those of all others have the current size."""

_LARGEST_GEOMETRY = (65535, 16, 255)


def checksum(data: bytes, at: int) -> int:
    """Ones' complement of the sum of all bytes but the four of the checksum, which stands at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def geometry_for(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors a track for a disk: the specification's appendix "CHS Calculation"."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track = 17
    cylinder_heads = sectors // track
    heads = max((cylinder_heads + 1023) // 1024, 4)
    if cylinder_heads >= heads * 1024 or heads > 16:
        track, heads = 31, 16
        cylinder_heads = sectors // track
    if cylinder_heads >= heads * 1024:
        track, heads = 63, 16
        cylinder_heads = sectors // track
    return cylinder_heads // heads, heads, track


_NO_ID = UUID(int=0)


@dataclass(slots=True)
class Footer:
    """What the footer says. Sizes are bytes."""

    disk_type: int
    current_bytes: int
    original_bytes: int
    geometry: tuple[int, int, int]
    data_offset: int = NO_OFFSET
    timestamp: int = field(default_factory=lambda: int(time.time()) - _EPOCH)
    creator: bytes = b"win "
    creator_version: int = 0x000A0000
    creator_os: bytes = b"Wi2k"
    unique_id: UUID = field(default_factory=uuid4)
    features: int = 2
    version: int = 0x00010000
    saved_state: int = 0

    @classmethod
    def parse(cls, raw: bytes, file: str, where: str) -> Self:
        """A footer of 512 bytes, or 511 as old programs wrote it. `Corrupt` names what is wrong, `where` the copy."""
        if raw[:8] != COOKIE:
            raise Corrupt(file, f"{where} cookie", expected="conectix", found=raw[:8].hex() or "nothing")
        found = parse(structs.Footer, raw, file, where)
        wanted = checksum(raw, 64)
        if found.checksum != wanted:
            raise Corrupt(file, f"{where} checksum", expected=f"{wanted:#010x}", found=f"{found.checksum:#010x}")
        if found.disk_type not in TYPE_NAMES:
            raise Corrupt(file, f"{where} disk type", expected="2, 3 or 4", found=found.disk_type)
        geometry = (found.geometry.cylinders, found.geometry.heads, found.geometry.sectors)
        return cls(
            found.disk_type,
            found.current_bytes,
            found.original_bytes,
            geometry,
            found.data_offset,
            found.timestamp,
            found.creator,
            found.creator_version,
            found.creator_os,
            UUID(bytes=found.unique_id),
            found.features,
            found.version,
            found.saved_state,
        )

    @property
    def geometry_bytes(self) -> int:
        """Length of the disk by its geometry."""
        cylinders, heads, sectors = self.geometry
        return cylinders * heads * sectors * SECTOR_BYTES

    @property
    def disk_bytes(self) -> int:
        """Length of the disk as its creator means it: by geometry for Virtual PC and old QEMU, else as it says."""
        if self.creator in _CREATORS_BY_GEOMETRY and self.geometry != _LARGEST_GEOMETRY and self.geometry_bytes:
            return self.geometry_bytes
        return self.current_bytes

    def to_bytes(self) -> bytes:
        """512 bytes, checksum included."""
        cylinders, heads, sectors = self.geometry
        fields: dict[str, Any] = {
            "cookie": COOKIE,
            "features": self.features,
            "version": self.version,
            "data_offset": self.data_offset,
            "timestamp": self.timestamp & 0xFFFFFFFF,
            "creator": self.creator,
            "creator_version": self.creator_version,
            "creator_os": self.creator_os,
            "original_bytes": self.original_bytes,
            "current_bytes": self.current_bytes,
            "geometry": {"cylinders": cylinders, "heads": heads, "sectors": sectors},
            "disk_type": self.disk_type,
            "checksum": 0,
            "unique_id": self.unique_id.bytes,
            "saved_state": self.saved_state,
        }
        raw: bytes = structs.Footer.build(fields).ljust(FOOTER_BYTES, b"\0")
        return raw[:64] + checksum(raw, 64).to_bytes(4, "big") + raw[68:]


@dataclass(slots=True)
class DynamicHeader:
    """What the header of a dynamic or differencing disk says. Sizes and offsets are bytes."""

    table_offset: int
    table_entries: int
    block_bytes: int
    parent_unique_id: UUID = _NO_ID
    parent_timestamp: int = 0
    parent_name: str = ""
    parent_locators: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    """(platform code, space in bytes, length in bytes, offset)."""

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of the sector bitmap in front of each block: a bit a sector, filled to whole sectors."""
        return -(-self.block_bytes // SECTOR_BYTES // 8 // SECTOR_BYTES) * SECTOR_BYTES

    @classmethod
    def parse(cls, raw: bytes, file: str, disk_bytes: int) -> Self:
        """The 1024 bytes behind the footer's copy, every number within what the file can mean."""

        def expect(holds: bool, what: str, expected: object, found: object) -> None:
            if not holds:
                raise Corrupt(file, what, expected=expected, found=found)

        expect(raw[:8] == HEADER_COOKIE, "dynamic header cookie", "cxsparse", raw[:8].hex() or "nothing")
        found = parse(structs.DynamicHeader, raw, file, "dynamic header")
        wanted = checksum(raw, 36)
        expect(found.checksum == wanted, "dynamic header checksum", f"{wanted:#010x}", f"{found.checksum:#010x}")
        block = found.block_bytes
        expect(block >= 512 and block & (block - 1) == 0, "block_size", "a power of two", block)
        expect(block <= 256 << 20, "block_size", f"at most {256 << 20}", block)
        needed = -(-disk_bytes // block)
        expect(found.table_entries >= needed, "max_table_entries", f"at least {needed}", found.table_entries)
        expect(found.table_offset % SECTOR_BYTES == 0, "table_offset", "a multiple of 512", found.table_offset)
        locators = [
            (one.code, one.data_space, one.data_bytes, one.data_offset)
            for one in found.parent_locators
            if one.code != bytes(4)
        ]
        name = found.parent_name.decode("utf-16-be", "replace").split("\0")[0]
        return cls(
            found.table_offset, found.table_entries, block, UUID(bytes=found.parent_unique_id),
            found.parent_timestamp, name, locators,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """1024 bytes, checksum included."""
        empty = (bytes(4), 0, 0, 0)
        locators = [*self.parent_locators, *[empty] * 8][:8]
        fields: dict[str, Any] = {
            "cookie": HEADER_COOKIE,
            "data_offset": NO_OFFSET,
            "table_offset": self.table_offset,
            "version": 0x00010000,
            "table_entries": self.table_entries,
            "block_bytes": self.block_bytes,
            "checksum": 0,
            "parent_unique_id": self.parent_unique_id.bytes,
            "parent_timestamp": self.parent_timestamp,
            "reserved": 0,
            "parent_name": self.parent_name.encode("utf-16-be")[:510].ljust(512, b"\0"),
            "parent_locators": [
                {"code": code, "data_space": space, "data_bytes": length, "reserved": 0, "data_offset": offset}
                for code, space, length, offset in locators
            ],
        }
        raw: bytes = structs.DynamicHeader.build(fields).ljust(HEADER_BYTES, b"\0")
        return raw[:36] + checksum(raw, 36).to_bytes(4, "big") + raw[40:]
