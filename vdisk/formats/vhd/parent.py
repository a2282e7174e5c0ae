"""The parent of a differencing disk: where it is, and whether it is the right one, as it was.

Parent locators are paths in the words of a platform: W2ru relative to the child and W2ku absolute, both of Windows
in UTF-16LE, MacX a URL of a file. The header has the file's name, too. Windows' absolute paths mean nothing
here but for the name at their end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vdisk.errors import Corrupt, OptionError
from vdisk.formats.gate import Gate
from vdisk.formats.vhd.header import DynamicHeader, Locator
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from vdisk.formats.vhd.image import VhdImage

RELATIVE, ABSOLUTE, MAC = b"W2ru", b"W2ku", b"MacX"
_MOST_PATH_BYTES = 64 << 10
_FIELD = "parent locator"


def read_locators(storage: Storage, header: DynamicHeader) -> dict[bytes, str]:
    """The paths of all locators whose words are known, by platform code."""
    found = {}
    for locator in header.parent_locators:
        if locator.code not in (RELATIVE, ABSOLUTE, MAC):
            continue
        if locator.length > _MOST_PATH_BYTES:
            raise Corrupt(storage.name, _FIELD, expected=f"at most {_MOST_PATH_BYTES} bytes", found=locator.length)
        if locator.offset + locator.length > storage.size:
            raise Corrupt(storage.name, _FIELD, expected="an offset in the file", found=locator.offset)
        raw = storage.read(locator.offset, locator.length)
        text = raw.decode("utf-8" if locator.code == MAC else "utf-16-le", "replace")
        found[locator.code] = text.split("\0")[0]
    return found


def parent_name(header: DynamicHeader, paths: dict[bytes, str]) -> str | None:
    """The parent's name for people: as this system spells it, where it can be a path here."""
    if paths.get(RELATIVE):
        return _local(paths[RELATIVE])
    absolute = paths.get(ABSOLUTE, "")
    return _without_drive(absolute) or absolute or header.parent_name or None


def open_parent(gate: Gate, file: str, header: DynamicHeader, paths: dict[bytes, str]) -> VhdImage:
    """Open the parent, by any of its names. It must be the one that `header` means, and not written since."""
    parent = open_candidate(gate, file, header.parent_name, paths)
    try:
        check_identity(file, header, parent)
    except BaseException:
        parent.close()
        raise
    return parent


def open_candidate(gate: Gate, file: str, name: str, paths: dict[bytes, str]) -> VhdImage:
    """Open the first file that any of the paths, or the name, leads to, whoever it is."""
    from vdisk import formats
    from vdisk.formats.vhd.image import VhdImage

    storage = gate.open_first(_FIELD, _candidates(name, paths))
    if storage is None:
        raise Corrupt(file, _FIELD, expected="a path that is known here (W2ru, W2ku)", found="none")
    parent = formats.open(storage, format="vhd", gate=gate.behind(storage.path))
    assert isinstance(parent, VhdImage)
    return parent


def check_identity(file: str, header: DynamicHeader, parent: VhdImage) -> None:
    """`Corrupt` unless the parent is the disk that the child was made on, and was not written since.

    The child has the time at which its parent was last written. Programs take it from the footer or from the file's
    date; the footer's is never the later of the two, unless the parent changed.
    """
    footer = parent.footer
    if footer.unique_id != header.parent_unique_id:
        raise Corrupt(
            file,
            "parent_unique_id",
            expected=f"the parent {parent.name} to be {header.parent_unique_id}",
            found=str(footer.unique_id),
        )
    if header.parent_timestamp and footer.timestamp > header.parent_timestamp:
        raise Corrupt(
            file,
            "parent_timestamp",
            f"the parent {parent.name} was written since: it is of second {footer.timestamp} after 2000, and this disk "
            f"was made on that of second {header.parent_timestamp} (`rebase --unsafe` takes it all the same)",
        )


def identify(header: DynamicHeader, parent: VhdImage, name: str) -> None:
    """Let `header` mean `parent`, as it is now, found by `name`."""
    header.parent_unique_id = parent.footer.unique_id
    header.parent_timestamp = parent.footer.timestamp
    header.parent_name = PureWindowsPath(name.replace("/", "\\")).name


def make_paths(name: str, parent: VhdImage) -> dict[bytes, bytes]:
    """The words of the locators of a child that finds `parent` by `name`, by platform code."""
    windows = name.replace("/", "\\")
    if PureWindowsPath(windows).is_absolute() or windows.startswith("\\"):
        texts = {ABSOLUTE: windows}
    else:
        relative = windows if windows.startswith(".") else ".\\" + windows
        texts = {RELATIVE: relative, ABSOLUTE: str(Path(parent.name).absolute()).replace("/", "\\")}
    found = {}
    for code, text in texts.items():
        words = text.encode("utf-16-le", "surrogatepass")
        if len(words) > _MOST_PATH_BYTES:
            raise OptionError(f"vhd: backing file: expected a path of at most {_MOST_PATH_BYTES} bytes in UTF-16")
        found[code] = words
    return found


def lay_out_locators(words: dict[bytes, bytes], offset: int) -> tuple[list[Locator], bytes]:
    """(entries for the header, what is to stand at `offset`), each locator in sectors of its own."""
    entries, data = [], b""
    for code, text in words.items():
        space = -(-max(len(text), 1) // 512) * 512
        entries.append(Locator(code, space, len(text), offset + len(data)))
        data += text.ljust(space, b"\0")
    return entries, data


def _candidates(name: str, paths: dict[bytes, str]) -> Iterator[str]:
    """Names to try, in the image's folder; each once."""
    names = []
    if paths.get(RELATIVE):
        names.append(_local(paths[RELATIVE]))
    absolute = paths.get(ABSOLUTE, "")
    names.append(_without_drive(absolute))
    names += [PureWindowsPath(path).name for path in (paths.get(RELATIVE, ""), absolute)]
    names.append(PureWindowsPath(unquote(paths.get(MAC, ""))).name)
    names.append(PureWindowsPath(name).name)
    return iter(dict.fromkeys(filter(None, names)))


def _local(windows: str) -> str:
    """A relative Windows path as this system spells it."""
    return windows.replace("\\", "/").removeprefix("./")


def _without_drive(absolute: str) -> str:
    """An absolute path of a system that has no drives; empty when it is of another."""
    is_ours = absolute.startswith(("\\", "/")) and not absolute.startswith("\\\\")
    return absolute.replace("\\", "/") if is_ours else ""
