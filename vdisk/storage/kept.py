"""`KeptStaging`: a staging whose files outlive an interrupted run, for a later one to go on with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.storage.base import Storage
from vdisk.storage.file import FileStorage
from vdisk.storage.staging import Staging, flush_folder

_SUFFIX = ".vdisk-resume"
START_OVER = "delete the folder to start over, or leave --resume out"


def kept_folder(target: str | os.PathLike[str]) -> Path:
    """Where the files of an interrupted run lie, beside the target."""
    path = Path(target)
    return path.with_name(f"{path.name}{_SUFFIX}")


class _FolderLock:
    """Keeps other runs off a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `StorageError` when another run has it, and when it is not a folder of our own."""
        self._fd = -1
        name = str(folder)
        try:
            status = os.lstat(folder)
            if not stat.S_ISDIR(status.st_mode):
                raise StorageError(name, "resume", "is no folder")
            # Whoever owns it could have put anything in it.
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                raise StorageError(name, "resume", f"belongs to another user; {START_OVER}")
            if sys.platform != "win32":  # where two runs at once are not noticed
                self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._lock()
            if not os.path.samestat(os.lstat(folder), status):
                raise StorageError(name, "resume", "another run has just ended: try again")
        except OSError as error:
            self.close()
            raise StorageError(name, "resume", error) from error
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(0, "another run is at it") from None
        except OSError:
            pass  # a file system without locks

    def close(self) -> None:
        """Let others have it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def discard_kept(target: str | os.PathLike[str]) -> None:
    """Remove what an interrupted run left, now that the target is made; not while another run is at it."""
    folder = kept_folder(target)
    if not folder.exists():
        return
    with contextlib.suppress(StorageError):
        lock = _FolderLock(folder)
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


class KeptFile:
    """What of a file is known to be on the disk: its length, and the runs of it that count; the rest is to be zeros."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._starts, self._ends = array("Q"), array("Q")
        self._ascends = True

    def add(self, offset: int, length: int) -> None:
        """Count a run in, however it lies to the others."""
        if self._ends and offset == self._ends[-1]:
            self._ends[-1] += length
            return
        self._ascends = self._ascends and (not self._ends or offset > self._ends[-1])
        self._starts.append(offset)
        self._ends.append(offset + length)

    def clear_rest(self, storage: FileStorage) -> None:
        """Cut the file to its length and make all of it zeros but the runs."""
        storage.truncate(self.size_bytes)
        runs: Iterable[tuple[int, int]] = zip(self._starts, self._ends, strict=True)
        position = 0
        for start, end in runs if self._ascends else sorted(runs):
            start = min(start, self.size_bytes)
            if start > position:
                storage.zero(position, start - position)
            position = max(position, end)
        if position < self.size_bytes:
            storage.zero(position, self.size_bytes - position)


class KeptStaging(Staging):
    """The files lie under their final names in a folder beside the target, by a fixed name.

    Leaving it without `commit()` keeps the folder where `keeps` says so. What was there before is opened again by
    `create` once `past` is set, and removed by `start_over`. The folder is locked meanwhile.
    """

    def __init__(self, target: str | os.PathLike[str], *, keep: Iterable[str | os.PathLike[str]] = ()) -> None:
        super().__init__(target, keep=keep)
        self.work_folder = kept_folder(target)
        self.keeps = True
        self.past: Mapping[int, KeptFile] | None = None
        """What is known of the files of an earlier run, by their number in the order in which they are created."""
        self.storages: list[FileStorage] = []
        """All files, in the order in which they were created."""
        self.before_renames: Callable[[], None] | None = None
        """Called when the files are whole: from then on they are not to be gone on with."""
        self._is_folder_safe = False
        self._lock: _FolderLock | None = None

    def start_over(self, journal: Path) -> None:
        """Remove all that is in the folder but the journal."""
        try:
            for path in self.work_folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != journal:
                    path.unlink()
        except OSError as error:
            raise StorageError(str(self.work_folder), "clear", error) from error

    def flush(self) -> None:
        """Return once all that was written to any file would survive a loss of power, and be found."""
        for storage in self.storages:
            storage.flush()
        if not self._is_folder_safe:
            for folder in (self._folder, self.work_folder, self.work_folder.parent):
                if folder is not None:
                    flush_folder(folder)
            self._is_folder_safe = True

    def commit(self, *, flush: bool | None = None) -> None:
        super().commit(flush=flush)
        self.rollback()

    def rollback(self) -> None:
        if self._lock is None:
            return
        if self.keeps:
            for storage in self.storages:
                storage.close()
            self._files.clear()
            self._temporary.clear()
            self._folder = None
        super().rollback()
        if not self.keeps:
            shutil.rmtree(self.work_folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._take_folder()
        except BaseException:
            super().rollback()
            raise
        return self

    def _take_folder(self) -> None:
        try:
            self.work_folder.mkdir()
            self.keeps = False
        except FileExistsError:
            pass
        except OSError as error:
            raise StorageError(str(self.work_folder), "create", error) from error
        self._lock = _FolderLock(self.work_folder)

    def _device(self, final: Path, device_bytes: int | None) -> Storage | None:
        if final.is_block_device():
            raise Unsupported(final, "resume", "a block device as the target")
        return super()._device(final, device_bytes)

    def _temporary_of(self, final: Path) -> Path:
        return self.work_folder / final.name

    def _make_folder(self, temporary: Path) -> None:
        temporary.mkdir(exist_ok=self.past is not None)

    def _open(self, temporary: Path) -> FileStorage:
        if self.past is None:
            storage = FileStorage(temporary, create=True)
        else:
            known = self.past.get(len(self.storages), KeptFile())
            if not temporary.exists():
                raise Corrupt(self.work_folder, temporary.name, f"is not there; {START_OVER}")
            storage = FileStorage(temporary, writable=True)
            if storage.size < known.size_bytes:
                found = f"{storage.size}; {START_OVER}"
                raise Corrupt(temporary, "size", f"expected at least {known.size_bytes}, found {found}")
            known.clear_rest(storage)
        self.storages.append(storage)
        return storage

    def _settled(self) -> None:
        self.keeps = False
        if self.before_renames is not None:
            with contextlib.suppress(StorageError):
                self.before_renames()


__all__ = ["START_OVER", "KeptFile", "KeptStaging", "discard_kept", "kept_folder"]
