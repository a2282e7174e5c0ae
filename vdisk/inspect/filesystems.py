"""What a stretch of a disk holds, by its magic: a file system, LVM, LUKS, swap.

Offsets and magics are those of each system's own documentation or headers (Linux `fs/*`, libblkid's list of probes).
"""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

from vdisk.block.device import BlockDevice

HEAD_BYTES = 128 << 10
"""Every magic below lies in the first 128 KiB."""

_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("ReFS", 3, b"ReFS\0"),
    ("XFS", 0, b"XFSB"),
    ("Btrfs", 0x10040, b"_BHRfS_M"),
    ("Bcachefs", 4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    ("F2FS", 1024, struct.pack("<I", 0xF2F52010)),
    ("EROFS", 1024, struct.pack("<I", 0xE0F5E1E2)),
    ("squashfs", 0, b"hsqs"),
    ("HFS+", 1024, b"H+"),
    ("HFS+", 1024, b"HX"),
    ("APFS", 32, b"NXSB"),
    ("UFS2", 65536 + 1372, struct.pack("<I", 0x19540119)),
    ("ISO 9660", 0x8001, b"CD001"),
    ("Linux swap", 4096 - 10, b"SWAPSPACE2"),
    ("Linux swap", 4096 - 10, b"SWAP-SPACE"),
    ("Linux RAID", 4096, struct.pack("<I", 0xA92B4EFC)),
    ("Linux RAID", 0, struct.pack("<I", 0xA92B4EFC)),
)
_EXT_AT, _EXT_MAGIC = 1024, 0xEF53
_JOURNAL, _EXT4_FEATURES = 0x4, 0x40 | 0x80 | 0x200
"""has_journal (compatible); extents, 64bit, flex_bg (incompatible): ext4's."""


class FileSystem(NamedTuple):
    """What was recognised."""

    kind: str
    """"ext4", "XFS", "LVM", "LUKS", "FAT"...; "" for nothing known."""
    label: str = ""
    uuid: str = ""
    """As Linux shows it, where it was read."""


def recognise(device: BlockDevice) -> FileSystem:
    """What a device, a whole disk or a partition's window, holds."""
    found = recognise_head(device.read(0, min(HEAD_BYTES, device.size)))
    if not found.kind:
        from vdisk.inspect.fat import is_fat

        return FileSystem("FAT") if is_fat(device) else found
    return found


def recognise_head(head: bytes) -> FileSystem:
    """The same by the first `HEAD_BYTES` alone; FAT, which has no magic, is not told."""
    for kind, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return FileSystem(kind, *_xfs_names(head)) if kind == "XFS" else FileSystem(kind)
    if any(head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001" for at in range(0, 2048, 512)):
        return FileSystem("LVM")
    superblock = head[_EXT_AT : _EXT_AT + 1024]
    if len(superblock) == 1024 and struct.unpack_from("<H", superblock, 56)[0] == _EXT_MAGIC:
        return _ext(superblock)
    return FileSystem("")


def _ext(superblock: bytes) -> FileSystem:
    """ext2, ext3 or ext4 by what its superblock asks of a reader."""
    compatible, incompatible = struct.unpack_from("<II", superblock, 92)
    kind = "ext4" if incompatible & _EXT4_FEATURES else "ext3" if compatible & _JOURNAL else "ext2"
    return FileSystem(kind, _text(superblock[120:136]), _uuid(superblock[104:120]))


def _xfs_names(head: bytes) -> tuple[str, str]:
    return _text(head[108:120]), _uuid(head[32:48])


def _text(raw: bytes) -> str:
    text = raw.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _uuid(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw))
