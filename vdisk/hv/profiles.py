"""What a hypervisor's machine looks like from inside, as data: board, disk controller, the names in SMBIOS.

CPUID stays KVM's under every profile: with the signature of Hyper-V or Xen, Linux would use hypercalls that are not
there. A guest that knows its hypervisor by SMBIOS or by PCI ids finds what it looks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from vdisk.errors import OptionError

Chipset = Literal["i440fx", "440bx", "440bx-no-agp"]
Controller = Literal["virtio-blk", "ide", "ahci", "lsi", "pvscsi", "nvme"]
CONTROLLERS: Final[tuple[Controller, ...]] = ("virtio-blk", "ide", "ahci", "lsi", "pvscsi", "nvme")
DRIVERS: Final[Mapping[Controller, str]] = MappingProxyType(
    {
        "virtio-blk": "virtio_blk",
        "ide": "ata_piix",
        "ahci": "ahci",
        "lsi": "mptspi",
        "pvscsi": "vmw_pvscsi",
        "nvme": "nvme",
    }
)
"""What Linux calls the driver that a guest needs for each."""
_NO_IDS: Final[Mapping[Controller, tuple[int, int]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Profile:
    """One hypervisor's default machine."""

    name: str
    title: str
    chipset: Chipset
    controller: Controller
    """Where the disks hang."""
    controller_ids: Mapping[Controller, tuple[int, int]]
    """Vendor and device of controllers, where they differ from the usual."""
    manufacturer: str
    product: str
    bios_vendor: str
    bios_version: str
    version: str = ""
    subsystem: tuple[int, int] = (0x1AF4, 0x1100)
    disk_model: str = "QEMU HARDDISK"
    """What an IDE or SATA disk calls itself."""
    notes: tuple[str, ...] = field(default=())
    """Where this is not what the hypervisor has."""


_PROFILES: Final = (
    Profile(
        "kvm",
        "QEMU/KVM with virtio",
        "i440fx",
        "virtio-blk",
        _NO_IDS,
        "QEMU",
        "Standard PC (i440FX + PIIX, 1996)",
        "vdisk",
        "1.0",
        "pc-i440fx",
    ),
    Profile(
        "vmware",
        "VMware (LSI Logic)",
        "440bx",
        "lsi",
        MappingProxyType({"ahci": (0x15AD, 0x07E0), "nvme": (0x15AD, 0x07F0), "ide": (0x8086, 0x7111)}),
        "VMware, Inc.",
        "VMware Virtual Platform",
        "Phoenix Technologies LTD",
        "6.00",
        "None",
        subsystem=(0x15AD, 0x1976),
        disk_model="VMware Virtual SATA Hard Drive",
    ),
    Profile(
        "virtualbox",
        "VirtualBox",
        "i440fx",
        "ahci",
        MappingProxyType({"ahci": (0x8086, 0x2829)}),
        "innotek GmbH",
        "VirtualBox",
        "innotek GmbH",
        "VirtualBox",
        "1.2",
        subsystem=(0x80EE, 0x0000),
        disk_model="VBOX HARDDISK",
    ),
    Profile(
        "hyper-v",
        "Hyper-V, generation 1",
        "440bx-no-agp",
        "ide",
        MappingProxyType({"ide": (0x8086, 0x7111)}),
        "Microsoft Corporation",
        "Virtual Machine",
        "American Megatrends Inc.",
        "090008",
        # Hyper-V says 7.0. On such a machine Linux leaves IDE disks alone, since VMBus has them too (ata_piix.c,
        # piix_ignore_devices_quirk); by this version it knows Microsoft's machines that have no VMBus.
        "VS2005R2",
        subsystem=(0x0000, 0x0000),
        disk_model="Virtual HD",
        notes=(
            "there is no VMBus: a guest finds its disk on IDE, as its boot loader does under Hyper-V",
            "SMBIOS says version VS2005R2, not 7.0, so that Linux does not leave the disk to VMBus",
        ),
    ),
    Profile(
        "xen",
        "Xen HVM (emulated disk)",
        "i440fx",
        "ide",
        MappingProxyType({"ide": (0x8086, 0x7010)}),
        "Xen",
        "HVM domU",
        "Xen",
        "4.17",
        "4.17",
        subsystem=(0x5853, 0x0001),
        notes=("there is no xenbus: the disk stays on IDE and is not unplugged for xen-blkfront",),
    ),
    Profile(
        "parallels",
        "Parallels",
        "i440fx",
        "ahci",
        MappingProxyType({"ahci": (0x8086, 0x2821)}),
        "Parallels International GmbH.",
        "Parallels Virtual Platform",
        "Parallels International GmbH.",
        "18.0.0",
        "None",
        subsystem=(0x1AB8, 0x0400),
        disk_model="Virtual HDD",
    ),
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({profile.name: profile for profile in _PROFILES})
DEFAULT_PROFILE: Final = "kvm"


def find_profile(name: str) -> Profile:
    """The profile called `name`; an `OptionError` names those there are."""
    profile = PROFILES.get(name)
    if profile is None:
        raise OptionError(f"profile: there is no {name!r}; known are {', '.join(PROFILES)}")
    return profile
