"""The Linux on a disk held against targets: what it lacks there, why that matters, and the command that mends it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.compat.disks import mbr_disk
from tests.compat.test_report import Page
from tests.inspect.guests import debian, ext_disk
from vdisk.compat import TARGETS, find_target, guest_rules
from vdisk.compat import facts as facts_module
from vdisk.compat.examine import examine, opened
from vdisk.compat.guest_rules import DRIVERS, guest_findings, own_bus_notes
from vdisk.compat.model import Finding
from vdisk.compat.report import report
from vdisk.compat.trial import try_boots
from vdisk.inspect.guest import Guest, Kernel, Mount

ALL = ["sd_mod", "virtio_pci", *(name.replace("-", "_") for name in DRIVERS)]


def guest(*modules: str, **changes: Any) -> Guest:
    """A Debian that starts with `modules` and has the others at hand."""
    kernel = Kernel("6.1.0-9-amd64", "/boot/initrd.img-6.1.0-9-amd64", sorted(modules), sorted(ALL))
    whole = Guest(
        root="partition 1 (ext4)",
        os="Debian GNU/Linux 12 (bookworm)",
        os_id="debian",
        os_like=["debian"],
        architecture="x86_64",
        fstab=[Mount("UUID=1", "/", "ext4", "defaults")],
        kernels=[kernel],
        kernel_roots=["UUID=1"],
        consoles=["tty0", "ttyS0,115200"],
        has_boot_entries=True,
        tools=["update-initramfs", "update-grub"],
    )
    return replace(whole, **changes)


def findings(of: Guest, name: str, level: str = "") -> list[Finding]:
    return [one for one in guest_findings(of, find_target(name)) if level in ("", one.level)]


def only(of: Guest, name: str, level: str, about: str) -> Finding:
    (found,) = [one for one in findings(of, name, level) if about in one.what]
    return found


# Drivers


def test_every_driver_of_every_target_is_known() -> None:
    assert {name for target in TARGETS for name in target.controllers} == set(DRIVERS)
    assert all(target.controllers for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_guest_with_all_drivers_starts_everywhere_and_one_with_none_nowhere(target: object) -> None:
    target = find_target(target.name)  # type: ignore[attr-defined]
    whole = guest(*ALL, agents=["cloud-init"], architecture="i386")
    assert {one.level for one in guest_findings(whole, target)} <= {"note"}
    bare = replace(whole, kernels=[Kernel("6.1", "/boot/initrd.img-6.1", ["sd_mod", "virtio_pci"], sorted(ALL))])
    (error,) = [one for one in guest_findings(bare, target) if one.level == "error"]
    assert "no driver for the disk there" in error.what
    for name in target.controllers:
        assert name in error.what
    assert error.in_guest
    assert target.controllers[0].replace("-", "_") in error.fix


def test_what_brings_a_driver_into_the_initramfs_is_the_guests_own_tool() -> None:
    def fix(**changes: Any) -> str:
        return only(guest("sd_mod", **changes), "parallels", "error", "no driver").fix

    assert fix() == "printf '%s\\n' ahci >> /etc/initramfs-tools/modules && update-initramfs -u -k all"
    assert fix(tools=["dracut"]).endswith("dracut --force --regenerate-all")
    assert 'add_drivers+=" ahci "' in fix(tools=["dracut"])
    assert fix(tools=["mkinitcpio"]) == "sed -i 's/^MODULES=(/&ahci /' /etc/mkinitcpio.conf && mkinitcpio -P"
    assert fix(tools=[]) == ""


@pytest.mark.parametrize(
    ("os_id", "like", "architecture", "said"),
    [
        ("debian", ["debian"], "x86_64", "apt-get install linux-image-amd64"),
        ("debian", ["debian"], "aarch64", "apt-get install linux-image-arm64"),
        ("ubuntu", ["ubuntu", "debian"], "x86_64", "apt-get install linux-image-generic"),
        ("rocky", ["rocky", "rhel", "centos", "fedora"], "x86_64", "dnf install kernel-modules kernel-modules-extra"),
        ("opensuse-leap", ["opensuse-leap", "suse", "opensuse"], "x86_64", "zypper install kernel-default"),
        ("void", ["void"], "x86_64", ""),
    ],
)
def test_a_kernel_without_the_module_is_replaced(os_id: str, like: list[str], architecture: str, said: str) -> None:
    cloud = guest(os_id=os_id, os_like=like, architecture=architecture)
    cloud.kernels[0].modules = cloud.kernels[0].shipped = ["sd_mod", "virtio_blk", "virtio_pci"]
    assert only(cloud, "openstack", "warning", "cloud-init")
    assert [one for one in findings(cloud, "openstack") if "driver" in one.what] == []
    cloud.kernels[0].modules = cloud.kernels[0].shipped = ["sd_mod"]
    assert only(cloud, "openstack", "error", "no driver").fix == said


def test_another_controller_serves_if_it_is_chosen() -> None:
    found = only(guest("ata_piix", "virtio_scsi", "virtio_pci", "sd_mod"), "virtualbox", "warning", "lacks ahci")
    assert "choose IDE or virtio-scsi there" in found.why
    assert not [one for one in findings(guest("ahci", "sd_mod"), "virtualbox") if "driver" in one.what + one.why]


def test_a_driver_is_no_use_without_what_it_needs() -> None:
    assert "lacks virtio_pci" in only(guest("virtio_blk", "ahci", "sd_mod"), "kvm", "warning", "lacks").what
    assert only(guest("ahci"), "parallels", "error", "no driver").fix.startswith("printf '%s\\n' sd_mod >>")


@pytest.mark.parametrize(
    ("name", "driver", "bus"), [("hyper-v-gen2", "hv_storvsc", "VMBus"), ("xen", "xen-blkfront", "xenbus"),
                                ("azure", "hv_storvsc", "VMBus")]
)  # fmt: skip
def test_an_own_bus_is_told_with_its_driver_and_whether_the_initramfs_has_it(name: str, driver: str, bus: str) -> None:
    target, module = find_target(name), driver.replace("-", "_")
    has, lacks = guest(module, "sd_mod"), guest("ata_piix", "virtio_blk", "sd_mod")
    assert bus in only(has, name, "note", f"its initramfs has {driver}").why
    assert any(module in one.what for one in findings(lacks, name) if "lacks" in one.what or one.level == "error")
    for of, word in ((has, "which its initramfs has"), (lacks, "which its initramfs lacks"), (None, "is not known")):
        (note,) = own_bus_notes(of, target)
        assert bus in note
        assert f"the driver {driver}" in note
        assert word in note
    assert own_bus_notes(has, find_target("kvm")) == []


@pytest.mark.parametrize(
    ("name", "driver"), [("hyper-v", "hv_storvsc"), ("xen", "xen_blkfront"), ("xcp-ng", "xen_blkfront")]
)
def test_a_kernel_built_with_the_own_buss_driver_leaves_the_emulated_ide_disk_alone(name: str, driver: str) -> None:
    lacks = guest("ata_piix", "sd_mod")
    error = only(lacks, name, "error", f"its initramfs lacks {driver}")
    assert "emulated IDE disk alone" in error.why
    assert driver in error.fix
    lacks.kernels[0].shipped = []  # what was built is not known: as distributions build it
    assert only(lacks, name, "error", f"its initramfs lacks {driver}")
    lacks.kernels[0].shipped = ["ata_piix", "sd_mod"]
    assert "finds the emulated IDE disk" in only(lacks, name, "note", f"its initramfs lacks {driver}").why
    assert not findings(lacks, name, "error")


def test_virtual_pc_has_no_bus_of_its_own_and_ide_serves() -> None:
    assert not [one for one in findings(guest("ata_piix", "sd_mod"), "virtual-pc") if "driver" in one.what + one.why]


def test_an_initramfs_that_is_not_known_judges_nothing() -> None:
    unread = guest()
    unread.kernels[0].problem = "an initramfs compressed by LZO is not looked into"
    assert "could not be read: an initramfs compressed by LZO" in only(unread, "parallels", "note", "initramfs").what
    none = guest(kernels=[Kernel("6.1")])
    assert "no initramfs was found" in only(none, "parallels", "note", "initramfs").what
    assert "EFI partition" in only(guest(kernels=[]), "parallels", "note", "no kernel was found").why


# Names of disks


@pytest.mark.parametrize(
    ("device", "name", "level"),
    [
        ("/dev/sda1", "openstack", "warning"),
        ("/dev/sda1", "virtualbox", "note"),
        ("/dev/hda1", "virtualbox", "warning"),
        ("/dev/vda1", "virtualbox", "warning"),
        ("/dev/vda1", "kvm", "note"),
        ("/dev/xvda1", "kvm", "warning"),
        ("/dev/nvme0n1p1", "aws", "note"),
        ("/dev/sda1", "aws", "warning"),
        ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part1", "kvm", "warning"),
        ("/dev/disk/by-id/ata-VBOX_HARDDISK_VB-1-part1", "kvm", "warning"),
    ],
)
def test_fstab_by_names_that_follow_the_controller(device: str, name: str, level: str) -> None:
    found = only(guest(*ALL, fstab=[Mount(device, "/data", "ext4", "defaults")]), name, level, "/etc/fstab names")
    assert device in found.what
    assert f"for d in {device}; do sed -i" in found.fix
    assert "blkid -s UUID -o value $d" in found.fix


@pytest.mark.parametrize(
    "device", ["UUID=1", "LABEL=root", "PARTUUID=1-01", "/dev/mapper/vg-root", "/dev/vg/root", "/dev/sr0", "tmpfs",
               "/dev/sda1;reboot", "/dev/sda$(reboot)", "/dev/disk/by-id/$(reboot)"]
)  # fmt: skip
def test_fstab_by_names_that_stay_or_are_none(device: str) -> None:
    assert not findings(guest(*ALL, fstab=[Mount(device, "/", "ext4", "x")]), "kvm")
    swap = Mount("/dev/sda5", "none", "swap", "sw,noauto")
    assert not findings(guest(*ALL, fstab=[swap]), "kvm")


def test_the_command_for_fstab_does_what_it_says(tmp_path: Path) -> None:
    import subprocess

    lines = (
        "/dev/sda1 / ext4 defaults 0 1\n/dev/sda10 /b ext4 defaults 0 2\n# /dev/sda1 of old\n/dev/sda5\tnone swap sw\n"
    )
    (tmp_path / "fstab").write_text(lines)
    used = [Mount("/dev/sda1", "/", "ext4", "defaults"), Mount("/dev/sda5", "none", "swap", "sw")]
    fix = only(guest(*ALL, fstab=used), "kvm", "warning", "fstab").fix.replace("/etc/fstab", str(tmp_path / "fstab"))
    shell = 'blkid() { echo "uuid-of-$5"; }\n' + fix
    subprocess.run(["bash", "-euc", shell], check=True, timeout=20)
    assert (tmp_path / "fstab").read_text() == (
        "UUID=uuid-of-/dev/sda1 / ext4 defaults 0 1\n/dev/sda10 /b ext4 defaults 0 2\n# /dev/sda1 of old\n"
        "UUID=uuid-of-/dev/sda5 none swap sw\n"
    )


@pytest.mark.parametrize(
    ("device", "name", "level"),
    [
        ("/dev/sda1", "virtualbox", "note"),
        ("/dev/sda1", "kvm", "warning"),
        ("/dev/vda1", "virtualbox", "error"),
        ("/dev/hda1", "vmware", "error"),
    ],
)
def test_the_kernels_root_by_such_a_name(device: str, name: str, level: str) -> None:
    found = only(guest(*ALL, kernel_roots=[device]), name, level, f"root={device}")
    assert found.fix == "sed -i '/^GRUB_DISABLE_LINUX_.*UUID/d' /etc/default/grub && update-grub"
    fedora = guest(*ALL, kernel_roots=[device], tools=["dracut", "grubby"])
    assert only(fedora, name, level, "root=").fix == (
        f'grubby --update-kernel=ALL --args="root=UUID=$(blkid -s UUID -o value {device})"'
    )


def test_only_names_of_controllers_that_the_guest_can_use_count() -> None:
    # KVM may show /dev/sda, on virtio-scsi, AHCI or IDE; a guest with virtio_blk alone sees /dev/vda only.
    assert only(guest("virtio_blk", "virtio_pci", kernel_roots=["/dev/sda1"]), "kvm", "error", "root=")


# Console, cloud-init, architecture, what was not seen


def test_clouds_show_the_serial_port_and_desktops_the_screen() -> None:
    screen = guest(*ALL, consoles=["tty0"])
    found = only(screen, "aws", "note", "no console on the serial port")
    assert found.fix.endswith("/etc/default/grub && update-grub")
    assert "console=tty0 console=ttyS0,115200" in found.fix
    assert not [one for one in findings(screen, "virtualbox") if "console" in one.what]
    serial = guest(*ALL, consoles=["ttyS0"], grub_terminals=["serial"])
    assert only(serial, "virtualbox", "note", "console on ttyS0 only").fix
    assert only(serial, "virtualbox", "note", "GRUB shows its menu on the serial port only").fix
    assert not [one for one in findings(serial, "aws") if "console" in one.what]
    unknown = guest(*ALL, consoles=[], has_boot_entries=False)
    assert not [one for one in findings(unknown, "aws") if "console" in one.what]


def test_the_console_command_adds_to_what_is_there(tmp_path: Path) -> None:
    import subprocess

    grub = tmp_path / "grub"
    grub.write_text('GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="net.ifnames=0"\n')
    fix = only(guest(*ALL, consoles=[]), "gcp", "note", "serial").fix.replace("/etc/default/grub", str(grub))
    subprocess.run(["bash", "-euc", "update-grub() { :; }\n" + fix], check=True, timeout=20)
    assert grub.read_text() == (
        'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="net.ifnames=0 console=tty0 console=ttyS0,115200"\n'
    )


def test_clouds_want_cloud_init_or_an_agent_of_their_own() -> None:
    bare = guest(*ALL)
    for name in ("aws", "azure", "gcp", "openstack", "oracle", "alibaba", "digitalocean", "ibm"):
        assert only(bare, name, "warning", "cloud-init is not on it").fix == "apt-get install cloud-init"
    assert not findings(guest(*ALL, agents=["google-guest-agent"]), "gcp", "warning")
    assert not findings(guest(*ALL, agents=["waagent"]), "azure", "warning")
    assert findings(guest(*ALL, agents=["waagent"]), "gcp", "warning")
    assert "NoCloud" in only(guest(*ALL, agents=["cloud-init"]), "virtualbox", "note", "cloud-init is on it").why


def test_a_host_for_another_architecture() -> None:
    assert "runs guests for x86 only" in only(guest(*ALL), "virtual-pc", "error", "is for x86_64").why
    assert not findings(guest(*ALL, architecture="i386"), "virtual-pc", "error")
    assert only(guest(*ALL, architecture="aarch64"), "xenserver", "error", "is for aarch64")
    assert not findings(guest(*ALL, architecture="aarch64"), "kvm", "error")
    assert not findings(guest(*ALL, architecture="ELF machine 9"), "kvm", "error")
    assert not findings(guest(*ALL, architecture="x86_64"), "aws", "error")


def test_what_could_not_be_read_is_a_doubt() -> None:
    damaged = Guest(problems=["partition 1 (ext4): could not be read: x"], passed_over=["partition 2: Btrfs"])
    assert only(damaged, "kvm", "warning", "not looked at in full").why == damaged.problems[0]
    assert only(damaged, "kvm", "note", "not looked into: partition 2: Btrfs")


# The command


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian that knows virtio only and names its swap by /dev/sda5."""
    files = debian("virtio_blk", "virtio_pci", shipped=["ahci"])
    return ext_disk(tmp_path_factory.mktemp("guest") / "disk.img", files)


@pytest.mark.peer
def test_the_command_tells_of_the_guest(run: Run, disk: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ran = run("compat", disk, "--for", "parallels", "--for", "kvm", "--report", page)
    assert ran.status == 1
    for words in (
        "Debian GNU/Linux 12 (bookworm), x86_64, on partition 1 (ext4)",
        "6.1.0-9-amd64: starts with sd_mod virtio_blk virtio_pci",
        "UUID=1234 on /, /dev/sda5 on none",
        "tty0 ttyS0,115200; GRUB on gfxterm",
        "in the guest: printf '%s\\n' ahci >> /etc/initramfs-tools/modules && update-initramfs -u -k all",
        "in the guest: for d in /dev/sda5; do sed -i",
    ):
        assert words in ran.out
        assert words in Page(page.read_text(encoding="utf-8")).text
    found = json.loads(run("compat", disk, "--for", "kvm", "--json").out)
    assert found["image"]["guest"]["kernels"][0]["modules"] == ["sd_mod", "virtio_blk", "virtio_pci"]
    assert found["image"]["guest-hint"] is None
    (target,) = found["targets"]
    assert target["fits"] is True
    assert any(one["in-guest"] and "blkid" in one["fix"] for one in target["findings"])


@pytest.mark.peer
def test_the_row_of_a_doubt_says_which(run: Run, disk: Path) -> None:
    ran = run("compat", disk, "--for", "kvm")
    assert ran.status == 0
    (row,) = [line for line in ran.out.splitlines() if line.startswith("kvm ")]
    assert "yes, but" in row
    assert row.endswith("/etc/fstab names /dev/sda5")


@pytest.mark.peer
def test_without_the_extra_it_says_what_it_could_tell(run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "is_available", lambda: False)
    ran = run("compat", disk, "--for", "kvm")
    assert ran.status == 0
    (line,) = [line for line in ran.out.splitlines() if "pip install" in line]
    assert "pip install 'vdisk-toolkit[inspect]' makes vdisk tell its name, drivers, fstab, console" in line
    image = json.loads(run("compat", disk, "--json").out)["image"]
    assert image["guest"] is None
    assert "vdisk-toolkit[inspect]" in image["guest-hint"]


def test_a_disk_without_a_place_for_linux_has_neither(tmp_path: Path) -> None:
    facts = examine(mbr_disk(tmp_path / "disk.img", 7, b""), ["kvm"]).facts
    assert (facts.guest, facts.guest_hint) == (None, "")


def test_a_boot_that_is_not_tried_still_names_the_driver(disk: Path) -> None:
    with opened(disk, ["azure"]) as (image, examination):
        try_boots(image, examination)
    boot = examination.verdicts[0].boot
    assert boot is not None
    assert any("hv_storvsc, which its initramfs lacks" in note for note in boot["notes"])


def test_a_hostile_name_of_a_system_stays_text(disk: Path) -> None:
    with opened(disk, ["kvm"]) as (image, examination):
        guest = examination.facts.guest
        assert guest is not None
        guest.os = "<script>alert(1)</script>"
        html = report(examination, image)
    assert "<script>" not in html
    assert "<script>alert(1)" in Page(html).text


# The Debian disks


@pytest.mark.peer
@pytest.mark.slow
def test_the_cloud_kernel_lacks_what_virtualbox_and_vmware_show(debian_cloud_disk: Path) -> None:
    examination = examine(debian_cloud_disk, ["virtualbox", "vmware", "parallels", "kvm", "hyper-v"])
    guest = examination.facts.guest
    assert guest is not None
    assert guest.os == "Debian GNU/Linux 12 (bookworm)"
    said = {
        verdict.target.name: [one for one in verdict.findings if "initramfs" in one.what]
        for verdict in examination.verdicts
    }
    assert "lacks ahci" in said["virtualbox"][0].what
    assert "lacks mptspi" in said["vmware"][0].what
    assert said["virtualbox"][0].fix == said["vmware"][0].fix == "apt-get install linux-image-amd64"
    assert said["parallels"][0].level == "error"
    assert said["kvm"] == []
    assert "has hv_storvsc" in said["hyper-v"][0].what


@pytest.mark.peer
@pytest.mark.slow
def test_the_generic_kernel_starts_at_every_target(debian_disk: Path) -> None:
    for verdict in examine(debian_disk).verdicts:
        lacking = [one for one in verdict.findings if "lacks" in one.what or "no driver" in one.what]
        assert lacking == [], verdict.target.name


def test_the_rules_know_every_tool_that_they_tell_to_run() -> None:
    from vdisk.inspect.guest import TOOLS

    source = Path(guest_rules.__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in TOOLS)
