"""A kill at any moment leaves a Parallels image that reads as before or after each write, and at worst leaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.killing import History, RecordingStorage
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.parallels.hds import HdsImage
from vdisk.storage.memory import MemoryStorage

SIZE = 600 << 10


def open_in_memory(storage: MemoryStorage, *, writable: bool = False) -> HdsImage:
    return HdsImage.open_kind(storage, OpenRequest(Gate(None), writable=writable))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("options", [{"cluster_size": "64K"}, {"version": "1", "cluster_size": str(63 * 512)}])
def test_a_kill_at_any_moment(tmp_path: Path, seed: int, options: dict[str, str]) -> None:
    content = bytes(100 << 10) + b"base " * (20 << 10) + bytes(400 << 10)
    path = tmp_path / "disk.hds"
    lay_out(path, "parallels", options, content)
    storage = RecordingStorage(path.read_bytes())
    history = History(content)
    maker = random.Random(seed)
    disk = open_in_memory(storage, writable=True)
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
            unclosed += disk.is_dirty
        with open_in_memory(after, writable=True) as disk:
            disk.write(1000, b"on")
        with open_in_memory(after) as disk:
            assert disk.read(0, disk.size) == found[:1000] + b"on" + found[1002:]
            assert not disk.is_dirty
    assert unclosed > 3
