"""Extents without tables: flat files and devices, and stretches of zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt, StorageError
from vdisk.storage.base import Storage


class FlatExtent(StorageDevice):
    """`size` bytes from `start` of a file, as they are. Owns its storage."""

    def __init__(self, storage: Storage, start: int, size: int, *, writable: bool) -> None:
        if start + size > storage.size:
            raise Corrupt(
                storage.name, "flat extent", expected=f"{size} bytes from {start}", found=f"a file of {storage.size}"
            )
        super().__init__(storage, size, writable=writable)
        self.start = start

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return (Extent(offset, length, Kind.DATA, self.storage, self.start + offset),)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        for host, count, is_data in self.storage.segments(self.start + offset, length):
            yield Extent(host - self.start, count, Kind.DATA if is_data else Kind.ZERO, self.storage, host)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        self.storage.zero(self.start + offset, length, unmap=unmap)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.storage.zero(self.start + offset, length, unmap=True)


class ZeroExtent(BlockDevice):
    """Zeros that no file holds. Nothing but zeros can be written there."""

    def __init__(self, name: str, size: int, reason: str) -> None:
        """`reason` says in an error why a write is refused."""
        super().__init__(name, size, writable=True)
        self.reason = reason

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return (Extent(offset, length, Kind.ZERO),)

    def _write(self, offset: int, view: memoryview) -> None:
        raise StorageError(self.name, "write", self.reason)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        return True
