"""Loss of power at any moment leaves a VHDX file that opens, is sound and holds what was flushed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig, State
from tests.formats.vhdx.test_differencing import make_child
from tests.peers import qemu_check, qemu_compare, qemu_img
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vhdx.image import VhdxImage
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

MIB = 1 << 20
SIZE = 3 * MIB + 512


def opener(folder: Path) -> Callable[[Mapping[str, Storage], bool], BlockDevice]:
    """Opens an image that lies in memory as if it lay in `folder`, where its parent may be."""

    def open_image(files: Mapping[str, Storage], writable: bool) -> BlockDevice:
        return VhdxImage.open(files["top"], OpenRequest(Gate(folder / "top.vhdx"), writable=writable))

    return open_image


def rig_of(folder: Path, *, is_child: bool = False, size: int = SIZE) -> CrashRig:
    """An image with one block of data in it, or a child of such a one."""
    content = bytearray(size)
    content[MIB : 2 * MIB] = b"base" * (MIB // 4)
    base, top = folder / "base.vhdx", folder / "top.vhdx"
    lay_out(base, "vhdx", {}, bytes(content))
    if is_child:
        make_child(top, base, size)
    return CrashRig({"top": (top if is_child else base).read_bytes()}, opener(folder))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("is_child", [False, True])
def test_random_changes(tmp_path: Path, seed: int, is_child: bool) -> None:
    rig = rig_of(tmp_path, is_child=is_child)
    replayed = 0

    def verify(disk: BlockDevice, state: State) -> None:
        nonlocal replayed
        assert isinstance(disk, VhdxImage)
        replayed += disk.log_waits

    rig.zero(MIB, MIB)
    rig.flush()
    rig.scribble(seed, 40, most_bytes=2 * MIB)
    rig.disk.close()
    rig.safe()
    assert rig.replay(seed, every=max(1, len(rig.events) // 120), verify=verify) > 120
    assert replayed > 20


@pytest.mark.parametrize("is_child", [False, True])
def test_resizing(tmp_path: Path, is_child: bool) -> None:
    """Only the disk's length may differ: what lies in both is there."""
    rig = rig_of(tmp_path, is_child=is_child)
    disk = rig.disk
    assert isinstance(disk, VhdxImage)
    rig.write(0, b"kept" * 1000)
    rig.write(SIZE - 512, b"tail" * 128)
    rig.flush()
    for size in (2 * MIB + 512, 9 * MIB, MIB, 5 * MIB):
        disk.resize(size, shrink=True)
    disk.close()
    content = bytes(rig.content[:MIB])
    for state in rig.states(1, every=2, mixtures=2):
        if state.events < rig.flushes[-1][0]:
            continue
        found = opener(tmp_path)({"top": MemoryStorage(state.files["top"])}, False)
        assert isinstance(found, VhdxImage)
        assert found.size in (SIZE, 2 * MIB + 512, 9 * MIB, MIB, 5 * MIB), state.what
        assert found.read(0, MIB) == content, state.what
        assert found.check().corruptions == 0, state.what
        grown_from = {9 * MIB: 2 * MIB + 512, 5 * MIB: MIB}.get(found.size, found.size)
        assert not any(found.read(grown_from, found.size - grown_from)), state.what
        found.close()


def test_a_kill_while_the_log_is_replayed(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    rig.zero(0, SIZE)
    rig.flush()
    rig.write(0, b"n" * SIZE)
    rig.flush()
    killed = list(rig.states(1))[-1]
    again = CrashRig({"top": bytes(killed.files["top"])}, opener(tmp_path))
    assert isinstance(again.disk, VhdxImage)
    assert again.disk.log_waits
    again.write(0, b"n")
    again.disk.close()
    again.safe()
    assert again.replay(2, mixtures=4) > 20


@pytest.mark.peer
def test_qemu_replays_our_log(tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    size = 300 * MIB
    formats.create(path, size)
    rig = CrashRig({"top": path.read_bytes()}, opener(tmp_path))
    for block in range(0, 300, 2):
        rig.write(block * MIB, b"%d" % block)
    rig.flush()
    # What the log holds is in no other place: none of the writes behind the last flush reached the disk.
    last = max(at for at, event in enumerate(rig.events) if event.kind == "flush")
    killed = bytearray(path.read_bytes())
    for event in rig.events[: last + 1]:
        if event.kind == "truncate":
            killed[event.offset :] = bytes(max(0, event.offset - len(killed)))
        elif event.kind == "write":
            killed[event.offset : event.offset + len(event.data)] = event.data
    path.write_bytes(killed)
    raw.write_bytes(rig.content)
    with formats.open(path) as disk:
        assert disk.describe().is_dirty
    qemu_img("check", "-r", "all", "-f", "vhdx", path)
    qemu_check(path, format="vhdx")
    qemu_compare(path, raw, formats=("vhdx", "raw"))
