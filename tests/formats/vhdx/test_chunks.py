"""Disks of several chunks of 4 GiB: behind each, the BAT has an entry for a sector bitmap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.formats.vhdx.test_differencing import make_child
from tests.peers import libyal_disk, qemu_check, qemu_io
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.formats.vhdx.image import VhdxImage

GIB = 1 << 30
SIZE = 13 * GIB
EDGES = [4 * GIB, 8 * GIB, 12 * GIB]
"""Where one chunk ends and the next begins."""

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("options", [{}, {"block_size": "64M"}, {"block_state_zero": "off"}])
def test_entries_behind_bitmap_entries_are_found(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "disk.vhdx"
    formats.create(path, SIZE, options=options)
    with formats.open(path, writable=True) as disk:
        for number, edge in enumerate(EDGES):
            disk.write(edge - 1024, bytes([number + 1]) * 4096)
    checks = [f"read -P {number + 1} {edge - 1024} 4k" for number, edge in enumerate(EDGES)]
    qemu_io(path, *checks, "read -P 0 5G 8M", format="vhdx")
    qemu_io(path, "write -P 9 8589934080 1k", "write -P 8 13958643200 512", format="vhdx")
    qemu_check(path, format="vhdx")
    with formats.open(path) as disk:
        assert disk.read(8 * GIB - 1024, 4096) == b"\2" * 512 + b"\11" * 1024 + b"\2" * 2560
        assert disk.read(13958643200, 512) == b"\10" * 512
        held = sum(extent.length for extent in disk.map() if extent.kind is Kind.DATA)
        assert 7 * 512 <= held <= 8 * 64 << 20
        assert disk.check().exit_status == 0


def test_each_chunk_of_a_child_has_a_bitmap(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    formats.create(base, SIZE)
    with formats.open(base, writable=True) as disk:
        for edge in EDGES:
            disk.write(edge - 4096, b"b" * 8192)
    make_child(child, base, SIZE)
    with formats.open(child, writable=True) as disk:
        for edge in EDGES:
            disk.write(edge - 512, b"c" * 1024)
    wanted = b"b" * 3584 + b"c" * 1024 + b"b" * 3584
    with formats.open(child) as disk:
        assert isinstance(disk, VhdxImage)
        assert [disk.table.bitmap(chunk) & 7 for chunk in range(4)] == [6, 6, 6, 6]
        for edge in EDGES:
            assert disk.read(edge - 4096, 8192) == wanted
        own = [extent for extent in disk.map() if extent.depth == 0 and extent.is_present]
        sectors = [start for extent in own for start in range(extent.start, extent.end, 512)]
        assert sectors == [start for edge in EDGES for start in (edge - 512, edge)]
        assert disk.check().exit_status == 0
    with libyal_disk("vhdx", child) as other, other.open("rb") as file:
        for edge in EDGES:
            file.seek(edge - 4096)
            assert file.read(8192) == wanted


def test_a_child_that_grows_into_another_chunk(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    formats.create(base, 4 * GIB)
    make_child(child, base, 4 * GIB)
    with formats.open(child, writable=True) as disk:
        disk.write(4 * GIB - 512, b"x" * 512)
        disk.resize(9 * GIB)
        disk.write(4 * GIB, b"y" * 512)
        disk.write(9 * GIB - 512, b"z" * 512)
    with formats.open(child) as disk:
        assert disk.read(4 * GIB - 512, 1536) == b"x" * 512 + b"y" * 512 + bytes(512)
        assert disk.read(9 * GIB - 1024, 1024) == bytes(512) + b"z" * 512
        assert disk.check().exit_status == 0
