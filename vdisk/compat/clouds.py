"""Clouds, container platforms and packages as targets."""

from __future__ import annotations

from vdisk.compat.model import GIB, MIB, TIB, Recipe, Source, Support, Target

_DATE = "2026-11"
_AWS = Source("AWS VM Import/Export user guide", "D", _DATE)
_AZURE = Source("Azure: prepare a VHD for upload", "D", _DATE)
_GCP = Source("Google Cloud: manual import of boot disks", "X", _DATE)
_GLANCE = Source("oslo.utils imageutils.format_inspector, glance", "S", _DATE)
_ORACLE = Source("Oracle Cloud: bring your own image", "D", _DATE)
_ALIBABA = Source("Alibaba Cloud: import custom images", "D", _DATE)
_DIGITALOCEAN = Source("DigitalOcean: custom images", "D", _DATE)
_IBM = Source("IBM Cloud VPC: custom images", "D", _DATE)
_KUBEVIRT = Source("KubeVirt user guide, containerDisk", "D", _DATE)
_VAGRANT = Source("vagrant-libvirt and Vagrant, box formats", "S", _DATE)
_OVA = Source("DMTF DSP0243 (OVF 1.1); virt-v2v's reader", "S", _DATE)

_VIRTIO = ("virtio_blk", "virtio_scsi")

CLOUDS: tuple[Target, ...] = (
    Target(
        "aws",
        "Amazon Web Services",
        "cloud",
        (
            Support("raw", False, "native", _AWS),
            Support("vmdk", False, "native", _AWS, ("streamOptimized",), "alone or in an OVA"),
            Support("vhd", False, "native", _AWS),
            Support("vhdx", False, "native", _AWS),
        ),
        Recipe("vmdk", (("subformat", "streamOptimized"),)),
        largest_bytes=16 * TIB - 1,
        controllers=("nvme", "xen-blkfront"),
        forbidden=("encryption",),
        source=_AWS,
        note="a Linux that boots by UEFI needs EFI/BOOT/BOOTX64.EFI",
    ),
    Target(
        "azure",
        "Microsoft Azure",
        "cloud",
        (
            Support(
                "vhd", False, "native", _AZURE, ("fixed",), "the size a whole number of MiB, the file 512 bytes longer"
            ),
        ),
        Recipe("vhd", (("subformat", "fixed"), ("force_size", "on")), size_multiple=MIB),
        largest_bytes=4 * TIB,
        size_multiple=MIB,
        controllers=("hv_storvsc", "nvme"),
        source=_AZURE,
        note="generation 1 system disks up to 2 TB, generation 2 up to 4 TiB",
    ),
    Target(
        "gcp",
        "Google Cloud",
        "cloud",
        (Support("raw", False, "native", _GCP, note="named disk.raw, in a gzip'd tar of the old GNU kind"),),
        Recipe("raw", size_multiple=GIB, package="gcp-tar"),
        size_multiple=GIB,
        controllers=("virtio_scsi", "nvme"),
        source=_GCP,
    ),
    Target(
        "openstack",
        "OpenStack (Glance)",
        "cloud",
        (
            Support("qcow2", False, "native", _GLANCE),
            Support("raw", False, "native", _GLANCE),
            Support("vmdk", False, "native", _GLANCE, ("streamOptimized", "monolithicSparse")),
            Support("vhd", False, "native", _GLANCE),
            Support("vhdx", False, "native", _GLANCE),
            Support("vdi", False, "native", _GLANCE),
        ),
        Recipe("qcow2"),
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing", "data_file"),
        source=_GLANCE,
        note="the content must be of the format that is declared; polyglots are refused",
    ),
    Target(
        "oracle",
        "Oracle Cloud",
        "cloud",
        (
            Support("qcow2", False, "native", _ORACLE),
            Support("vmdk", False, "native", _ORACLE, ("streamOptimized", "monolithicSparse")),
        ),
        Recipe("qcow2"),
        largest_bytes=400 * 10**9,
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing",),
        source=_ORACLE,
    ),
    Target(
        "alibaba",
        "Alibaba Cloud",
        "cloud",
        tuple(Support(name, False, "native", _ALIBABA) for name in ("qcow2", "vhd", "raw", "vmdk")),
        Recipe("qcow2"),
        largest_bytes=500 * GIB,
        smallest_bytes=40 * GIB,
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing",),
        source=_ALIBABA,
        note="the size limits come from a secondary source",
    ),
    Target(
        "digitalocean",
        "DigitalOcean",
        "cloud",
        tuple(Support(name, False, "native", _DIGITALOCEAN) for name in ("raw", "qcow2", "vhdx", "vdi", "vmdk")),
        Recipe("qcow2"),
        largest_bytes=100 * 10**9 - 1,
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing",),
        source=_DIGITALOCEAN,
    ),
    Target(
        "ibm",
        "IBM Cloud VPC",
        "cloud",
        (Support("qcow2", False, "native", _IBM), Support("vhd", False, "native", _IBM)),
        Recipe("qcow2"),
        largest_bytes=250 * 10**9,
        smallest_bytes=10 * 10**9,
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing",),
        source=_IBM,
        note="one file; the guest needs cloud-init",
    ),
    Target(
        "kubevirt",
        "KubeVirt containerDisk",
        "package",
        (Support("qcow2", False, "native", _KUBEVIRT), Support("raw", False, "native", _KUBEVIRT)),
        Recipe("qcow2", package="oci"),
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing", "data_file"),
        source=_KUBEVIRT,
        note="an OCI image with the disk in /disk/, owner 107",
    ),
    Target(
        "vagrant-libvirt",
        "Vagrant box for libvirt",
        "package",
        (Support("qcow2", False, "native", _VAGRANT),),
        Recipe("qcow2", package="vagrant-libvirt"),
        controllers=_VIRTIO,
        profile="kvm",
        forbidden=("backing",),
        source=_VAGRANT,
    ),
    Target(
        "vagrant-virtualbox",
        "Vagrant box for VirtualBox",
        "package",
        (Support("vmdk", False, "native", _VAGRANT, ("streamOptimized",)),),
        Recipe("vmdk", (("subformat", "streamOptimized"),), package="vagrant-virtualbox"),
        controllers=("ata_piix", "ahci"),
        profile="virtualbox",
        source=_VAGRANT,
    ),
    Target(
        "ova",
        "Open Virtual Appliance",
        "package",
        (Support("vmdk", False, "native", _OVA, ("streamOptimized",)),),
        Recipe("vmdk", (("subformat", "streamOptimized"),), package="ova"),
        controllers=("ata_piix", "mptspi", "ahci"),
        profile="vmware",
        source=_OVA,
    ),
)

CLOUD_AGENTS = {"azure": "waagent", "gcp": "google-guest-agent", "aws": "ec2launch"}
"""A cloud's own agent, which does the work of cloud-init or cloudbase-init there: names of `vdisk.inspect.guest`."""
