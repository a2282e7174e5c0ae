"""The gate: who may open a file that an image names.

An image comes from a stranger, and what it names (a backing file, a data file, an extent, a parent) is read and can
end up in a copy. So only plain files pass that lie, once every link is resolved, in the image's own folder or below
it, or in a folder that the user allowed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from vdisk.errors import PolicyError, StorageError
from vdisk.storage import locks
from vdisk.storage.base import Storage
from vdisk.storage.file import FileStorage

MAX_CHAIN_DEPTH = 64

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")  # two letters at least: "C:" is a drive


class Gate:
    """The policy for one image; `behind()` gives the policy for an image that this one names."""

    def __init__(
        self,
        image: Path | None,
        *,
        allow: Iterable[str | os.PathLike[str]] = (),
        references: bool = True,
        force_share: bool = False,
        _chain: tuple[Path, ...] = (),
    ) -> None:
        """`image` is where the image lies (None: it has no path, and names resolve nowhere); `allow` are folders
        that may be read besides its own; without `references` no file it names is opened at all; with `force_share`
        files are read that another program writes to."""
        self.image = image
        self.references = references
        self.force_share = force_share
        self._written: set[Path] = set()
        self._allowed = tuple(Path(os.path.realpath(folder)) for folder in allow)
        self._chain = _chain
        if image is not None:
            resolved = Path(os.path.realpath(image))
            self._chain = (*_chain, resolved)
            if not any(resolved.is_relative_to(folder) for folder in self._allowed):
                self._allowed = (*self._allowed, resolved.parent)

    def behind(self, path: Path) -> Gate:
        """The policy for the image at `path`, reached through this one."""
        return Gate(
            path,
            allow=self._allowed,
            references=self.references,
            force_share=self.force_share,
            _chain=self._chain,
        )

    def open(self, field: str, name: str, *, writable: bool = False) -> FileStorage:
        """Open the file that the image names in `field`, and hold it (`vdisk.storage.locks`).

        Raises `PolicyError` when the policy forbids it, `StorageError` when it cannot be opened, `InUse`.
        """
        storage = self.peek(field, name, writable=writable)
        try:
            # Two extents of a VMDK may lie in one file, which this image then holds already.
            if storage.path not in self._written:
                locks.hold(storage, force_share=self.force_share)
            if writable:
                self._written.add(storage.path)
        except BaseException:
            storage.close()
            raise
        return storage

    def peek(self, field: str, name: str, *, writable: bool = False) -> FileStorage:
        """Open a file without holding it: to see whether it is the one that is sought."""
        path = self.resolve(field, name)
        storage = FileStorage(path, writable=writable)
        try:
            # The file that was judged must be the file that was opened.
            opened, judged = os.fstat(storage.file_descriptor), os.stat(path, follow_symlinks=False)
            if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(opened, judged):
                self._refuse(field, name, "is not a plain file")
        except OSError as error:
            storage.close()
            raise StorageError(name, "open", error) from error
        except PolicyError:
            storage.close()
            raise
        return storage

    def open_first(self, field: str, names: Iterable[str]) -> FileStorage | None:
        """Open the first of several names for one file that can be opened; None when there is no name at all.

        When none can, the first one's `PolicyError` or `StorageError` is raised: it is the name that was meant most.
        """
        first_error: PolicyError | StorageError | None = None
        for name in names:
            try:
                return self.open(field, name)
            except (PolicyError, StorageError) as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return None

    def resolve(self, field: str, name: str) -> Path:
        """Where `name` leads, every link resolved, once the policy is met."""
        if not self.references:
            self._refuse(
                field, name, "files that images name are not opened", "leave out --no-references (or --strict)"
            )
        if self.image is None:
            self._refuse(field, name, "an image without a path has no folder to look in")
        assert self.image is not None
        if not name or "\0" in name:
            self._refuse(field, name, "is not a file name")
        if _PROTOCOL.match(name):
            self._refuse(field, name, "names a protocol; only files are opened")
        path = Path(os.path.realpath(self.image.parent / name))
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            self._refuse(
                field,
                name,
                "lies outside the image's folder",
                f"allow it with --allow-external {path.parent}",
            )
        if path in self._chain:
            self._refuse(field, name, "is the image itself" if path == self._chain[-1] else "closes a circle")
        if len(self._chain) >= MAX_CHAIN_DEPTH:
            self._refuse(field, name, f"the chain is deeper than {MAX_CHAIN_DEPTH} images")
        try:
            if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
                self._refuse(field, name, "is not a plain file")
        except (OSError, ValueError) as error:
            raise StorageError(self._owner, f"{field}: {name!r}", error) from error
        return path

    @property
    def _owner(self) -> str:
        return str(self.image) if self.image is not None else "<image>"

    def _refuse(self, field: str, name: str, reason: str, remedy: str | None = None) -> None:
        raise PolicyError(self._owner, field, name, reason, remedy)


def path_of(storage: Storage) -> Path | None:
    """Where a storage's file lies; None for storages that are no files."""
    return storage.path if isinstance(storage, FileStorage) else None
