"""The boot loader that UEFI finds on a disk by itself."""

from __future__ import annotations

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.inspect.fat import find_file
from vdisk.inspect.partitions import ESP_GUID, Partition, PartitionTable, read_partitions

LOADERS = ("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTAA64.EFI")
"""Where UEFI firmware looks when none of its variables names a loader (UEFI 2.10, 3.5.1.1)."""


def is_esp(partition: Partition) -> bool:
    """Whether the table calls it an EFI system partition."""
    return partition.type in (str(ESP_GUID), "0xef")


def find_uefi_loader(disk: BlockDevice, table: PartitionTable) -> str:
    """The loader's path in the EFI system partition, or in a disk that is one FAT file system; "" where none is."""
    windows = [
        Window(disk, one.start, one.length)
        for one in table.partitions
        if is_esp(one) and one.length and one.start + one.length <= disk.size
    ]
    if not table.partitions and disk.size:
        windows = [Window(disk, 0, disk.size)]
    return next((name for window in windows for name in LOADERS if find_file(window, name) is not None), "")


def boots_by_uefi_only(disk: BlockDevice) -> bool:
    """Whether there is a loader for UEFI, and nothing in the first sector for a BIOS."""
    table = read_partitions(disk)
    return not (table.has_boot_signature and table.has_boot_code) and bool(find_uefi_loader(disk, table))
