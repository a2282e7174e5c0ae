"""What an image is and what its disk holds, as far as targets ask: collected once, then held against each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.errors import VdiskError
from vdisk.formats.image import Description, Image
from vdisk.inspect.filesystems import FileSystem, recognise
from vdisk.inspect.guest import Guest
from vdisk.inspect.guest_reader import EXTRA, PASSED_OVER, READ, Volume, is_available, read_guest
from vdisk.inspect.loaders import find_uefi_loader, is_esp
from vdisk.inspect.partitions import Partition, PartitionTable, read_partitions

_BIOS_LOADERS = ((b"GRUB", "GRUB"), (b"LILO", "LILO"), (b"isolinux", "ISOLINUX"), (b"SYSLINUX", "syslinux"))
GUEST_HINT = f"not looked into: pip install '{EXTRA}' makes vdisk tell its name, drivers, fstab, console, agents"


@dataclass(slots=True)
class DiskFacts:
    """An image and its disk."""

    path: str
    format: str
    variant: str
    """Create type or sub-format; "" for formats of one kind."""
    size_bytes: int
    features: set[str]
    """As in `Target.forbidden`."""
    block_bytes: int | None
    """Cluster, grain or block."""
    sector_bytes: int
    is_dirty: bool
    table: PartitionTable
    file_systems: list[tuple[Partition | None, FileSystem]] = field(default_factory=list)
    """What each partition holds; without a partition table, what the whole disk does."""
    bios: str = ""
    """Why the disk is taken to boot by BIOS; "" where it does not."""
    uefi: str = ""
    """The loader that UEFI finds by itself; "" where there is none."""
    has_esp: bool = False
    boot_code: str = ""
    """Name of the boot loader in the first sector, where it is a known one."""
    geometry_bytes: int | None = None
    """VHD: length of the disk by its geometry."""
    guest: Guest | None = None
    """The system in it; None where there is no place for one, or no reader (`guest_hint`)."""
    guest_hint: str = ""
    """What could be told of a system, and how, where its reader is not installed."""
    unreadable: str = ""
    """Why the disk's contents were not looked at: encrypted, or a file behind the image is missing."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "filename": self.path,
            "format": self.format,
            "variant": self.variant,
            "virtual-size": self.size_bytes,
            "sector-size": self.sector_bytes,
            "features": sorted(self.features),
            "partition-table": self.table.kind,
            "backup-gpt": self.table.backup_gpt,
            "boot-signature": self.table.has_boot_signature,
            "partitions": [
                {
                    "number": partition.number if partition else None,
                    "start": partition.start if partition else 0,
                    "length": partition.length if partition else self.size_bytes,
                    "type": partition.type_name if partition else None,
                    "active": bool(partition and partition.is_active),
                    "holds": found.kind or None,
                    "label": found.label or None,
                    "uuid": found.uuid or None,
                }
                for partition, found in self.file_systems
            ],
            "boots-by-bios": self.bios or None,
            "boots-by-uefi": self.uefi or None,
            "guest": None if self.guest is None else self.guest.as_dict(),
            "guest-hint": self.guest_hint or None,
            "unreadable": self.unreadable or None,
        }

    def holds(self, kind: str) -> bool:
        """Whether some part of the disk holds a file system, or the like, of a kind."""
        return any(found.kind == kind for _, found in self.file_systems)


def collect(image: Image, path: str | os.PathLike[str]) -> DiskFacts:
    """Look at an open image and, through it, at the disk."""
    said = image.describe()
    specific = said.specific
    facts = DiskFacts(
        os.fspath(path),
        image.format_name,
        _variant(image, said),
        image.size,
        _features(image, said),
        _block_bytes(image, said),
        int(specific.get("logical-sector-size", 512)),
        said.is_dirty,
        PartitionTable("none"),
    )
    if image.format_name == "vhd":
        cylinders, heads, sectors = map(int, str(specific["geometry"]).split("/"))
        facts.geometry_bytes = cylinders * heads * sectors * 512
    try:
        _look(image, facts)
    except VdiskError as error:
        facts.unreadable = str(error)
    return facts


def _variant(image: Image, said: Description) -> str:
    keys = {"vmdk": "create-type", "vhd": "subformat", "vhdx": "subformat", "vdi": "image-type", "parallels": "magic"}
    return str(said.specific.get(keys.get(image.format_name, ""), ""))


def _features(image: Image, said: Description) -> set[str]:
    """Names as in `Target.forbidden`."""
    specific = said.specific
    extents = [extent for extent in specific.get("extents", ()) if isinstance(extent, dict)]
    tests = {
        "zstd": specific.get("compression-type") == "zstd",
        "extended_l2": bool(specific.get("extended-l2")),
        "data_file": "data-file" in specific,
        "backing": said.backing_name is not None,
        "encryption": said.is_encrypted,
        "snapshots": bool(said.snapshots),
        "4k_sectors": specific.get("logical-sector-size") == 4096,
        "split": len(extents) > 1,
        "zero_extents": any(extent.get("format") == "ZERO" for extent in extents),
        "loose": image.format_name == "parallels" and not said.children,
    }
    return {name for name, has in tests.items() if has}


def _block_bytes(image: Image, said: Description) -> int | None:
    """The unit of allocation that the format names."""
    if said.cluster_size is not None:
        return said.cluster_size
    value = said.specific.get("cluster-size") or said.specific.get("block-size")
    if value is None:
        sizes = [extent.get("cluster-size") for extent in said.specific.get("extents", ()) if isinstance(extent, dict)]
        value = min((size for size in sizes if size), default=None)
    return None if value is None else int(value)


def _look(disk: BlockDevice, facts: DiskFacts) -> None:
    """Partitions, what they hold, and how the disk boots."""
    table = facts.table = read_partitions(disk)
    if not table.partitions:
        facts.file_systems = [(None, recognise(disk))] if disk.size else []
    for partition in table.partitions:
        if partition.start + partition.length > disk.size or not partition.length:
            continue  # told among the table's problems
        window = Window(disk, partition.start, partition.length)
        facts.file_systems.append((partition, recognise(window)))
        facts.has_esp = facts.has_esp or is_esp(partition)
    facts.uefi = find_uefi_loader(disk, table)
    _judge_boot_sector(disk, facts)
    _look_into_guest(disk, facts)


def _look_into_guest(disk: BlockDevice, facts: DiskFacts) -> None:
    volumes = [
        Volume(
            f"partition {partition.number}" if partition else "the whole disk",
            found.kind,
            Window(disk, partition.start, partition.length) if partition else disk,
        )
        for partition, found in facts.file_systems
        if found.kind in (*READ, *PASSED_OVER)
    ]
    if volumes and is_available():
        facts.guest = read_guest(volumes)
    elif volumes:
        facts.guest_hint = GUEST_HINT


def _judge_boot_sector(disk: BlockDevice, facts: DiskFacts) -> None:
    """Whether a BIOS finds something to run, and whether that can go on from there."""
    table = facts.table
    if not table.has_boot_signature or not table.has_boot_code:
        return
    code = disk.read(0, 440)
    facts.boot_code = next((name for mark, name in _BIOS_LOADERS if mark in code), "")
    if facts.boot_code:
        facts.bios = f"{facts.boot_code} in the first sector"
    elif any(partition.is_active for partition in table.partitions):
        facts.bios = "boot code and an active partition"
    elif table.kind == "none":
        facts.bios = "boot code in the first sector"
