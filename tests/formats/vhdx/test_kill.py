"""A kill at any moment leaves a VHDX file that reads as before or after each write, and that checks out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.killing import History, RecordingStorage
from tests.formats.vhdx.test_differencing import SIZE, make_base, make_child
from tests.peers import qemu_check, qemu_compare, qemu_img
from vdisk import formats
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vhdx.image import VhdxImage
from vdisk.storage.memory import MemoryStorage

MIB = 1 << 20


def open_in_memory(storage: MemoryStorage, folder: Path, *, writable: bool = False) -> VhdxImage:
    """Open an image that lies in memory as if it lay in `folder`."""
    image = VhdxImage.open(storage, OpenRequest(Gate(folder / "top.vhdx"), writable=writable))
    assert isinstance(image, VhdxImage)
    return image


def exercise(disk: VhdxImage, storage: RecordingStorage, history: History, seed: int) -> None:
    maker = random.Random(seed)
    for _ in range(14):
        offset = maker.randrange(disk.size)
        length = min(maker.choice([100, 512, 5000, 70_000, MIB + 300]), disk.size - offset)
        what = maker.choice(["write", "write", "zero", "unmap", "flush"])
        if what == "write":
            data = bytes([maker.randrange(1, 256)]) * length
            history.write(len(storage.changes), offset, data)
            disk.write(offset, data)
        elif what == "flush":
            disk.flush()
            history.flush(len(storage.changes))
        else:
            history.write(len(storage.changes), offset, bytes(length))
            disk.write_zeroes(offset, length, unmap=what == "unmap")
    disk.close()
    history.flush(len(storage.changes))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("is_child", [False, True])
def test_a_kill_at_any_moment(tmp_path: Path, seed: int, is_child: bool) -> None:
    base, top = tmp_path / "base.vhdx", tmp_path / "top.vhdx"
    content = bytearray(SIZE)
    content[MIB : 2 * MIB + 5] = b"base " * ((MIB + 5) // 5)
    lay_out(base, "vhdx", {}, bytes(content))
    if is_child:
        make_child(top, base)
    else:
        top.write_bytes(base.read_bytes())
    storage = RecordingStorage(top.read_bytes())
    history = History(content)
    exercise(open_in_memory(storage, tmp_path, writable=True), storage, history, seed)
    maker = random.Random(seed)
    replayed = 0
    for moment in range(len(storage.changes) + 1):
        after = MemoryStorage(storage.after_kill(moment, maker))
        with open_in_memory(after, tmp_path) as disk:
            found = disk.read(0, disk.size)
            history.check(moment, found)
            report = disk.check()
            assert report.corruptions == 0, (moment, report.findings)
            replayed += disk.log_waits
        if moment % 5 == 0:  # and the file can be gone on with
            with open_in_memory(after, tmp_path, writable=True) as disk:
                disk.write(1000, b"on")
            with open_in_memory(after, tmp_path) as disk:
                assert disk.read(0, disk.size) == found[:1000] + b"on" + found[1002:]
                assert not disk.log_waits
    assert replayed > 3


def test_a_kill_while_the_log_is_replayed(tmp_path: Path) -> None:
    make_base(tmp_path / "top.vhdx")
    storage = RecordingStorage((tmp_path / "top.vhdx").read_bytes())
    disk = open_in_memory(storage, tmp_path, writable=True)
    disk.write_zeroes(0, SIZE)
    disk.flush()
    disk.write(0, b"n" * SIZE)
    disk.flush()
    killed = storage.after_kill(len(storage.changes), random.Random(1))
    second = RecordingStorage(killed)
    with open_in_memory(second, tmp_path, writable=True) as disk:
        assert disk.log_waits
        disk.write(0, b"n")
    maker = random.Random(2)
    for moment in range(len(second.changes) + 1):
        with open_in_memory(MemoryStorage(second.after_kill(moment, maker)), tmp_path) as disk:
            assert disk.read(0, SIZE) == b"n" * SIZE


@pytest.mark.peer
def test_qemu_replays_our_log(tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    formats.create(path, 300 * MIB)
    storage = RecordingStorage(path.read_bytes())
    disk = open_in_memory(storage, tmp_path, writable=True)
    model = bytearray(300 * MIB)
    for block in range(0, 300, 2):
        disk.write(block * MIB, b"%d" % block)
        model[block * MIB : block * MIB + len(b"%d" % block)] = b"%d" % block
    disk.flush()
    # What the log holds is in no other place: none of the writes behind it reached the disk.
    last_flush = max(at for at, change in enumerate(storage.changes) if change[0] == "flush")
    killed = MemoryStorage(storage.before)
    for what, offset, value in storage.changes[: last_flush + 1]:
        if what == "write":
            assert isinstance(value, bytes)
            killed.write(offset, value)
        elif what == "truncate":
            killed.truncate(offset)
    path.write_bytes(killed.data)
    raw.write_bytes(model)
    qemu_img("check", "-r", "all", "-f", "vhdx", path)
    qemu_check(path, format="vhdx")
    qemu_compare(path, raw, formats=("vhdx", "raw"))
