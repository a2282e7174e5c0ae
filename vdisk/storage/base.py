"""`Storage`: bytes at offsets, with no format and no position."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Self, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# The largest file offset of Linux, macOS and Windows. Offsets out of a file are checked against it
# before they reach the operating system.
MAX_OFFSET = (1 << 63) - 1


class Storage(abc.ABC):
    """A flat run of bytes that can be read and written at any offset, from several threads at once.

    Offsets and lengths are bytes. A failure of the operating system is a `StorageError` that names the file.
    """

    name: str
    """What errors call it: the path as the user gave it."""
    writable: bool

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Length in bytes, as it is now."""

    @abc.abstractmethod
    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, fewer than asked only at the end of the storage."""

    @abc.abstractmethod
    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, growing the storage when it reaches past the end."""

    @abc.abstractmethod
    def truncate(self, size: int) -> None:
        """Set the length; a longer one reads as zeros in what is new."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Return once all that was written would survive a loss of power."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file. A second call does nothing."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end of the storage.

        `length` is cut to what the storage holds before memory is taken, so a wild length out of a file is harmless.
        """
        length = min(length, max(0, self.size - offset))
        if length <= 0:
            return b""
        buffer = bytearray(length)
        count = self.readinto(offset, memoryview(buffer))
        return bytes(buffer) if count == length else bytes(buffer[:count])

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, length, is_data) over the range in ascending order; what is not data reads as zeros.

        Only storages that know their holes say more than one piece of data. Past the end there is no data.
        """
        end = min(offset + length, self.size)
        if offset < end:
            yield offset, end - offset, True
        start = max(offset, end)
        if start < offset + length:
            yield start, offset + length - start, False

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeros; with `unmap`, give its space back where the file system can."""
        chunk = memoryview(bytes(min(length, 1 << 20)))
        while length > 0:
            part = chunk[: min(length, len(chunk))]
            self.write(offset, part)
            offset += len(part)
            length -= len(part)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
        """Copy inside the kernel; returns the bytes copied, 0 where that cannot be done and the caller must do it."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
