"""The files of a guest by path: its symbolic links are followed inside it, and everything read is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from vdisk.block.file import BytesFile

_MOST_LINKS = 40
"""As Linux has it (path_resolution(7))."""
_LONGEST_PATH = 4096
_MOST_NAMES = 4096
_CHUNK_BYTES = 256 << 10


class Unreadable(Exception):
    """The guest's file system does not give what was asked for; the text says why."""


class Entry(NamedTuple):
    """A file, folder or link as a file system has it."""

    kind: Literal["file", "folder", "link", "other"]
    size: int
    target: str
    """Where a link points."""
    handle: object
    """The file system's own."""


class FileSystem(Protocol):
    """What a reader of file systems gives. Its methods raise `Unreadable`."""

    def root(self) -> Entry:
        """The topmost folder."""

    def child(self, folder: Entry, name: str) -> Entry | None:
        """What `folder` has under a name."""

    def names(self, folder: Entry) -> Iterator[str]:
        """The names in `folder`, in any order."""

    def read(self, file: Entry, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer at its end."""


class Tree:
    """File systems put together as the guest mounts them: `{"/": root, "/boot": another}`."""

    def __init__(self, mounts: Mapping[str, FileSystem]) -> None:
        self._mounts = mounts

    def find(self, path: str) -> Entry | None:
        """What stands at an absolute path, every link followed; None where nothing does."""
        found = self._find(path)
        return found and found[1]

    def exists(self, path: str) -> bool:
        """Whether anything stands at a path."""
        return self.find(path) is not None

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        found = self._find(path)
        if found is None or found[1].kind != "folder":
            return []
        names: list[str] = []
        for name in found[0].names(found[1]):
            if len(names) == _MOST_NAMES:
                raise Unreadable(f"{path}: more than {_MOST_NAMES} names")
            names.append(name)
        return sorted(names)

    def read(self, path: str, most_bytes: int) -> bytes | None:
        """The first `most_bytes` of a file; None where there is no such file."""
        found = self._find_file(path)
        return None if found is None else b"".join(_chunks(*found, most_bytes))

    def text(self, path: str, most_bytes: int = 64 << 10) -> str:
        """A short file as text; "" where there is no such file."""
        return (self.read(path, most_bytes) or b"").decode("utf-8", "replace")

    def chunks(self, path: str, most_bytes: int) -> Iterator[bytes]:
        """A file piece by piece, up to `most_bytes`; nothing where there is no such file."""
        found = self._find_file(path)
        return iter(()) if found is None else _chunks(*found, most_bytes)

    def open(self, path: str) -> GuestFile | None:
        """A file to be read anywhere; None where there is no such file."""
        found = self._find_file(path)
        return None if found is None else GuestFile(*found)

    def _find_file(self, path: str) -> tuple[FileSystem, Entry] | None:
        found = self._find(path)
        return found if found is not None and found[1].kind == "file" else None

    def _find(self, path: str) -> tuple[FileSystem, Entry] | None:
        """Walks a path from the root: a stack of folders, so that ".." never leads out of the guest."""
        top = self._mounts["/"]
        stack: list[tuple[str, FileSystem, Entry]] = [("", top, top.root())]
        left, links = _parts(path), 0
        while left:
            name = left.pop()
            if name == "..":
                if len(stack) > 1:
                    stack.pop()
                continue
            where, system, folder = stack[-1]
            if folder.kind != "folder":
                return None
            here = f"{where}/{name}"
            mounted = self._mounts.get(here)
            system = mounted or system
            entry = mounted.root() if mounted else system.child(folder, name)
            if entry is None:
                return None
            if entry.kind == "link":
                links += 1
                if links > _MOST_LINKS:
                    raise Unreadable(f"{path}: more than {_MOST_LINKS} symbolic links")
                left += _parts(entry.target)
                if len(left) > _LONGEST_PATH:
                    raise Unreadable(f"{path}: a path too long")
                if entry.target.startswith("/"):
                    del stack[1:]
                continue
            stack.append((here, system, entry))
        return stack[-1][1:]


class GuestFile(BytesFile):
    """A file of a guest; its last chunk is kept, since libraries read a few bytes at a time."""

    def __init__(self, system: FileSystem, entry: Entry) -> None:
        super().__init__()
        self._system, self._entry = system, entry
        self._chunk_number, self._chunk = -1, b""

    @property
    def length(self) -> int:
        return self._entry.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the file, up to the end of a chunk."""
        number, inside = divmod(offset, _CHUNK_BYTES)
        if number != self._chunk_number:
            first = number * _CHUNK_BYTES
            whole = max(0, min(_CHUNK_BYTES, self.length - first))
            self._chunk = self._system.read(self._entry, first, whole) if whole else b""
            self._chunk_number = number
        return self._chunk[inside : inside + length]


def _parts(path: str) -> list[str]:
    """The names of a path, the last one first."""
    if len(path) > _LONGEST_PATH:
        raise Unreadable("a path too long")
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _chunks(system: FileSystem, file: Entry, most_bytes: int) -> Iterator[bytes]:
    offset, end = 0, min(file.size, most_bytes)
    while offset < end:
        chunk = system.read(file, offset, min(_CHUNK_BYTES, end - offset))
        if not chunk:
            return  # shorter than its size says
        yield chunk
        offset += len(chunk)
