"""`Staging`: new files written under temporary names, put in place together or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from vdisk.errors import OptionError, StorageError, Unsupported
from vdisk.storage import locks
from vdisk.storage.base import Storage
from vdisk.storage.file import FileStorage


class Staging:
    """The files of one image in the making, beside the place where they will stand.

    Use as a context manager: leaving it without `commit()` removes everything, and what stood under the
    final names stays as it was. `commit()` renames the main file last: until then an older image under the same
    name is whole. So no other file may have the name of one that stands there: it could be the older image's. Files
    that are to be replaced are held meanwhile, as by one who writes to them: another program that has one open, such as
    a virtual machine, goes on with a file that nobody would find any more.

    A block device is not replaced but written to, and what was on it is gone from the beginning.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        keep: Iterable[str | os.PathLike[str]] = (),
        is_held: bool = False,
    ) -> None:
        """`keep` are files that no file of the new image may replace: those that it is made from. `is_held`: the caller
        holds what stands at `target`."""
        self.target = Path(target)
        self._kept = {Path(os.path.realpath(path)) for path in keep}
        if self.target.is_dir():
            raise StorageError(str(target), "create", "is a folder")
        self._held: dict[Path, int | None] = {self.target: None} if is_held else {}
        self._suffix = f".{os.urandom(4).hex()}.part"
        self._files: dict[Path, FileStorage] = {}
        self._devices: list[_DeviceStorage] = []
        self._temporary: set[Path] = set()
        self._folder: Path | None = None
        self._main: os.stat_result | None = None
        """What the new main file is known by, whatever its name."""
        self._placed: list[Path] = []
        self._retired: list[Path] = []

    def retire(self, name: str) -> None:
        """A file beside the target belongs to the image that is to be replaced: remove it once the new one stands."""
        path = self.target.with_name(name)
        if Path(os.path.realpath(path)) not in self._kept:
            self._hold(path)
            self._retired.append(path)

    def make_folder(self) -> None:
        """The target is to be a folder: files get their names in it. None may stand there yet."""
        if self.target.exists():
            raise StorageError(str(self.target), "create", "exists, and a folder does not replace it")
        folder = self._temporary_of(self.target)
        try:
            self._make_folder(folder)
        except OSError as error:
            raise StorageError(str(self.target), "create", error) from error
        self._folder = folder

    def create(self, name: str | None = None, *, device_bytes: int | None = None) -> Storage:
        """A new empty file that will be called `name`, in the target's folder; without a name, the target itself.

        With `device_bytes` a block device may stand there, of which so many bytes read as zeros then.
        """
        if self._folder is not None and name is not None:
            final = self.target / name
        else:
            final = self.target if name is None else self.target.with_name(name)
        if Path(os.path.realpath(final)) in self._kept:
            raise OptionError(f"{final}: is a file of the source; choose another name for the target")
        if final in self._files:
            raise OptionError(f"{final.name}: two files of one image cannot share a name")
        if (device := self._device(final, device_bytes)) is not None:
            return device
        if final != self.target and final.exists() and self.target.exists():
            raise OptionError(f"{final}: exists, and may be a part of {self.target.name}, which is to be replaced")
        self._hold(final)
        temporary = self._temporary_of(final) if self._folder is None else self._folder / final.name
        self._temporary.add(temporary)  # before it is there: a signal may come in between
        storage = self._open(temporary)
        if final == self.target:
            self._main = os.fstat(storage.file_descriptor)
        storage.name = str(final)  # errors speak of the file that the user asked for
        self._files[final] = storage
        return storage

    def _device(self, final: Path, device_bytes: int | None) -> Storage | None:
        """The block device that stands where a file is wanted; None where a file can be made."""
        try:
            mode = final.stat().st_mode
        except OSError:
            return None
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return None
        if not stat.S_ISBLK(mode):
            raise StorageError(str(final), "create", "stands there, and is neither a regular file nor a block device")
        if device_bytes is None:
            raise Unsupported(final, "block device", "writing another format than raw to it")
        device = _DeviceStorage(final)
        self._devices.append(device)
        device.truncate(device_bytes)
        return device

    def _make_folder(self, temporary: Path) -> None:
        temporary.mkdir()

    def _temporary_of(self, final: Path) -> Path:
        return final.with_name(f".{final.name}{self._suffix}")

    def _open(self, temporary: Path) -> FileStorage:
        return FileStorage(temporary, create=True)

    def _settled(self) -> None:
        """Called when all files are written, and flushed if they are to be, before the first one is renamed."""

    def commit(self, *, flush: bool | None = None) -> None:
        """Rename all files to their final names, the target last; `flush` waits until the disk has them first.

        Without a word on it they are flushed when they replace an image: a loss of power then leaves the old one or
        the new one. A new name has nothing to lose, and waiting costs as much as converting (docs/adr/0002).
        """
        for device in self._devices:
            if flush is not False:
                device.flush()
            device.close()
        if flush is None:
            flush = any(final.exists() for final in self._files)
        ordered = sorted(self._files.items(), key=lambda item: item[0] == self.target)
        for final, storage in ordered:
            if flush:
                storage.flush()
            # A file that stood there keeps its permissions, as it would were it written in place.
            with contextlib.suppress(OSError):
                os.chmod(storage.path, final.stat().st_mode & 0o7777)
        self._settled()
        if self._folder is not None:
            self._commit_folder(self._folder, flush)
            return
        for final, storage in ordered:
            storage.close()
            if final != self.target and not final.exists():
                self._placed.append(final)
            try:
                os.replace(storage.path, final)
            except OSError as error:
                raise StorageError(str(final), "rename", error) from error
            del self._files[final]
            self._temporary.discard(storage.path)
            self._let_go(final)
        self._placed.clear()
        if flush:
            flush_folder(self.target.parent)
        self._remove_retired()

    def _remove_retired(self) -> None:
        for path in self._retired:
            with contextlib.suppress(OSError):
                path.unlink()
            self._let_go(path)
        self._retired.clear()

    def _stands(self) -> bool:
        """Whether the new main file has its final name."""
        try:
            return self._main is not None and os.path.samestat(self._main, os.stat(self.target))
        except OSError:
            return False

    def _commit_folder(self, folder: Path, flush: bool) -> None:
        for storage in self._files.values():
            storage.close()
        if flush:
            flush_folder(folder)
        try:
            os.rename(folder, self.target)
        except OSError as error:
            raise StorageError(str(self.target), "rename", error) from error
        self._files.clear()
        self._folder = None
        if flush:
            flush_folder(self.target.parent)

    def _hold(self, final: Path) -> None:
        if final not in self._held:
            self._held[final] = locks.hold_target(final, str(final))

    def _let_go(self, final: Path) -> None:
        fd = self._held.pop(final, None)
        if fd is not None:
            os.close(fd)

    def rollback(self) -> None:
        """Remove every file that was not committed."""
        for final in list(self._held):
            self._let_go(final)
        for storage in [*self._files.values(), *self._devices]:
            storage.close()
        if self._stands():  # an interrupt came behind the last rename
            self._placed.clear()
            self._remove_retired()
        for path in (*self._temporary, *self._placed):
            with contextlib.suppress(OSError):
                path.unlink()
        self._files.clear()
        self._temporary.clear()
        self._placed.clear()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            self._folder = None

    def __enter__(self) -> Self:
        """Raises `InUse` when another program has open what stands at the target: before any work is done."""
        if Path(os.path.realpath(self.target)) not in self._kept:  # else `create` tells what is wrong
            self._hold(self.target)
        return self

    def __exit__(self, *exc: object) -> None:
        self.rollback()


class _DeviceStorage(FileStorage):
    """A block device that a new disk is written to. No other program has it, nor is it mounted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, writable=True)
        self._claim = -1
        self._disk_bytes = 0
        try:
            self._claim = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)  # Linux: refused where it is mounted
        except OSError as error:
            self.close()
            raise StorageError(self.name, "open", error) from error

    def truncate(self, size: int) -> None:
        """The disk ends at `size`: up to there, what was on the device reads as zeros; the rest of it is left alone."""
        if size > self.size:
            raise StorageError(self.name, "create", f"the disk has {size} bytes, and the device {self.size}")
        if size > self._disk_bytes:
            self.zero(self._disk_bytes, size - self._disk_bytes)
            self._disk_bytes = size

    def close(self) -> None:
        claim, self._claim = getattr(self, "_claim", -1), -1  # the device itself may not have opened
        if claim >= 0:
            os.close(claim)
        super().close()


def flush_folder(folder: Path) -> None:
    """Make the renames last; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
