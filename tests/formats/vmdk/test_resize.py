"""VMDK disks grow and shrink; what is new reads as zeros, whatever stood there before."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vmdk.handmade import GRAIN, descriptor, sparse
from tests.formats.vmdk.test_chain import make_child
from tests.peers import qemu_check, qemu_compare, qemu_img_info
from vdisk import formats
from vdisk.errors import OptionError, StorageError, Unsupported

KINDS = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs", "vmfsSparse")
SIZE = (3 << 20) + 512
noise = random.Random(1).randbytes


def expect(path: Path, content: bytes | bytearray) -> None:
    with formats.open(path) as disk:
        assert disk.size == len(content)
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
        report = disk.check() if disk.describe().cluster_size else None
    assert report is None or not report.findings


@pytest.mark.peer
@pytest.mark.parametrize("subformat", KINDS)
@pytest.mark.parametrize("sizes", [(SIZE + 512, 70 << 20), (40 << 20, 1 << 20, 33 << 20), (512, 5 << 20)])
def test_a_disk_grows_and_shrinks(tmp_path: Path, subformat: str, sizes: tuple[int, ...]) -> None:
    path = tmp_path / "a.vmdk"
    content = bytearray(noise(SIZE))
    lay_out(path, "vmdk", {"subformat": subformat}, bytes(content))
    for size in sizes:
        with formats.open(path, writable=True) as disk:
            disk.resize(size, shrink=True)
            assert disk.size == size
            content = content[:size].ljust(size, b"\0")
            assert disk.read(0, size) == content
            disk.write(size - 300, b"e" * 300)
            content[-300:] = b"e" * 300
            assert disk.read(0, size) == content
        expect(path, content)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(path, tmp_path / "a.raw", formats=("vmdk", "raw"))
    assert qemu_img_info(path)["virtual-size"] == sizes[-1]
    if subformat in ("monolithicSparse", "twoGbMaxExtentSparse"):
        qemu_check(path, format="vmdk")


@pytest.mark.peer
@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_a_split_disk_gets_more_files_and_gives_them_up(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "1G", options={"subformat": subformat})
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"first")
        disk.resize(7 << 30)
        disk.write((7 << 30) - 4, b"last")
        disk.write((2047 << 20) - 2, b"edge")
    assert len(list(tmp_path.iterdir())) == 5
    assert qemu_img_info(path)["virtual-size"] == 7 << 30
    with formats.open(path, writable=True) as disk:
        assert disk.size == 7 << 30
        assert disk.read(0, 5) == b"first"
        assert disk.read((2047 << 20) - 2, 4) == b"edge"
        assert disk.read((7 << 30) - 4, 4) == b"last"
        disk.resize(3 << 30, shrink=True)
        disk.resize(7 << 30)
        assert disk.read((7 << 30) - 4, 4) == bytes(4)
        disk.resize(1 << 30, shrink=True)
    assert len(list(tmp_path.iterdir())) == 2
    with formats.open(path) as disk:
        assert disk.read(0, 5) == b"first"


def test_what_stood_behind_the_old_end_stays_hidden(tmp_path: Path) -> None:
    # Another program's extent: the last grain is full of noise, and an entry stands behind the disk's end.
    capacity = 128 + 3
    (tmp_path / "s.vmdk").write_bytes(sparse({1: noise(GRAIN), 2: noise(GRAIN)}, capacity))
    (tmp_path / "a.vmdk").write_text(descriptor(f'RW {capacity} SPARSE "s.vmdk"'))
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        before = disk.read(0, disk.size)
        disk.resize(10 << 20)
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == before.ljust(10 << 20, b"\0")
    (tmp_path / "f.img").write_bytes(b"x" * 4096)
    (tmp_path / "b.vmdk").write_text(descriptor('RW 2 FLAT "f.img" 1'))
    with formats.open(tmp_path / "b.vmdk", writable=True) as disk:
        disk.resize(4096)
    with formats.open(tmp_path / "b.vmdk") as disk:
        assert disk.read(0, disk.size) == b"x" * 1024 + bytes(3072)


@pytest.mark.parametrize("options", [{}, {"zeroed_grain": "on"}, {"subformat": "twoGbMaxExtentSparse"}])
def test_a_delta_that_grows_hides_a_longer_parent(tmp_path: Path, options: dict[str, str]) -> None:
    data = noise(2 << 20)
    lay_out(tmp_path / "base.vmdk", "vmdk", {}, data)
    make_child(tmp_path / "a.vmdk", "base.vmdk", 300 * 512, **options)
    with formats.open(tmp_path / "a.vmdk", backing=False, writable=True) as disk, pytest.raises(OptionError):
        disk.resize(3 << 20)
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        disk.resize(3 << 20)
        assert disk.read(0, disk.size) == data[: 300 * 512].ljust(3 << 20, b"\0")
    expect(tmp_path / "a.vmdk", data[: 300 * 512].ljust(3 << 20, b"\0"))


def test_the_cylinders_follow(tmp_path: Path) -> None:
    formats.create(tmp_path / "a.vmdk", "1G")
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        disk.resize(4 << 30)
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.describe().specific["ddb"]["geometry.cylinders"] == str((4 << 30) // 512 // (16 * 63))


def test_what_cannot_be_resized_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "1M")
    with formats.open(path, writable=True) as disk:
        with pytest.raises(OptionError, match="allow shrinking"):
            disk.resize(512)
        with pytest.raises(OptionError, match="shrink to nothing"):
            disk.resize(0, shrink=True)
    with formats.open(path) as disk, pytest.raises(StorageError, match="read-only"):
        disk.resize(2 << 20)
    (tmp_path / "d.vmdk").write_text(descriptor("RW 8 ZERO"))
    with formats.open(tmp_path / "d.vmdk", writable=True) as disk, pytest.raises(Unsupported, match="type ZERO"):
        disk.resize(1 << 20)


def test_a_grown_disk_of_many_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "1G")
    with formats.open(path, writable=True) as disk:
        disk.write(1 << 29, b"middle")
        disk.resize(3 << 40)
        disk.write((3 << 40) - 3, b"end")
    with formats.open(path) as disk:
        assert disk.read(1 << 29, 6) == b"middle"
        assert disk.read((3 << 40) - 3, 3) == b"end"
        assert not disk.check().findings
        assert sum(extent.length for extent in disk.map()) == 3 << 40
