"""The process that reads a guest's files: see `vdisk.inspect.guest_reader`, which starts it and answers it."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

# All that is needed is imported before the limits are set: afterwards no file can be opened.
import lz4.block  # noqa: F401
import zstandard  # noqa: F401

from vdisk.block.file import BytesFile
from vdisk.inspect.boot_files import boot_files, windows_boot_files
from vdisk.inspect.filesystems import HEAD_BYTES, recognise_head
from vdisk.inspect.guest import Guest
from vdisk.inspect.guest_reader import BOOT_FILES, DONE, LONGEST_READ_BYTES, PASSED_OVER, REQUEST
from vdisk.inspect.readers import KINDS, logical_volumes, open_volume
from vdisk.inspect.survey import Mounted, survey
from vdisk.inspect.tree import Unreadable

_MEMORY_BYTES = 2 << 30
_PROCESSOR_SECONDS = 40


class RemoteFile(BytesFile):
    """A volume of the disk: its bytes come over the pipe."""

    def __init__(self, number: int, size: int) -> None:
        super().__init__()
        self._number, self._size = number, size

    @property
    def length(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the volume, a bounded number at once."""
        count = max(0, min(length, self._size - offset, LONGEST_READ_BYTES))
        if not count:
            return b""
        sys.stdout.buffer.write(REQUEST.pack(self._number, offset, count))
        sys.stdout.buffer.flush()
        data = sys.stdin.buffer.read(count)
        if len(data) < count:
            raise OSError("the disk cannot be read")
        return data


def limit() -> None:
    """Set a bound to memory and time; no file, socket or process from here on. Only POSIX has such bounds."""
    with contextlib.suppress(ImportError):
        import resource

        bounds = (
            (resource.RLIMIT_AS, _MEMORY_BYTES),
            (resource.RLIMIT_CPU, _PROCESSOR_SECONDS),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, 3),
        )
        for which, most in bounds:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(which, (most, most))


def main() -> None:
    """Read what is asked, look, and send the answer."""
    asked = json.loads(sys.stdin.buffer.readline())
    limit()
    volumes = asked["volumes"]
    answer = _boot_files(volumes[0]) if asked["wants"] == BOOT_FILES else asdict(_guest(volumes))
    said = json.dumps(answer).encode()
    sys.stdout.buffer.write(REQUEST.pack(DONE, 0, len(said)) + said)
    sys.stdout.buffer.flush()


def _boot_files(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """None where the volume cannot be read."""
    try:
        system = open_volume(volume["kind"], RemoteFile(0, volume["size"]))
        find = windows_boot_files if volume["kind"] == "NTFS" else boot_files
        return [asdict(one) for one in find(system)]
    except Unreadable:
        return []


def _guest(volumes: list[dict[str, Any]]) -> Guest:
    """What the volumes' files say."""
    guest = Guest()
    mounted: list[Mounted] = []
    for number, volume in enumerate(volumes):
        title, kind = volume["title"], volume["kind"]
        file = RemoteFile(number, volume["size"])
        try:
            if kind == "LVM":
                _mount_logical(title, file, mounted, guest)
            else:
                mounted.append(Mounted(f"{title} ({kind})", open_volume(kind, file)))
        except Unreadable as error:
            guest.problems.append(f"{title} ({kind}): could not be read: {error}")
    survey(mounted, guest)
    return guest


def _mount_logical(title: str, file: RemoteFile, mounted: list[Mounted], guest: Guest) -> None:
    """The file systems in a volume group."""
    for volume in logical_volumes(file):
        name = f"{title}, LVM {volume.title}"
        try:
            kind = recognise_head(volume.read_at(0, HEAD_BYTES)).kind
            if kind in KINDS:
                mounted.append(Mounted(f"{name} ({kind})", open_volume(kind, volume)))
            elif kind in PASSED_OVER:
                guest.passed_over.append(f"{name}: {kind}")
        except Unreadable as error:
            guest.problems.append(f"{name}: could not be read: {error}")


if __name__ == "__main__":
    main()
