"""Image formats: the table of them, `probe`, `open` and `create`.

A format is a folder with a light `__init__` (its `probe`), `structs.py` (construct declarations), `image.py` (an
`Image`) and `create.py` (a `Writer`), and one row in `FORMATS`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import NotThisFormat, OptionError
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from vdisk.formats.gate import Gate
    from vdisk.formats.image import Backing, Image, Writer

_HEAD_BYTES = 4096
_TAIL_BYTES = 1024
_BUNDLE_DESCRIPTOR = "DiskDescriptor.xml"
"""In a folder, Parallels' bundle (.hdd)."""


class Format(NamedTuple):
    """A row of the table. The modules behind it are imported when they are needed."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    """File name endings that choose this format for a target, the usual one first."""
    image: str
    """"module:Class" of the `Image`, inside the format's package."""
    writer: str | None
    """"module:Class" of the `Writer`; None when the format is only read."""
    aliases: tuple[str, ...] = ()

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """Whether a file that begins with `head`, ends with `tail` and has `size` bytes carries this format's mark."""
        package = importlib.import_module(f"vdisk.formats.{self.name}")
        return bool(package.probe(head, tail, size))

    def image_class(self) -> type[Image]:
        """The class that opens it."""
        return self._load(self.image)  # type: ignore[no-any-return]

    def writer_class(self) -> type[Writer]:
        """The class that lays out a new one; `OptionError` when the format is only read."""
        if self.writer is None:
            raise OptionError(f"{self.name}: images of this format are read, not made")
        return self._load(self.writer)  # type: ignore[no-any-return]

    def _load(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(f"vdisk.formats.{self.name}.{module}"), attribute)


# In the order of probing; raw takes whatever is left.
FORMATS: tuple[Format, ...] = (
    Format(
        "qcow2",
        "QEMU copy-on-write, version 2 and 3",
        (".qcow2", ".qcow"),
        "image:Qcow2Image",
        "create:Qcow2Writer",
    ),
    Format("vmdk", "VMware virtual disk", (".vmdk",), "image:VmdkImage", "create:VmdkWriter"),
    Format("vdi", "VirtualBox disk image", (".vdi",), "image:VdiImage", "create:VdiWriter"),
    Format("vhd", "Microsoft virtual hard disk", (".vhd", ".vpc"), "image:VhdImage", "create:VhdWriter", ("vpc",)),
    Format("vhdx", "Microsoft virtual hard disk, version 2", (".vhdx",), "image:VhdxImage", "create:VhdxWriter"),
    Format(
        "parallels",
        "Parallels hard disk, a bundle or one expandable file",
        (".hds", ".hdd"),
        "image:ParallelsImage",
        "create:ParallelsWriter",
    ),
    Format(
        "raw",
        "bytes as they are",
        (".img", ".raw", ".bin", ".dd", ".iso"),
        "image:RawImage",
        "create:RawWriter",
    ),
)


def find_format(name: str) -> Format:
    """The row called `name`, in any case, or by an alias; `OptionError` names those that exist."""
    wanted = name.lower()
    for row in FORMATS:
        if wanted == row.name or wanted in row.aliases:
            return row
    raise OptionError(f"unknown format {name!r}; known are: {', '.join(row.name for row in FORMATS)}")


def format_of_suffix(path: str | os.PathLike[str]) -> Format | None:
    """The format that a file's name calls for, or None."""
    suffix = Path(path).suffix.lower()
    return next((row for row in FORMATS if suffix in row.suffixes), None)


def probe(storage: Storage) -> Format:
    """The format whose mark a file carries; raw when it carries none. Reads the first 4096 and the last 1024 bytes."""
    size = storage.size
    head = storage.read(0, _HEAD_BYTES)
    tail = storage.read(max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    return next(row for row in FORMATS if row.probe(head, tail, size))


def main_file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file to open for an image at `path`: of a bundle, which is a folder, the descriptor in it."""
    descriptor = Path(path, _BUNDLE_DESCRIPTOR)
    return descriptor if descriptor.is_file() else path


def open(
    source: str | os.PathLike[str] | Storage,
    *,
    format: str | None = None,
    writable: bool = False,
    backing: bool = True,
    backing_format: str | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    gate: Gate | None = None,
    secret: bytes | None = None,
    strict: bool = False,
    force_share: bool = False,
) -> Image:
    """Open a disk image.

    `source` is a path or a `Storage`, which the image then owns. `format` is a name of the table; without it the
    image's mark decides. `backing=False` leaves the files behind it alone. `allow` names folders, beside the image's
    own, whose files the image may name; `references=False` forbids all. `gate` is for formats that open an image
    behind another. `secret` unlocks an encrypted image; without it one opens, but its data cannot be read.
    `strict` refuses a file that could be taken for another format too, and one that names any other file.

    The files are held as QEMU holds them (`vdisk.storage.locks`): readers go beside readers, a writer beside nobody.
    `force_share` reads an image all the same that another program writes to; what it reads may be inconsistent.

    Raises `NotThisFormat`, `Corrupt`, `Unsupported`, `PolicyError`, `StorageError`, `InUse` or `OptionError`.
    """
    from vdisk.formats.gate import Gate, path_of
    from vdisk.formats.image import OpenRequest
    from vdisk.storage.locks import open_held

    row = None if format is None else find_format(format)
    if force_share and writable:
        raise OptionError("force_share: only who reads an image can share it with one who writes to it")
    if isinstance(source, Storage):
        storage = source
    else:
        storage = open_held(main_file(source), writable=writable, force_share=force_share)
    guess: str | None = None
    try:
        if row is None:
            from vdisk.formats.marks import guessed_from

            row = probe(storage)
            guess = guessed_from(storage, row)
        if strict:
            from vdisk.formats.strict import refuse_ambiguous

            refuse_ambiguous(storage, row, is_guess=format is None)
            references = False
        path = path_of(storage)
        if gate is None:
            gate = Gate(path, allow=allow, references=references, force_share=force_share)
        request = OpenRequest(
            gate, writable=writable, with_backing=backing, backing_format=backing_format, secret=secret
        )
    except BaseException:
        storage.close()
        raise
    image = row.image_class().open(storage, request)
    image.guessed_from = guess
    if strict:
        from vdisk.formats.strict import refuse_unsafe

        try:
            refuse_unsafe(image)
        except BaseException:
            image.close()
            raise
    return image


def open_behind(
    gate: Gate, field: str, name: str, format: str, *, writable: bool = False, secret: bytes | None = None
) -> Image:
    """Open the image that another one names in `field`, of a format that is stated and never guessed."""
    row = find_format(format)
    storage = gate.open(field, name, writable=writable)
    return open(storage, format=row.name, writable=writable, gate=gate.behind(storage.path), secret=secret)


def open_backing(
    image: str | os.PathLike[str],
    name: str,
    format: str,
    *,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    force_share: bool = False,
) -> Image:
    """Open the backing file `name` of an image at `image` that is yet to be made: as that image will find it."""
    from vdisk.formats.gate import Gate

    gate = Gate(Path(image), allow=allow, references=references, force_share=force_share)
    return open_behind(gate, "backing file", name, format)


def create(
    path: str | os.PathLike[str],
    size: int | str,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    backing: Backing | None = None,
) -> None:
    """Make an empty image of `size` bytes; an image that stood at `path` is replaced once the new one is whole.

    `format` without a name is that of the path's suffix. `options` are the format's (`vdisk create -O FORMAT -o help`).
    """
    from vdisk.formats.options import parse_size
    from vdisk.storage.staging import Staging

    row = target_format(path, format)
    with Staging(path) as staging:
        writer = row.writer_class()(staging, parse_size(size), options or {}, backing=backing)
        writer.finish()
        staging.commit()


def target_format(path: str | os.PathLike[str], format: str | None) -> Format:
    """The format of a new image: the one named, or that of the suffix."""
    if format is not None:
        return find_format(format)
    row = format_of_suffix(path)
    if row is None:
        raise OptionError(f"{os.fspath(path)}: the name does not tell the format; name it with -O")
    return row


__all__ = [
    "FORMATS",
    "Format",
    "NotThisFormat",
    "create",
    "find_format",
    "format_of_suffix",
    "open",
    "open_backing",
    "open_behind",
    "probe",
    "target_format",
]
