"""memtest86+ runs a whole pass over 64 MiB: nothing of ours writes into memory that isn't its own, or loses a write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import peers
from tests.lab.rig import explain
from vdisk.hv.boot import boot
from vdisk.hv.config import Kernel

pytestmark = [pytest.mark.kvm, pytest.mark.slow, pytest.mark.timeout(2400)]

MEMTEST = Path("/boot/memtest86+x64.bin")


COUNTS = "Pass:  1        Errors: 0"
"""Its status after a pass; 6.10 says it in no other words."""


def test_a_pass_without_errors() -> None:
    image = peers.require_file(MEMTEST, "memtest86+").read_bytes()
    kernel = Kernel(image, b"", "console=ttyS0,115200 nosmp")
    result = boot([], kernel=kernel, memory_bytes=64 << 20, expect=COUNTS, timeout=2000)
    assert result.ok, explain(result)
