"""The parent of a differencing VDI: among the files beside the image, the one with the UUID that it names.

A VDI has no path of its parent. So nothing outside the image's folder is ever looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, ImageError, OptionError, PolicyError, StorageError
from vdisk.formats.gate import Gate
from vdisk.formats.vdi.header import NULL_UUID, Header
from vdisk.storage import locks
from vdisk.storage.file import FileStorage

if TYPE_CHECKING:
    from vdisk.formats.vdi.image import VdiImage

_FIELD = "parent UUID"
_MOST_FILES = 10_000
_SUFFIX = ".vdi"


def open_parent(gate: Gate, file: str, header: Header) -> VdiImage:
    """Open the parent, which must be as the child knew it. Without one beside the image this is a `StorageError`."""
    from vdisk import formats
    from vdisk.formats.vdi.image import VdiImage

    if header.parent_uuid == NULL_UUID:
        raise Corrupt(file, _FIELD, "a differencing image names no parent")
    storage = _find(gate, file, header)
    try:
        locks.hold(storage, force_share=gate.force_share)
    except BaseException:
        storage.close()
        raise
    parent = formats.open(storage, format="vdi", gate=gate.behind(storage.path))
    assert isinstance(parent, VdiImage)
    try:
        check_identity(file, header, parent)
    except BaseException:
        parent.close()
        raise
    return parent


def parent_name(gate: Gate, file: str, header: Header) -> str | None:
    """The parent's file name, for people; None when it is not beside the image, or may not be looked for."""
    if header.parent_uuid == NULL_UUID:
        return None
    try:
        storage = _find(gate, file, header)
    except (PolicyError, StorageError):
        return None
    storage.close()
    return storage.path.name


def check_identity(file: str, header: Header, parent: VdiImage) -> None:
    """`Corrupt` when the parent was written since the child was made on it."""
    wanted = header.parent_modification_uuid
    if wanted not in (NULL_UUID, parent.header.modification_uuid):
        raise Corrupt(
            file,
            "parent modification UUID",
            f"expected the parent {parent.name} as it was, {wanted}, found {parent.header.modification_uuid}: it was "
            "written since (`rebase --unsafe` takes it all the same)",
        )


def open_named(gate: Gate, file: str, name: str) -> VdiImage:
    """Open the image `name`, which a child at `file` is to have behind it: it must lie in the child's own folder."""
    from vdisk import formats
    from vdisk.formats.vdi.image import VdiImage

    parent = formats.open_behind(gate, "backing file", name, "vdi")
    assert isinstance(parent, VdiImage)
    try:
        refuse_elsewhere(Path(file), parent)
    except BaseException:
        parent.close()
        raise
    return parent


def refuse_elsewhere(child: Path, parent: VdiImage) -> None:
    """`OptionError` when a child would not find its parent."""
    path = Path(os.path.realpath(parent.name))
    if path.parent != Path(os.path.realpath(child)).parent or path.suffix.lower() != _SUFFIX:
        raise OptionError(
            f"{child}: backing file: a VDI finds its parent among the .vdi files in its own folder, "
            f"and {parent.name} is none of those"
        )


def _find(gate: Gate, file: str, header: Header) -> FileStorage:
    """The file that is the parent by its UUID; of copies, the one that is as the child knew it."""
    if gate.image is None:
        gate.resolve(_FIELD, str(header.parent_uuid))  # refuses, and says why
    assert gate.image is not None
    second: FileStorage | None = None
    refusal: PolicyError | None = None
    unread: StorageError | None = None
    for name in _beside(gate.image):
        try:
            storage = gate.peek(_FIELD, name)
        except (PolicyError, StorageError) as error:
            if isinstance(error, StorageError):
                unread = error
            elif not gate.references:
                refusal = error
                break
            continue
        try:
            found = Header.read(storage)
        except (ImageError, StorageError) as error:
            if isinstance(error, StorageError):
                unread = error
            storage.close()
            continue
        if found.uuid != header.parent_uuid or (second is not None and not _is_unchanged(header, found)):
            storage.close()
        elif _is_unchanged(header, found):
            if second is not None:
                second.close()
            return storage
        else:
            second = storage
    if second is not None:
        return second
    if refusal is not None:
        raise refusal
    reason = "no .vdi file beside the image has it"
    if unread is not None:
        reason += f", and one cannot be read: {unread}"
    raise StorageError(file, f"{_FIELD} {header.parent_uuid}", reason)


def _is_unchanged(header: Header, parent: Header) -> bool:
    return header.parent_modification_uuid in (NULL_UUID, parent.modification_uuid)


def _beside(image: Path) -> list[str]:
    """Names of the .vdi files in an image's folder."""
    names = []
    try:
        with os.scandir(image.parent) as entries:
            for entry in entries:
                if entry.name.lower().endswith(_SUFFIX) and entry.name != image.name:
                    names.append(entry.name)
                    if len(names) >= _MOST_FILES:
                        break
    except OSError as error:
        raise StorageError(str(image.parent), "list", error) from error
    return sorted(names)
