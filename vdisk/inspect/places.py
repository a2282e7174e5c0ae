"""What lies at a byte of a disk, in words: for a verdict that tells what a silent guest read last."""

from __future__ import annotations

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.errors import VdiskError
from vdisk.inspect.boot_files import BootFile
from vdisk.inspect.filesystems import recognise
from vdisk.inspect.guest_reader import Volume, is_available, read_boot_files
from vdisk.inspect.partitions import SECTOR_BYTES, Partition, PartitionTable, read_partitions

_SECONDS = 10.0
"""Names are asked for at a verdict, for which somebody waits."""


class Places:
    """Names for the bytes of disks; what was found of a partition's files is kept for the next name."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], list[BootFile]] = {}
        """By the disk's identity and the volume's start."""

    def name_of(self, device: BlockDevice, offset: int) -> str | None:
        """As "partition 1 (ext4)", "the boot sector"; None where the disk is unreadable.

        With the extra `inspect`, files of the boot loader and the kernels too: "/boot/vmlinuz in partition 1 (ext4)".
        """
        try:
            return self._name(device, read_partitions(device), offset)
        except VdiskError:
            return None

    def _name(self, device: BlockDevice, table: PartitionTable, offset: int) -> str:
        if offset >= device.size:
            return "what lies past the end"
        inside = [one for one in table.partitions if one.start <= offset < one.start + one.length]
        if inside:
            return self._in_partition(device, min(inside, key=lambda one: one.length), offset)
        if offset < SECTOR_BYTES and table.has_boot_signature:
            return "the boot sector"
        if not table.partitions:
            kind = recognise(device).kind
            volume = Volume(f"the whole disk's file system ({kind})", kind, device)
            return self._with_file((id(device), 0), volume, offset) if kind else "a disk without partitions"
        behind = [one for one in table.partitions if one.start > offset]
        if not behind:
            return "the space behind the last partition"
        return f"the gap before partition {min(behind, key=lambda one: one.start).number}"

    def _in_partition(self, device: BlockDevice, partition: Partition, offset: int) -> str:
        """Its number and file system; what the table says of it, where no file system is known."""
        window = Window(device, partition.start, min(partition.length, device.size - partition.start))
        kind = recognise(window).kind
        title = f"partition {partition.number} ({kind or partition.type_name})"
        return self._with_file((id(device), partition.start), Volume(title, kind, window), offset - partition.start)

    def _with_file(self, key: tuple[int, int], volume: Volume, offset: int) -> str:
        """The volume's title, with a file's path before it where one is known to lie there."""
        if key not in self._files:
            self._files[key] = read_boot_files(volume, seconds=_SECONDS) if is_available() else []
        files = self._files[key]
        path = next((one.path for one in files if any(first <= offset < end for first, end in one.extents)), None)
        return f"{path} in {volume.title}" if path else volume.title
