"""Pipes: what can only be read, or only be written, from its beginning to its end."""

from __future__ import annotations

import os
import stat
import sys

from vdisk.errors import OptionError, StorageError
from vdisk.storage.base import Buffer, Storage

_ZEROS = memoryview(bytes(1 << 20))


def _binary(fd: int) -> int:
    """The descriptor, told on Windows to leave line ends alone."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(fd, os.O_BINARY)
    return fd


class InputPipe:
    """Bytes that come one after another; `size` is their number where it is known."""

    def __init__(self, fd: int = 0, *, size: int | None = None, name: str = "standard input") -> None:
        """Read from the descriptor `fd`, which stays the caller's. A plain file's size is looked up.

        Raises `OptionError` for a size below zero, `StorageError` when nothing can be read there.
        """
        self.name = name
        self._fd = _binary(fd)
        self.position = 0
        """Bytes read so far."""
        if size is not None and size < 0:
            raise OptionError(f"size: expected 0 or more, found {size}")
        try:
            status = os.fstat(fd)
            if size is None and stat.S_ISREG(status.st_mode):
                size = max(0, status.st_size - os.lseek(fd, 0, os.SEEK_CUR))
        except OSError as error:
            raise StorageError(name, "open", error) from error
        self.size = size

    def fill(self, buffer: memoryview) -> int:
        """Fill `buffer` with what comes next; returns the bytes read, fewer than asked only at the end."""
        count = 0
        try:
            while count < len(buffer):
                got = os.readv(self._fd, (buffer[count:],)) if hasattr(os, "readv") else self._read(buffer[count:])
                if not got:
                    break
                count += got
        except OSError as error:
            raise StorageError(self.name, f"read at {self.position + count}", error) from error
        self.position += count
        return count

    def _read(self, buffer: memoryview) -> int:
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class OutputPipe(Storage):
    """A storage that only grows: what is left out between two writes goes out as zeros, and there is no way back.

    `promise` says what stands at places whose turn comes between the writes, as a table's among data: it goes out then.
    """

    writable = True

    def __init__(self, fd: int = 1, *, name: str = "standard output") -> None:
        """Write to the descriptor `fd`, which stays the caller's."""
        self.name = name
        self._fd = _binary(fd)
        self._position = 0
        self._promised: list[tuple[int, bytes]] = []
        self._next = 0

    @property
    def size(self) -> int:
        return self._position

    def promise(self, pieces: list[tuple[int, bytes]]) -> None:
        """(offset, bytes), ascending and apart: they go out when the position reaches them."""
        self._promised, self._next = pieces, 0

    def readinto(self, offset: int, buffer: memoryview) -> int:
        raise StorageError(self.name, f"read at {offset}", "a pipe cannot be read back")

    def write(self, offset: int, data: Buffer) -> None:
        if offset < self._position:
            raise StorageError(self.name, f"write at {offset}", f"a pipe does not go back from {self._position}")
        self._fill_to(offset)
        self._put(memoryview(data))

    def truncate(self, size: int) -> None:
        if size < self._position:
            raise StorageError(self.name, f"truncate to {size}", f"{self._position} bytes are gone through the pipe")
        self._fill_to(size)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.truncate(max(self._position, offset))
        self._fill_to(offset + length)

    def flush(self) -> None:
        """A pipe has nothing to flush: whoever reads it decides what lasts."""

    def close(self) -> None:
        """The descriptor is the caller's."""

    def _fill_to(self, end: int) -> None:
        """Zeros, and what was promised, up to `end`."""
        while self._next < len(self._promised) and self._promised[self._next][0] < end:
            at, data = self._promised[self._next]
            self._next += 1
            if at < self._position:
                raise StorageError(self.name, f"write at {at}", f"a pipe does not go back from {self._position}")
            self._put_zeros(at - self._position)
            self._put(memoryview(data))
        self._put_zeros(end - self._position)

    def _put_zeros(self, count: int) -> None:
        while count > 0:
            part = min(count, len(_ZEROS))
            self._put(_ZEROS[:part])
            count -= part

    def _put(self, view: memoryview) -> None:
        try:
            while len(view):
                count = os.write(self._fd, view[: 1 << 30])
                self._position += count
                view = view[count:]
        except OSError as error:
            raise StorageError(self.name, f"write at {self._position}", error) from error
