"""The footer, its geometry and its copies: parsed, checked, and back to bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

from vdisk.errors import Corrupt, NotThisFormat
from vdisk.formats.parse import parse
from vdisk.formats.vhd import structs
from vdisk.storage.base import Storage

SECTOR_BYTES = 512
FOOTER_BYTES = 512
COOKIE = b"conectix"
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TYPE_NAMES = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
NO_OFFSET = (1 << 64) - 1

LARGEST_BYTES = 2040 << 30
"""Virtual Server and Hyper-V open nothing longer."""
LARGEST_GEOMETRY = (65535, 16, 255)
BY_SIZE, BY_GEOMETRY = b"win ", b"vpc "
"""Creators that every reader knows: of disks as long as their current size, and as their geometry."""

_OLD_FOOTER_BYTES = 511
_EPOCH = 946_684_800
"""2000-01-01 in Unix time, from which timestamps count."""
_CREATORS_BY_GEOMETRY = {BY_GEOMETRY, b"vs  ", b"qemu"}
_CHECKSUM_OFFSET = 64


def checksum(data: bytes, at: int) -> int:
    """Ones' complement of the sum of all bytes but the four of the checksum, which stands at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def sealed(data: bytes, at: int) -> bytes:
    """`data` with its checksum in place."""
    return data[:at] + checksum(data, at).to_bytes(4, "big") + data[at + 4 :]


def timestamp_now() -> int:
    """Seconds since 2000, as VHD counts."""
    return int(time.time()) - _EPOCH


def geometry_for(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors a track of a disk: the specification's appendix "CHS Calculation"."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track = 17
    tracks = sectors // track
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > 16:
        track, heads = 31, 16
        tracks = sectors // track
    if tracks >= heads * 1024:
        track, heads = 63, 16
        tracks = sectors // track
    return tracks // heads, heads, track


def geometry_around(sectors: int) -> tuple[int, int, int]:
    """The smallest geometry that has at least so many sectors; the largest there is when none has."""
    geometry = geometry_for(sectors)
    wanted = sectors
    while geometry != LARGEST_GEOMETRY and sectors_of(geometry) < sectors:
        wanted += 1
        geometry = geometry_for(wanted)
    return geometry


def sectors_of(geometry: tuple[int, int, int]) -> int:
    """How many sectors a geometry has."""
    cylinders, heads, track = geometry
    return cylinders * heads * track


@dataclass(slots=True)
class Footer:
    """What the footer says. Sizes are bytes."""

    disk_type: int
    current_bytes: int
    original_bytes: int
    geometry: tuple[int, int, int]
    data_offset: int = NO_OFFSET
    timestamp: int = field(default_factory=timestamp_now)
    """Seconds since 2000. Here it is moved on whenever the disk is written anew: children tell by it."""
    creator: bytes = BY_SIZE
    creator_version: int = 0x000A0000
    creator_os: bytes = b"Wi2k"
    unique_id: UUID = field(default_factory=uuid4)
    features: int = 2
    version: int = 0x00010000
    saved_state: int = 0
    reserved: bytes = bytes(427)
    is_sound: bool = True
    """Whether the checksum held."""

    @classmethod
    def parse(cls, raw: bytes, file: str, where: str) -> Self:
        """A footer of 512 bytes, or 511 as old programs wrote it. `where` names the copy in errors."""
        if raw[:8] != COOKIE:
            raise Corrupt(file, f"{where} cookie", expected="conectix", found=raw[:8].hex() or "nothing")
        raw = raw.ljust(FOOTER_BYTES, b"\0") if len(raw) == _OLD_FOOTER_BYTES else raw
        found = parse(structs.Footer, raw, file, where)
        if found.disk_type not in TYPE_NAMES:
            raise Corrupt(file, f"{where} disk type", expected="2, 3 or 4", found=found.disk_type)
        return cls(
            found.disk_type,
            found.current_bytes,
            found.original_bytes,
            (found.geometry.cylinders, found.geometry.heads, found.geometry.sectors),
            found.data_offset,
            found.timestamp,
            found.creator,
            found.creator_version,
            found.creator_os,
            UUID(bytes=found.unique_id),
            found.features,
            found.version,
            found.saved_state,
            found.reserved,
            found.checksum == checksum(raw, _CHECKSUM_OFFSET),
        )

    @property
    def disk_bytes(self) -> int:
        """Length of the disk as its creator means it: by geometry for Virtual PC and old QEMU, else the current size.

        The largest geometry stands for all that is larger, so it says nothing.
        """
        by_geometry = self.creator in _CREATORS_BY_GEOMETRY and self.geometry != LARGEST_GEOMETRY
        return sectors_of(self.geometry) * SECTOR_BYTES if by_geometry else self.current_bytes

    def set_size(self, size: int) -> None:
        """Make it the footer of a disk of `size` bytes, whoever created it."""
        self.current_bytes = size
        self.geometry = geometry_for(size // SECTOR_BYTES)
        if self.disk_bytes != size:
            self.creator = BY_SIZE

    def to_bytes(self) -> bytes:
        """512 bytes, checksum included."""
        cylinders, heads, track = self.geometry
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
            "geometry": {"cylinders": cylinders, "heads": heads, "sectors": track},
            "disk_type": self.disk_type,
            "checksum": 0,
            "unique_id": self.unique_id.bytes,
            "saved_state": self.saved_state,
            "reserved": self.reserved,
        }
        return sealed(structs.Footer.build(fields), _CHECKSUM_OFFSET)


class Footers(NamedTuple):
    """The footer in use, and how its two places are."""

    footer: Footer
    tail_offset: int
    """Where the footer at the end stands, or is to stand when the end holds none."""
    tail: Footer | None
    """The one at the end, None when there is none to be read there."""
    front: Footer | None
    """The copy in front; None too for fixed disks, which have none."""
    is_old: bool
    """The one at the end has 511 bytes."""

    @property
    def notes(self) -> list[str]:
        """What a user should be told."""
        notes = []
        if not self.footer.is_sound:
            notes.append("the footer's checksum is wrong; `check --repair all` computes it anew")
        elif self.tail is None or not self.tail.is_sound:
            notes.append("the footer at the end is damaged; its copy in front was used")
        elif self.footer.disk_type != FIXED and (self.front is None or not self.front.is_sound):
            notes.append("the footer's copy in front is damaged; the one at the end was used")
        if self.is_old:
            notes.append("the footer has 511 bytes, as old programs wrote it")
        return notes


def read_footers(storage: Storage) -> Footers:
    """Read the footer at the end, else its copy in front.

    One whose checksum is wrong is taken when there is no better one. `NotThisFormat` when neither place has a
    footer's cookie, `Corrupt` when what follows the cookie makes no sense.
    """
    name, size = storage.name, storage.size
    end = storage.read(max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    head = storage.read(0, FOOTER_BYTES)
    is_old = end[:8] != COOKIE and end[1:9] == COOKIE
    if is_old:
        end = end[1:]
    if head[:8] != COOKIE and end[:8] != COOKIE:
        raise NotThisFormat(name, "footer cookie", expected="conectix", found=end[:8].hex() or "nothing")
    tail, front = _readable(end, name, "footer"), _readable(head, name, "footer copy")
    if front is not None and front.disk_type == FIXED:
        front = None  # what lies in front of a fixed disk is the guest's
    good = [footer for footer in (tail, front) if footer is not None]
    if not good:
        Footer.parse(end if end[:8] == COOKIE else head, name, "footer")
        raise Corrupt(name, "footer", "the footer at the end of a fixed disk is missing")
    footer = next((one for one in good if one.is_sound), good[0])
    if footer.disk_type == FIXED:
        front = None
    tail_offset = size - len(end) if tail is not None else -(-size // SECTOR_BYTES) * SECTOR_BYTES
    return Footers(footer, tail_offset, tail, front, is_old and tail is not None)


def _readable(raw: bytes, file: str, where: str) -> Footer | None:
    try:
        return Footer.parse(raw, file, where)
    except Corrupt:
        return None
