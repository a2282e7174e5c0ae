"""Loss of power at any moment leaves a qcow2 that opens, is not corrupt and holds what was flushed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig, State
from tests.formats.qcow2.test_matrix import some_content
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.formats.qcow2.image import Qcow2Image
from vdisk.formats.qcow2.maintain import amend
from vdisk.formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from vdisk.storage.base import Storage

SIZE = 300 << 10


def open_it(files: Mapping[str, Storage], writable: bool) -> BlockDevice:
    return formats.open(files["a"], format="qcow2", writable=writable)


def rig_of(folder: Path, options: dict[str, Any], *, compress: bool = False) -> CrashRig:
    path = folder / "a.qcow2"
    lay_out(path, "qcow2", options, bytes(some_content(1, SIZE)), compress=compress)
    return CrashRig({"a": path.read_bytes()}, open_it)


@pytest.mark.parametrize(
    ("options", "compress"),
    [
        ({"cluster_size": "512"}, False),
        ({"cluster_size": "512", "refcount_bits": "64"}, True),
        ({"cluster_size": "4K", "refcount_bits": "1"}, False),
        ({"cluster_size": "16K", "extended_l2": "on"}, True),
        ({"cluster_size": "4K", "compat": "0.10"}, True),
    ],
)
def test_random_changes(options: dict[str, Any], compress: bool, tmp_path: Path) -> None:
    rig = rig_of(tmp_path, options, compress=compress)
    rig.scribble(2, 120)
    assert rig.replay(3, every=max(1, len(rig.events) // 500), mixtures=2) > 300


def test_a_growing_refcount_table(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, 8 << 20, options={"cluster_size": "512", "refcount_bits": "64"})
    rig = CrashRig({"a": path.read_bytes()}, open_it)
    for start in range(0, 3 << 20, 150_000):
        rig.write(start, bytes([start % 251 + 1]) * 150_000)
        rig.flush()
    places = {event.offset for event in rig.events if event.kind == "write"}
    assert 0 in places, "the header was not written: the table did not move"
    assert rig.replay(4, every=max(1, len(rig.events) // 120), writes=20) > 120


def test_snapshots_made_applied_and_deleted(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, {"cluster_size": "1K"}, compress=True)
    disk = rig.disk
    assert isinstance(disk, Qcow2Image)
    kept: dict[str, bytes] = {}

    def verify(found: BlockDevice, state: State) -> None:
        assert isinstance(found, Qcow2Image)
        for snapshot in found.snapshots():
            with found.open_snapshot(snapshot.name) as old:
                assert old.read(0, old.size) == kept[snapshot.name]

    rig.scribble(5, 15)
    for name in ("one", "two"):
        kept[name] = bytes(rig.content)
        create_snapshot(disk, name)
        rig.safe()
        rig.scribble(6, 15)
    delete_snapshot(disk, "one")
    rig.safe()
    rig.scribble(7, 15)
    delete_snapshot(disk, "two")
    rig.scribble(8, 15)
    assert rig.replay(9, every=max(1, len(rig.events) // 300), verify=verify) > 300


def test_going_back_to_a_snapshot_happens_at_once(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, {"cluster_size": "1K"})
    disk = rig.disk
    assert isinstance(disk, Qcow2Image)
    create_snapshot(disk, "one")
    before = bytes(rig.content)
    rig.scribble(10, 15)
    after, done = bytes(rig.content), len(rig.events)
    apply_snapshot(disk, "one")
    for state in rig.states(11, every=max(1, (len(rig.events) - done) // 40)):
        if state.events >= done:
            from vdisk.storage.memory import MemoryStorage

            with open_it({"a": MemoryStorage(state.files["a"], "a")}, False) as found:
                assert isinstance(found, Qcow2Image)
                assert found.read(0, SIZE) in (before, after)
                assert [f for f in found.check().findings if f.severity != "leak"] == []
    assert disk.read(0, SIZE) == before


def test_resize_and_amend(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, {"cluster_size": "512"})
    disk = rig.disk
    assert isinstance(disk, Qcow2Image)
    rig.scribble(12, 20)
    content, done = bytes(rig.content), len(rig.events)
    disk.resize(40 << 20)
    disk.resize(SIZE, shrink=True)
    amend(disk, refcount_bits=8)
    amend(disk, compat="0.10", refcount_bits=16)
    from vdisk.storage.memory import MemoryStorage

    for state in rig.states(13, every=max(1, (len(rig.events) - done) // 60)):
        if state.events >= done:
            with open_it({"a": MemoryStorage(state.files["a"], "a")}, False) as found:
                assert isinstance(found, Qcow2Image)
                assert found.size in (SIZE, 40 << 20)
                assert found.read(0, SIZE) == content
                assert not any(found.read(SIZE, min(found.size, 1 << 20) - SIZE)) or found.size == SIZE
                assert [f for f in found.check().findings if f.severity != "leak"] == []
