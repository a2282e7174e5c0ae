"""`Package`: an OVA, or an OVF descriptor with its files beside it, opened without unpacking anything."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from vdisk.errors import Corrupt, NotThisFormat, OptionError, StorageError, Unsupported
from vdisk.ova import ovf, tar
from vdisk.ova.window import WindowStorage
from vdisk.storage.base import Storage
from vdisk.storage.file import FileStorage
from vdisk.storage.locks import open_held

if TYPE_CHECKING:
    from vdisk.formats.gate import Gate
    from vdisk.formats.image import Image

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_DIGEST_LINE = re.compile(r"(SHA1|SHA256|SHA384|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)\s*", re.IGNORECASE)
_LONGEST_MANIFEST_BYTES = 1 << 20
_STEP_BYTES = 4 << 20
_FORMATS = (
    ("vmdk", "vmdk"),
    ("vhdx", "vhdx"),
    ("vhd", "vhd"),
    ("virtual-hard-disk", "vhd"),
    ("qcow", "qcow2"),
    ("raw", "raw"),
)
"""(what a format's URI contains, our name of it)."""


class Disk(NamedTuple):
    """A disk of a package."""

    number: int
    """From 1 on, in the descriptor's order."""
    id: str
    file_name: str | None
    capacity_bytes: int
    format_uri: str


class Package:
    """A package that is open for reading. Use as a context manager, or close it."""

    def __init__(self, path: Path, archive: FileStorage | None, gate: Gate, *, strict: bool = False) -> None:
        self.path = path
        self.name = str(path)
        self._strict = strict
        self.notes: list[str] = []
        """What a user should be told: a manifest that is not there, files that it leaves out."""
        self._archive = archive
        self._gate = gate
        self._members = {} if archive is None else {member.name: member for member in tar.read_members(archive)}
        self._descriptor_name = path.name if archive is None else self._find_descriptor()
        with self._open(self._descriptor_name) as storage:
            if storage.size > ovf.LONGEST_DESCRIPTOR_BYTES:
                raise Corrupt(
                    self.name, "OVF descriptor", expected=f"at most {ovf.LONGEST_DESCRIPTOR_BYTES} bytes",
                    found=storage.size,
                )  # fmt: skip
            self.envelope = ovf.parse(storage.read(0, storage.size), self.name)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        allow: Iterable[str | os.PathLike[str]] = (),
        references: bool = True,
        strict: bool = False,
        force_share: bool = False,
    ) -> Self:
        """Open an OVA or an OVF descriptor. `allow` and `references` are the gate's, for files beside a descriptor;
        `strict` and `force_share` are as in `vdisk.formats.open`.

        Raises `NotThisFormat`, `Corrupt`, `Unsupported`, `PolicyError`, `StorageError` or `InUse`.
        """
        from vdisk.formats.gate import Gate

        where = Path(path)
        gate = Gate(where, allow=allow, references=references and not strict, force_share=force_share)
        storage = open_held(where, force_share=force_share)
        try:
            is_archive = tar.is_tar(storage.read(0, tar.BLOCK_BYTES))
            if not is_archive and b"Envelope" not in storage.read(0, 4096):
                raise NotThisFormat(str(where), "package", expected="an OVA or an OVF descriptor", found="neither")
            if strict:
                from vdisk.formats.strict import refuse_marks

                refuse_marks(storage, "ova" if is_archive else "ovf")
            if not is_archive:
                storage.close()
            return cls(where, storage if is_archive else None, gate, strict=strict)
        except BaseException:
            storage.close()
            raise

    @property
    def disks(self) -> list[Disk]:
        """Every disk of the package."""
        return [
            Disk(number, disk.id, None if disk.file is None else disk.file.name, disk.capacity_bytes, disk.format)
            for number, disk in enumerate(self.envelope.disks, 1)
        ]

    def close(self) -> None:
        """Let go of the archive. Disks that were opened stay open."""
        if self._archive is not None:
            self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Files -----------------------------------------------------------------------------------------------------

    def _find_descriptor(self) -> str:
        """The first .ovf of the archive; it stands before the others."""
        for name in self._members:
            if name.lower().endswith(".ovf"):
                return name
        raise NotThisFormat(self.name, "OVA", expected="an .ovf descriptor in the archive", found="none")

    def _open(self, name: str) -> Storage:
        """A file of the package; each has a file descriptor of its own."""
        if self._archive is None:
            if name == self.path.name:
                return self._reopen()
            return self._gate.open("OVF descriptor: href", name)
        member = self._members.get(name)
        if member is None:
            raise Corrupt(self.name, "archive", expected=f"the file {name!r}", found="none of that name")
        return WindowStorage(self._reopen(), member.offset, member.length, f"{self.name}:{name}")

    def _reopen(self) -> FileStorage:
        return open_held(self.path, force_share=self._gate.force_share)

    def verify(self, progress: Progress | None = None) -> int:
        """Hold every file against the manifest; returns how many files were. Without a manifest, 0, and a note.

        Raises `Corrupt` for a digest that is wrong and for a file that is missing.
        """
        digests = self._manifest()
        if digests is None:
            self.notes.append("has no manifest: nothing tells whether its files are whole")
            return 0
        named = {self._descriptor_name, *(file.name for file in self.envelope.files)}
        left_out = sorted(named - set(digests))
        if left_out:
            self.notes.append(f"the manifest leaves out {', '.join(left_out)}")
        sizes: dict[str, int] = {}
        for name in digests:
            with self._open(name) as storage:
                sizes[name] = storage.size
        done, total = 0, sum(sizes.values())
        for name, (algorithm, wanted) in digests.items():
            with self._open(name) as storage:
                digest = hashlib.new(algorithm)
                buffer = memoryview(bytearray(min(_STEP_BYTES, max(1, storage.size))))
                position = 0
                while count := storage.readinto(position, buffer):
                    digest.update(buffer[:count])
                    position += count
                    done += count
                    if progress is not None:
                        progress(done, total)
            if digest.hexdigest() != wanted:
                raise Corrupt(self.name, f"{algorithm} of {name}", expected=wanted, found=digest.hexdigest())
        return len(digests)

    def _manifest(self) -> dict[str, tuple[str, str]] | None:
        """(algorithm, digest) by file name."""
        name = self._descriptor_name[: -len(".ovf")] + ".mf"
        if self._archive is None:
            if not (self.path.parent / name).is_file():
                return None
        elif name not in self._members:
            return None
        with self._open(name) as storage:
            if storage.size > _LONGEST_MANIFEST_BYTES:
                raise Corrupt(
                    self.name, "manifest", expected=f"at most {_LONGEST_MANIFEST_BYTES} bytes", found=storage.size
                )
            text = storage.read(0, storage.size).decode("utf-8", "replace")
        found: dict[str, tuple[str, str]] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            match = _DIGEST_LINE.fullmatch(line)
            if match is None:
                raise Corrupt(self.name, "manifest", expected="SHA256(file)= digest", found=line)
            found[match[2].strip()] = (match[1].lower(), match[3].lower())
        return found

    # Disks -----------------------------------------------------------------------------------------------------

    def find_disk(self, which: int | str | None = None) -> Disk:
        """The disk with a number (from 1 on), an id or a file name; without, the only one.

        Raises `OptionError`, which lists the disks, when there is no such disk or none was chosen of several.
        """
        disks = self.disks
        known = ", ".join(f"{disk.number} ({disk.file_name or disk.id})" for disk in disks)
        if which is None:
            if len(disks) == 1:
                return disks[0]
            if not disks:
                raise OptionError(f"{self.name}: has no disk")
            raise OptionError(f"{self.name}: has {len(disks)} disks, choose one of: {known}")
        for disk in disks:
            if str(which) in (str(disk.number), disk.id, disk.file_name):
                return disk
        raise OptionError(f"{self.name}: has no disk {which!r}; it has: {known or 'none'}")

    def open_disk(self, which: int | str | None = None) -> Image:
        """Open a disk where it lies, read only. It stays open when the package is closed."""
        from vdisk import formats

        chosen = self.find_disk(which)
        entry = self.envelope.disks[chosen.number - 1]
        if entry.file is None:
            raise Unsupported(self.name, "ova", f"disk {entry.id}, which starts empty and has no file")
        if entry.parent:
            raise Unsupported(self.name, "ova", f"disk {entry.id}, which is a delta on disk {entry.parent}")
        if entry.file.compression not in ("", "identity"):
            raise Unsupported(self.name, "ova", f"files compressed by {entry.file.compression}")
        if entry.file.chunk_bytes:
            raise Unsupported(self.name, "ova", "files cut into chunks")
        uri = entry.format.lower()
        name = next((ours for mark, ours in _FORMATS if mark in uri), None)
        if name is None:
            raise Unsupported(self.name, "ova", f"disks of format {entry.format[:80]!r}")
        storage = self._open(entry.file.name)
        if entry.file.size_bytes is not None and entry.file.size_bytes != storage.size:
            self.notes.append(
                f"the descriptor gives {entry.file.name} {entry.file.size_bytes} bytes; it has {storage.size}"
            )
        disk = formats.open(storage, format=name, strict=self._strict)
        if entry.capacity_bytes and entry.capacity_bytes != disk.size:
            self.notes.append(f"the descriptor gives disk {entry.id} {entry.capacity_bytes} bytes; it has {disk.size}")
        return disk


def is_package(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an OVA or an OVF descriptor, by its first bytes and its name; False where it cannot be read."""
    where = Path(path)
    if where.suffix.lower() not in (".ova", ".ovf"):
        return False
    try:
        with FileStorage(where) as storage:
            head = storage.read(0, 4096)
    except StorageError:
        return False
    if tar.is_tar(head):
        return True
    return b"Envelope" in head


def open_disk(
    path: str | os.PathLike[str],
    disk: int | str | None = None,
    *,
    verify: bool = True,
    progress: Progress | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    strict: bool = False,
    force_share: bool = False,
) -> Image:
    """Open a disk of the package at `path`, read only and where it lies; see `Package.find_disk` for `disk`.

    With `verify` the manifest is held against every file first, which reads them whole.
    """
    with Package.open(path, allow=allow, references=references, strict=strict, force_share=force_share) as package:
        package.find_disk(disk)
        if verify:
            package.verify(progress)
        return package.open_disk(disk)
