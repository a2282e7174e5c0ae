"""The catalogue of hypervisors: what kind each is, who makes it, what its default machine looks like.

Type and manner of virtualization describe hosts, not images: they are documentation, and nothing is checked by them.
"""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """The machine that a guest sees by default."""

    firmware: str
    chipset: str
    disk: str
    cpuid: str
    """The hypervisor's signature in CPUID leaf 40000000h; empty when there is none."""
    smbios: str
    """Manufacturer / product name."""


class Entry(NamedTuple):
    """One hypervisor."""

    name: str
    title: str
    type: str
    """"1" on the bare machine, "2" on a host's system, "container" for what is no hypervisor."""
    maker: str
    full: bool
    """Runs unmodified guests."""
    para: bool
    """Offers guests interfaces of its own instead of devices."""
    hardware: str
    """"needed", "optional" or "not used": VT-x or AMD-V, or the like of another architecture."""
    guests: str
    """Architectures of its guests."""
    formats: tuple[str, ...]
    target: str | None
    """The target of `--for` that stands for it, or None."""
    machine: Machine | None
    note: str = ""


_QEMU_MACHINE = Machine("SeaBIOS or OVMF", "i440FX or Q35", "virtio-blk 1af4:1001", "KVMKVMKVM", "QEMU / Standard PC")
_VMWARE_MACHINE = Machine(
    "Phoenix BIOS or EFI",
    "440BX 8086:7190",
    "LSI Logic 1000:0030 or PVSCSI 15ad:07c0",
    "VMwareVMware",
    "VMware, Inc. / VMware Virtual Platform",
)
_VBOX_MACHINE = Machine("BIOS or EFI", "PIIX3 or ICH9", "AHCI 8086:2829", "VBoxVBoxVBox", "innotek GmbH / VirtualBox")
_HYPER_V_MACHINE = Machine(
    "BIOS (generation 1), UEFI (generation 2)",
    "440BX 8086:7192 (generation 1)",
    "IDE 8086:7111; VMBus storage",
    "Microsoft Hv",
    "Microsoft Corporation / Virtual Machine",
)
_XEN_MACHINE = Machine(
    "SeaBIOS or OVMF", "i440FX 8086:1237", "Xen blkfront; IDE 8086:7010", "XenVMMXenVMM", "Xen / HVM domU"
)
_PARALLELS_MACHINE = Machine(
    "BIOS or EFI", "ICH9", "AHCI 8086:2821", "prl hyperv", "Parallels / Parallels Virtual Platform"
)
_VIRTUAL_PC_MACHINE = Machine("AMI BIOS", "440BX", "IDE 8086:7111", "", "Microsoft Corporation / Virtual Machine")

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "xen",
        "Xen",
        "1",
        "Xen Project",
        True,
        True,
        "optional",
        "x86, x86-64, Arm",
        ("qcow2", "vhd", "raw"),
        "xen",
        _XEN_MACHINE,
        "paravirtual guests need no VT-x; HVM and PVH guests do",
    ),
    Entry(
        "xenserver",
        "XenServer",
        "1",
        "Citrix / Cloud Software Group",
        True,
        True,
        "needed",
        "x86-64",
        ("vhd", "raw"),
        "xenserver",
        _XEN_MACHINE,
    ),
    Entry(
        "esxi",
        "VMware ESX and ESXi",
        "1",
        "VMware / Broadcom",
        True,
        True,
        "needed",
        "x86-64, Arm",
        ("vmdk",),
        "esxi",
        _VMWARE_MACHINE,
    ),
    Entry(
        "l4",
        "L4 microkernels",
        "1",
        "Jochen Liedtke; TU Dresden, UNSW and others",
        False,
        True,
        "optional",
        "x86, x86-64, Arm",
        (),
        None,
        None,
        "a family of kernels: guests are ported to it (L4Linux), there is no default machine and no image format",
    ),
    Entry(
        "trango",
        "TRANGO",
        "1",
        "Trango Virtual Processors / VMware",
        False,
        True,
        "not used",
        "Arm, MIPS",
        (),
        None,
        None,
        "for embedded devices: guests are ported and linked into one firmware image",
    ),
    Entry(
        "pr-sm",
        "IBM POWER and System z PR/SM",
        "1",
        "IBM",
        True,
        False,
        "needed",
        "POWER, z/Architecture",
        (),
        None,
        None,
        "divides a machine into logical partitions that own whole disks: there is no image file",
    ),
    Entry(
        "hyper-v",
        "Microsoft Hyper-V",
        "1",
        "Microsoft",
        True,
        True,
        "needed",
        "x86, x86-64, Arm",
        ("vhd", "vhdx"),
        "hyper-v",
        _HYPER_V_MACHINE,
    ),
    Entry(
        "parallels-server",
        "Parallels Server",
        "1",
        "Parallels",
        True,
        False,
        "needed",
        "x86, x86-64",
        ("parallels",),
        "parallels",
        _PARALLELS_MACHINE,
        "discontinued; its bare-metal edition lives on in Virtuozzo",
    ),
    Entry(
        "virtage",
        "Hitachi Virtage",
        "1",
        "Hitachi",
        True,
        False,
        "needed",
        "x86-64, Itanium",
        (),
        None,
        None,
        "divides a blade server into logical partitions that own whole disks: there is no image file",
    ),
    Entry(
        "kvm",
        "KVM",
        "1",
        "Linux",
        True,
        True,
        "needed",
        "x86, x86-64, Arm, POWER, s390x, RISC-V",
        ("raw", "qcow2", "vmdk"),
        "kvm",
        _QEMU_MACHINE,
        "a module of the Linux kernel; QEMU or another program gives the machine",
    ),
    Entry(
        "vmware-server",
        "VMware Server",
        "2",
        "VMware",
        True,
        False,
        "optional",
        "x86, x86-64",
        ("vmdk",),
        "workstation",
        _VMWARE_MACHINE,
        "discontinued",
    ),
    Entry(
        "fusion",
        "VMware Fusion",
        "2",
        "VMware / Broadcom",
        True,
        False,
        "needed",
        "x86-64, Arm",
        ("vmdk",),
        "workstation",
        _VMWARE_MACHINE,
    ),
    Entry(
        "workstation",
        "VMware Workstation",
        "2",
        "VMware / Broadcom",
        True,
        False,
        "needed",
        "x86, x86-64",
        ("vmdk",),
        "workstation",
        _VMWARE_MACHINE,
        "versions before 14 ran 32-bit guests without VT-x, by binary translation",
    ),
    Entry(
        "qemu",
        "QEMU",
        "2",
        "QEMU project",
        True,
        True,
        "optional",
        "x86, x86-64, Arm, POWER, s390x, RISC-V, MIPS, SPARC and more",
        ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels"),
        "qemu",
        _QEMU_MACHINE,
        "without KVM or the like it translates every instruction",
    ),
    Entry(
        "virtual-pc",
        "Microsoft Virtual PC",
        "2",
        "Microsoft",
        True,
        False,
        "optional",
        "x86",
        ("vhd",),
        "virtual-pc",
        _VIRTUAL_PC_MACHINE,
        "discontinued",
    ),
    Entry(
        "virtual-server",
        "Microsoft Virtual Server",
        "2",
        "Microsoft",
        True,
        False,
        "optional",
        "x86",
        ("vhd",),
        "virtual-pc",
        _VIRTUAL_PC_MACHINE,
        "discontinued",
    ),
    Entry(
        "parallels-workstation",
        "Parallels Workstation",
        "2",
        "Parallels",
        True,
        False,
        "optional",
        "x86",
        ("parallels",),
        "parallels",
        _PARALLELS_MACHINE,
        "discontinued",
    ),
    Entry(
        "parallels-desktop",
        "Parallels Desktop",
        "2",
        "Parallels",
        True,
        False,
        "needed",
        "x86-64, Arm",
        ("parallels",),
        "parallels",
        _PARALLELS_MACHINE,
    ),
    Entry(
        "virtualbox",
        "Oracle VirtualBox",
        "2",
        "Oracle",
        True,
        True,
        "needed",
        "x86, x86-64, Arm",
        ("vdi", "vmdk", "qcow2", "vhd"),
        "virtualbox",
        _VBOX_MACHINE,
        "versions before 6.1 ran 32-bit guests without VT-x",
    ),
    Entry(
        "docker",
        "Docker",
        "container",
        "Docker",
        False,
        False,
        "not used",
        "the host's",
        (),
        None,
        None,
        "shares the host's kernel: its images are layers of files, not disks; KubeVirt packs a disk into one",
    ),
)


def find_entry(name: str) -> Entry | None:
    """The entry called `name`."""
    return next((entry for entry in CATALOGUE if entry.name == name.lower()), None)
