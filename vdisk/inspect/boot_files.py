"""Where the files of a guest's boot loader and kernels lie on the disk: a read there tells what is being loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from vdisk.inspect.tree import Entry, FileSystem, Tree

_MOST_FILES = 2000
"""GRUB's modules are some three hundred."""
_DEEPEST = 4
_MOST_EXTENTS = 1024
_LONGEST_PATH = 4096
_WINDOWS = (
    "/bootmgr", "/Boot/BCD", "/ntldr", "/boot.ini", "/hiberfil.sys", "/pagefile.sys", "/Windows/System32/winload.exe",
    "/Windows/System32/winload.efi", "/Windows/System32/winresume.exe", "/Windows/System32/ntoskrnl.exe",
    "/Windows/System32/hal.dll", "/Windows/System32/config/SYSTEM", "/Windows/System32/config/SOFTWARE",
    "/Windows/System32/smss.exe", "/Windows/System32/csrss.exe", "/Windows/System32/winlogon.exe",
)  # fmt: skip
_WINDOWS_DRIVERS = "/Windows/System32/drivers"


class MappedFileSystem(FileSystem, Protocol):
    """A file system that tells where its files lie."""

    def extents(self, file: Entry) -> Iterator[tuple[int, int]]:
        """First byte and end, in the volume, of each stretch of a file's data."""


@dataclass(slots=True)
class BootFile:
    """A file, and the stretches of the volume that hold it."""

    path: str
    extents: list[tuple[int, int]] = field(default_factory=list)
    """First byte and end."""

    @classmethod
    def from_dict(cls, said: Any) -> Self:
        """From `asdict`, as it came from another process; raises `ValueError` for anything else."""
        if not isinstance(said, dict):
            raise ValueError("not a file")
        path, extents = said.get("path"), said.get("extents")
        if not isinstance(path, str) or len(path) > _LONGEST_PATH or not isinstance(extents, list):
            raise ValueError("not a file")
        if not all(isinstance(one, list) and [type(value) for value in one] == [int, int] for one in extents):
            raise ValueError("not a list of extents")
        shown = "".join(c if c.isprintable() else "?" for c in path)
        return cls(shown, [(start, end) for start, end in extents])


def boot_files(volume: MappedFileSystem) -> list[BootFile]:
    """The files in /boot; those of the whole volume where there is no such folder, as on one that is mounted there."""
    root = volume.root()
    boot = volume.child(root, "boot")
    top, path = (boot, "/boot") if boot and boot.kind == "folder" else (root, "")
    return [_placed(volume, *one) for one in itertools.islice(_walk(volume, top, path, _DEEPEST), _MOST_FILES)]


def windows_boot_files(volume: MappedFileSystem) -> list[BootFile]:
    """The files by which Windows starts: its loader's, the kernel, the registry and the drivers."""
    tree = Tree({"/": volume})
    paths = [*_WINDOWS, *(f"{_WINDOWS_DRIVERS}/{name}" for name in tree.names(_WINDOWS_DRIVERS))]
    found = ((path, tree.find(path)) for path in paths)
    return [_placed(volume, path, file) for path, file in found if file is not None and file.kind == "file"]


def _placed(volume: MappedFileSystem, path: str, file: Entry) -> BootFile:
    return BootFile(path, list(itertools.islice(volume.extents(file), _MOST_EXTENTS)))


def _walk(volume: FileSystem, folder: Entry, path: str, deepest: int) -> Iterator[tuple[str, Entry]]:
    """Every file in `folder` and, so many folders deep, below it. Links are passed over: what they name is met too."""
    for name in sorted(itertools.islice(volume.names(folder), _MOST_FILES)):
        entry = None if name in (".", "..") else volume.child(folder, name)
        if entry is None:
            continue
        if entry.kind == "file":
            yield f"{path}/{name}", entry
        elif entry.kind == "folder" and deepest:
            yield from _walk(volume, entry, f"{path}/{name}", deepest - 1)
