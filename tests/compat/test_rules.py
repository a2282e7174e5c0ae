"""`vdisk compat IMAGE`: what speaks against an image at a target, why, and what mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import peers
from tests.cli.conftest import Run
from tests.compat.disks import efi_disk, fat12, mbr_disk
from vdisk import formats
from vdisk.compat import TARGETS
from vdisk.compat.examine import examine
from vdisk.compat.rules import Verdict
from vdisk.converter import convert
from vdisk.storage.memory import MemoryStorage

SAMPLES = Path(__file__).parents[2] / "samples"
HELLO = SAMPLES / "hello.raw"


def verdict_of(path: Path, name: str) -> Verdict:
    return examine(path, [name]).verdicts[0]


def whats(verdict: Verdict, level: str = "error") -> str:
    return "; ".join(f"{finding.what}: {finding.why}" for finding in verdict.findings if finding.level == level)


FITS = {
    "hello.raw": {"kvm", "qemu", "libvirt", "xen", "xenserver", "xcp-ng", "proxmox", "bhyve", "aws", "openstack",
                  "digitalocean"},
    "hello.qcow2": {"kvm", "qemu", "libvirt", "xen", "xcp-ng", "proxmox", "openstack", "oracle", "digitalocean"},
    "hello-compressed.qcow2": {"kvm", "qemu", "libvirt", "xen", "xcp-ng", "proxmox", "openstack", "oracle",
                               "digitalocean"},
    "hello.vmdk": {"kvm", "qemu", "libvirt", "vmware", "workstation", "virtualbox", "proxmox", "openstack", "oracle",
                   "digitalocean"},
    "hello-stream.vmdk": {"libvirt", "vmware", "workstation", "esxi", "virtualbox", "proxmox", "aws", "openstack",
                          "oracle", "digitalocean"},
    "hello.vdi": {"kvm", "qemu", "virtualbox", "openstack", "digitalocean"},
    "hello.vhd": {"kvm", "qemu", "libvirt", "virtualbox", "hyper-v", "xen", "xenserver", "xcp-ng", "aws", "openstack"},
    "hello.vhdx": {"kvm", "qemu", "hyper-v", "aws", "openstack", "digitalocean"},
    "hello.hds": {"kvm", "qemu"},
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_the_matrix_of_the_samples(name: str) -> None:
    examination = examine(SAMPLES / name)
    assert len(examination.verdicts) == len(TARGETS)
    assert {verdict.target.name for verdict in examination.verdicts if verdict.fits} == FITS[name]


def test_a_zstd_qcow2_is_not_for_virtualbox_and_a_vdi_of_it_is(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    convert(HELLO, path, compress=True, options={"compression_type": "zstd"})
    ran = run("compat", path, "--for", "virtualbox", "--for", "kvm")
    assert ran.status == 1
    assert "clusters compressed by zstd: Oracle VirtualBox will not open such an image" in ran.out
    mended = tmp_path / "disk.vdi"
    assert f"vdisk convert {path} {mended} --for virtualbox" in ran.out
    assert run("convert", path, mended, "--for", "virtualbox").status == 0
    assert run("compat", mended, "--for", "virtualbox").status == 0
    assert run("compat", path, "--for", "kvm").status == 0


def test_a_plain_qcow2_is_read_by_virtualbox_and_not_safely_written() -> None:
    verdict = verdict_of(SAMPLES / "hello.qcow2", "virtualbox")
    assert verdict.listed is True
    assert verdict.verified == "read-only"
    assert "for reading only" in whats(verdict)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"extended_l2": "on", "cluster_size": "128K"}, "extended L2"), ({"data_file": "data.raw"}, "external data file")],
)
def test_incompatible_features_of_qcow2(options: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    formats.create(path, "1M", options=options)
    assert said in whats(verdict_of(path, "virtualbox"))
    assert verdict_of(path, "kvm").fits
    assert verdict_of(path, "proxmox").fits == ("data_file" not in options)


def test_a_backing_file_must_come_along(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    convert(HELLO, base)
    convert(HELLO, tmp_path / "top.qcow2", backing="base.qcow2", backing_format="qcow2")
    verdict = verdict_of(tmp_path / "top.qcow2", "kvm")
    assert verdict.fits
    assert "that file must be there too" in whats(verdict, "warning")
    assert "a backing file or parent" in whats(verdict_of(tmp_path / "top.qcow2", "openstack"))


def test_limits_of_size_block_and_sector(tmp_path: Path) -> None:
    formats.create(tmp_path / "large.vmdk", "9T")
    assert "takes up to 8 TiB" in whats(verdict_of(tmp_path / "large.vmdk", "workstation"))
    formats.create(tmp_path / "a.vdi", "1M", options={"block_size": "64K"})
    assert "its blocks have 64 KiB: KVM (QEMU) takes 1 MiB" in whats(verdict_of(tmp_path / "a.vdi", "kvm"))
    formats.create(tmp_path / "b.vhdx", "1M", options={"logical_sector_size": "4096"})
    assert "logical sectors of 4096 bytes" in whats(verdict_of(tmp_path / "b.vhdx", "kvm"))
    formats.create(tmp_path / "c.vhd", "127G", options={"force_size": "on"})
    assert "Virtual PC gives the guest the disk of the geometry" in whats(verdict_of(tmp_path / "c.vhd", "virtual-pc"))
    (tmp_path / "c.vhd").rename(tmp_path / "c.img")
    assert "goes by the name" in whats(verdict_of(tmp_path / "c.img", "hyper-v"))


def test_firmware_must_find_a_loader(tmp_path: Path) -> None:
    efi = efi_disk(tmp_path / "efi.img")
    facts = examine(efi, ["kvm"]).facts
    assert (facts.uefi, facts.bios) == ("EFI/BOOT/BOOTX64.EFI", "")
    path = tmp_path / "efi.vhdx"
    convert(efi, path)
    assert verdict_of(path, "hyper-v-gen2").fits
    assert "boots by UEFI only" in whats(verdict_of(path, "hyper-v"))
    convert(HELLO, tmp_path / "bios.vhdx")
    assert "boots by BIOS only" in whats(verdict_of(tmp_path / "bios.vhdx", "hyper-v-gen2"))


def test_a_loader_elsewhere_is_found_by_variables_only(tmp_path: Path) -> None:
    other = efi_disk(tmp_path / "efi.img", "EFI/DEBIAN/GRUBX64.EFI")
    verdict = verdict_of(other, "kvm")
    assert verdict.fits
    assert "those do not travel with the disk" in whats(verdict, "warning")
    assert any(one.fix == "grub-install --removable" and one.in_guest for one in verdict.findings)
    convert(other, tmp_path / "efi.vhdx")
    assert not verdict_of(tmp_path / "efi.vhdx", "hyper-v-gen2").fits


def test_boot_code_without_an_active_partition_boots_nothing(tmp_path: Path) -> None:
    idle = mbr_disk(tmp_path / "idle.img", 0x83, b"", code=b"\xfa\x33\xc0")
    assert examine(idle, ["kvm"]).facts.bios == ""
    active = mbr_disk(tmp_path / "active.img", 0x83, b"", code=b"\xfa\x33\xc0", active=True)
    assert examine(active, ["kvm"]).facts.bios == "boot code and an active partition"
    grub = mbr_disk(tmp_path / "grub.img", 0x83, b"", code=b"\xeb\x63\x90GRUB \0")
    assert examine(grub, ["kvm"]).facts.bios == "GRUB in the first sector"


def test_luks_and_lvm_are_noticed(tmp_path: Path) -> None:
    luks = mbr_disk(tmp_path / "luks.img", 0x83, b"LUKS\xba\xbe\0\2")
    assert "passphrase at each start" in whats(verdict_of(luks, "openstack"), "warning")
    label = bytes(512) + b"LABELONE" + bytes(16) + b"LVM2 001"
    lvm = mbr_disk(tmp_path / "lvm.img", 0x8E, label)
    assert "there is LVM on the disk" in whats(verdict_of(lvm, "kvm"), "note")


@pytest.mark.peer
def test_a_gpt_that_grew_has_its_backup_in_the_wrong_place(tmp_path: Path) -> None:
    path = tmp_path / "gpt.img"
    path.write_bytes(bytes(4 << 20))
    peers.run("sfdisk", path, stdin=b"label: gpt\nstart=2048, type=L\n")
    with path.open("ab") as file:
        file.truncate(8 << 20)
    examination = examine(path, ["kvm"])
    assert examination.facts.table.backup_gpt == "missing"
    assert "the backup GPT belongs at sector" in whats(examination.verdicts[0], "warning")
    (fix,) = [one.fix for one in examination.verdicts[0].findings if "backup GPT" in one.what]
    assert fix.startswith("sgdisk --move-second-header /dev/$(lsblk")


@pytest.mark.peer
def test_linux_file_systems_are_recognised(tmp_path: Path) -> None:
    from vdisk.inspect.filesystems import recognise

    for kind in ("ext2", "ext3", "ext4"):
        path = tmp_path / f"{kind}.img"
        path.write_bytes(bytes(8 << 20))
        peers.run(f"mkfs.{kind}", "-q", "-L", "root", "-U", "6d2e4a9e-0d2b-4c3a-9a4d-5a4c3b2d1e0f", path)
        with formats.open(path, format="raw") as image:
            found = recognise(image)
        assert found == (kind, "root", "6d2e4a9e-0d2b-4c3a-9a4d-5a4c3b2d1e0f")


def test_fat_is_looked_through_for_short_names() -> None:
    from vdisk.inspect.fat import find_file, is_fat

    whole = fat12({"EFI/BOOT/BOOTX64.EFI": b"MZ", "A.TXT": b"hello"}, 2048)
    with formats.open(MemoryStorage(whole), format="raw") as image:
        assert is_fat(image)
        assert find_file(image, "efi/boot/bootx64.efi") == 2
        assert find_file(image, "a.txt") == 5
        assert find_file(image, "EFI/BOOT") is None
        assert find_file(image, "EFI/BOOT/NONE.EFI") is None
        assert find_file(image, "A.TXT/BOOT") is None


def test_damage_in_a_fat_is_survived() -> None:
    from vdisk.inspect.fat import find_file

    whole = fat12({"EFI/BOOT/BOOTX64.EFI": b"MZ"}, 2048)
    for at in range(0, 10 * 512, 3):
        for value in (0, 0xFF, whole[at] ^ 0x55):
            damaged = bytearray(whole)
            damaged[at] = value
            with formats.open(MemoryStorage(bytes(damaged)), format="raw") as image:
                assert find_file(image, "EFI/BOOT/BOOTX64.EFI") in (2, None)


def test_the_command_without_for_says_all_and_judges_nothing(run: Run) -> None:
    ran = run("compat", SAMPLES / "hello.qcow2")
    assert ran.status == 0
    assert "boots by BIOS:" in ran.out
    found = json.loads(run("compat", SAMPLES / "hello.qcow2", "--json").out)
    assert found["image"]["partition-table"] == "mbr"
    assert found["image"]["sector-size"] == 512
    assert len(found["targets"]) == len(TARGETS)
    assert run("compat", SAMPLES / "hello.qcow2", "--for", "nowhere").status == 2
    assert run("compat", "/nowhere/disk.qcow2").status == 1


@pytest.mark.peer
@pytest.mark.slow
def test_the_matrix_of_a_debian_disk(debian_disk: Path) -> None:
    examination = examine(debian_disk)
    facts = examination.facts
    assert facts.bios == "GRUB in the first sector"
    assert [found.kind for _, found in facts.file_systems] == ["ext4"]
    assert {verdict.target.name for verdict in examination.verdicts if verdict.fits} == FITS["hello.raw"]
    for verdict in examination.verdicts:
        if not verdict.fits:
            fixes = [finding.fix for finding in verdict.findings if finding.level == "error" and finding.fix]
            assert all(fix.endswith(f"--for {verdict.target.name}") for fix in fixes)
            assert fixes
