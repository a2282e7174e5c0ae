"""The table of formats: the listed claims as given, what is verified beside them, docs/compat.md from both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from vdisk.compat import TARGETS, find_target, table
from vdisk.compat.catalogue import CATALOGUE
from vdisk.compat.page import page
from vdisk.errors import OptionError
from vdisk.formats import FORMATS
from vdisk.hv.profiles import PROFILES

LISTED = {
    "kvm": {"raw", "qcow2", "vmdk"},
    "vmware": {"vmdk"},
    "virtualbox": {"vdi", "vmdk", "qcow2", "vhd"},
    "hyper-v": {"vhd", "vmdk", "vdi"},
    "xen": {"qcow2", "vhd"},
    "xenserver": {"qcow2", "vhd"},
}
NAMES = (
    "kvm qemu libvirt vmware esxi workstation virtualbox hyper-v hyper-v-gen2 xen xenserver xcp-ng parallels "
    "virtual-pc proxmox bhyve aws azure gcp openstack oracle alibaba digitalocean ibm kubevirt vagrant-libvirt "
    "vagrant-virtualbox ova"
)


def test_the_starting_table_stands_in_it_row_by_row() -> None:
    found = {target.name: {row.format for row in target.supports if row.listed} for target in TARGETS}
    assert {name: formats for name, formats in found.items() if formats} == LISTED


def test_every_target_has_its_name() -> None:
    assert {target.name for target in TARGETS} == set(NAMES.split())
    assert find_target("AZURE").name == "azure"
    with pytest.raises(OptionError, match=r"no target 'aure'; known are kvm, .*azure"):
        find_target("aure")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_fact_has_a_source_and_names_what_exists(target: object) -> None:
    target = find_target(target.name)  # type: ignore[attr-defined]
    names = {row.name for row in FORMATS}
    for row in target.supports:
        assert row.format in names
        assert row.mode in table.MODES
        assert row.source.grade in table.GRADES
        assert row.source.text
        assert row.source.date
    assert target.profile is None or target.profile in PROFILES
    assert target.support(target.recipe.format, dict(target.recipe.options).get("subformat", "")).opens


def test_each_difference_is_told_by_its_kind() -> None:
    claims = {
        (target.name, row.format, row.mode): table.claim(target, row) for target in TARGETS for row in target.supports
    }
    assert claims["hyper-v", "vmdk", "convert"] == "wrong"
    assert claims["hyper-v", "vdi", "convert"] == "wrong"
    assert claims["hyper-v", "vhdx", "native"] == "not listed"
    assert claims["xenserver", "qcow2", "none"] == "wrong"
    assert claims["virtualbox", "qcow2", "read-only"] == "partly"
    assert claims["vmware", "vmdk", "native"] == "partly"
    assert claims["kvm", "qcow2", "native"] == "agrees"
    assert claims["azure", "vhd", "native"] == "", "the starting table says nothing of Azure"


def test_the_page_is_what_the_data_makes() -> None:
    stored = Path(__file__).parents[2] / "docs" / "compat.md"
    assert stored.read_text(encoding="utf-8") == page(), "run: python -m vdisk.compat.page > docs/compat.md"


def test_the_command_shows_the_table(run: Run) -> None:
    ran = run("compat")
    assert ran.status == 0
    assert "VirtualBox, qcow2: listed; reads only" in ran.out
    assert "Storage/QCOW.cpp" in ran.out
    rows = {row["target"]: row for row in json.loads(run("compat", "--json").out)}
    assert set(rows) == set(NAMES.split())
    assert rows["azure"]["formats"][0]["variants"] == ["fixed"]


TYPE_1 = "xen xenserver esxi l4 trango pr-sm hyper-v parallels-server virtage kvm"
TYPE_2 = (
    "vmware-server fusion workstation qemu virtual-pc virtual-server parallels-workstation parallels-desktop virtualbox"
)


def test_the_catalogue_has_every_hypervisor_and_every_field_of_it() -> None:
    kinds = {kind: {entry.name for entry in CATALOGUE if entry.type == kind} for kind in ("1", "2", "container")}
    assert kinds == {"1": set(TYPE_1.split()), "2": set(TYPE_2.split()), "container": {"docker"}}
    formats = {row.name for row in FORMATS}
    targets = {target.name for target in TARGETS}
    for entry in CATALOGUE:
        assert entry.title
        assert entry.maker
        assert entry.guests
        assert entry.full or entry.para or entry.type == "container", "a hypervisor virtualizes in some manner"
        assert entry.hardware in ("needed", "optional", "not used")
        assert set(entry.formats) <= formats
        assert entry.target is None or entry.target in targets
        assert all(entry.machine) or entry.name.startswith("virtual-") if entry.machine else entry.note, "or why none"
        assert bool(entry.formats) == (entry.machine is not None), "where there is no image there is no machine"


def test_the_command_lists_the_catalogue(run: Run) -> None:
    ran = run("compat", "--list")
    for name in (
        "TRANGO",
        "L4 microkernels",
        "Hitachi Virtage",
        "PR/SM",
        "Docker",
        "Parallels Server",
        "Virtual Server",
    ):
        assert name in ran.out
    rows = json.loads(run("compat", "--list", "--json").out)
    assert len(rows) == len(CATALOGUE) == 20


def test_the_command_tells_about_one(run: Run) -> None:
    ran = run("compat", "--about", "hyper-v")
    assert "8086:7192" in ran.out
    assert "2040 GiB" in ran.out
    assert "size must" not in ran.out
    cloud = run("compat", "--about", "azure")
    assert "a multiple of 1 MiB" in cloud.out
    assert json.loads(run("compat", "--about", "docker", "--json").out)["target"] is None
    assert run("compat", "--about", "nothing").status == 2
