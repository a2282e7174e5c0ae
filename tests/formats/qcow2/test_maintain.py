"""Bitmaps, resize, amend, rebase's part, measure, preallocation: qemu-img agrees with each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.image import lay_out
from tests.formats.qcow2.test_matrix import SIZE, scribble, some_content
from tests.formats.qcow2.test_snapshots import open_qcow2
from tests.peers import qemu_check, qemu_compare, qemu_img, qemu_img_info, qemu_io
from vdisk import formats
from vdisk.errors import OptionError, Unsupported
from vdisk.formats.image import Backing
from vdisk.formats.qcow2.bitmaps import (
    add_bitmap,
    clear_bitmap,
    load_bits,
    read_bitmaps,
    remove_bitmap,
    set_bits,
    set_recording,
)
from vdisk.formats.qcow2.maintain import amend
from vdisk.formats.qcow2.measure import measure
from vdisk.formats.qcow2.snapshots import create_snapshot


def bits_of_qemu(path: Path, name: str, folder: Path) -> set[int]:
    """The set bits of a bitmap as qemu tells them: merged into an image's block status over NBD needs a server, so by
    copying the bitmap's own clusters, which `qemu-img bitmap --merge` writes anew."""
    copy = folder / "copy.qcow2"
    copy.write_bytes(path.read_bytes())
    qemu_img("bitmap", "--add", copy, "merged")
    qemu_img("bitmap", "--merge", name, copy, "merged")
    with open_qcow2(copy) as disk:
        merged = next(bitmap for bitmap in read_bitmaps(disk) if bitmap.name == "merged")
        bits = load_bits(disk, merged)
    return {n for n in range(len(bits) * 8) if bits[n >> 3] >> (n & 7) & 1}


@pytest.mark.peer
def test_a_recording_bitmap_notes_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, SIZE)
    with open_qcow2(path, writable=True) as disk:
        add_bitmap(disk, "now")
        add_bitmap(disk, "coarse", granularity_bytes=1 << 20)
        add_bitmap(disk, "asleep", recording=False)
        disk.write(0, b"x")
    qemu_check(path)
    assert bits_of_qemu(path, "now", tmp_path) == {0}
    with open_qcow2(path, writable=True) as disk:
        disk.write(65535, b"xy")
        disk.write(1 << 20, bytes(70_000))
        disk.flush()
        # Killed now, the file would call them out of date.
        with open_qcow2(path, force_share=True) as other:
            assert [bitmap.is_consistent for bitmap in read_bitmaps(other)] == [False, False, True]
    qemu_check(path)
    assert bits_of_qemu(path, "now", tmp_path) == {0, 1, 16, 17}
    assert bits_of_qemu(path, "coarse", tmp_path) == set(range(32))
    assert bits_of_qemu(path, "asleep", tmp_path) == set()
    with open_qcow2(path) as disk:
        assert disk.describe().specific["bitmaps"] == qemu_img_info(path)["format-specific"]["data"]["bitmaps"]
        assert disk.check().findings == []
    with open_qcow2(path, writable=True) as disk:
        clear_bitmap(disk, "now")
        remove_bitmap(disk, "coarse")
        set_recording(disk, "asleep", True)
        disk.write(SIZE - 1, b"z")
        with pytest.raises(OptionError, match="already"):
            add_bitmap(disk, "now")
    qemu_check(path)
    assert bits_of_qemu(path, "now", tmp_path) == bits_of_qemu(path, "asleep", tmp_path) == {(SIZE - 1) >> 16}


@pytest.mark.peer
def test_bitmaps_of_qemus_are_kept_true(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", "-g", "64k", path, "b")
    qemu_io(path, "write 10M 1M")
    with open_qcow2(path, writable=True) as disk:
        disk.write(20 << 20, bytes(range(256)) * 512)
        disk.resize(100 << 20)
        disk.write((100 << 20) - 1, b"e")
    qemu_check(path)
    assert bits_of_qemu(path, "b", tmp_path) == {*range(160, 176), 320, 321, 1599}


def test_bits_are_set_like_one_by_one() -> None:
    maker = random.Random(1)
    for _ in range(200):
        first = maker.randrange(100)
        end = first + maker.randrange(1, 60)
        fast, slow = bytearray(20), bytearray(20)
        set_bits(fast, first, end)
        for bit in range(first, end):
            slow[bit >> 3] |= 1 << (bit & 7)
        assert fast == slow


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, {"cluster_size": "512"}, {"extended_l2": "on"}, {"compat": "0.10"}])
def test_a_disk_grows_and_shrinks(options: dict[str, str], tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(40)
    lay_out(path, "qcow2", options, bytes(content))
    maker = random.Random(41)
    with open_qcow2(path, writable=True) as disk:
        for number in range(12):
            size = maker.randrange(1, 40_000) * 512
            disk.resize(size, shrink=True)
            content = content[:size].ljust(size, b"\0")
            assert disk.size == size
            assert disk.read(0, size) == content
            if number % 3 == 0:
                scribble(disk, content, number, 5)
        assert disk.check().corruptions == 0
        with pytest.raises(OptionError, match="fewer than"):
            disk.resize(0)
    qemu_check(path)
    raw.write_bytes(content)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_what_grows_does_not_show_a_longer_backing_file(tmp_path: Path) -> None:
    base, path, raw = tmp_path / "base.qcow2", tmp_path / "a.qcow2", tmp_path / "a.raw"
    lay_out(base, "qcow2", {}, bytes(some_content(42)))
    with formats.open(base) as device:
        formats.create(path, 1 << 20, backing=Backing(base.name, "qcow2", device))
    wanted = bytes(some_content(42))[: 1 << 20].ljust(8 << 20, b"\0")
    with open_qcow2(path, writable=True) as disk:
        disk.resize(8 << 20)
        assert disk.read(0, 8 << 20) == wanted
    raw.write_bytes(wanted)
    qemu_check(path)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_a_data_file_grows_with_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.qcow2"
    formats.create(path, "1M", options={"data_file": "a.raw", "data_file_raw": "on"})
    with open_qcow2(path, writable=True) as disk:
        disk.write(100, b"hello")
        disk.resize(3 << 20)
        disk.write((3 << 20) - 5, b"world")
        content = disk.read(0, disk.size)
    assert (tmp_path / "a.raw").read_bytes() == content
    qemu_check(path)
    qemu_compare(path, tmp_path / "a.raw", formats=("qcow2", "raw"))


@pytest.mark.peer
def test_amend_changes_version_and_width(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(50)
    lay_out(path, "qcow2", {"compat": "0.10"}, bytes(content))
    raw.write_bytes(content)

    def data() -> dict[str, Any]:
        qemu_check(path)
        qemu_compare(path, raw)
        found: dict[str, Any] = qemu_img_info(path)["format-specific"]["data"]
        return found

    with open_qcow2(path, writable=True) as disk:
        amend(disk, compat="1.1", lazy_refcounts=True)
    assert data()["lazy-refcounts"] is True
    with open_qcow2(path, writable=True) as disk:
        disk.write_zeroes(0, 1 << 20)
        content[: 1 << 20] = bytes(1 << 20)
        create_snapshot(disk, "s")
        with pytest.raises(OptionError, match="too often"):
            amend(disk, refcount_bits=1)
        amend(disk, refcount_bits=2)
        scribble(disk, content, 51)
        raw.write_bytes(content)
    assert data()["refcount-bits"] == 2
    with open_qcow2(path, writable=True) as disk:
        amend(disk, refcount_bits=64)
        assert disk.check().findings == []
    assert data()["refcount-bits"] == 64
    with open_qcow2(path, writable=True) as disk:
        amend(disk, compat="0.10", refcount_bits=16)
        scribble(disk, content, 52)
        raw.write_bytes(content)
    assert data() == {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}


@pytest.mark.peer
def test_an_overlay_goes_down_to_version_2_with_its_zeros(tmp_path: Path) -> None:
    base, path, raw = tmp_path / "base.qcow2", tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(53)
    lay_out(base, "qcow2", {}, bytes(content))
    with formats.open(base) as device:
        formats.create(path, SIZE, backing=Backing(base.name, "qcow2", device))
    with open_qcow2(path, writable=True) as disk:
        scribble(disk, content, 54)
        create_snapshot(disk, "s")
        kept = bytes(content)
        scribble(disk, content, 55)
        amend(disk, compat="0.10")
        with disk.open_snapshot("s") as old:
            assert old.read(0, SIZE) == kept
        assert disk.read(0, SIZE) == content
        assert disk.check().findings == []
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    with open_qcow2(path, writable=True) as disk, pytest.raises(Unsupported, match="version 2"):
        add_bitmap(disk, "b")


@pytest.mark.peer
def test_set_backing_names_another_file(tmp_path: Path) -> None:
    one, two, path = (tmp_path / name for name in ("one.raw", "a-much-longer-name-than-before.raw", "a.qcow2"))
    one.write_bytes(b"1" * (1 << 20))
    two.write_bytes(b"2" * (1 << 20))
    with formats.open(one, format="raw") as device:
        formats.create(path, 1 << 20, backing=Backing(one.name, "raw", device), options={"cluster_size": "512"})
    with open_qcow2(path, writable=True) as disk:
        disk.write(0, b"top")
        disk.set_backing(two.name, "raw")
    qemu_check(path)
    said = qemu_img_info(path)
    assert (said["backing-filename"], said["backing-filename-format"]) == (two.name, "raw")
    with open_qcow2(path, writable=True) as disk:
        assert disk.read(0, 4) == b"top1"  # the rest of the cluster was copied up
        assert disk.read(512, 4) == b"2222"
        disk.set_backing(None, None)
    assert "backing-filename" not in qemu_img_info(path)


@pytest.mark.peer
@pytest.mark.parametrize("size", ["0", "1M", "10G", "1T", "5000001024"])
@pytest.mark.parametrize(
    "options", [{}, {"cluster_size": "512K"}, {"refcount_bits": "1"}, {"extended_l2": "on"}, {"preallocation": "full"}]
)
def test_measure_is_qemus(size: str, options: dict[str, str], tmp_path: Path) -> None:
    bytes_ = formats.options.parse_size(size)
    said = qemu_img("measure", "--output=json", "--size", size, "-O", "qcow2",
                    *(x for key, value in options.items() for x in ("-o", f"{key}={value}")))  # fmt: skip
    assert measure(bytes_, options) == json.loads(said)


@pytest.mark.peer
def test_measure_of_a_disk_is_qemus(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    lay_out(path, "qcow2", {"cluster_size": "4K"}, bytes(some_content(60)))
    said = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", path))
    with formats.open(path) as disk:
        assert measure(disk) == {key: said[key] for key in ("required", "fully-allocated")}


@pytest.mark.peer
@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("more", [{}, {"extended_l2": "on"}, {"data_file": "a.data"}])
def test_preallocated_images_are_sound(
    how: str, more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(61)
    lay_out(path, "qcow2", {"preallocation": how, **more}, bytes(content))
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    with open_qcow2(path, writable=True) as disk:
        assert {extent.kind.name for extent in disk.map()} == {"DATA"}
        report = disk.check()
        assert report.findings == []
        assert report.allocated_clusters == report.total_clusters
        if how != "metadata":
            files = [path, *([tmp_path / "a.data"] if more.get("data_file") else [])]
            assert sum(file.stat().st_blocks * 512 for file in files) >= SIZE
        scribble(disk, content, 62)
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
