"""What boots in `make test`: the samples in every format and GRUB's disc, by both firmwares, on each controller."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import vdisk
from samples.make_samples import MESSAGE, SAMPLES
from tests import peers
from tests.hv import guests
from tests.hv.guests import needs_kvm
from vdisk.hv.boot import BootResult, boot
from vdisk.hv.config import Disk, DiskKind
from vdisk.hv.profiles import Controller
from vdisk.hv.signs import Stage

pytestmark = [pytest.mark.kvm, needs_kvm]

SAMPLE_FOLDER = Path(__file__).parents[2] / "samples"
CONTROLLERS: tuple[Controller, ...] = ("virtio-blk", "ide", "ahci")


def boot_by(firmware: str, disk: Disk, expect: str) -> BootResult:
    """Boots with "own" firmware or with "seabios" and its VGA BIOS."""
    files = {}
    if firmware == "seabios":
        files["firmware"] = peers.require_file(guests.SEABIOS, "seabios").read_bytes()
        files["option_rom"] = peers.require_file(guests.VGA_BIOS, "seabios").read_bytes()
    return boot(disk, memory_bytes=64 << 20, expect=expect, timeout=120, **files)


@pytest.mark.parametrize(("file", "controller"), list(itertools.product(SAMPLES, CONTROLLERS)))
def test_a_sample_boots_from_its_format(file: str, controller: Controller) -> None:
    with vdisk.open(SAMPLE_FOLDER / file) as disk:
        result = boot_by("own", Disk(disk, controller=controller), "is running")
    assert result.ok, result.reason
    assert MESSAGE in result.serial
    assert MESSAGE in result.screen


@pytest.mark.peer
@pytest.mark.parametrize(("file", "controller"), list(zip(SAMPLES, itertools.cycle(CONTROLLERS), strict=False)))
def test_seabios_boots_a_sample_from_its_format(file: str, controller: Controller) -> None:
    """All formats, and each controller three times: SeaBIOS reads the disk by the controller's registers."""
    with vdisk.open(SAMPLE_FOLDER / file) as disk:
        result = boot_by("seabios", Disk(disk, controller=controller), "is running")
    assert result.ok, result.reason
    assert f"Booting from Hard Disk...\n{MESSAGE}" in result.screen


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize(
    ("firmware", "kind", "controller"),
    [
        ("own", "disk", "virtio-blk"),
        ("seabios", "cdrom", "ide"),
        ("seabios", "disk", "ahci"),
    ],
)
def test_grub_reaches_its_menu(firmware: str, kind: DiskKind, controller: Controller) -> None:
    """The rescue image boots as a hard disk by its first sector, as a disc by El Torito."""
    iso = peers.require_file(guests.GRUB_ISO, "grub-rescue-pc")
    with vdisk.open(iso) as image:
        result = boot_by(firmware, Disk(image, kind, controller), "GNU GRUB")
    assert result.ok, result.reason
    assert result.stage == Stage.PROTECTED_MODE
    assert Stage.BOOT_SECTOR in result.evidence
