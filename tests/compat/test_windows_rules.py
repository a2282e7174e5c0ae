"""The Windows on a disk held against targets: the driver that it does not start with, the state it was left in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.compat.test_guest_rules import findings
from tests.inspect.windows_guests import ntfs_disk, windows
from vdisk.compat import TARGETS, find_target
from vdisk.compat.drivers import DRIVERS
from vdisk.compat.guest_rules import guest_findings, own_bus_notes
from vdisk.compat.model import Finding
from vdisk.inspect.guest import WINDOWS_AGENTS, WINDOWS_DRIVERS, Guest

AGENTS = ["cloudbase-init"]


def guest(*boot: str, other: tuple[str, ...] = (), **changes: Any) -> Guest:
    """A Windows that starts with the drivers `boot`, and has `other`."""
    whole = Guest(
        root="partition 2 (NTFS)",
        family="windows",
        os="Windows Server 2022 Standard",
        os_id="windows",
        architecture="x86_64",
        boot_drivers=sorted(boot),
        other_drivers=sorted(other),
        agents=list(AGENTS),
    )
    return replace(whole, **changes)


def only(of: Guest, name: str, level: str) -> Finding:
    (found,) = findings(of, name, level)
    return found


def test_every_service_of_the_rules_is_looked_for() -> None:
    assert {service for driver in DRIVERS.values() for one in driver.windows for service in one} == WINDOWS_DRIVERS
    assert all(driver.windows for driver in DRIVERS.values())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_windows_with_all_drivers_starts_everywhere_and_one_with_none_nowhere(target: Any) -> None:
    whole = guest(*WINDOWS_DRIVERS, architecture="i386")
    assert {one.level for one in guest_findings(whole, target)} <= {"note"}
    error = only(guest(architecture="i386"), target.name, "error")
    assert "starts with no driver for the disk there" in error.what
    assert "INACCESSIBLE_BOOT_DEVICE (0x7B)" in error.why
    for name in target.controllers:
        assert DRIVERS[name].controller in error.what


def test_what_was_made_for_vmware_does_not_start_on_virtio() -> None:
    moved = guest("LSI_SAS", "storahci")
    found = only(moved, "kvm", "warning")
    assert "does not start with a driver for virtio-blk (viostor)" in found.what
    assert "choose SATA (AHCI) there" in found.why
    assert found.fix.endswith(r"virtio-win-guest-tools.exe /install /passive /norestart")
    assert found.in_guest
    assert "start it once with a second disk on virtio-blk" in found.why
    assert "choose LSI Logic SAS or SATA (AHCI) there" in only(moved, "vmware", "warning").why
    assert findings(moved, "virtualbox") == []


def test_a_driver_that_setup_put_out_of_service_is_called_back() -> None:
    found = only(guest("storahci", other=("stornvme", "vioscsi", "viostor")), "kvm", "warning")
    key = r"HKLM\SYSTEM\CurrentControlSet\Services\viostor"
    assert found.fix == rf"reg add {key} /v Start /t REG_DWORD /d 0 /f & reg delete {key}\StartOverride /f"
    # With none that starts, one that it has is better than one to be installed.
    found = only(guest("LSI_SAS", other=("storahci",)), "kvm", "error")
    assert r"Services\storahci /v Start" in found.fix
    assert "choose SATA (AHCI) there, whose driver it has" in found.why
    # Of two that serve, that which it has.
    found = only(guest("LSI_SAS", other=("msahci",)), "parallels", "error")
    assert "msahci /v Start" in found.fix
    assert only(guest("LSI_SAS"), "parallels", "error").fix == ""


def test_hyper_v_generation_1_has_the_disk_on_ide_for_a_windows_too() -> None:
    ide = guest("atapi", "intelide", other=("storvsc", "vmbus"))
    found = only(ide, "hyper-v", "note")
    assert "finds the emulated IDE disk" in found.why
    assert r"Services\storvsc /v Start" in found.fix
    assert r"Services\vmbus /v Start" in found.fix
    assert "no driver for the disk there: storvsc and vmbus" in only(ide, "hyper-v-gen2", "error").what
    assert "no driver" in only(guest("atapi"), "hyper-v", "error").what  # intelide or pciide runs the controller


@pytest.mark.parametrize(("name", "services"), [("azure", ("storvsc", "vmbus")), ("xen", ("xenvbd", "xenbus"))])
def test_an_own_bus_is_told_with_whether_windows_starts_with_its_driver(name: str, services: tuple[str, str]) -> None:
    (note,) = own_bus_notes(guest(*services), find_target(name))
    assert note.endswith("which starts with Windows")
    (note,) = own_bus_notes(guest(other=services), find_target(name))
    assert note.endswith("which starts with Windows not")


def test_a_hibernated_windows_is_not_moved() -> None:
    found = only(guest(*WINDOWS_DRIVERS, is_hibernated=True), "kvm", "error")
    assert found.what == "Windows is hibernated"
    assert found.fix == "powercfg /h off & shutdown /s /t 0"


def test_a_registry_in_use_is_a_note() -> None:
    assert "in a log" in only(guest(*WINDOWS_DRIVERS, is_unwritten=True), "kvm", "note").why


def test_clouds_want_an_agent() -> None:
    bare = guest(*WINDOWS_DRIVERS, agents=[])
    assert only(bare, "openstack", "warning").what == "cloudbase-init is not on it"
    assert only(bare, "azure", "warning").what == "waagent is not on it"
    assert not findings(guest(*WINDOWS_DRIVERS, agents=["waagent"]), "azure", "warning")
    assert not findings(bare, "kvm", "warning")


def test_tools_of_another_hypervisor_are_told_where_they_are_of_no_use() -> None:
    tools = guest(*WINDOWS_DRIVERS, agents=["VMware Tools", "qemu-ga"])
    assert only(tools, "kvm", "note").what == "it has VMware Tools"
    assert findings(tools, "vmware") == []
    assert set(WINDOWS_AGENTS.values()) > {"VMware Tools", "VirtualBox Guest Additions", "Xen guest agent"}


def test_a_registry_that_could_not_be_read_judges_no_driver() -> None:
    unread = guest(problems=["the registry's SYSTEM: could not be read: it is no registry hive"])
    assert only(unread, "kvm", "warning").what == "the guest was not looked at in full"


@pytest.mark.peer
def test_the_command_tells_of_a_windows(run: Run, tmp_path: Path) -> None:
    disk = ntfs_disk(tmp_path / "disk.img", windows(boot=("LSI_SAS",), other=("storahci",), agents=("VMTools",)))
    ran = run("compat", disk, "--for", "kvm")
    assert ran.status == 1
    for words in (
        "Windows Server 2022 Standard, build 20348, x86_64, on partition 1 (NTFS)",
        "starts with LSI_SAS; has storahci",
        "INACCESSIBLE_BOOT_DEVICE",
        r"in the guest: reg add HKLM\SYSTEM\CurrentControlSet\Services\storahci /v Start /t REG_DWORD /d 0 /f",
    ):
        assert words in ran.out
    found = json.loads(run("compat", disk, "--for", "kvm", "--json").out)
    assert found["image"]["guest"]["boot-drivers"] == ["LSI_SAS"]
    assert "choose LSI Logic SAS there" in " ".join(run("compat", disk, "--for", "esxi").out.split())
