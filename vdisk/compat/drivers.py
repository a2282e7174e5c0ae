"""The drivers of disks: what Linux and Windows call them, and what they drive."""

from __future__ import annotations

from typing import NamedTuple


class Driver(NamedTuple):
    """A driver of disks, by Linux' name for it."""

    controller: str
    """What its disks hang on, as a user chooses it."""
    names: str
    """How Linux calls its disks: "sd" for /dev/sda."""
    needs: tuple[str, ...] = ()
    """Modules without which it finds no disk, and which are loaded apart from it."""
    bus: str = ""
    """The hypervisor's own bus, where the controller is on one, which no machine of ours has."""
    windows: tuple[tuple[str, ...], ...] = ()
    """Windows' services that do the same, any of these sets: all of a set must start with it."""


DRIVERS = {
    "virtio_blk": Driver("virtio-blk", "vd", ("virtio_pci",), windows=(("viostor",),)),
    "virtio_scsi": Driver("virtio-scsi", "sd", ("virtio_pci", "sd_mod"), windows=(("vioscsi",),)),
    "ahci": Driver("SATA (AHCI)", "sd", ("sd_mod",), windows=(("storahci",), ("msahci",))),
    "ata_piix": Driver("IDE", "sd", ("sd_mod",), windows=(("atapi", "intelide"), ("atapi", "pciide"))),
    "mptspi": Driver("LSI Logic SCSI", "sd", ("sd_mod",), windows=(("LSI_SCSI",),)),
    "mptsas": Driver("LSI Logic SAS", "sd", ("sd_mod",), windows=(("LSI_SAS",),)),
    "vmw_pvscsi": Driver("paravirtual SCSI (PVSCSI)", "sd", ("sd_mod",), windows=(("pvscsi",),)),
    "nvme": Driver("NVMe", "nvme", windows=(("stornvme",),)),
    "hv_storvsc": Driver(
        "Hyper-V's storage", "sd", ("sd_mod",), "VMBus, Hyper-V's own", windows=(("storvsc", "vmbus"),)
    ),
    "xen-blkfront": Driver("Xen's block device", "xvd", (), "xenbus, Xen's own", windows=(("xenvbd", "xenbus"),)),
}
"""Every driver that a `Target` names among its controllers."""


def services_text(driver: Driver, mark: str = "") -> str:
    """Windows' services for a driver in words, each between marks."""
    return " or ".join(" and ".join(f"{mark}{service}{mark}" for service in one) for one in driver.windows)
