"""Debian 12 as it is installed, with GRUB and systemd, comes to `login:` on its serial port, from every format.

The generic kernel runs from every format on every controller; the numbers of processors alternate, so that each pair of
(format, controller), (format, processors) and (controller, processors) is met. The cloud kernel, half the size, is the
quick part that CI runs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.lab.rig import LOGIN_ON_SERIAL, boot_image, explain
from vdisk.hv.profiles import Controller
from vdisk.hv.signs import Stage

pytestmark = [pytest.mark.kvm, pytest.mark.slow, pytest.mark.timeout(1500)]

FILES = (
    "debian.raw",
    "debian.qcow2",
    "debian-compressed.qcow2",
    "debian.vmdk",
    "debian-stream.vmdk",
    "debian.vdi",
    "debian.vhd",
    "debian.vhdx",
)
CONTROLLERS: tuple[Controller, ...] = ("virtio-blk", "ide", "ahci")


def pairs() -> list[tuple[str, Controller, int]]:
    """All formats on all controllers, with one processor or two in turn; the first eight have each format once."""
    rows: list[tuple[str, Controller, int]] = []
    for turn, (number, file) in itertools.product(range(len(CONTROLLERS)), enumerate(FILES)):
        rows.append((file, CONTROLLERS[(number + turn) % len(CONTROLLERS)], 1 + (number + turn) % 2))
    return rows


def check_login(path: Path, controller: Controller, cpus: int) -> None:
    """It boots, by the driver that belongs to the controller, and shows all its processors."""
    result = boot_image(path, controller=controller, cpus=cpus)
    assert result.ok, explain(result)
    assert LOGIN_ON_SERIAL in result.serial
    assert {Stage.BOOT_SECTOR, Stage.LOADER, Stage.KERNEL, Stage.DRIVER, Stage.ROOT} <= set(result.evidence)
    assert result.drivers == [controller]
    assert f"smp: Brought up 1 node, {cpus} CPU" in result.serial
    if controller == "virtio-blk" and cpus == 1:
        assert result.exits < 150_000, result.exits_by


@pytest.mark.parametrize(("file", "controller", "cpus"), pairs())
def test_generic_kernel(images: Path, file: str, controller: Controller, cpus: int) -> None:
    check_login(images / file, controller, cpus)


@pytest.mark.parametrize(
    ("file", "controller"), [("debian.vmdk", "pvscsi"), ("debian-stream.vmdk", "lsi"), ("debian.vhdx", "nvme")]
)
def test_generic_kernel_on_rarer_controllers(images: Path, file: str, controller: Controller) -> None:
    check_login(images / file, controller, 1)


@pytest.mark.parametrize(
    ("file", "controller", "cpus"),
    [
        ("cloud-compressed.qcow2", "virtio-blk", 1),
        ("cloud-stream.vmdk", "ide", 1),
        ("cloud.vdi", "virtio-blk", 2),
    ],
)
def test_cloud_kernel(images: Path, file: str, controller: Controller, cpus: int) -> None:
    check_login(images / file, controller, cpus)
