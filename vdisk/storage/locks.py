"""Locks by which programs that have one image open see each other: byte for byte those that QEMU takes.

QEMU (`block/file-posix.c`) holds shared locks on single bytes of an image, far from any data that would care: byte
100 + n says "I do n", byte 200 + n "nobody else may do n", where n is one of the block layer's permissions. A byte
is locked first and then the opposite one is tested, so two that open an image at once may both be refused, but never
both get it. The locks belong to the open file (open file description locks): they end when it is closed or its
process dies, and a second open of the same image in one process counts like another program's.

Where the system has no such locks (macOS, Windows, an old kernel, some network file systems), none are taken.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
import sys
from typing import NamedTuple

from vdisk.errors import InUse
from vdisk.storage.file import FileStorage

if sys.platform == "linux":
    import fcntl

    _HAS_LOCKS = hasattr(fcntl, "F_OFD_SETLK")
else:
    _HAS_LOCKS = False

_DOES_AT = 100
_BARS_AT = 200
_FLOCK = struct.Struct("@hhqqi0q")  # struct flock with 64-bit offsets: type, whence, start, length, process
_BUSY = (errno.EAGAIN, errno.EACCES)


class _Permission(enum.IntEnum):
    """Those of QEMU's `BLK_PERM_*` that count here, by the number of their bit."""

    CONSISTENT_READ = 0
    WRITE = 1
    RESIZE = 3


class _Use(NamedTuple):
    """What one does with a file, and what nobody else may do meanwhile."""

    does: tuple[_Permission, ...]
    bars: tuple[_Permission, ...]


_CHANGES = (_Permission.WRITE, _Permission.RESIZE)
_READER = _Use((_Permission.CONSISTENT_READ,), _CHANGES)
_SHARING_READER = _Use((_Permission.CONSISTENT_READ,), ())
_WRITER = _Use((_Permission.CONSISTENT_READ, *_CHANGES), _CHANGES)


def open_held(path: str | os.PathLike[str], *, writable: bool = False, force_share: bool = False) -> FileStorage:
    """Open an image's file and hold it: see `hold`. Raises `StorageError` or `InUse`."""
    storage = FileStorage(path, writable=writable)
    try:
        hold(storage, force_share=force_share)
    except BaseException:
        storage.close()
        raise
    return storage


def hold(storage: FileStorage, *, force_share: bool = False) -> None:
    """Lock an image's file until it is closed, as one that is written or, if it was opened so, as one that is read.

    A reader bars writers, and a writer other writers and readers; with `force_share` a reader bars nobody, and what
    it reads may change under it. Raises `InUse` when another holds the file in a way that does not go with this.
    """
    if storage.writable:
        _take(storage.file_descriptor, storage.name, _WRITER)
    else:
        _take(storage.file_descriptor, storage.name, _SHARING_READER if force_share else _READER)


def hold_target(path: str | os.PathLike[str], name: str) -> int | None:
    """Lock what stands at `path` and is about to be replaced, as if to write it; an open file descriptor holds it.

    None when nothing stands there that could be locked. Raises `InUse`, which calls the file `name`.
    """
    if not _HAS_LOCKS:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            _take(fd, name, _WRITER)
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _take(fd: int, name: str, use: _Use) -> None:
    if not _HAS_LOCKS:
        return
    try:
        for start, permissions in ((_DOES_AT, use.does), (_BARS_AT, use.bars)):
            for permission in permissions:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _byte(fcntl.F_RDLCK, start + permission))
        for permission in use.bars:
            if _is_locked(fd, _DOES_AT + permission):
                raise InUse(name, "writes to it", may_share=use is _READER)
        for permission in use.does:
            if _is_locked(fd, _BARS_AT + permission):
                # Whoever only reads bars changes as well.
                raise InUse(name, "lets nobody read it" if permission is _Permission.CONSISTENT_READ else "reads it")
    except OSError as error:
        if error.errno in _BUSY:  # an exclusive lock, which QEMU never takes
            raise InUse(name, "has locked it") from error


def _byte(kind: int, offset: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)


def _is_locked(fd: int, offset: int) -> bool:
    """Whether anybody else holds a byte."""
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _byte(fcntl.F_WRLCK, offset)))[0]
    return kind != fcntl.F_UNLCK
