"""The parent of a differencing VHDX: where it is, and whether it is the right one ([MS-VHDX] 2.6.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING
from uuid import UUID

from vdisk.errors import Corrupt, OptionError
from vdisk.formats.gate import Gate

if TYPE_CHECKING:
    from vdisk.formats.vhdx.image import VhdxImage

LINKAGE = "parent_linkage"
_LINKAGES = (LINKAGE, "parent_linkage2")
_PATHS = ("relative_path", "volume_path", "absolute_win32_path")
"""In the order in which they are to be tried."""
_MOST_PATH_CHARACTERS = 16_000
"""A value has at most 65535 bytes of UTF-16, and a character takes up to four."""


def parent_name(locator: dict[str, str]) -> str | None:
    """The path that the locator has for people, with forward slashes where it is relative."""
    for key in _PATHS:
        if locator.get(key):
            return _local(locator[key]) if key == "relative_path" else locator[key]
    return None


def open_parent(gate: Gate, file: str, locator: dict[str, str]) -> VhdxImage:
    """Open the parent: by its relative path, else by any of its file names beside the image. Its identity is checked.

    Windows' absolute paths mean nothing here but for the file's name.
    """
    parent = open_candidate(gate, file, locator)
    try:
        check_linkage(file, locator, parent)
    except BaseException:
        parent.close()
        raise
    return parent


def open_candidate(gate: Gate, file: str, locator: dict[str, str]) -> VhdxImage:
    """Open the first file that any of the locator's paths leads to, whoever it is."""
    from vdisk import formats
    from vdisk.formats.vhdx.image import VhdxImage

    storage = gate.open_first("parent locator", _candidates(locator))
    if storage is None:
        raise Corrupt(file, "parent locator", expected=f"one of {', '.join(_PATHS)}", found=sorted(locator))
    parent = formats.open(storage, format="vhdx", gate=gate.behind(storage.path))
    assert isinstance(parent, VhdxImage)
    return parent


def check_linkage(file: str, locator: dict[str, str], parent: VhdxImage) -> None:
    """`Corrupt` unless the parent is the one that this file was made on, and unchanged since."""
    known = []
    for text in (locator[key] for key in _LINKAGES if key in locator):
        try:
            guid = UUID(text.strip())
        except ValueError as error:
            raise Corrupt(file, LINKAGE, expected="a GUID", found=text) from error
        if guid == parent.data_write_guid:
            return
        known.append(f"{{{guid}}}")
    raise Corrupt(
        file,
        LINKAGE,
        f"expected the parent {parent.name} as it was, {' or '.join(known) or 'by its GUID'}, found "
        f"{{{parent.data_write_guid}}}: it was written since (`rebase --unsafe` takes it all the same)",
    )


def make_locator(name: str, data_write_guid: UUID) -> dict[str, str]:
    """The locator of a new child whose parent is found by `name`, as seen from the child."""
    if len(name) > _MOST_PATH_CHARACTERS:
        raise OptionError(f"vhdx: backing file: expected at most {_MOST_PATH_CHARACTERS} characters, found {len(name)}")
    windows = name.replace("/", "\\")
    if not name.startswith(("/", ".")) and not PureWindowsPath(windows).is_absolute():
        windows = ".\\" + windows
    # Nobody here knows a Windows drive. libvhdi wants the absolute path none the less, and looks at the name in it.
    absolute = "\\\\?\\C:\\" + PureWindowsPath(windows).name
    return {LINKAGE: f"{{{data_write_guid}}}", "relative_path": windows, "absolute_win32_path": absolute}


def _candidates(locator: dict[str, str]) -> Iterator[str]:
    seen = set()
    relative = locator.get("relative_path")
    names = [_local(relative)] if relative else []
    names += [PureWindowsPath(locator[key]).name for key in _PATHS if locator.get(key)]
    for name in names:
        if name and name not in seen:
            seen.add(name)
            yield name


def _local(windows: str) -> str:
    """A relative Windows path as this system spells it."""
    if Path(windows).is_absolute():
        return windows
    return windows.replace("\\", "/").removeprefix("./")
