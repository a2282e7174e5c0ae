"""Looks into the guest of a disk, Linux or Windows, in a process of its own.

The libraries that read ext, XFS, NTFS, LVM and the registry are written in C, and an image may be made to crash them
or keep them busy. So they run in a child, `vdisk.inspect.guest_process`, that has no file of the host: it asks for the
disk's bytes over a pipe, and gets them from here. It has a set memory and processor time, and is ended when it takes
too long. What it says is checked as little trusted. A crash becomes a line among the guest's problems. It is no prison:
code that took over the child would have the rights of the user.

The conversation, on the child's standard input and output: we send what is wanted and the volumes, as one line of
JSON; it sends requests (`REQUEST`: a volume's number, offset, length) and gets that many bytes each, or nothing more
where the disk cannot be read; at last a request with the number `DONE` and the length of the JSON that follows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from vdisk.block.device import BlockDevice
from vdisk.errors import VdiskError
from vdisk.inspect.boot_files import BootFile
from vdisk.inspect.guest import Guest

EXTRA = "vdisk-toolkit[inspect]"
READ = ("ext2", "ext3", "ext4", "XFS", "NTFS", "LVM")
"""What is looked into, by the names of `vdisk.inspect.filesystems`."""
_MAPPED = ("ext2", "ext3", "ext4", "NTFS")
"""Where extents are told. libfsxfs (20260901) gives wrong places of files outside of the first allocation group."""
PASSED_OVER = ("Btrfs", "Bcachefs", "F2FS", "LUKS", "Linux RAID", "BitLocker", "ReFS")
"""Where a system may be too, and is not looked for."""

GUEST, BOOT_FILES = "guest", "boot files"
"""What the child can be asked for."""
REQUEST = struct.Struct("<IQI")
DONE = 0xFFFFFFFF
LONGEST_READ_BYTES = 1 << 20
_LONGEST_ANSWER_BYTES = 4 << 20
_MOST_READ_BYTES = 4 << 30
"""In all: an initramfs, and tables on the way to it, read more than once at worst."""
SECONDS = 60.0
"""After so long the child is ended; a Debian disk takes less than one."""
_LIBRARIES = ("pyfsext", "pyfsxfs", "pyfsntfs", "pyregf", "pyvslvm", "lz4")


Answer = TypeVar("Answer")


@dataclass(slots=True, frozen=True)
class Volume:
    """A part of a disk with a file system, or the like, in it."""

    title: str
    """"partition 1"."""
    kind: str
    device: BlockDevice


def is_available() -> bool:
    """Whether the extra `inspect` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in _LIBRARIES)


def read_guest(volumes: Sequence[Volume], *, seconds: float = SECONDS) -> Guest:
    """The system on some volumes. What cannot be read, whatever the reason, is told in its `problems`."""
    wanted = [volume for volume in volumes if volume.kind in READ]
    guest = Guest()
    if wanted:
        try:
            guest = _ask(GUEST, wanted, seconds, Guest.from_dict)
        except VdiskError as error:
            guest.problems.append(f"the disk could not be read: {error}")
        except OSError as error:
            guest.problems.append(f"the file systems could not be read: {error}")
    guest.passed_over += [f"{one.title}: {one.kind}" for one in volumes if one.kind in PASSED_OVER]
    return guest


def read_boot_files(volume: Volume, *, seconds: float = SECONDS) -> list[BootFile]:
    """Where the files of a volume's boot loader and kernels lie in it; none where that cannot be read."""
    if volume.kind not in _MAPPED:
        return []
    try:
        return _ask(BOOT_FILES, [volume], seconds, _boot_files)
    except (VdiskError, OSError):
        return []


def _boot_files(said: Any) -> list[BootFile]:
    if not isinstance(said, list):
        raise ValueError("not a list")
    return [BootFile.from_dict(one) for one in said]


def _ask(wants: str, volumes: Sequence[Volume], seconds: float, parse: Callable[[Any], Answer]) -> Answer:
    with _start() as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            return _serve(process, wants, volumes, parse)
        except (BrokenPipeError, EOFError):
            process.kill()  # one that breaks the rules is alive
            process.wait()
            raise OSError(_why_it_ended(process, timer, seconds)) from None
        finally:
            timer.cancel()
            process.kill()
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]


def _start() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(dict.fromkeys(one or os.getcwd() for one in sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "vdisk.inspect.guest_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
    )


def _serve(
    process: subprocess.Popen[bytes], wants: str, volumes: Sequence[Volume], parse: Callable[[Any], Answer]
) -> Answer:
    """Answer the child's requests until it has the result."""
    assert process.stdin is not None
    assert process.stdout is not None
    volumes_told = [{"title": one.title, "kind": one.kind, "size": one.device.size} for one in volumes]
    process.stdin.write(json.dumps({"wants": wants, "volumes": volumes_told}).encode() + b"\n")
    left = _MOST_READ_BYTES
    while True:
        process.stdin.flush()
        number, offset, length = REQUEST.unpack(_exactly(process.stdout, REQUEST.size))
        if number == DONE:
            return _result(process.stdout, length, parse)
        left -= length
        if number >= len(volumes) or length > LONGEST_READ_BYTES or left < 0:
            raise EOFError
        device = volumes[number].device
        inside = max(0, min(length, device.size - offset))
        process.stdin.write(device.read(offset, inside).ljust(length, b"\0") if inside else bytes(length))


def _result(stream: IO[bytes], length: int, parse: Callable[[Any], Answer]) -> Answer:
    if length > _LONGEST_ANSWER_BYTES:
        raise EOFError
    try:
        return parse(json.loads(_exactly(stream, length)))
    except (ValueError, RecursionError):
        raise EOFError from None


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _why_it_ended(process: subprocess.Popen[bytes], timer: threading.Timer, seconds: float) -> str:
    if timer.finished.is_set():
        return f"the reader was not done within {seconds:g} s"
    status = process.returncode
    return f"the reader ended by {f'signal {-status}' if status < 0 else f'status {status}'}"
