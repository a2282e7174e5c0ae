"""Looks up a file in a FAT12, FAT16 or FAT32 file system, by its short name: is a boot loader where firmware looks?

Follows Microsoft's FAT32 File System Specification 1.03. Long names are passed over: every name that firmware looks
for by itself (`EFI/BOOT/BOOTX64.EFI`) is a short one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vdisk.block.device import BlockDevice

_BPB = struct.Struct("<11xHBHBHH1xH8xI I")
"""bytes a sector, sectors a cluster, reserved sectors, FATs, root entries, sectors (16), FAT sectors (16),
sectors (32), FAT sectors (32)."""
_ENTRY_BYTES = 32
_VOLUME, _FOLDER, _LONG_NAME = 0x08, 0x10, 0x0F
_LARGEST_FOLDER_BYTES = 2 << 20
_FAT12_CLUSTERS, _FAT16_CLUSTERS = 4085, 65525


@dataclass(slots=True, frozen=True)
class _Layout:
    """Where the parts of the file system lie. Offsets and lengths are bytes, clusters count from 2."""

    bits: int
    cluster_bytes: int
    fat_offset: int
    fat_bytes: int
    root_offset: int
    root_bytes: int
    root_cluster: int
    data_offset: int
    clusters: int


def is_fat(device: BlockDevice) -> bool:
    """Whether a device, a partition for example, holds a FAT file system."""
    return _read_layout(device) is not None


def find_file(device: BlockDevice, path: str) -> int | None:
    """Length in bytes of the file at `path` ("EFI/BOOT/BOOTX64.EFI", any case), or None: no FAT, or no such file."""
    layout = _read_layout(device)
    if layout is None:
        return None
    folder = 0
    *folders, last = (_short_name(part) for part in path.split("/"))
    for name in folders:
        entry = _find_entry(device, layout, folder, name)
        if entry is None or not entry[0] & _FOLDER:
            return None
        folder = entry[1]
    entry = _find_entry(device, layout, folder, last)
    return None if entry is None or entry[0] & (_FOLDER | _VOLUME) else entry[2]


def _read_layout(device: BlockDevice) -> _Layout | None:
    """The layout by the boot sector, or None where its values cannot be those of a FAT."""
    if device.size < 512:
        return None
    sector = device.read(0, 512)
    values = _BPB.unpack_from(sector)
    sector_bytes, cluster_sectors, reserved, fats, root_entries, few_sectors, few_fat, many_sectors, many_fat = values
    if sector[510:512] != b"\x55\xaa" or sector[0] not in (0xEB, 0xE9) or sector_bytes not in (512, 1024, 2048, 4096):
        return None
    fat_sectors, sectors = few_fat or many_fat, few_sectors or many_sectors
    if not cluster_sectors or cluster_sectors & cluster_sectors - 1 or not reserved or not 1 <= fats <= 2:
        return None
    root_sectors = -(-root_entries * _ENTRY_BYTES // sector_bytes)
    data_sector = reserved + fats * fat_sectors + root_sectors
    if not fat_sectors or sectors <= data_sector or sectors * sector_bytes > device.size:
        return None
    clusters = (sectors - data_sector) // cluster_sectors
    bits = 12 if clusters < _FAT12_CLUSTERS else 16 if clusters < _FAT16_CLUSTERS else 32
    if not root_entries:
        bits = 32  # a small file system is FAT32 all the same where there is no room for a root of fixed length
    return _Layout(
        bits,
        cluster_sectors * sector_bytes,
        reserved * sector_bytes,
        fat_sectors * sector_bytes,
        (reserved + fats * fat_sectors) * sector_bytes,
        root_sectors * sector_bytes,
        struct.unpack_from("<I", sector, 44)[0] if bits == 32 else 0,
        data_sector * sector_bytes,
        clusters,
    )


def _short_name(name: str) -> bytes:
    """A name as a directory entry has it: 8 + 3 characters, upper case."""
    stem, _, suffix = name.upper().partition(".")
    return stem.encode("ascii", "replace").ljust(8) + suffix.encode("ascii", "replace").ljust(3)


def _find_entry(device: BlockDevice, layout: _Layout, folder: int, name: bytes) -> tuple[int, int, int] | None:
    """(attributes, first cluster, length) of an entry of the folder that starts at cluster `folder`; 0 is the root."""
    for piece in _read_folder(device, layout, folder):
        for at in range(0, len(piece), _ENTRY_BYTES):
            entry = piece[at : at + _ENTRY_BYTES]
            if not entry[0]:
                return None
            if entry[0] != 0xE5 and entry[11] & 0x3F != _LONG_NAME and entry[:11] == name:
                high, low, length = struct.unpack_from("<H4xHI", entry, 20)
                return entry[11], (high << 16 if layout.bits == 32 else 0) | low, length
    return None


def _read_folder(device: BlockDevice, layout: _Layout, folder: int) -> Iterator[bytes]:
    """A folder's bytes, cluster by cluster; a chain that leads nowhere or in a circle ends."""
    if not folder and layout.bits != 32:
        yield device.read(layout.root_offset, layout.root_bytes)
        return
    cluster, total = folder or layout.root_cluster, 0
    while 2 <= cluster < layout.clusters + 2 and total < _LARGEST_FOLDER_BYTES:
        yield device.read(layout.data_offset + (cluster - 2) * layout.cluster_bytes, layout.cluster_bytes)
        total += layout.cluster_bytes
        cluster = _next_cluster(device, layout, cluster)


def _next_cluster(device: BlockDevice, layout: _Layout, cluster: int) -> int:
    """The FAT's word for a cluster; 0 where the FAT does not reach so far."""
    at = cluster * layout.bits // 8
    width = 4 if layout.bits == 32 else 2
    if at + width > layout.fat_bytes:
        return 0
    value = int.from_bytes(device.read(layout.fat_offset + at, width), "little")
    if layout.bits == 12:
        return value >> 4 if cluster & 1 else value & 0xFFF
    return value & 0x0FFFFFFF
