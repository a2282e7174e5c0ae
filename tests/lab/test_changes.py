"""An image stays as it is, unless it is booted for writing: then what the guest wrote is there the next time."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import peers
from tests.lab.rig import session

pytestmark = [pytest.mark.kvm, pytest.mark.slow, pytest.mark.timeout(4000)]


def test_only_write_changes_an_image(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    shutil.copyfile(images / "cloud-compressed.qcow2", path)
    before = hashlib.sha256(path.read_bytes()).digest()

    with ExitStack() as stack:
        guest = session(stack, path, write=False)
        guest.run("echo lost >/root/mark; sync")
        assert "lost" in guest.run("cat /root/mark")
    assert hashlib.sha256(path.read_bytes()).digest() == before

    with ExitStack() as stack:
        guest = session(stack, path, write=True)
        assert "No such file" in guest.run("cat /root/mark")
        guest.run("echo kept >/root/mark")
        guest.power_off()
    assert hashlib.sha256(path.read_bytes()).digest() != before
    peers.qemu_check(path)

    with ExitStack() as stack:
        guest = session(stack, path, write=False)
        assert "kept" in guest.run("cat /root/mark")
