"""Marks: what a file could be taken for, by its first and last bytes, and what `vdisk info` and `vdisk convert` say a
format was guessed from.

A guest writes every byte of a raw disk, its first sector and its last ones too. So a mark alone proves little; strict
mode (`vdisk.formats.strict`) refuses a file that carries two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from vdisk.formats import Format

PARTITIONS = "a partition table"
OPTICAL = "ISO 9660 or UDF"
LUKS = "LUKS"

_HEAD_BYTES = 4096
_TAIL_BYTES = 1024
_OPTICAL_OFFSET = 0x8001
_OPTICAL_MAGICS = (b"CD001", b"NSR02", b"NSR03")
_FOREIGN_MAGICS = {
    b"QED\0": "QED",
    b"LUKS\xba\xbe": LUKS,
    b"Bochs Virtual HD Image": "Bochs",
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop": "cloop",
}
_LONGEST_TEXT_BYTES = 1 << 20


def guessed_from(storage: Storage, row: Format) -> str:
    """From what `vdisk.formats.probe` took a file to be of a format, in words."""
    if row.name == "raw":
        return "no mark of another format"
    return "a mark at its end" if is_by_tail(storage, row) else "a mark at its beginning"


def is_by_tail(storage: Storage, row: Format) -> bool:
    """Whether the end of the file alone makes it one of a format, as with a fixed VHD."""
    return row.name != "raw" and not row.probe(storage.read(0, _HEAD_BYTES), b"", storage.size)


def marks_of(storage: Storage) -> list[str]:
    """The names of all that a file carries a mark of: image formats (raw has none), and what begins a raw disk."""
    from vdisk.formats import FORMATS

    size = storage.size
    head = storage.read(0, _HEAD_BYTES + 8)
    tail = storage.read(max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    found = [row.name for row in FORMATS if row.name != "raw" and row.probe(head[:_HEAD_BYTES], tail, size)]
    if head.startswith(b"QFI\xfb") and "qcow2" not in found:
        found.append(f"qcow, version {int.from_bytes(head[4:8], 'big')}")
    if "vmdk" not in found and _is_descriptor_text(storage, head):
        found.append("a VMDK descriptor")
    found += [name for magic, name in _FOREIGN_MAGICS.items() if head.startswith(magic)]
    if tail[-512:-508] == b"koly":
        found.append("DMG")
    if head[510:512] == b"\x55\xaa" or b"EFI PART" in (head[512:520], head[4096:4104]):
        found.append(PARTITIONS)
    if storage.read(_OPTICAL_OFFSET, 5) in _OPTICAL_MAGICS:
        found.append(OPTICAL)
    return found


def _is_descriptor_text(storage: Storage, head: bytes) -> bool:
    """Whether a careless program would take text for a VMDK: it has a createType, and not the opening line."""
    start = head[:512]
    if not start.isascii() or not all(chr(c).isprintable() or chr(c).isspace() for c in start):
        return False
    return b'createtype="' in storage.read(0, _LONGEST_TEXT_BYTES).lower()
