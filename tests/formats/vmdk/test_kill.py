"""A kill at any moment leaves a VMDK that reads as before or after each write, and at worst leaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.killing import History, RecordingStorage
from tests.formats.vmdk.handmade import GRAIN, cowd, sparse
from vdisk.formats.check import Repair
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.vmdk.image import VmdkImage
from vdisk.storage.memory import MemoryStorage

SIZE = 40 * GRAIN + 3 * 512


def open_in_memory(storage: MemoryStorage, *, writable: bool = False) -> VmdkImage:
    return VmdkImage.open(storage, OpenRequest(Gate(None), writable=writable))


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
    storage = RecordingStorage(start_image(tmp_path, kind))
    maker = random.Random(seed)
    disk = open_in_memory(storage, writable=True)
    history = History(disk.read(0, disk.size))
    for _ in range(20):
        offset = maker.randrange(disk.size)
        length = min(maker.choice([100, 512, 5000, 150_000]), disk.size - offset)
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

    unclosed = 0
    for moment in range(len(storage.changes) + 1):
        after = MemoryStorage(storage.after_kill(moment, maker))
        with open_in_memory(after) as disk:
            found = disk.read(0, disk.size)
            history.check(moment, found)
            report = disk.check()
            assert report.corruptions == 0, (moment, report.findings)
            unclosed += disk.describe().is_dirty
        with open_in_memory(after, writable=True) as disk:
            assert disk.check(Repair.LEAKS).exit_status == 0
            disk.write(1000, b"on")
        with open_in_memory(after) as disk:
            assert disk.read(0, disk.size) == found[:1000] + b"on" + found[1002:]
            assert not disk.check().findings
            assert not disk.describe().is_dirty
    assert unclosed > 3


@pytest.mark.parametrize("sizes", [(34 << 20, 10 * GRAIN), (SIZE + 512, 20 << 20), (512, SIZE)])
@pytest.mark.parametrize("kind", ["plain", "cowd", "without tables"])
def test_a_kill_while_the_disk_is_resized(tmp_path: Path, kind: str, sizes: tuple[int, int]) -> None:
    storage = RecordingStorage(start_image(tmp_path, kind))
    maker = random.Random(4)
    may_be = []
    with open_in_memory(storage, writable=True) as disk:
        content = disk.read(0, disk.size)
        may_be.append(content)
        for size in sizes:
            disk.resize(size, shrink=True)
            content = content[:size].ljust(size, b"\0")
            may_be.append(content)
    for moment in range(len(storage.changes) + 1):
        after = MemoryStorage(storage.after_kill(moment, maker))
        with open_in_memory(after, writable=True) as disk:
            found = disk.read(0, disk.size)
            assert any(found == version for version in may_be), f"killed at {moment}, {disk.size} bytes"
            for finding in disk.check().findings:
                assert finding.severity == "leak" or finding.where == "descriptor: extent 1"
            assert disk.check(Repair.ALL).exit_status == 0
            assert disk.read(0, disk.size) == found
        with open_in_memory(after) as disk:
            assert not disk.check().findings
