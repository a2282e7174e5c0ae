"""Loss of power at any moment of a VHD's life: it opens, is sound, and holds what was flushed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig
from tests.formats.vhd.test_differencing import make_child
from vdisk import formats
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vhd.image import VhdImage
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

SIZE = (200 << 10) + 512
BASE = bytes(range(256)) * 200 + bytes(SIZE - 256 * 200 - 512) + b"z" * 512


def open_one(files: Mapping[str, Storage], writable: bool) -> VhdImage:
    return VhdImage.open(files["disk"], OpenRequest(Gate(None), writable=writable))


def open_child(files: Mapping[str, Storage], writable: bool) -> VhdImage:
    """A child in memory has no folder to find its parent in."""
    child = VhdImage.open(files["disk"], OpenRequest(Gate(None), writable=writable, with_backing=False))
    child.backing = VhdImage.open(files["base"], OpenRequest(Gate(None)))
    return child


@pytest.mark.parametrize("options", [{"block_size": "16K"}, {"block_size": "64K"}, {"subformat": "fixed"}])
@pytest.mark.parametrize("starts_full", [False, True])
def test_writes(tmp_path: Path, options: dict[str, str], starts_full: bool) -> None:
    lay_out(tmp_path / "disk.vhd", "vhd", options, BASE if starts_full else bytes(SIZE))
    rig = CrashRig({"disk": (tmp_path / "disk.vhd").read_bytes()}, open_one)
    rig.scribble(seed=1, count=60)
    rig.disk.close()
    assert rig.replay(seed=2) > 100


@pytest.mark.parametrize("seed", [1, 2])
def test_writes_to_a_child(tmp_path: Path, seed: int) -> None:
    lay_out(tmp_path / "base.vhd", "vhd", {"block_size": "32K"}, BASE)
    make_child(tmp_path / "disk.vhd", tmp_path / "base.vhd", SIZE, block_size="16K")
    files = {name: (tmp_path / f"{name}.vhd").read_bytes() for name in ("disk", "base")}
    rig = CrashRig(files, open_child)
    rig.scribble(seed=seed, count=60)
    rig.disk.close()
    assert rig.replay(seed=seed + 10) > 100


@pytest.mark.parametrize("damage", ["front", "tail", "short"])
def test_writes_to_a_disk_with_one_footer(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "disk.vhd"
    lay_out(path, "vhd", {"block_size": "16K"}, BASE)
    raw = bytearray(path.read_bytes())
    if damage == "short":
        del raw[-1]
    else:
        raw[30 if damage == "front" else -400] ^= 0xFF
    rig = CrashRig({"disk": bytes(raw)}, open_one)
    rig.scribble(seed=3, count=20)
    rig.disk.close()
    assert rig.replay(seed=4) > 50


@pytest.mark.parametrize("options", [{"block_size": "4K"}, {"block_size": "64K"}, {"subformat": "fixed"}])
def test_resizing(tmp_path: Path, options: dict[str, str]) -> None:
    """Of the old length or the new one, and what both have is untouched."""
    lay_out(tmp_path / "disk.vhd", "vhd", options, BASE)
    for size in (SIZE + 512, 2 << 20, 70 << 10, 512):
        rig = CrashRig({"disk": (tmp_path / "disk.vhd").read_bytes()}, open_one)
        before = bytes(rig.content)
        assert isinstance(rig.disk, VhdImage)
        rig.disk.resize(size, shrink=True)
        after = before[:size].ljust(size, b"\0")
        for state in rig.states(seed=5, mixtures=3):
            with formats.open(MemoryStorage(state.files["disk"], "disk.vhd"), format="vhd") as disk:
                found = disk.read(0, disk.size)
                # A fixed disk has one footer, at its end: in the middle of a longer one. While the size changes, the
                # old one shows among the new zeros, or the new one in what is to be cut off.
                for end in (SIZE, size) if options == {"subformat": "fixed"} else ():
                    if found[end : end + 8] == b"conectix":
                        found = found[:end] + before[end : end + 512].ljust(512, b"\0") + found[end + 512 :]
                assert found in (before, after), f"after {state.what} of {len(rig.events)}: {len(found)} bytes"
                assert disk.check().corruptions == 0, (state.what, disk.check().findings)
