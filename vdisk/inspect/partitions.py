"""Partition tables as a disk has them: MBR with logical partitions, GPT with its backup, or none.

Follows the UEFI specification 2.10, chapter 5 (GPT disk layout), and the layout of MBR and extended boot records that
DOS set and every system since has kept.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from vdisk.block.device import BlockDevice

SECTOR_BYTES = 512

_MBR_ENTRY = struct.Struct("<B3xB3xII")
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
"""signature, revision, size, CRC, reserved, own LBA, other LBA, first and last usable LBA, disk GUID; LBA,
count, size and CRC of the entries."""
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")

_EXTENDED_TYPES = {0x05, 0x0F, 0x85}
_MOST_LOGICAL = 128
_MOST_GPT_ENTRIES = 1024

ESP_GUID = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT_GUID = uuid.UUID("21686148-6449-6e6f-744e-656564454649")

_MBR_TYPE_NAMES = {
    0x01: "FAT12", 0x04: "FAT16", 0x06: "FAT16", 0x07: "NTFS or exFAT", 0x0B: "FAT32", 0x0C: "FAT32",
    0x0E: "FAT16", 0x27: "Windows recovery", 0x82: "Linux swap", 0x83: "Linux", 0x8E: "Linux LVM", 0xA5: "FreeBSD",
    0xA6: "OpenBSD", 0xA8: "macOS UFS", 0xAF: "HFS+", 0xBF: "Solaris", 0xEE: "GPT protective", 0xEF: "EFI system",
    0xFB: "VMFS", 0xFD: "Linux RAID",
}  # fmt: skip
_GPT_TYPE_NAMES = {
    ESP_GUID: "EFI system",
    BIOS_BOOT_GUID: "BIOS boot",
    uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4"): "Linux",
    uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "Linux root (x86-64)",
    uuid.UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172"): "Linux boot",
    uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"): "Linux swap",
    uuid.UUID("e6d6d379-f507-44c2-a23c-238f2a3df928"): "Linux LVM",
    uuid.UUID("ca7d7ccb-63ed-4c53-861c-1742536059cc"): "Linux LUKS",
    uuid.UUID("a19d880f-05fc-4d3b-a006-743f0f84911e"): "Linux RAID",
    uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"): "Microsoft basic data",
    uuid.UUID("e3c9e316-0b5c-4db8-817d-f92df00215ae"): "Microsoft reserved",
    uuid.UUID("de94bba4-06d1-4d40-a16a-bfd50179d6ac"): "Windows recovery",
}


@dataclass(slots=True)
class Partition:
    """One partition. Offsets and lengths are bytes."""

    number: int
    """As Linux counts: logical partitions from 5 on."""
    start: int
    length: int
    type: str
    """The MBR type as "0x83", or the GPT type's GUID."""
    type_name: str
    is_active: bool = False
    """MBR: the boot flag. GPT: the legacy-BIOS-bootable attribute."""
    name: str = ""
    """GPT: the partition's label."""


@dataclass(slots=True)
class PartitionTable:
    """What kind of table a disk has, and what stands in it."""

    kind: str
    """"none", "mbr", "gpt" or "hybrid" (a GPT whose MBR names more than the protective partition)."""
    partitions: list[Partition] = field(default_factory=list)
    has_boot_signature: bool = False
    """55 AA ends the first sector."""
    has_boot_code: bool = False
    """The first sector holds code in front of the table."""
    backup_gpt: str = "none"
    """For GPT: "ok", "missing" (not at the disk's end, as after a grown disk) or "damaged"."""
    sector_bytes: int = SECTOR_BYTES
    problems: list[str] = field(default_factory=list)


def read_partitions(device: BlockDevice) -> PartitionTable:
    """The partition table of a disk. A damaged table is told in `problems`, never raised."""
    if device.size < SECTOR_BYTES:
        return PartitionTable("none")
    first = device.read(0, SECTOR_BYTES)
    table = PartitionTable("none", has_boot_signature=first[510:512] == b"\x55\xaa", has_boot_code=first[0] != 0)
    if not table.has_boot_signature:
        return table
    mbr = list(_mbr_entries(first))
    protective = any(kind == 0xEE for kind, *_ in mbr)
    for sector_bytes in (512, 4096):
        if device.size >= 3 * sector_bytes and device.read(sector_bytes, 8) == b"EFI PART":
            table.sector_bytes = sector_bytes
            _read_gpt(device, table)
            table.kind = "hybrid" if any(kind not in (0, 0xEE) for kind, *_ in mbr) else "gpt"
            if not protective:
                table.problems.append("the GPT has no protective MBR partition")
            return table
    if protective:
        table.problems.append("the MBR protects a GPT, and there is none behind it")
    if first[0x36:0x3B] == b"FAT12" or first[0x36:0x3B] == b"FAT16" or first[0x52:0x57] == b"FAT32":
        return table  # a file system's boot sector on the whole disk, which ends in 55 AA too
    if first[3:7] == b"NTFS" or not any(kind for kind, *_ in mbr):
        return table
    table.kind = "mbr"
    for number, (kind, active, start, count) in enumerate(mbr, 1):
        if kind in _EXTENDED_TYPES:
            _read_logical(device, table, start)
        elif kind:
            _add(device, table, number, start, count, kind, active)
    table.partitions.sort(key=lambda partition: partition.number)
    return table


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, bool, int, int]]:
    """(type, active, first sector, sectors) of the four entries."""
    for at in range(446, 510, 16):
        status, kind, start, count = _MBR_ENTRY.unpack_from(sector, at)
        yield kind, status == 0x80, start, count


def _add(
    device: BlockDevice, table: PartitionTable, number: int, start: int, count: int, kind: int, active: bool
) -> None:
    table.partitions.append(
        Partition(
            number,
            start * SECTOR_BYTES,
            count * SECTOR_BYTES,
            f"{kind:#04x}",
            _MBR_TYPE_NAMES.get(kind, "unknown"),
            active,
        )
    )
    if (start + count) * SECTOR_BYTES > device.size:
        table.problems.append(f"partition {number} ends at sector {start + count}, behind the disk's end")


def _read_logical(device: BlockDevice, table: PartitionTable, base: int) -> None:
    """Logical partitions: a chain of boot records, each naming a partition and the next record."""
    record, number, seen = base, 5, set()
    while number < 5 + _MOST_LOGICAL:
        if record in seen or (record + 1) * SECTOR_BYTES > device.size:
            table.problems.append(f"the chain of logical partitions breaks at sector {record}")
            return
        seen.add(record)
        sector = device.read(record * SECTOR_BYTES, SECTOR_BYTES)
        if sector[510:512] != b"\x55\xaa":
            table.problems.append(f"the extended boot record at sector {record} has no signature")
            return
        (kind, active, start, count), (next_kind, _, next_start, _), *_ = _mbr_entries(sector)
        if kind and count:
            _add(device, table, number, record + start, count, kind, active)
            number += 1
        if next_kind not in _EXTENDED_TYPES:
            return
        record = base + next_start


def _read_gpt(device: BlockDevice, table: PartitionTable) -> None:
    """Partitions from the primary header; whether the backup stands where it should."""
    last_lba = device.size // table.sector_bytes - 1
    primary = _gpt_header(device, table, 1)
    backup = _gpt_header(device, table, last_lba)
    if primary is None:
        table.problems.append("the primary GPT header is damaged")
    elif primary[1] != last_lba:
        table.problems.append(f"the backup GPT belongs at sector {primary[1]}, the disk ends at {last_lba}")
    table.backup_gpt = "ok" if backup is not None else "missing" if primary and primary[1] != last_lba else "damaged"
    if table.backup_gpt == "damaged":
        table.problems.append("the backup GPT header is damaged")
    header = primary or backup
    if header is None:
        return
    _, _, entries_lba, count, entry_bytes, crc = header
    length = count * entry_bytes
    at = entries_lba * table.sector_bytes
    if at + length > device.size:
        table.problems.append("the GPT's entries lie behind the disk's end")
        return
    entries = device.read(at, length)
    if zlib.crc32(entries) != crc:
        table.problems.append("the GPT's entries do not match their checksum")
    for number in range(count):
        kind, _, first, last, attributes, name = _GPT_ENTRY.unpack_from(entries, number * entry_bytes)
        if not any(kind):
            continue
        guid = uuid.UUID(bytes_le=kind)
        table.partitions.append(
            Partition(
                number + 1,
                first * table.sector_bytes,
                max(0, last - first + 1) * table.sector_bytes,
                str(guid),
                _GPT_TYPE_NAMES.get(guid, "unknown"),
                bool(attributes & 4),
                name.decode("utf-16-le", "replace").split("\0")[0],
            )
        )
        if (last + 1) * table.sector_bytes > device.size or last < first:
            table.problems.append(f"partition {number + 1} ends at sector {last}, outside the disk")


def _gpt_header(device: BlockDevice, table: PartitionTable, lba: int) -> tuple[int, int, int, int, int, int] | None:
    """(own LBA, other LBA, entries' LBA, count, bytes an entry, CRC of the entries), or None when it is no header."""
    sector = device.read(lba * table.sector_bytes, table.sector_bytes)
    magic, _, size, crc, _, own, other, _, _, _, entries, count, entry_bytes, entries_crc = _GPT_HEADER.unpack_from(
        sector
    )
    if magic != b"EFI PART" or not 92 <= size <= len(sector) or own != lba:
        return None
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc:
        return None
    if not 128 <= entry_bytes <= 4096 or count > _MOST_GPT_ENTRIES:
        return None
    return own, other, entries, count, entry_bytes, entries_crc
