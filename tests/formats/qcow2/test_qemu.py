"""qemu-img and qemu-io read what we write and find nothing wrong with it; we read what they write."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import libyal_sha256, qemu_check, qemu_compare, qemu_img, qemu_img_info, qemu_io, sha256
from vdisk import formats
from vdisk.formats.image import Backing
from vdisk.inspect.info import info

SIZE = (6 << 20) + 512

SHAPES = [
    {"compat": "0.10"},
    {"compat": "1.1"},
    {"cluster_size": "512"},
    {"cluster_size": "2M"},
    {"cluster_size": "4K", "refcount_bits": "1"},
    {"cluster_size": "1K", "refcount_bits": "8"},
    {"refcount_bits": "64"},
    {"compression_type": "zstd"},
    {"lazy_refcounts": "on"},
]


def some_content(seed: int) -> bytes:
    maker = random.Random(seed)
    content = bytearray()
    while len(content) < SIZE:
        length = maker.choice([512, 3000, 65536, 300_000])
        content += maker.choice(
            [bytes(length), maker.randbytes(length), (b"text %d " % maker.randrange(9)) * (length // 7)]
        )
    return bytes(content[:SIZE])


def scribble(path: Path, content: bytearray, seed: int, count: int = 60) -> None:
    """Change the image at `path` and the model in the same way."""
    maker = random.Random(seed)
    with formats.open(path, writable=True) as disk:
        for number in range(count):
            offset = maker.randrange(SIZE - 1)
            length = min(maker.choice([1, 512, 4096, 70_000, 400_000]), SIZE - offset)
            if maker.random() < 0.3:
                disk.write_zeroes(offset, length, unmap=maker.random() < 0.5)
                content[offset : offset + length] = bytes(length)
            else:
                data = maker.randbytes(length)
                disk.write(offset, data)
                content[offset : offset + length] = data
            if number % 17 == 0:
                disk.flush()


@pytest.mark.peer
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("options", SHAPES, ids=lambda options: "-".join(options.values()))
def test_what_we_lay_out_and_change_is_sound(tmp_path: Path, options: dict[str, str], compress: bool) -> None:
    content = bytearray(some_content(1))
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    lay_out(path, "qcow2", options, bytes(content), compress=compress)
    raw.write_bytes(content)
    qemu_check(path, format="qcow2")
    qemu_compare(path, raw, formats=("qcow2", "raw"))
    scribble(path, content, 2)
    raw.write_bytes(content)
    qemu_check(path, format="qcow2")
    qemu_compare(path, raw, formats=("qcow2", "raw"))


@pytest.mark.peer
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("options", SHAPES, ids=lambda options: "-".join(options.values()))
def test_what_qemu_writes_reads_the_same_and_takes_changes(
    tmp_path: Path, options: dict[str, str], compress: bool
) -> None:
    content = bytearray(some_content(3))
    path, raw = tmp_path / "q.qcow2", tmp_path / "q.raw"
    raw.write_bytes(content)
    given = ",".join(f"{key}={value}" for key, value in options.items())
    qemu_img("convert", *(["-c"] if compress else []), "-f", "raw", "-O", "qcow2", "-o", given, raw, path)
    with formats.open(path) as disk:
        assert disk.size == SIZE
        assert disk.read(0, SIZE) == content
        check_map(disk, content)
    scribble(path, content, 4)
    raw.write_bytes(content)
    qemu_check(path, format="qcow2")
    qemu_compare(path, raw, formats=("qcow2", "raw"))


@pytest.mark.peer
def test_info_has_the_keys_and_values_of_qemu_img(tmp_path: Path) -> None:
    for number, options in enumerate(SHAPES):
        path = tmp_path / f"{number}.qcow2"
        formats.create(path, "5M", options=options)
        ours, theirs = info(path), qemu_img_info(path)
        assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.peer
def test_a_chain_of_qemus_reads_the_same(tmp_path: Path) -> None:
    base, middle, top = (tmp_path / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    base.write_bytes(some_content(5)[: 3 << 20])
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", middle, SIZE)
    qemu_io(middle, "write -P 5 100k 300k", "write -z 1M 200k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", middle.name, "-F", "qcow2", top)
    qemu_io(top, "write -P 6 2900k 400k", format="qcow2")
    flat = tmp_path / "flat.raw"
    qemu_img("convert", "-O", "raw", top, flat)
    with formats.open(top) as disk:
        assert disk.read(0, disk.size) == flat.read_bytes()
        check_map(disk, flat.read_bytes())


@pytest.mark.peer
def test_our_overlay_on_a_base_is_read_by_qemu(tmp_path: Path) -> None:
    content = bytearray(some_content(6))
    base, top, raw = tmp_path / "base.qcow2", tmp_path / "top.qcow2", tmp_path / "flat.raw"
    lay_out(base, "qcow2", {}, bytes(content))
    with formats.open(base) as device:
        formats.create(top, SIZE, backing=Backing(base.name, "qcow2", device))
    scribble(top, content, 7)
    raw.write_bytes(content)
    qemu_check(top)
    qemu_compare(top, raw)
    assert qemu_img_info(top)["backing-filename-format"] == "qcow2"


@pytest.mark.peer
def test_a_snapshot_of_qemus_keeps_what_it_held_while_we_write(tmp_path: Path) -> None:
    content = bytearray(some_content(8))
    path, raw, old = tmp_path / "a.qcow2", tmp_path / "a.raw", tmp_path / "old.raw"
    lay_out(path, "qcow2", {"cluster_size": "4K"}, bytes(content))
    qemu_img("snapshot", "-c", "before", path)
    old.write_bytes(content)
    scribble(path, content, 9)
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    qemu_img("snapshot", "-a", "before", path)
    qemu_compare(path, old)


@pytest.mark.peer
def test_a_growing_image_outgrows_its_refcount_table(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    formats.create(path, "48M", options={"cluster_size": "512", "refcount_bits": "64"})
    content = random.Random(10).randbytes(9 << 20)
    with formats.open(path, writable=True) as disk:
        for start in range(0, len(content), 1 << 20):
            disk.write(start * 5, content[start : start + (1 << 20)])
        raw.write_bytes(disk.read(0, disk.size))
    qemu_check(path)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_libqcow_reads_what_we_write(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    raw.write_bytes(some_content(11))
    lay_out(path, "qcow2", {}, raw.read_bytes())
    assert libyal_sha256("qcow2", path) == sha256(raw)
