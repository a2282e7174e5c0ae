"""A real operating system's disk, for tests: Debian 12 as an installer leaves it, built once and cached.

::

    @pytest.mark.peer
    @pytest.mark.slow
    def test_it_converts(debian_disk, tmp_path):
        vdisk.convert(debian_disk, tmp_path / "debian.qcow2")

`scripts/debian_disk.py` says what is in it. Building one takes a minute and needs root; without, the test skips, or
fails where peers are required.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import peers

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "debian_disk.py"
PASSWORD = "vdisk"
"""Root's, on all of them."""


def disk(variant: str) -> Path:
    """The path of the disk "generic" (4 GiB, 670 MiB of data) or "cloud" (2 GiB); read it only, never write to it."""
    for program in ("debootstrap", "mkfs.ext4", "sfdisk"):
        peers.require(program)
    command = [sys.executable, str(SCRIPT), variant]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode != 0:
        peers.missing(f"{SCRIPT.name} cannot build the Debian disk here: {done.stderr.strip()}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def debian_disk() -> Path:
    """Debian with the generic kernel: a raw disk of 4 GiB with about 670 MiB of data. To be read only."""
    return disk("generic")


@pytest.fixture(scope="session")
def debian_cloud_disk() -> Path:
    """Debian with the cloud kernel (no AHCI driver): a raw disk of 2 GiB. To be read only."""
    return disk("cloud")
