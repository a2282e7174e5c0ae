"""Loss of power at any moment of a VDI's life: it opens, is sound, and holds what was flushed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig
from tests.formats.vdi.handmade import FREE, vdi
from tests.formats.vdi.test_differencing import make_child
from vdisk import formats
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vdi.image import VdiImage
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

SIZE = (200 << 10) + 512
BASE = bytes(range(256)) * 200 + bytes(SIZE - 256 * 200 - 512) + b"z" * 512


def open_one(files: Mapping[str, Storage], writable: bool) -> VdiImage:
    return VdiImage.open(files["disk"], OpenRequest(Gate(None), writable=writable))


def open_child(files: Mapping[str, Storage], writable: bool) -> VdiImage:
    """A child in memory has no folder to find its parent in."""
    child = VdiImage.open(files["disk"], OpenRequest(Gate(None), writable=writable, with_backing=False))
    child.backing = VdiImage.open(files["base"], OpenRequest(Gate(None)))
    return child


@pytest.mark.parametrize("options", [{"block_size": "4K"}, {"block_size": "16K"}, {"static": "on"}])
@pytest.mark.parametrize("starts_full", [False, True])
def test_writes(tmp_path: Path, options: dict[str, str], starts_full: bool) -> None:
    lay_out(tmp_path / "disk.vdi", "vdi", options, BASE if starts_full else bytes(SIZE))
    rig = CrashRig({"disk": (tmp_path / "disk.vdi").read_bytes()}, open_one)
    rig.scribble(seed=1, count=60)
    rig.disk.close()
    assert rig.replay(seed=2) > 100


def test_writes_into_slots_that_hold_something(tmp_path: Path) -> None:
    garbage = dict.fromkeys(range(9), b"old" * 1000)
    raw = vdi([FREE, 7, FREE, 2, FREE, FREE, FREE, FREE], garbage, disk_bytes=8 * 8192, block_bytes=8192)
    rig = CrashRig({"disk": raw}, open_one)
    rig.scribble(seed=1, count=30, most_bytes=5000)
    rig.disk.close()
    assert rig.replay(seed=2) > 50


@pytest.mark.parametrize("seed", [1, 2])
def test_writes_to_a_child(tmp_path: Path, seed: int) -> None:
    lay_out(tmp_path / "base.vdi", "vdi", {"block_size": "32K"}, BASE)
    make_child(tmp_path / "disk.vdi", tmp_path / "base.vdi", SIZE, block_size="8K")
    files = {name: (tmp_path / f"{name}.vdi").read_bytes() for name in ("disk", "base")}
    rig = CrashRig(files, open_child)
    rig.scribble(seed=seed, count=60)
    rig.disk.close()
    assert rig.replay(seed=seed + 10) > 100


@pytest.mark.parametrize("options", [{"block_size": "4K"}, {"block_size": "64K"}, {"static": "on", "block_size": "8K"}])
def test_resizing(tmp_path: Path, options: dict[str, str]) -> None:
    """Of the old length or the new one, and what both have is untouched."""
    lay_out(tmp_path / "disk.vdi", "vdi", options, BASE)
    # 8 MiB in blocks of 4 KiB need a table of 8 KiB, which has to move.
    for size in (SIZE + 512, 8 << 20, 70 << 10, 512):
        rig = CrashRig({"disk": (tmp_path / "disk.vdi").read_bytes()}, open_one)
        before = bytes(rig.content)
        assert isinstance(rig.disk, VdiImage)
        rig.disk.resize(size, shrink=True)
        after = before[:size].ljust(size, b"\0")
        for state in rig.states(seed=5, mixtures=3, every=1 + len(rig.events) // 300):
            with formats.open(MemoryStorage(state.files["disk"], "disk.vdi"), format="vdi") as disk:
                found = disk.read(0, disk.size)
                assert found in (before, after), f"after {state.what} of {len(rig.events)}: {len(found)} bytes"
                assert disk.check().corruptions == 0, (state.what, disk.check().findings)
