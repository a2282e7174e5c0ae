"""What clouds and platforms want around an image: written by `convert --for`, looked into by `compat`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vdisk.errors import StorageError


class Unpacked(NamedTuple):
    """The disk out of a package."""

    disk: Path
    format: str
    problems: list[tuple[str, str]]
    """(what is wrong with the package, why it matters)."""


def detect(path: str | os.PathLike[str]) -> str:
    """The kind of package at `path`: as in `Recipe.package`, or "" where it is none. By its content."""
    from vdisk.compat.packages import oci, tarball
    from vdisk.ova import is_package

    if is_package(path):
        return "ova"
    if oci.is_layout(path):
        return "oci"
    return tarball.detect(path)


def unpack(path: str | os.PathLike[str], kind: str, folder: Path) -> Unpacked:
    """Take the disk out of a package (all kinds but "ova", which is read in place) into `folder`."""
    from vdisk.compat.packages import oci, tarball

    return oci.unpack(Path(path), folder) if kind == "oci" else tarball.unpack(Path(path), kind, folder)


def pack(kind: str, disk: Path, size_bytes: int, target: Path) -> None:
    """Make the package at `target` of the image `disk`; what stood there is replaced once the new one is whole."""
    from vdisk.compat.packages import oci, tarball

    if kind == "oci":
        oci.pack(disk, target)
    else:
        tarball.pack(kind, disk, size_bytes, target)


@contextlib.contextmanager
def work_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder for what is made on the way, gone afterwards; on the file system of `beside` where that is given."""
    parent = None if beside is None else beside.absolute().parent
    try:
        folder = tempfile.TemporaryDirectory(prefix=".vdisk-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(parent or tempfile.gettempdir(), "create", error) from error
    with folder as name:
        yield Path(name)
