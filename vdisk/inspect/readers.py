"""ext and XFS file systems and LVM volumes, read by libyal's libraries (the extra `inspect`).

They are written in C and read what strangers wrote: `vdisk.inspect.guest_process` runs this module in a process of its
own, and nothing else imports it.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyfsext
import pyfsxfs
import pyvslvm

from vdisk.block.file import PositionedFile
from vdisk.inspect.tree import Entry, Unreadable

_MODULES = {"ext2": pyfsext, "ext3": pyfsext, "ext4": pyfsext, "XFS": pyfsxfs}
KINDS = frozenset(_MODULES)
"""What `Volume` opens, by the names of `vdisk.inspect.filesystems`."""
_MOST_LOGICAL_VOLUMES = 64
_LARGEST_FILE_BYTES = 1 << 40
_SPARSE = 1
"""An extent's flag (LIBFSEXT_EXTENT_FLAG_IS_SPARSE)."""
_CALLS = re.compile(r"(?:^| )(?:py|lib)\w+: ")
_ERRORS = (OSError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError, SystemError)
"""libyal raises OSError, or what its Python glue does with a value that no Python object can have."""


class Volume:
    """An ext or XFS file system, as `vdisk.inspect.tree.FileSystem`."""

    def __init__(self, kind: str, file: io.RawIOBase) -> None:
        self._volume = _MODULES[kind].volume()
        _ask(self._volume.open_file_object, file)

    def root(self) -> Entry:
        """The topmost folder."""
        return _entry("", _ask(self._volume.get_root_directory))

    def child(self, folder: Entry, name: str) -> Entry | None:
        """What `folder` has under a name."""
        # By its path: of an XFS folder pyfsxfs 20260901 does not find an entry by its name.
        path = f"{_handle(folder).path}/{name}"
        found = _ask(self._volume.get_file_entry_by_path, path)
        return None if found is None else _entry(path, found)

    def names(self, folder: Entry) -> Iterator[str]:
        """The names in `folder`."""
        handle = _handle(folder).entry
        for number in range(_ask(handle.get_number_of_sub_file_entries)):
            name = _ask(_ask(handle.get_sub_file_entry, number).get_name)
            if name:
                yield name

    def read(self, file: Entry, offset: int, length: int) -> bytes:
        """Bytes of a file."""
        data: bytes = _ask(_handle(file).entry.read_buffer_at_offset, length, offset)
        return data

    def extents(self, file: Entry) -> Iterator[tuple[int, int]]:
        """First byte and end, in the volume, of each stored stretch of a file's data. For ext alone."""
        handle = _handle(file).entry
        for number in range(_ask(handle.get_number_of_extents)):
            offset, length, flags = _ask(handle.get_extent, number)
            if not flags & _SPARSE:
                yield offset, offset + length


class LogicalVolume(PositionedFile):
    """A logical volume as a file."""

    def __init__(self, group: str, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self.title = f"{group}/{_ask(handle.get_name)}"
        self.size: int = _ask(handle.get_size)

    @property
    def length(self) -> int:
        return self.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the volume."""
        data: bytes = _ask(self._handle.read_buffer_at_offset, max(0, min(length, self.size - offset)), offset)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def logical_volumes(file: io.RawIOBase) -> Iterator[LogicalVolume]:
    """The logical volumes whose group lies in one physical volume."""
    handle = pyvslvm.handle()
    _ask(handle.open_file_object, file)
    _ask(handle.open_physical_volume_files_as_file_objects, [file])
    group = _ask(handle.get_volume_group)
    if _ask(group.get_number_of_physical_volumes) > 1:
        raise Unreadable("a volume group over several physical volumes is not looked into")
    for number in range(min(_ask(group.get_number_of_logical_volumes), _MOST_LOGICAL_VOLUMES)):
        yield LogicalVolume(_ask(group.get_name), _ask(group.get_logical_volume, number))


class _Handle(NamedTuple):
    path: str
    """Without links, from the file system's root."""
    entry: Any


def _handle(entry: Entry) -> _Handle:
    assert isinstance(entry.handle, _Handle)
    return entry.handle


def _entry(path: str, found: Any) -> Entry:
    handle, mode = _Handle(path, found), _ask(found.get_file_mode)
    if stat.S_ISDIR(mode):
        return Entry("folder", 0, "", handle)
    if stat.S_ISLNK(mode):
        return Entry("link", 0, _ask(found.get_symbolic_link_target) or "", handle)
    if not stat.S_ISREG(mode):
        return Entry("other", 0, "", handle)
    return Entry("file", max(0, min(_ask(found.get_size), _LARGEST_FILE_BYTES)), "", handle)


def _ask(method: Any, *arguments: object) -> Any:
    """Call into a library; what it raises becomes `Unreadable`, in words that fit on a line."""
    try:
        return method(*arguments)
    except _ERRORS as error:
        # libyal tells a whole call stack, the Python method first, then from the cause on upwards.
        said = [part.strip(" .") for part in _CALLS.split(" ".join(str(error).split())) if part]
        raise Unreadable(": ".join(said[:2])[:200] or type(error).__name__) from None
