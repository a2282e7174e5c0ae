"""What lies at a byte of a disk, in words: for a verdict that tells what a silent guest read last."""

from __future__ import annotations

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.errors import VdiskError
from vdisk.inspect.filesystems import recognise
from vdisk.inspect.partitions import SECTOR_BYTES, Partition, PartitionTable, read_partitions


def place_of(device: BlockDevice, offset: int) -> str | None:
    """As "partition 1 (ext4)", "the boot sector", "the gap before partition 1"; None where the disk is unreadable."""
    try:
        return _place(device, read_partitions(device), offset)
    except VdiskError:
        return None


def _place(device: BlockDevice, table: PartitionTable, offset: int) -> str:
    if offset >= device.size:
        return "what lies past the end"
    inside = [one for one in table.partitions if one.start <= offset < one.start + one.length]
    if inside:
        return _title(device, min(inside, key=lambda one: one.length))
    if offset < SECTOR_BYTES and table.has_boot_signature:
        return "the boot sector"
    if not table.partitions:
        kind = recognise(device).kind
        return f"the whole disk's file system ({kind})" if kind else "a disk without partitions"
    behind = [one for one in table.partitions if one.start > offset]
    if not behind:
        return "the space behind the last partition"
    return f"the gap before partition {min(behind, key=lambda one: one.start).number}"


def _title(device: BlockDevice, partition: Partition) -> str:
    """Its number and file system; what the table says of it, where no file system is known."""
    length = min(partition.length, device.size - partition.start)
    kind = recognise(Window(device, partition.start, length)).kind
    return f"partition {partition.number} ({kind or partition.type_name})"
