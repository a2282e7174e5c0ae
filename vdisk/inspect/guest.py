"""What the files of a guest, Linux or Windows, say of where it can run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_LONGEST_TEXT = 200
_MOST_ITEMS = 256


@dataclass(slots=True)
class Mount:
    """A line of /etc/fstab."""

    device: str = ""
    """As it stands there: "UUID=...", "/dev/sda1"."""
    point: str = ""
    type: str = ""
    options: str = ""


@dataclass(slots=True)
class Kernel:
    """A kernel with its modules and its initramfs."""

    version: str = ""
    initramfs: str = ""
    """Path of the initramfs; "" where none was found."""
    modules: list[str] = field(default_factory=list)
    """Of `DRIVERS`, those that are built in or in the initramfs: there when the root file system is looked for."""
    shipped: list[str] = field(default_factory=list)
    """Of `DRIVERS`, those that the guest has at all for this kernel."""
    problem: str = ""
    """Why the initramfs could not be read."""


@dataclass(slots=True)
class Guest:
    """The system on a disk."""

    root: str = ""
    """Where its root file system was found: "partition 1 (ext4)"; "" for none, and then there is nothing else."""
    family: str = ""
    """"linux" or "windows"."""
    os: str = ""
    os_id: str = ""
    os_like: list[str] = field(default_factory=list)
    """What the system says that it is like (ID and ID_LIKE of os-release)."""
    architecture: str = ""
    """As `uname -m` has it: "x86_64", "aarch64"."""
    fstab: list[Mount] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    """The newest first; rescue kernels left out."""
    kernel_roots: list[str] = field(default_factory=list)
    """What the boot loader's entries give as `root=`."""
    consoles: list[str] = field(default_factory=list)
    """What they give as `console=`; the last is where /dev/console leads."""
    has_boot_entries: bool = False
    """Whether any boot loader's entry was read: without, nothing is known of roots and consoles."""
    grub_terminals: list[str] = field(default_factory=list)
    """Where GRUB shows its menu ("console", "serial", "gfxterm"); empty for GRUB's own choice."""
    tools: list[str] = field(default_factory=list)
    """Of `TOOLS`, those that the guest has."""
    agents: list[str] = field(default_factory=list)
    """Of `AGENTS`, or of `WINDOWS_AGENTS`, those that the guest has."""
    build: str = ""
    """Windows' own number: "20348"."""
    boot_drivers: list[str] = field(default_factory=list)
    """Of `WINDOWS_DRIVERS`, those that start with Windows: there when it looks for its disk."""
    other_drivers: list[str] = field(default_factory=list)
    """Of `WINDOWS_DRIVERS`, those that it has and that start later, or never."""
    is_hibernated: bool = False
    """Whether Windows is to go on from hiberfil.sys."""
    is_unwritten: bool = False
    """Whether a part of Windows' registry stands in its log alone."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, and why."""
    passed_over: list[str] = field(default_factory=list)
    """What was not looked into: "partition 2: LUKS"."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Any) -> Guest:
        """From `asdict`, as it came from another process: values of other types are dropped, texts made printable."""
        made: Guest = _load(cls, data)
        return made


DRIVERS = frozenset(
    (
        "virtio_blk", "virtio_scsi", "virtio_pci", "virtio_mmio", "ahci", "ata_piix", "ata_generic", "mptspi", "mptsas",
        "vmw_pvscsi", "nvme", "hv_storvsc", "xen_blkfront", "sd_mod", "megaraid_sas", "mpt3sas", "sym53c8xx",
    )
)  # fmt: skip
"""Modules that find disks, as lsmod shows them."""
TOOLS = {
    "update-initramfs": "/usr/sbin/update-initramfs",
    "dracut": "/usr/bin/dracut",
    "mkinitcpio": "/usr/bin/mkinitcpio",
    "update-grub": "/usr/sbin/update-grub",
    "grubby": "/usr/sbin/grubby",
    "grub2-mkconfig": "/usr/sbin/grub2-mkconfig",
    "grub-mkconfig": "/usr/bin/grub-mkconfig",
}
"""Programs of the guest that findings tell to run, and where they are."""
AGENTS = {
    "cloud-init": "/usr/bin/cloud-init",
    "waagent": "/usr/sbin/waagent",
    "google-guest-agent": "/usr/bin/google_guest_agent",
}
"""What takes a cloud's settings at the first start, and where it is."""
WINDOWS_DRIVERS = frozenset(
    (
        "viostor", "vioscsi", "storahci", "msahci", "stornvme", "intelide", "pciide", "atapi", "LSI_SCSI", "LSI_SAS",
        "pvscsi", "storvsc", "vmbus", "xenvbd", "xenbus",
    )
)  # fmt: skip
"""Services of Windows that find disks."""
SYSTEM_HIVE = "the registry's SYSTEM"
"""How a problem begins that leaves Windows' drivers unknown."""
WINDOWS_AGENTS = {
    "cloudbase-init": "cloudbase-init",
    "WindowsAzureGuestAgent": "waagent",
    "GCEAgent": "google-guest-agent",
    "Amazon EC2Launch": "ec2launch",
    "QEMU-GA": "qemu-ga",
    "VMTools": "VMware Tools",
    "VBoxService": "VirtualBox Guest Additions",
    "xenagent": "Xen guest agent",
}
"""Services of Windows that take a cloud's settings or speak with a hypervisor, and what they are called here."""


def _load(kind: type[Any], data: Any) -> Any:
    """A dataclass of texts, truths and lists out of a mapping that is not trusted."""
    made = kind()
    given = data if isinstance(data, Mapping) else {}
    for one in fields(kind):
        value, default = given.get(one.name), getattr(made, one.name)
        if isinstance(default, bool):
            setattr(made, one.name, value is True)
        elif isinstance(default, str):
            setattr(made, one.name, shown(value))
        else:
            inner = _INNER.get(one.name)
            items = value[:_MOST_ITEMS] if isinstance(value, list) else []
            setattr(made, one.name, [_load(inner, item) if inner else shown(item) for item in items])
    return made


_INNER: dict[str, type[Any]] = {"fstab": Mount, "kernels": Kernel}


def shown(value: object) -> str:
    """A text for people: printable, on one line, not long. What is no text is empty."""
    text = value[: _LONGEST_TEXT + 1] if isinstance(value, str) else ""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
