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
from vdisk.formats.check import Repair
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.qcow2.bitmaps import add_bitmap, load_bits, read_bitmaps, set_recording
from vdisk.formats.qcow2.image import Qcow2Image
from vdisk.formats.qcow2.maintain import amend
from vdisk.formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

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
    for state in rig.states(13, every=max(1, (len(rig.events) - done) // 60)):
        if state.events >= done:
            with open_it({"a": MemoryStorage(state.files["a"], "a")}, False) as found:
                assert isinstance(found, Qcow2Image)
                assert found.size in (SIZE, 40 << 20)
                assert found.read(0, SIZE) == content
                assert not any(found.read(SIZE, min(found.size, 1 << 20) - SIZE)) or found.size == SIZE
                assert [f for f in found.check().findings if f.severity != "leak"] == []


class _OneFile(Gate):
    """Lets the image name one file, which lies in memory."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(None)
        self._storage = storage

    def open(self, field: str, name: str, *, writable: bool = False) -> Any:
        assert name == "data"
        return self._storage


@pytest.mark.parametrize("raw", ["on", "off"])
def test_two_files_that_lose_power_together(raw: str, tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    options = {"data_file": "data", "data_file_raw": raw, "extended_l2": raw}
    lay_out(path, "qcow2", options, bytes(some_content(14, SIZE)))

    def open_both(files: Mapping[str, Storage], writable: bool) -> BlockDevice:
        return Qcow2Image.open(files["a"], OpenRequest(_OneFile(files["data"]), writable=writable))

    rig = CrashRig({"a": path.read_bytes(), "data": (tmp_path / "data").read_bytes()}, open_both)
    rig.scribble(15, 80)
    assert rig.replay(16, every=max(1, len(rig.events) // 200), mixtures=2) > 150


def test_a_repair_cut_short_leaves_the_disk_as_it_was(tmp_path: Path) -> None:
    """Broken counts and an entry that leads nowhere: at every moment of the mending all data is there."""
    path = tmp_path / "a.qcow2"
    content = bytearray(some_content(17, SIZE))
    lay_out(path, "qcow2", {"cluster_size": "1K"}, bytes(content))
    image = bytearray(path.read_bytes())
    l1, table = (int.from_bytes(image[at : at + 8], "big") for at in (40, 48))
    block = int.from_bytes(image[table : table + 8], "big")
    image[block : block + 600] = bytes(600)
    l2 = int.from_bytes(image[l1 : l1 + 8], "big") & (1 << 56) - 512
    first = content.index(b"text") // 1024 + 1
    image[l2 + 8 * first : l2 + 8 * first + 8] = (1 << 63 | 1 << 40).to_bytes(8, "big")
    content[first * 1024 : (first + 1) * 1024] = bytes(1024)
    rig = CrashRig({"a": bytes(image)}, open_it)
    assert rig.content == content
    assert isinstance(rig.disk, Qcow2Image)
    before = rig.disk.check().corruptions
    assert before > 100
    assert rig.disk.check(Repair.ALL).exit_status == 0
    for state in rig.states(18, mixtures=5):
        with open_it({"a": MemoryStorage(state.files["a"], "a")}, False) as found:
            assert isinstance(found, Qcow2Image)
            assert found.read(0, SIZE) == content
            assert found.check().corruptions <= before
    assert rig.disk.check().findings == []


def test_bitmaps_hold_or_say_that_they_do_not(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, {"cluster_size": "1K"})
    disk = rig.disk
    assert isinstance(disk, Qcow2Image)
    add_bitmap(disk, "b", granularity_bytes=512)
    rig.scribble(19, 15, discards=False)
    set_recording(disk, "b", False)  # stores it
    stored = bytes(rig.content)
    started = len(rig.events)
    rig.scribble(20, 5, discards=False)
    base = bytes(some_content(1, SIZE))
    changed = {n for n in range(SIZE // 512) if stored[n * 512 : n * 512 + 512] != base[n * 512 : n * 512 + 512]}

    def verify(found: BlockDevice, state: State) -> None:
        assert isinstance(found, Qcow2Image)
        for bitmap in read_bitmaps(found):
            if bitmap.is_consistent and state.events >= started:
                bits = load_bits(found, bitmap)
                assert all(bits[n >> 3] >> (n & 7) & 1 for n in changed)
            elif bitmap.is_consistent and found.read(0, SIZE) != base:
                bits = load_bits(found, bitmap)
                now = found.read(0, SIZE)
                for n in range(SIZE // 512):
                    if now[n * 512 : n * 512 + 512] != base[n * 512 : n * 512 + 512]:
                        assert bits[n >> 3] >> (n & 7) & 1, "a change that it did not note"

    assert rig.replay(21, mixtures=3, verify=verify) > 150
