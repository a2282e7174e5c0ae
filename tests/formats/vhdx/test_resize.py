"""VHDX disks grow and shrink, and what is new reads as zeros."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vhdx.test_differencing import make_base, make_child, read_all
from tests.peers import qemu_check, qemu_img_info
from vdisk import formats
from vdisk.errors import OptionError
from vdisk.formats.vhdx.image import VhdxImage

MIB = 1 << 20


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, {"subformat": "fixed"}, {"block_size": "4M"}])
def test_growing_and_shrinking(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "disk.vhdx"
    model = bytearray(random.Random(1).randbytes(3 * MIB + 512))
    lay_out(path, "vhdx", options, bytes(model))
    for size in (3 * MIB + 1024, 9 * MIB, 2 * MIB + 512, 5 * MIB, 0, 2 * MIB):
        with formats.open(path, writable=True) as disk:
            disk.resize(size, shrink=True)
            model = model[:size].ljust(size, b"\0")
            assert disk.size == size
            assert disk.read(0, size) == model
        with formats.open(path) as disk:
            assert disk.read(0, size) == model
            check_map(disk, model)
            assert disk.check().exit_status == 0
        if size:
            assert qemu_img_info(path, format="vhdx")["virtual-size"] == size
            qemu_check(path, format="vhdx")
        with formats.open(path, writable=True) as disk:
            if size:
                disk.write(size - 512, b"\xee" * 512)
                model[size - 512 :] = b"\xee" * 512


def test_cutting_off_needs_leave(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    formats.create(path, 2 * MIB)
    with formats.open(path, writable=True) as disk:
        with pytest.raises(OptionError, match="shrink"):
            disk.resize(MIB)
        with pytest.raises(OptionError, match="multiple of 512"):
            disk.resize(2 * MIB + 1)
        with pytest.raises(OptionError, match="64 TiB"):
            disk.resize(1 << 50)
        assert disk.size == 2 * MIB


@pytest.mark.peer
def test_a_table_that_is_too_small_moves(tmp_path: Path) -> None:
    """The BAT region of 1 MiB has entries for 128 GiB in blocks of 1 MiB."""
    path = tmp_path / "disk.vhdx"
    formats.create(path, 100 << 30)
    with formats.open(path, writable=True) as disk:
        assert isinstance(disk, VhdxImage)
        disk.write((100 << 30) - 5, b"inner")
        old = disk.regions.bat
        disk.resize(1 << 40)
        disk.write((1 << 40) - 5, b"outer")
        assert disk.regions.bat.offset > old.offset
    with formats.open(path) as disk:
        assert disk.size == 1 << 40
        assert disk.read((100 << 30) - 5, 6) == b"inner\0"
        assert disk.read((1 << 40) - 5, 5) == b"outer"
        assert disk.check().exit_status == 0
    qemu_check(path, format="vhdx")


def test_a_child_grows_without_showing_more_of_its_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write(MIB, b"own")
        disk.resize(MIB + 512, shrink=True)
        disk.resize(4 * MIB)
    content = content[: MIB + 512].ljust(4 * MIB, b"\0")
    content[MIB : MIB + 3] = b"own"
    assert read_all(child) == content
