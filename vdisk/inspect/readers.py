"""ext, XFS and NTFS file systems and LVM volumes, read by libyal's libraries (the extra `inspect`).

They are written in C and read what strangers wrote: `vdisk.inspect.guest_process` runs this module in a process of its
own, and nothing else imports it.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyfsext
import pyfsntfs
import pyfsxfs
import pyvslvm

from vdisk.block.file import BytesFile
from vdisk.inspect.boot_files import MappedFileSystem
from vdisk.inspect.libyal import ask
from vdisk.inspect.tree import Entry, Unreadable

_MODULES = {"ext2": pyfsext, "ext3": pyfsext, "ext4": pyfsext, "XFS": pyfsxfs}
KINDS = frozenset((*_MODULES, "NTFS"))
"""What `open_volume` opens, by the names of `vdisk.inspect.filesystems`."""
_MOST_LOGICAL_VOLUMES = 64
_LARGEST_FILE_BYTES = 1 << 40
_SPARSE = 1
"""An extent's flag (LIBFSEXT_EXTENT_FLAG_IS_SPARSE, LIBFSNTFS_EXTENT_FLAG_IS_SPARSE)."""


def open_volume(kind: str, file: io.RawIOBase) -> MappedFileSystem:
    """A file system, by the name that `vdisk.inspect.filesystems` gives it."""
    return NtfsVolume(file) if kind == "NTFS" else UnixVolume(kind, file)


class _Volume:
    """What is the same of all, whose libraries have one kind of interface."""

    def names(self, folder: Entry) -> Iterator[str]:
        """The names in `folder`."""
        handle = _handle(folder).entry
        for number in range(ask(handle.get_number_of_sub_file_entries)):
            name = ask(ask(handle.get_sub_file_entry, number).get_name)
            if name:
                yield name

    def read(self, file: Entry, offset: int, length: int) -> bytes:
        """Bytes of a file; of NTFS, of its unnamed stream."""
        data: bytes = ask(_handle(file).entry.read_buffer_at_offset, length, offset)
        return data

    def extents(self, file: Entry) -> Iterator[tuple[int, int]]:
        """First byte and end, in the volume, of each stored stretch of a file's data. Not right for XFS."""
        handle = _handle(file).entry
        for number in range(ask(handle.get_number_of_extents)):
            offset, length, flags = ask(handle.get_extent, number)
            if not flags & _SPARSE:
                yield offset, offset + length


class UnixVolume(_Volume):
    """An ext or XFS file system."""

    def __init__(self, kind: str, file: io.RawIOBase) -> None:
        self._volume = _MODULES[kind].volume()
        ask(self._volume.open_file_object, file)

    def root(self) -> Entry:
        """The topmost folder."""
        return _entry("", ask(self._volume.get_root_directory))

    def child(self, folder: Entry, name: str) -> Entry | None:
        """What `folder` has under a name."""
        # By its path: of an XFS folder pyfsxfs 20260901 does not find an entry by its name.
        path = f"{_handle(folder).path}/{name}"
        found = ask(self._volume.get_file_entry_by_path, path)
        return None if found is None else _entry(path, found)


class NtfsVolume(_Volume):
    """An NTFS file system. Names are found whatever their case; links and mount points are not followed."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._volume = pyfsntfs.volume()
        ask(self._volume.open_file_object, file)

    def root(self) -> Entry:
        """The topmost folder."""
        return _ntfs_entry("", ask(self._volume.get_root_directory))

    def child(self, folder: Entry, name: str) -> Entry | None:
        """What `folder` has under a name."""
        path = f"{_handle(folder).path}\\{name}"
        found = None if "\\" in name else ask(self._volume.get_file_entry_by_path, path)
        return None if found is None else _ntfs_entry(path, found)


class LogicalVolume(BytesFile):
    """A logical volume as a file."""

    def __init__(self, group: str, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self.title = f"{group}/{ask(handle.get_name)}"
        self.size: int = ask(handle.get_size)

    @property
    def length(self) -> int:
        return self.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the volume."""
        data: bytes = ask(self._handle.read_buffer_at_offset, max(0, min(length, self.size - offset)), offset)
        return data


def logical_volumes(file: io.RawIOBase) -> Iterator[LogicalVolume]:
    """The logical volumes whose group lies in one physical volume."""
    handle = pyvslvm.handle()
    ask(handle.open_file_object, file)
    ask(handle.open_physical_volume_files_as_file_objects, [file])
    group = ask(handle.get_volume_group)
    if ask(group.get_number_of_physical_volumes) > 1:
        raise Unreadable("a volume group over several physical volumes is not looked into")
    for number in range(min(ask(group.get_number_of_logical_volumes), _MOST_LOGICAL_VOLUMES)):
        yield LogicalVolume(ask(group.get_name), ask(group.get_logical_volume, number))


class _Handle(NamedTuple):
    path: str
    """Without links, from the file system's root."""
    entry: Any


def _handle(entry: Entry) -> _Handle:
    assert isinstance(entry.handle, _Handle)
    return entry.handle


def _entry(path: str, found: Any) -> Entry:
    handle, mode = _Handle(path, found), ask(found.get_file_mode)
    if stat.S_ISDIR(mode):
        return Entry("folder", 0, "", handle)
    if stat.S_ISLNK(mode):
        return Entry("link", 0, ask(found.get_symbolic_link_target) or "", handle)
    if not stat.S_ISREG(mode):
        return Entry("other", 0, "", handle)
    return Entry("file", max(0, min(ask(found.get_size), _LARGEST_FILE_BYTES)), "", handle)


def _ntfs_entry(path: str, found: Any) -> Entry:
    handle = _Handle(path, found)
    if ask(found.has_directory_entries_index):
        return Entry("folder", 0, "", handle)
    if not ask(found.has_default_data_stream):
        return Entry("other", 0, "", handle)
    return Entry("file", max(0, min(ask(found.get_size), _LARGEST_FILE_BYTES)), "", handle)
