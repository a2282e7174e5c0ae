"""`WindowStorage`: a part of another storage, as a storage."""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.errors import StorageError
from vdisk.storage.base import Buffer, Storage


class WindowStorage(Storage):
    """`length` bytes from `start` of `base`; without a length, all from there on, and it may grow. Owns `base`."""

    def __init__(self, base: Storage, start: int, length: int | None, name: str, *, writable: bool = False) -> None:
        self.base = base
        self.start = start
        self.length = length
        self.name = name
        self.writable = writable

    @property
    def size(self) -> int:
        behind = max(0, self.base.size - self.start)
        return behind if self.length is None else min(self.length, behind)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if self.length is not None:
            buffer = buffer[: max(0, self.length - offset)]
        return self.base.readinto(self.start + offset, buffer) if buffer else 0

    def write(self, offset: int, data: Buffer) -> None:
        self._check_writable(offset, len(data))
        self.base.write(self.start + offset, data)

    def truncate(self, size: int) -> None:
        self._check_writable(0, size)
        self.base.truncate(self.start + size)

    def flush(self) -> None:
        self.base.flush()

    def close(self) -> None:
        self.base.close()

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        inside = max(0, min(length, self.size - offset))
        if inside:
            for start, count, is_data in self.base.segments(self.start + offset, inside):
                yield start - self.start, count, is_data
        if inside < length:
            yield offset + inside, length - inside, False

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
        self._check_writable(offset, length)
        return self.base.copy_from(source, source_offset, self.start + offset, length)

    def _check_writable(self, offset: int, length: int) -> None:
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        if self.length is not None and offset + length > self.length:
            raise StorageError(self.name, "write", f"has room for {self.length} bytes")
