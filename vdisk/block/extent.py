"""`Extent`: what a stretch of a disk holds, and where its bytes lie."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice
    from vdisk.storage.base import Storage


_READ_TOGETHER_BYTES = 1 << 20
_GAP_READ_BYTES = 1 << 14


class Kind(enum.IntEnum):
    """How an extent's bytes are had."""

    UNALLOCATED = 0
    """Not in this layer: the backing device has it, or it is zero. Never leaves `BlockDevice.map()`."""
    ZERO = 1
    """Reads as zeros."""
    DATA = 2
    """Lies as it is in `storage` at `host`."""
    ENCODED = 3
    """Lies compressed in `storage`: `encoded` says where and how."""


class Encoded(NamedTuple):
    """A compressed unit (cluster or grain) whole, of which an extent may be a part."""

    codec: str
    """'deflate' (no header), 'zlib' or 'zstd'; another name when only the format itself can decode it."""
    host: int
    """Offset of the compressed bytes in the extent's storage."""
    host_length: int
    """How many bytes they are at most: padding may follow the compressed stream."""
    unit_start: int
    """Guest offset at which the unit starts."""
    unit_length: int
    """Bytes that the unit decodes to."""


class Extent(NamedTuple):
    """A stretch of a disk whose bytes are all had in the same way. Offsets and lengths are bytes."""

    start: int
    """Guest offset."""
    length: int
    kind: Kind
    storage: Storage | None = None
    """Where the bytes lie, for DATA and ENCODED."""
    host: int = 0
    """Offset of the first byte in `storage`, for DATA."""
    depth: int = 0
    """How many backing devices lie above the one that holds it; 0 is the device asked."""
    layer: BlockDevice | None = None
    """The device that holds it; None when no device of the chain does, and it therefore reads as zeros."""
    encoded: Encoded | None = None
    in_place: bool = True
    """DATA only: may be overwritten where it lies (False when a snapshot shares it)."""

    @property
    def end(self) -> int:
        """The guest offset behind the last byte."""
        return self.start + self.length

    @property
    def is_present(self) -> bool:
        """Whether some device of the chain holds this stretch, be it as zeros."""
        return self.layer is not None

    def clip(self, start: int, end: int) -> Extent:
        """The part of the extent that lies in [start, end), which must overlap it."""
        first = max(self.start, start)
        last = min(self.start + self.length, end)
        return self._replace(start=first, length=last - first, host=self.host + (first - self.start))

    def joins(self, after: Extent) -> bool:
        """Whether `after` continues this extent, on the disk and in the storage."""
        if self.kind is not after.kind or self.depth != after.depth or self.layer is not after.layer:
            return False
        if self.start + self.length != after.start or self.in_place != after.in_place:
            return False
        if self.kind is Kind.DATA:
            return self.storage is after.storage and self.host + self.length == after.host
        return self.encoded == after.encoded


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours that continue one another."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.joins(extent):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def near_units(units: list[Extent]) -> Iterator[list[Extent]]:
    """Compressed units in the order of their storage, in groups that one read each brings."""
    if len(units) > 1:
        units.sort(key=lambda unit: unit.encoded.host)  # type: ignore[union-attr]
    near: list[Extent] = []
    start = end = 0
    for unit in units:
        encoded = unit.encoded
        assert encoded is not None
        unit_end = encoded.host + encoded.host_length
        is_near = encoded.host <= end + _GAP_READ_BYTES and unit_end <= start + _READ_TOGETHER_BYTES
        if near and is_near and unit.storage is near[0].storage:
            near.append(unit)
            end = max(end, unit_end)
            continue
        if near:
            yield near
        near, start, end = [unit], encoded.host, unit_end
    yield near
