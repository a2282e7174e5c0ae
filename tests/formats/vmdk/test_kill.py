"""A kill at any moment leaves a VMDK that reads as before or after each write, and at worst leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig, State
from tests.formats.vmdk.handmade import GRAIN, cowd, sparse
from vdisk.block.device import BlockDevice
from vdisk.formats.check import Repair
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vmdk.image import VmdkImage
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

SIZE = 40 * GRAIN + 3 * 512


def open_it(files: Mapping[str, Storage], writable: bool) -> VmdkImage:
    return VmdkImage.open(files["disk"], OpenRequest(Gate(None), writable=writable))


def reopen(state: State, *, writable: bool = False) -> VmdkImage:
    """The image as a state has it; what is written to it stays in the state."""
    storage = MemoryStorage(name="disk")
    storage.data = state.files["disk"]
    return open_it({"disk": storage}, writable)


def start_image(folder: Path, kind: str) -> bytes:
    """An image with some data in it."""
    content = bytes(100 << 10) + b"base " * (20 << 10) + bytes(SIZE - (200 << 10))
    if kind == "cowd":
        return cowd({300: b"x" * 512, 20: b"y" * 512}, SIZE // 512)
    if kind == "without tables":
        raw = bytearray(sparse({3: b"x" * GRAIN}, SIZE // 512, per_table=16))
        raw[512:516] = bytes(4)  # the first table's directory entry
        return bytes(raw)
    lay_out(folder / "disk.vmdk", "vmdk", {"zeroed_grain": "on" if kind == "zeroed" else "off"}, content)
    return (folder / "disk.vmdk").read_bytes()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "zeroed", "cowd", "without tables"])
def test_a_kill_at_any_moment(tmp_path: Path, kind: str, seed: int) -> None:
    rig = CrashRig({"disk": start_image(tmp_path, kind)}, open_it)
    rig.scribble(seed, 25, most_bytes=150_000, discards=False)
    rig.disk.close()
    rig.safe()
    unclosed = 0

    def verify(disk: BlockDevice, state: State) -> None:
        nonlocal unclosed
        assert isinstance(disk, VmdkImage)
        found = disk.read(0, disk.size)
        unclosed += disk.describe().is_dirty
        with reopen(state, writable=True) as again:
            assert again.check(Repair.LEAKS).exit_status == 0
            again.write(1000, b"on")
        with reopen(state) as again:
            assert again.read(0, again.size) == found[:1000] + b"on" + found[1002:]
            assert not again.check().findings
            assert not again.describe().is_dirty

    assert rig.replay(seed, verify=verify, writes=1) > len(rig.events)
    assert unclosed > 3


@pytest.mark.parametrize("sizes", [(34 << 20, 10 * GRAIN), (SIZE + 512, 20 << 20), (512, SIZE)])
@pytest.mark.parametrize("kind", ["plain", "cowd", "without tables"])
def test_a_kill_while_the_disk_is_resized(tmp_path: Path, kind: str, sizes: tuple[int, int]) -> None:
    rig = CrashRig({"disk": start_image(tmp_path, kind)}, open_it)
    assert isinstance(rig.disk, VmdkImage)
    content = bytes(rig.content)
    may_be = [content]
    for size in sizes:
        rig.disk.resize(size, shrink=True)
        content = content[:size].ljust(size, b"\0")
        may_be.append(content)
    rig.disk.close()
    for state in rig.states(4):
        with reopen(state, writable=True) as disk:
            found = disk.read(0, disk.size)
            assert any(found == version for version in may_be), f"after {state.what}, {disk.size} bytes"
            for finding in disk.check().findings:
                assert finding.severity == "leak" or finding.where == "descriptor: extent 1"
            assert disk.check(Repair.ALL).exit_status == 0
            assert disk.read(0, disk.size) == found
        with reopen(state) as disk:
            assert not disk.check().findings


@pytest.mark.parametrize("field", [48, 56])
def test_a_kill_while_a_lost_directory_is_made_anew(tmp_path: Path, field: int) -> None:
    """An offset just behind the file's end once led into what the repair had appended."""
    raw = bytearray(start_image(tmp_path, "plain"))
    raw.extend(bytes(-len(raw) % 512))
    raw[field : field + 8] = (len(raw) // 512 + 1).to_bytes(8, "little")
    rig = CrashRig({"disk": bytes(raw)}, open_it)
    assert isinstance(rig.disk, VmdkImage)
    assert rig.disk.check(Repair.ALL).exit_status == 0
    rig.disk.close()
    for state in rig.states(5, mixtures=3):
        with reopen(state) as disk:
            assert disk.read(0, disk.size) == rig.content, f"after {state.what}"
