"""`FileStorage`: a regular file or a block device, by positional I/O."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from vdisk.errors import StorageError
from vdisk.storage.base import Buffer, Storage

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_NO_HOLES = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
_TRUSTED_LENGTH = 8 << 20
_NO_KERNEL_COPY = _NO_HOLES | {errno.EXDEV, errno.EBADF, errno.EPERM, errno.ETXTBSY}


class FileStorage(Storage):
    """A file opened for positional reads, and writes when `writable`.

    Windows has no pread: there a lock around seek and read serves, slower but right.
    """

    _fd = -1  # also of one that an interrupt kept from being opened

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False, create: bool = False) -> None:
        """Open `path`; with `create`, make a new file that must not exist yet.

        Raises `StorageError` when the operating system refuses, and when `path` is a folder, FIFO or socket: opening
        one of those could hang.
        """
        self.path = Path(path)
        self.name = str(path)
        self.writable = writable or create
        flags = os.O_RDWR if self.writable else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._fd = os.open(self.path, flags, 0o666)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            self.close()
            raise StorageError(self.name, "create" if create else "open", error) from error
        self._is_regular = stat.S_ISREG(status.st_mode)
        if not self._is_regular and not stat.S_ISBLK(status.st_mode):
            self.close()
            raise StorageError(self.name, "open", "neither a regular file nor a block device")
        self._seek_lock = threading.Lock()

    @property
    def file_descriptor(self) -> int:
        """The open file's descriptor, for the kernel's copies and locks."""
        return self._fd

    @property
    def size(self) -> int:
        try:
            if self._is_regular:
                return os.fstat(self._fd).st_size
            with self._seek_lock:
                return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise StorageError(self.name, "size", error) from error

    @property
    def allocated_bytes(self) -> int:
        """Space the file takes on its file system; its size where the system does not tell."""
        status = os.fstat(self._fd)
        blocks = getattr(status, "st_blocks", None)
        return status.st_size if blocks is None else int(blocks) * 512

    def readinto(self, offset: int, buffer: memoryview) -> int:
        try:
            count = _read_at(self, self._fd, buffer, offset)
            if count == len(buffer) or count == 0:
                return count
            total = count
            while total < len(buffer):
                count = _read_at(self, self._fd, buffer[total:], offset + total)
                if count == 0:
                    break
                total += count
            return total
        except (OSError, OverflowError) as error:
            raise StorageError(self.name, f"read at {offset}", error) from error

    if hasattr(os, "pread"):

        def read(self, offset: int, length: int) -> bytes:
            if length > _TRUSTED_LENGTH:  # a wild length out of a file must not take memory
                length = min(length, max(0, self.size - offset))
            try:
                data = os.pread(self._fd, max(0, length), offset)
                while 0 < len(data) < length:
                    more = os.pread(self._fd, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
                return data
            except (OSError, OverflowError) as error:
                raise StorageError(self.name, f"read at {offset}", error) from error

    def write(self, offset: int, data: Buffer) -> None:
        try:
            count = _write_at(self, self._fd, data, offset)
            if count == len(data):
                return
            view = memoryview(data)
            while count < len(view):
                count += _write_at(self, self._fd, view[count:], offset + count)
        except (OSError, OverflowError) as error:
            if not self.writable:
                raise StorageError(self.name, f"write at {offset}", "opened read-only") from error
            raise StorageError(self.name, f"write at {offset}", error) from error

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise StorageError(self.name, f"truncate to {size}", error) from error

    def flush(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise StorageError(self.name, "flush", error) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    if hasattr(os, "SEEK_DATA"):

        def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
            end = offset + length
            while offset < end:
                try:
                    with self._seek_lock:
                        data = min(os.lseek(self._fd, offset, os.SEEK_DATA), end)
                        hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end) if data < end else end
                except OSError as error:
                    if error.errno == errno.ENXIO:  # no data from here to the end of the file
                        yield offset, end - offset, False
                        return
                    if error.errno in _NO_HOLES:
                        yield from super().segments(offset, end - offset)
                        return
                    raise StorageError(self.name, f"seek at {offset}", error) from error
                if data > offset:
                    yield offset, data - offset, False
                if hole > data:
                    yield data, hole - data, True
                offset = hole

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        if length <= 0:
            return
        if unmap:
            size = self.size
            if self._is_regular and offset >= size:
                self.truncate(offset + length)
                return
            if _punch_hole(self._fd, offset, length):  # a device does so for whole sectors, or not at all
                if offset + length > size:
                    self.truncate(offset + length)
                return
        super().zero(offset, length, unmap=unmap)

    if hasattr(os, "copy_file_range"):

        def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
            if not isinstance(source, FileStorage):
                return 0
            try:
                return os.copy_file_range(source._fd, self._fd, length, source_offset, offset)
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    return 0
                raise StorageError(self.name, f"copy at {offset}", error) from error


if hasattr(os, "preadv"):

    def _read_at(storage: FileStorage, fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, (buffer,), offset)

    def _write_at(storage: FileStorage, fd: int, data: Buffer, offset: int) -> int:
        return os.pwrite(fd, data, offset)

else:

    def _read_at(storage: FileStorage, fd: int, buffer: memoryview, offset: int) -> int:
        with storage._seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, min(len(buffer), 1 << 30))
        buffer[: len(data)] = data
        return len(data)

    def _write_at(storage: FileStorage, fd: int, data: Buffer, offset: int) -> int:
        with storage._seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, memoryview(data)[: 1 << 30])


def _punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give a range of the file back to its file system; False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length) == 0)
