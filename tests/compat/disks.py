"""Small disks made here: one with an EFI system partition, in an MBR."""

from __future__ import annotations

import struct
from pathlib import Path

SECTORS = 4096
_START = 64


def fat12(files: dict[str, bytes], sectors: int) -> bytes:
    """A FAT12 file system with files in folders; names are short ones, paths at most three parts deep."""
    image = bytearray(sectors * 512)
    image[0:3] = b"\xeb\x3c\x90"
    struct.pack_into("<8sHBHBHHBH", image, 3, b"MSDOS5.0", 512, 1, 1, 1, 16, sectors, 0xF8, 8)
    image[510:512] = b"\x55\xaa"
    fat = bytearray(8 * 512)
    clusters: list[bytearray] = []

    def add(data: bytes) -> int:
        """Store `data` in a cluster of its own."""
        assert len(data) <= 512
        clusters.append(bytearray(data.ljust(512, b"\0")))
        number = len(clusters) + 1
        at, value = number * 12 // 8, 0xFFF
        old = int.from_bytes(fat[at : at + 2], "little")
        fat[at : at + 2] = (old | (value << 4 if number & 1 else value)).to_bytes(2, "little")
        return number

    def entry(name: str, attributes: int, cluster: int, length: int) -> bytes:
        stem, _, suffix = name.partition(".")
        packed = stem.ljust(8).encode() + suffix.ljust(3).encode()
        return packed + struct.pack("<B14xHI", attributes, cluster, length)

    def folder(tree: dict[str, object]) -> bytes:
        entries = b""
        for name, value in tree.items():
            if isinstance(value, dict):
                entries += entry(name, 0x10, add(folder(value)), 0)
            else:
                assert isinstance(value, bytes)
                entries += entry(name, 0x20, add(value), len(value))
        return entries

    tree: dict[str, object] = {}
    for path, content in files.items():
        *parents, last = path.split("/")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})  # type: ignore[assignment]
        place[last] = content
    root = folder(tree)
    image[512 : 512 + len(fat)] = fat
    image[9 * 512 : 9 * 512 + len(root)] = root
    for number, cluster in enumerate(clusters):
        image[(10 + number) * 512 : (11 + number) * 512] = cluster
    return bytes(image)


def mbr_disk(path: Path, kind: int, content: bytes, *, code: bytes = b"", active: bool = False) -> Path:
    """A disk of 2 MiB with one partition of an MBR type, which starts with `content`."""
    disk = bytearray(SECTORS * 512)
    disk[: len(code)] = code
    struct.pack_into("<B3xB3xII", disk, 446, 0x80 if active else 0, kind, _START, SECTORS - _START)
    disk[510:512] = b"\x55\xaa"
    disk[_START * 512 : _START * 512 + len(content)] = content
    path.write_bytes(disk)
    return path


def efi_disk(path: Path, loader: str = "EFI/BOOT/BOOTX64.EFI", program: bytes = b"MZ loader") -> Path:
    """A disk that UEFI starts, if the loader stands where UEFI looks; the program has at most 512 bytes."""
    return mbr_disk(path, 0xEF, fat12({"README.TXT": b"hello", loader: program}, 2048))
