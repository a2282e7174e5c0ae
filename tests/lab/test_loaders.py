"""Boot loaders that need a complete KVM to come to their prompts: syslinux, isolinux with iPXE, iPXE as a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from tests import peers
from tests.hv import guests
from tests.lab.rig import explain
from vdisk.hv.boot import boot
from vdisk.hv.config import Disk, Kernel

pytestmark = [pytest.mark.kvm, pytest.mark.peer, pytest.mark.timeout(600)]

BANNER = "Open Source Network Boot Firmware"


@pytest.mark.parametrize("controller", ["virtio-blk", "ide", "ahci"])
def test_syslinux_reads_its_configuration_and_prompts(tmp_path: Path, controller: str) -> None:
    with vdisk.open(guests.syslinux_disk(tmp_path, "Chosen by its configuration")) as disk:
        result = boot(Disk(disk, controller=controller), memory_bytes=64 << 20, expect="boot:", timeout=120)
    assert result.ok, explain(result)
    assert "Chosen by its configuration" in result.screen


@pytest.mark.parametrize("controller", ["ide", "ahci"])
def test_isolinux_starts_ipxe(controller: str) -> None:
    with vdisk.open(peers.require_file(guests.IPXE_ISO, "ipxe")) as disc:
        result = boot(Disk(disc, "cdrom", controller), memory_bytes=64 << 20, expect=BANNER, timeout=120)
    assert result.ok, explain(result)


def test_ipxe_starts_as_a_kernel() -> None:
    kernel = Kernel(peers.require_file(guests.IPXE_KERNEL, "ipxe").read_bytes())
    result = boot([], kernel=kernel, memory_bytes=64 << 20, expect=BANNER, timeout=120)
    assert result.ok, explain(result)
