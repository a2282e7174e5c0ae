"""`RawImage`: a file, or a block device, that is the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.storage.base import Storage


class RawImage(StorageDevice, Image):
    """Every byte lies where the guest sees it; holes of the file are zeros."""

    format_name = "raw"

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        return cls(storage, storage.size, writable=request.writable)

    def describe(self) -> Description:
        return Description()

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return (Extent(offset, length, Kind.DATA, self.storage, offset),)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        for start, count, is_data in self.storage.segments(offset, length):
            yield Extent(start, count, Kind.DATA if is_data else Kind.ZERO, self.storage, start)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        self.storage.zero(offset, length, unmap=unmap)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.storage.zero(offset, length, unmap=True)
