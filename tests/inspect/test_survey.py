"""What a guest's files say: system, kernels and their drivers, fstab, boot entries, whatever the distribution."""

from __future__ import annotations

import pytest

from tests.inspect.guests import VERSION, MemoryFiles, debian, elf, initramfs
from vdisk.inspect.guest import Guest, Mount
from vdisk.inspect.survey import Mounted, survey


def look(*trees: dict[str, bytes | str]) -> Guest:
    guest = Guest()
    survey([Mounted(f"partition {number}", MemoryFiles(tree)) for number, tree in enumerate(trees, 1)], guest)
    return guest


def test_a_debian_in_full() -> None:
    guest = look(debian("virtio_blk", "virtio-rng", shipped=["ata/ahci", "net/e1000"]))
    assert (guest.root, guest.os, guest.os_id, guest.architecture) == (
        "partition 1", "Debian GNU/Linux 12 (bookworm)", "debian", "x86_64"
    )  # fmt: skip
    assert guest.fstab == [
        Mount("UUID=1234", "/", "ext4", "errors=remount-ro"),
        Mount("/dev/sda5", "none", "swap", "sw"),
    ]
    (kernel,) = guest.kernels
    assert (kernel.version, kernel.initramfs) == (VERSION, f"/boot/initrd.img-{VERSION}")
    assert kernel.modules == ["sd_mod", "virtio_blk"], "from the initramfs, and built in"
    assert kernel.shipped == ["ahci", "sd_mod", "virtio_blk"]
    assert (guest.kernel_roots, guest.consoles) == (["UUID=1234"], ["tty0", "ttyS0,115200"])
    assert guest.grub_terminals == ["gfxterm"]
    assert guest.tools == ["update-initramfs", "update-grub"]
    assert guest.agents == guest.problems == guest.passed_over == []


def test_a_fedora_with_entries_of_the_boot_loader_specification() -> None:
    version = "6.5.6-300.fc39.x86_64"
    guest = look(
        {
            "etc/os-release": b'NAME="Fedora Linux"\nID=fedora\nID_LIKE="rhel centos"\n',
            f"boot/vmlinuz-{version}": b"",
            f"boot/initramfs-{version}.img": initramfs("scsi/virtio_scsi", "x/sd_mod", compression="xz"),
            "boot/vmlinuz-0-rescue-abc": b"",
            "boot/initramfs-0-rescue-abc.img": initramfs("ata/ahci"),
            f"boot/loader/entries/abc-{version}.conf": b"title Fedora\noptions $kernelopts quiet\n",
            "boot/grub2/grubenv": b"# GRUB Environment Block\nkernelopts=root=/dev/vda2 console=ttyS0\n####",
            "usr/bin/dracut": b"", "usr/sbin/grubby": b"", "usr/bin/cloud-init": b"",
        }
    )  # fmt: skip
    assert guest.os == "Fedora Linux"
    assert guest.os_like == ["fedora", "rhel", "centos"]
    assert [(one.version, one.modules) for one in guest.kernels] == [(version, ["sd_mod", "virtio_scsi"])]
    assert (guest.kernel_roots, guest.consoles) == (["/dev/vda2"], ["ttyS0"])
    assert guest.tools == ["dracut", "grubby"]
    assert guest.agents == ["cloud-init"]


@pytest.mark.parametrize(
    ("kernel", "archive", "modules"),
    [
        ("vmlinuz-linux", "initramfs-linux.img", "6.9.1-arch1-1"),
        ("vmlinuz-lts", "initramfs-lts", "6.6.30-0-lts"),
        ("vmlinuz-5.14.21-default", "initrd-5.14.21-default", "5.14.21-default"),
        ("Image-6.1.1-default", "initrd-6.1.1-default", "6.1.1-default"),
    ],
)
def test_names_of_kernels_elsewhere(kernel: str, archive: str, modules: str) -> None:
    guest = look(
        {
            "etc/fstab": b"", f"boot/{kernel}": b"", f"boot/{archive}": initramfs("nvme"),
            f"lib/modules/{modules}/modules.builtin": b"kernel/drivers/ata/ahci.ko\n",
            "boot/extlinux.conf": b"LABEL lts\n  APPEND root=UUID=7 console=ttyS1\n",
        }
    )  # fmt: skip
    (found,) = guest.kernels
    assert found.modules == ["ahci", "nvme"]
    assert guest.consoles == ["ttyS1"]


def test_the_newest_kernel_is_first() -> None:
    files = {f"boot/vmlinuz-6.{minor}.0-amd64": b"" for minor in (9, 10, 1)}
    guest = look({"etc/fstab": b"", **files})
    assert [kernel.version for kernel in guest.kernels] == ["6.10.0-amd64", "6.9.0-amd64", "6.1.0-amd64"]
    assert not guest.kernels[0].initramfs


def test_boot_may_be_a_partition_of_its_own() -> None:
    whole = debian("virtio_blk")
    boot = {path.removeprefix("boot/"): value for path, value in whole.items() if path.startswith("boot/")}
    root = {path: value for path, value in whole.items() if not path.startswith("boot/")}
    guest = look(boot, root)
    assert guest.root == "partition 2"
    assert guest.kernels[0].modules == ["sd_mod", "virtio_blk"]
    assert guest.consoles == ["tty0", "ttyS0,115200"]


def test_of_two_systems_the_first_is_told_and_the_other_named() -> None:
    guest = look(debian("virtio_blk"), debian("ahci", etc__fstab=b""))
    assert guest.kernels[0].modules == ["sd_mod", "virtio_blk"]
    assert guest.passed_over == ["partition 2: another system"]


def test_a_disk_of_data_has_no_system() -> None:
    assert look({"music/song": b""}) == Guest()


def test_an_initramfs_that_cannot_be_read_is_told() -> None:
    guest = look(debian("virtio_blk", **{f"boot__initrd.img-{VERSION}": b"\x89LZO\0\r\n\x1a\n"}))
    assert guest.kernels[0].problem == "an initramfs compressed by LZO is not looked into"
    assert guest.kernels[0].modules == ["sd_mod"]
    assert guest.os, "the rest is told all the same"


def test_what_one_file_hides_does_not_hide_the_others() -> None:
    guest = look(debian("virtio_blk", etc__fstab="fstab"))
    assert guest.problems == ["/etc/fstab: could not be read: /etc/fstab: more than 40 symbolic links"]
    assert guest.kernels[0].modules == ["sd_mod", "virtio_blk"]


@pytest.mark.parametrize(("machine", "name"), [(3, "i386"), (183, "aarch64"), (243, "riscv64"), (9, "ELF machine 9")])
def test_the_architecture_is_that_of_its_programs(machine: int, name: str) -> None:
    assert look(debian("virtio_blk", usr__lib__systemd__systemd=elf(machine))).architecture == name


@pytest.mark.parametrize("text", [b"PRETTY_NAME='unclosed\n", b"\xff\xfe=\0\n=\n#=\n", b"ID", b'PRETTY_NAME=""'])
def test_a_release_file_of_any_content_is_survived(text: bytes) -> None:
    guest = look(debian("virtio_blk", usr__lib__os_release=text, **{"usr/lib/os-release": text}))
    assert guest.problems == []
    assert guest.os == ""
