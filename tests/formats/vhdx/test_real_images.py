"""Images that Windows and QEMU wrote are read to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.peers import real_image
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.block.extent import Kind


def content_hash(disk: BlockDevice, *, by_map: bool = False) -> str:
    """The sha256 of a disk; by its map, zeros are not read, and a map that is wrong shows."""
    digest = hashlib.sha256()
    zeros = bytes(1 << 20)
    for extent in disk.map():
        for start in range(extent.start, extent.end, len(zeros)):
            length = min(len(zeros), extent.end - start)
            is_skipped = by_map and extent.kind is Kind.ZERO
            digest.update(zeros[:length] if is_skipped else disk.read(start, length))
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "sha256", "subformat"),
    [
        ("iotest-dynamic-1G.vhdx", "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478", "dynamic"),
        ("windows10-dynamic.vhdx", "8e2b5e9265d694b42b81819e3bff29770eff4ed0f4f9f311693ff3dbdc93efac", "dynamic"),
        ("windows10-fixed.vhdx", "bc0be4623b15aa84216fb31ba24e3b621ec7f1c72d198c990ac0eced222d9f62", "fixed"),
    ],
)
def test_what_windows_wrote(tmp_path: Path, name: str, sha256: str, subformat: str) -> None:
    with formats.open(real_image(name, tmp_path)) as disk:
        assert content_hash(disk, by_map=True) == sha256
        said = disk.describe().specific
        assert said["subformat"] == subformat
        assert said["creator"].startswith("Microsoft Windows")
        assert disk.check().exit_status == 0


@pytest.mark.parametrize("is_written", [False, True])
def test_a_log_that_waits_is_replayed(tmp_path: Path, is_written: bool) -> None:
    sha256 = "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f"
    path = real_image("iotest-dirtylog-10G-4M.vhdx", tmp_path)
    before = path.read_bytes()
    with formats.open(path) as disk:
        assert disk.describe().is_dirty
        if not is_written:
            assert content_hash(disk, by_map=True) == sha256
    assert path.read_bytes() == before, "opened for reading, the file stays as it is"
    if is_written:
        with formats.open(path, writable=True) as disk:
            first = disk.read(0, 512)
            disk.write(0, first)
        with formats.open(path) as disk:
            assert not disk.describe().is_dirty
            assert content_hash(disk, by_map=True) == sha256
