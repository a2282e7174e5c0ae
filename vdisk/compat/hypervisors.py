"""Hypervisors as targets: what each opens, under which limits, from which source.

`listed` is the project's starting table: KVM takes raw, qcow2 and VMDK; VMware VMDK; VirtualBox VDI, VMDK, qcow2 and
VHD; Hyper-V VHD, VMDK and VDI; Xen and XenServer qcow2 and VHD. `mode` is what was verified. Where they differ, users
are told.
"""

from __future__ import annotations

from vdisk.compat.model import GIB, MIB, TIB, Recipe, Source, Support, Target

_DATE = "2026-11"
_QEMU = Source("QEMU 7.2, block/*.c", "S", _DATE)
_LIBVIRT = Source("libvirt, storage pool formats", "D", _DATE)
_ESXI = Source("vSphere 7 and VDDK documentation", "D", _DATE)
_WORKSTATION = Source("VMware knowledge base and VDDK documentation", "D", _DATE)
_VBOX_VDI = Source("VirtualBox, Storage/VDI.cpp", "S", _DATE)
_VBOX_VMDK = Source("VirtualBox, Storage/VMDK.cpp", "S", _DATE)
_VBOX_QCOW = Source("VirtualBox 2024-10, Storage/QCOW.cpp", "S", _DATE)
_VBOX_VHDX = Source("VirtualBox, Storage/VHDX.cpp", "S", _DATE)
_VBOX_MANUAL = Source("VirtualBox manual 7.1", "D", _DATE)
_HYPER_V = Source("Microsoft Learn, Hyper-V disk formats", "D", _DATE)
_XL = Source("Xen, xl-disk-configuration", "D", _DATE)
_TAPDISK = Source("XenServer blktap, drivers/block-vhd.c", "S", _DATE)
_XCP_NG = Source("XCP-ng documentation, storage", "D", _DATE)
_PARALLELS = Source("QEMU docs/interop/parallels", "S", _DATE)
_VIRTUAL_PC = Source("Microsoft Virtual Hard Disk specification 1.0", "D", _DATE)
_PROXMOX = Source("pve-storage, import and plugin code", "S", _DATE)
_BHYVE = Source("FreeBSD handbook and bhyve(8)", "X", _DATE)

_HOSTED_VMDK = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
_QEMU_DRIVERS = ("virtio_blk", "virtio_scsi", "ahci", "ata_piix")

_ESXI_VMDK = ("vmfs", "vmfsThin", "vmfsSparse", "seSparse")
_LARGEST_VHD_BYTES = 2040 * GIB
_VHD_BLOCKS = (512 << 10, 2 * MIB)

_KVM_SUPPORTS = (
    Support("raw", True, "native", _QEMU),
    Support(
        "qcow2",
        True,
        "native",
        _QEMU,
        note="clusters of 512 B to 2 MiB, L1 table up to 32 MiB, up to 65536 snapshots",
        blocks=(512, 2 * MIB),
    ),
    Support(
        "vmdk",
        True,
        "native",
        _QEMU,
        ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs", "vmfsSparse"),
        "ZERO extents are dropped: convert those",
        forbidden=("zero_extents",),
    ),
    Support("vmdk", True, "read-only", _QEMU, ("streamOptimized", "seSparse"), "read, never written to"),
    Support(
        "vdi",
        False,
        "native",
        _QEMU,
        note="version 1.1, blocks of 1 MiB, no differencing",
        forbidden=("backing",),
        blocks=(MIB, MIB),
    ),
    Support(
        "vhd",
        False,
        "native",
        _QEMU,
        note="up to 2040 GiB; a differencing VHD reads as zeros: convert it",
        forbidden=("backing",),
        largest_bytes=_LARGEST_VHD_BYTES,
    ),
    Support(
        "vhdx",
        False,
        "native",
        _QEMU,
        note="no differencing, 512-byte sectors",
        forbidden=("backing", "4k_sectors"),
        blocks=(MIB, 256 * MIB),
    ),
    Support("parallels", False, "native", _QEMU, ("WithoutFreeSpace", "WithouFreSpacExt"), "the .hds file"),
)

_QEMU_SUPPORTS = tuple(row._replace(listed=False) for row in _KVM_SUPPORTS)

HYPERVISORS: tuple[Target, ...] = (
    Target("kvm", "KVM (QEMU)", "hypervisor", _KVM_SUPPORTS, Recipe("qcow2"), controllers=_QEMU_DRIVERS, profile="kvm"),
    Target("qemu", "QEMU", "hypervisor", _QEMU_SUPPORTS, Recipe("qcow2"), controllers=_QEMU_DRIVERS, profile="kvm"),
    Target(
        "libvirt",
        "libvirt",
        "hypervisor",
        (
            Support("raw", False, "native", _LIBVIRT),
            Support("qcow2", False, "native", _LIBVIRT),
            Support("vmdk", False, "native", _LIBVIRT),
            Support("vhd", False, "native", _LIBVIRT, note="called vpc there"),
            Support("vhdx", False, "none", _LIBVIRT, note="no storage pool takes it"),
        ),
        Recipe("qcow2"),
        controllers=_QEMU_DRIVERS,
        profile="kvm",
    ),
    Target(
        "vmware",
        "VMware",
        "hypervisor",
        (
            Support(
                "vmdk",
                True,
                "native",
                _WORKSTATION,
                (*_HOSTED_VMDK, *_ESXI_VMDK),
                "Workstation and Fusion run the hosted kinds, ESXi those of VMFS: they are not interchangeable",
                forbidden=("encryption",),
            ),
            Support("vmdk", True, "import", _WORKSTATION, ("streamOptimized",), "imported, by either, not run from"),
        ),
        Recipe("vmdk", (("subformat", "monolithicSparse"), ("adapter_type", "lsilogic"))),
        largest_bytes=62 * TIB,
        controllers=("mptspi", "mptsas", "vmw_pvscsi", "ahci", "ata_piix", "nvme"),
        profile="vmware",
    ),
    Target(
        "workstation",
        "VMware Workstation and Fusion",
        "hypervisor",
        (
            Support("vmdk", False, "native", _WORKSTATION, _HOSTED_VMDK, "BusLogic up to 2 TB"),
            Support("vmdk", False, "import", _WORKSTATION, ("streamOptimized",), "imported, not run from"),
        ),
        Recipe("vmdk", (("subformat", "monolithicSparse"), ("adapter_type", "lsilogic"))),
        largest_bytes=8 * TIB,
        controllers=("mptspi", "mptsas", "vmw_pvscsi", "ahci", "ata_piix", "nvme"),
        profile="vmware",
    ),
    Target(
        "esxi",
        "VMware ESXi",
        "hypervisor",
        (
            Support("vmdk", False, "native", _ESXI, _ESXI_VMDK, "flat (thick or thin), redo logs and seSparse on VMFS"),
            Support("vmdk", False, "import", _ESXI, ("streamOptimized",), "imported, header version 3; not run from"),
            Support(
                "vmdk",
                False,
                "convert",
                _ESXI,
                ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicSparse", "monolithicFlat"),
                "the hosted kinds only after vmkfstools -i",
            ),
        ),
        Recipe("vmdk", (("subformat", "vmfs"), ("adapter_type", "lsilogic"))),
        largest_bytes=62 * TIB,
        controllers=("mptspi", "mptsas", "vmw_pvscsi", "ahci", "nvme"),
        profile="vmware",
        note="vmfs is a descriptor and a flat file beside it; take both",
    ),
    Target(
        "virtualbox",
        "Oracle VirtualBox",
        "hypervisor",
        (
            Support("vdi", True, "native", _VBOX_VDI, note="the format of its own, and the advised one"),
            Support(
                "vmdk",
                True,
                "native",
                _VBOX_VMDK,
                (*_HOSTED_VMDK, "vmfs"),
                "descriptor version 1, grains of at least 8 sectors",
                blocks=(4096, 1 << 30),
            ),
            Support("vmdk", True, "import", _VBOX_VMDK, ("streamOptimized",), "read and imported, not written to"),
            Support(
                "qcow2",
                True,
                "read-only",
                _VBOX_QCOW,
                note="undocumented; no incompatible feature (zstd, extended L2, data file), no snapshots; "
                "its writing does not keep refcounts: VDI is advised",
                forbidden=("zstd", "extended_l2", "data_file", "encryption", "snapshots"),
            ),
            Support("vhd", True, "native", _VBOX_MANUAL, largest_bytes=_LARGEST_VHD_BYTES),
            Support(
                "vhdx", False, "read-only", _VBOX_VHDX, note="undocumented; no differencing", forbidden=("backing",)
            ),
            Support("parallels", False, "native", _VBOX_MANUAL, ("WithoutFreeSpace",), "version 2 HDD"),
        ),
        Recipe("vdi"),
        controllers=("ahci", "ata_piix", "virtio_scsi"),
        profile="virtualbox",
    ),
    Target(
        "hyper-v",
        "Microsoft Hyper-V, generation 1",
        "hypervisor",
        (
            Support(
                "vhd",
                True,
                "native",
                _HYPER_V,
                note="boots from IDE, up to 2040 GiB",
                largest_bytes=_LARGEST_VHD_BYTES,
            ),
            Support("vhdx", False, "native", _HYPER_V, note="boots up to 2040 GiB"),
            Support("vmdk", True, "convert", _HYPER_V, note="only after conversion to VHD or VHDX"),
            Support("vdi", True, "convert", _HYPER_V, note="only after conversion to VHD or VHDX"),
        ),
        Recipe("vhd", (("subformat", "dynamic"),)),
        largest_bytes=2040 * GIB,
        firmware=("bios",),
        controllers=("hv_storvsc", "ata_piix"),
        profile="hyper-v",
        note="the file must not be NTFS-sparse, compressed or encrypted",
    ),
    Target(
        "hyper-v-gen2",
        "Microsoft Hyper-V, generation 2",
        "hypervisor",
        (
            Support("vhdx", False, "native", _HYPER_V, note="up to 64 TiB"),
            Support("vhd", False, "none", _HYPER_V, note="generation 2 takes VHDX only"),
        ),
        Recipe("vhdx"),
        largest_bytes=64 * TIB,
        firmware=("uefi",),
        controllers=("hv_storvsc",),
    ),
    Target(
        "xen",
        "Xen (xl)",
        "hypervisor",
        (
            Support("qcow2", True, "native", _XL, note="through QEMU"),
            Support(
                "vhd", True, "native", _XL, note="through tapdisk", largest_bytes=_LARGEST_VHD_BYTES, blocks=_VHD_BLOCKS
            ),
            Support("raw", False, "native", _XL),
        ),
        Recipe("qcow2"),
        controllers=("xen-blkfront", "ata_piix"),
        profile="xen",
    ),
    Target(
        "xenserver",
        "XenServer",
        "hypervisor",
        (
            Support(
                "vhd",
                True,
                "native",
                _TAPDISK,
                note="blocks of a power of two up to 2 MiB",
                largest_bytes=_LARGEST_VHD_BYTES,
                blocks=_VHD_BLOCKS,
            ),
            Support("qcow2", True, "none", _TAPDISK, note="tapdisk opens raw and VHD; XCP-ng has qcow2 since 2026-05"),
            Support("raw", False, "native", _TAPDISK),
        ),
        Recipe("vhd", (("subformat", "dynamic"),)),
        largest_bytes=2040 * GIB,
        controllers=("xen-blkfront", "ata_piix"),
        profile="xen",
    ),
    Target(
        "xcp-ng",
        "XCP-ng",
        "hypervisor",
        (
            Support(
                "vhd",
                False,
                "native",
                _XCP_NG,
                note="up to 2040 GiB; a loose file is named UUID.vhd",
                largest_bytes=_LARGEST_VHD_BYTES,
                blocks=_VHD_BLOCKS,
            ),
            Support("qcow2", False, "native", _XCP_NG, note="since 2026-05, up to 16381 GiB"),
            Support("raw", False, "native", _XCP_NG),
        ),
        Recipe("vhd", (("subformat", "dynamic"),)),
        largest_bytes=16381 * GIB,
        controllers=("xen-blkfront", "ata_piix"),
        profile="xen",
    ),
    Target(
        "parallels",
        "Parallels Desktop",
        "hypervisor",
        (
            Support(
                "parallels",
                False,
                "native",
                _PARALLELS,
                note="an .hdd bundle, clusters of 1 MiB",
                forbidden=("loose",),
                blocks=(MIB, MIB),
            ),
        ),
        Recipe("parallels"),
        controllers=("ahci",),
        profile="parallels",
    ),
    Target(
        "virtual-pc",
        "Microsoft Virtual PC",
        "hypervisor",
        (
            Support(
                "vhd", False, "native", _VIRTUAL_PC, note="up to 127 GiB on IDE; the size is that of the CHS geometry"
            ),
        ),
        Recipe("vhd", (("force_size", "off"),)),
        largest_bytes=127 * GIB,
        firmware=("bios",),
        controllers=("ata_piix",),
        profile="kvm",
    ),
    Target(
        "proxmox",
        "Proxmox VE",
        "hypervisor",
        (
            Support("raw", False, "native", _PROXMOX),
            Support("qcow2", False, "native", _PROXMOX),
            Support("vmdk", False, "native", _PROXMOX, note="one extent", forbidden=("split",)),
        ),
        Recipe("qcow2"),
        controllers=_QEMU_DRIVERS,
        profile="kvm",
        forbidden=("backing", "data_file"),
    ),
    Target(
        "bhyve",
        "bhyve",
        "hypervisor",
        (Support("raw", False, "native", _BHYVE),),
        Recipe("raw"),
        controllers=("virtio_blk", "ahci", "nvme"),
        profile="kvm",
    ),
)
