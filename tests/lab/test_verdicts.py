"""What keeps a system from coming up is told apart: no driver, a panic, no loader, a processor that shut down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hv.guests import disk_of, guest
from tests.lab.rig import boot_image, explain
from vdisk.hv.boot import boot
from vdisk.hv.config import Kernel
from vdisk.hv.profiles import Controller
from vdisk.hv.signs import Stage

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(1500)]


@pytest.mark.slow
@pytest.mark.parametrize(("controller", "driver"), [("ahci", "ahci"), ("lsi", "mptspi")])
def test_the_cloud_kernel_lacks_a_driver(images: Path, controller: Controller, driver: str) -> None:
    """Its firmware, loader and kernel come up; then it has no driver for the controller, and the verdict says so."""
    result = boot_image(images / "cloud-compressed.qcow2", controller=controller, expect=None)
    assert not result.ok
    assert result.kind == "no root disk", explain(result)
    assert result.stage == Stage.KERNEL
    assert f"no driver of the guest runs the disk's controller ({controller} needs {driver})" in result.reason
    assert result.conclusive


def test_a_kernel_without_a_root_panics(images: Path) -> None:
    kernel = Kernel((images / "vmlinuz").read_bytes(), b"", "console=ttyS0 root=/dev/none panic=0")
    result = boot(disk_of(b"", 1 << 20), kernel=kernel, memory_bytes=256 << 20, timeout=240)
    assert not result.ok
    assert result.kind == "kernel panic", explain(result)
    assert "VFS: Unable to mount root fs" in result.reason


def test_an_empty_disk_has_nothing_to_boot() -> None:
    result = boot(disk_of(b"", 1 << 20), memory_bytes=64 << 20, timeout=60)
    assert not result.ok
    assert result.kind == "nothing to boot", explain(result)


def test_a_processor_that_shuts_down_is_a_triple_fault() -> None:
    # An empty interrupt table: the breakpoint has no handler, nor has the fault for that, nor the double fault.
    result = boot(guest("    lidt [none]\n    db 0CCh\nnone:\n    dw 0, 0, 0\n"), memory_bytes=64 << 20, timeout=60)
    assert not result.ok
    assert result.kind == "triple fault", explain(result)
    assert result.stage == Stage.BOOT_SECTOR
