"""Other people's boot loaders on our own firmware, as far as the smallest KVM brings them.

One that emulates instructions has no protected-mode IRET, so syslinux and isolinux end after their first words there;
tests/lab/test_loaders.py has them to the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from samples.make_samples import MESSAGE
from tests import peers
from tests.hv import guests
from tests.hv.guests import needs_kvm
from tests.hv.test_every_format import SAMPLE_FOLDER
from vdisk.hv.boot import boot
from vdisk.hv.config import Disk, Kernel
from vdisk.hv.signs import Stage

pytestmark = [pytest.mark.kvm, pytest.mark.peer, needs_kvm]


@pytest.mark.parametrize("controller", ["virtio-blk", "ide", "ahci"])
def test_syslinux_starts_from_a_partition(tmp_path: Path, controller: str) -> None:
    with vdisk.open(guests.syslinux_disk(tmp_path, "said")) as disk:
        result = boot(Disk(disk, controller=controller), memory_bytes=64 << 20, expect="SYSLINUX 6", timeout=60)
    assert result.ok, result.reason
    assert "boot sector" in result.evidence[Stage.BOOT_SECTOR]


@pytest.mark.parametrize("controller", ["ide", "ahci"])
def test_isolinux_starts_from_a_disc(controller: str) -> None:
    with vdisk.open(peers.require_file(guests.IPXE_ISO, "ipxe")) as disc:
        result = boot(Disk(disc, "cdrom", controller), memory_bytes=64 << 20, expect="ISOLINUX 6", timeout=60)
    assert result.ok, result.reason
    assert "El Torito" in result.evidence[Stage.BOOT_SECTOR]


def test_memdisk_boots_a_disk_from_memory() -> None:
    """It is started as a kernel by the old protocol, and answers int 13h itself from then on."""
    memdisk = peers.require_file(guests.MEMDISK, "syslinux-common").read_bytes()
    kernel = Kernel(memdisk, (SAMPLE_FOLDER / "hello.raw").read_bytes(), "harddisk")
    result = boot([], kernel=kernel, memory_bytes=64 << 20, expect=MESSAGE, timeout=60)
    assert result.ok, result.reason
