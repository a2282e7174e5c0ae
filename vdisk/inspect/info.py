"""`info`: what an image says of itself, with the keys of `qemu-img info --output=json`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from vdisk import formats
from vdisk.errors import StorageError
from vdisk.formats.image import Description, Image
from vdisk.storage.file import FileStorage


def info(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    backing_format: str | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    strict: bool = False,
    force_share: bool = False,
) -> dict[str, Any]:
    """What the image at `path` is. The files behind it stay unopened; those that hold its own data are looked at.

    Where no `format` is named, `format-guessed-from` says from what it was guessed. `strict` and
    `force_share` are those of `formats.open`.
    """
    with formats.open(
        path,
        format=format,
        allow=allow,
        references=references,
        backing=False,
        strict=strict,
        force_share=force_share,
    ) as image:
        return describe(image, os.fspath(path), backing_format)


def chain_of(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    backing_format: str | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    force_share: bool = False,
) -> list[dict[str, Any]]:
    """The image and all those behind it, topmost first."""
    with formats.open(
        path,
        format=format,
        allow=allow,
        references=references,
        backing_format=backing_format,
        force_share=force_share,
    ) as image:
        found = []
        layer: Any = image
        while layer is not None:
            if isinstance(layer, Image):
                found.append(describe(layer, layer.name, backing_format))
            layer = layer.backing
    return found


def describe(image: Image, filename: str, backing_format: str | None = None) -> dict[str, Any]:
    """An open image's description as plain data."""
    said = image.describe()
    found: dict[str, Any] = {"virtual-size": image.size, "filename": filename}
    if said.cluster_size is not None:
        found["cluster-size"] = said.cluster_size
    found["format"] = image.format_name
    if image.guessed_from is not None:  # never that of a backing file
        found["format-guessed-from"] = image.guessed_from
    found["actual-size"] = _allocated_bytes(filename, said)
    if said.is_encrypted:
        found["encrypted"] = True
    if said.is_compressed:
        found["compressed"] = True
    if said.specific:
        found["format-specific"] = {"type": image.format_name, "data": said.specific}
    if said.backing_name is not None:
        found["backing-filename"] = said.backing_name
        folder = os.path.dirname(filename)
        found["full-backing-filename"] = os.path.join(folder, said.backing_name)
        named = said.backing_format or backing_format
        if named is not None:
            found["backing-filename-format"] = named
    if said.snapshots:
        found["snapshots"] = said.snapshots
    found["dirty-flag"] = said.is_dirty
    if said.notes:
        found["notes"] = list(said.notes)
    return found


def _allocated_bytes(filename: str, said: Description) -> int:
    """Space that the image's own files take on their file systems."""
    total = 0
    for path in {filename, *said.children}:
        try:
            with FileStorage(path) as storage:
                total += storage.allocated_bytes
        except StorageError:
            continue  # a child that cannot be looked at takes nothing that we could tell
    return total
