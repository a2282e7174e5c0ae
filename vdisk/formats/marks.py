"""Which formats a file could be taken for: what the strict mode of `vdisk.formats.open` refuses, and from what
`vdisk info` says a format was guessed.

A guest writes every byte of a raw disk, its first sector and its last ones too. So a mark alone proves little, and two
marks prove that somebody wants two programs to see two different disks. The rules take in all that oslo.utils'
format_inspector refuses.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, PolicyError, Unsupported
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from vdisk.formats import Format
    from vdisk.formats.image import Image

_HEAD_BYTES = 4096
_TAIL_BYTES = 1024
_ISO_OFFSET = 0x8001
_WHOLE_VMDKS = ("monolithicSparse", "streamOptimized")
_FOREIGN_MAGICS = {b"QED\0": "QED", b"QFI\xfb\0\0\0\1": "qcow, version 1", b"LUKS\xba\xbe": "LUKS"}


def guessed_from(storage: Storage, row: Format) -> str:
    """From what `probe` took a file to be of a format, in words."""
    if row.name == "raw":
        return "no mark of another format"
    return "a mark at its end" if is_by_tail(storage, row) else "a mark at its beginning"


def is_by_tail(storage: Storage, row: Format) -> bool:
    """Whether the end of the file alone makes it one of a format, as with a fixed VHD."""
    return row.name != "raw" and not row.probe(storage.read(0, _HEAD_BYTES), b"", storage.size)


def marks_of(storage: Storage) -> list[str]:
    """The names of all that a file carries a mark of: image formats, and what begins a raw disk."""
    from vdisk.formats import FORMATS

    size = storage.size
    head = storage.read(0, _HEAD_BYTES + 8)
    tail = storage.read(max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    found = [row.name for row in FORMATS if row.name != "raw" and row.probe(head[:_HEAD_BYTES], tail, size)]
    found += [name for magic, name in _FOREIGN_MAGICS.items() if head.startswith(magic)]
    if b"EFI PART" in (head[512:520], head[4096:4104]):
        found.append("GPT")
    if _is_mbr(head):
        found.append("MBR")
    if storage.read(_ISO_OFFSET, 5) == b"CD001":
        found.append("ISO 9660")
    return found


def _is_mbr(head: bytes) -> bool:
    """A boot sector's signature, and partitions that can be ones."""
    if head[510:512] != b"\x55\xaa":
        return False
    entries = [struct.unpack_from("<B3sB3sII", head, 446 + 16 * number) for number in range(4)]
    return all(entry[0] in (0, 0x80) for entry in entries) and any(entry[2] for entry in entries)


_DISK_MARKS = {"GPT", "MBR", "ISO 9660", "LUKS"}


def refuse_ambiguous(storage: Storage, row: Format, *, is_guess: bool) -> None:
    """`Corrupt` where the file could be taken for something else than `row`.

    What begins a disk (GPT, MBR, ISO 9660, LUKS) is at home in raw files and in fixed VHDs, whose bytes come first.
    """
    by_tail = is_by_tail(storage, row)
    others = [mark for mark in marks_of(storage) if mark != row.name]
    if row.name == "raw" or by_tail:
        others = [mark for mark in others if mark not in _DISK_MARKS]
    if others:
        raise Corrupt(
            storage.name,
            "format",
            expected=f"the marks of {row.name} alone",
            found=f"also those of {', '.join(others)}",
        )
    if by_tail and is_guess:
        raise Corrupt(
            storage.name, "format", f"is {row.name} by a mark at its end alone, as any raw disk may be; name it with -f"
        )


def refuse_unsafe(image: Image) -> None:
    """`PolicyError` or `Unsupported` where an open image is not whole in its own file."""
    said = image.describe()
    if said.backing_name is not None:
        raise PolicyError(image.name, "backing file", said.backing_name, "strict mode takes images that name no other")
    kind = said.specific.get("create-type")
    if image.format_name == "vmdk" and kind not in _WHOLE_VMDKS:
        raise Unsupported(image.name, "vmdk", f"in strict mode, create type {kind}")
