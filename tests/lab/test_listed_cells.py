"""Each cell of the starting table (which hypervisor takes which format): an image converted for it, judged, and booted.

The verdict follows what is verified, so it differs from the listed claim where the two do. The boot imitates the
hypervisor's chipset, controller and SMBIOS and reads the image by our own code: it shows that the converted disk starts
on such a machine, not that the product opens the file. Cells of one image and one profile are booted once.

The cloud kernel, half the size, has drivers for virtio and IDE only: VMware and VirtualBox get the generic one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import Run
from tests.lab.rig import LOGIN_ON_SERIAL, boot_image, boot_seconds, explain
from vdisk.compat import find_target
from vdisk.compat.examine import examine
from vdisk.compat.hypervisors import HYPERVISORS
from vdisk.hv.boot import BootResult
from vdisk.hv.profiles import find_profile

pytestmark = [pytest.mark.kvm, pytest.mark.slow, pytest.mark.timeout(1500)]


class Cell(NamedTuple):
    """What stands for a cell: an image that scripts/lab/images.py made, and how the product takes it (verified)."""

    image: str
    verified: str


CELLS: dict[tuple[str, str], Cell] = {
    ("kvm", "raw"): Cell("kvm.img", "native"),
    ("kvm", "qcow2"): Cell("kvm.qcow2", "native"),
    ("kvm", "vmdk"): Cell("cloud.vmdk", "native"),
    ("vmware", "vmdk"): Cell("vmware.vmdk", "native"),
    ("virtualbox", "vdi"): Cell("virtualbox.vdi", "native"),
    ("virtualbox", "vmdk"): Cell("debian.vmdk", "native"),
    ("virtualbox", "qcow2"): Cell("debian.qcow2", "read-only"),
    ("virtualbox", "vhd"): Cell("debian.vhd", "native"),
    ("hyper-v", "vhd"): Cell("hyper-v.vhd", "native"),
    ("hyper-v", "vmdk"): Cell("cloud.vmdk", "convert"),
    ("hyper-v", "vdi"): Cell("cloud.vdi", "convert"),
    ("xen", "qcow2"): Cell("xen.qcow2", "native"),
    ("xen", "vhd"): Cell("xenserver.vhd", "native"),
    ("xenserver", "qcow2"): Cell("xen.qcow2", "none"),
    ("xenserver", "vhd"): Cell("xenserver.vhd", "native"),
}


def listed_cells() -> Iterator[tuple[str, str]]:
    """(target, format) of the starting table."""
    for target in HYPERVISORS:
        yield from dict.fromkeys((target.name, row.format) for row in target.supports if row.listed)


@functools.cache
def boot_as(path: Path, profile: str) -> BootResult:
    """Once for all cells that share it."""
    return boot_image(path, profile=profile)


def test_no_listed_cell_is_left_out() -> None:
    assert set(CELLS) == set(listed_cells())


@pytest.mark.parametrize(("target_name", "format_name"), CELLS)
def test_a_listed_cell(images: Path, target_name: str, format_name: str) -> None:
    cell, target = CELLS[target_name, format_name], find_target(target_name)
    examination = examine(images / cell.image, [target_name])
    (verdict,) = examination.verdicts
    assert examination.facts.format == format_name
    assert (verdict.listed, verdict.verified) == (True, cell.verified)
    assert verdict.fits == (cell.verified == "native"), verdict.findings

    assert target.profile is not None
    result = boot_as(images / cell.image, target.profile)
    assert result.ok, explain(result)
    assert LOGIN_ON_SERIAL in result.serial
    assert result.drivers == [find_profile(target.profile).controller]


BOOTED_AS = {"kvm": True, "vmware": False, "virtualbox": False, "hyper-v": False, "xen": True, "parallels": False}
"""Targets, one of each profile, and whether they take a qcow2 file as it is."""


@pytest.mark.timeout(6 * 1500)
def test_compat_boots_the_generic_disk_under_every_profile(images: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = [word for name in BOOTED_AS for word in ("--for", name)]
    how = ("--boot", "--expect", LOGIN_ON_SERIAL, "--timeout", boot_seconds(), "--report", page, "--json")
    ran = run("compat", images / "debian.qcow2", *asked, *how)
    rows = {row["target"]: row for row in json.loads(ran.out)["targets"]}
    assert {name: row["boot"]["kind"] for name, row in rows.items()} == dict.fromkeys(BOOTED_AS, "expected text")
    assert {row["boot"]["engine"] for row in rows.values()} == {"embedded"}
    assert [row["boot"]["profile"] for row in rows.values()] == list(BOOTED_AS)
    assert {name: row["fits"] for name, row in rows.items()} == BOOTED_AS
    assert ran.status == 1
    html = page.read_text(encoding="utf-8")
    assert html.count('<pre class="screen">') == len(BOOTED_AS)
    exchange = Path("/exchange")
    if exchange.is_dir():
        (exchange / "compat.json").write_text(ran.out)
        (exchange / "compat.html").write_text(html)
