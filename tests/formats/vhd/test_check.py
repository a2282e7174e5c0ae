"""Damage that `check` finds in VHDs, what repair makes of it, and disks that grow and shrink."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vhd.test_differencing import make_base, make_child, read_all
from tests.peers import qemu_compare, qemu_img_info
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, StorageError
from vdisk.formats.check import Repair
from vdisk.formats.vhd.image import VhdImage

BLOCK = 64 << 10
MIB = 1 << 20
CONTENT = b"".join(bytes([1 + block]) * BLOCK for block in range(6))
BAT_OFFSET = 1536


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "disk.vhd"
    lay_out(found, "vhd", {"block_size": "64K"}, CONTENT)
    return found


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset, 0 if offset >= 0 else 2)
        file.write(data)


def entry(path: Path, block: int, value: int) -> None:
    patch(path, BAT_OFFSET + 4 * block, value.to_bytes(4, "big"))


def entry_of(path: Path, block: int) -> int:
    return int.from_bytes(path.read_bytes()[BAT_OFFSET + 4 * block :][:4], "big")


def test_a_whole_file_is_clean(path: Path) -> None:
    with formats.open(path) as disk:
        report = disk.check()
    assert (report.corruptions, report.leaks, report.exit_status) == (0, 0, 0)
    assert (report.total_clusters, report.allocated_clusters) == (6, 6)
    assert report.image_end_offset == path.stat().st_size


def to_shared(path: Path) -> bytes:
    entry(path, 2, entry_of(path, 0))
    return CONTENT[: 2 * BLOCK] + CONTENT[:BLOCK] + CONTENT[3 * BLOCK :]


def to_beyond_the_end(path: Path) -> bytes:
    entry(path, 5, 0x7FFFFFFF)
    return CONTENT[: 5 * BLOCK] + bytes(BLOCK)


def to_inside_the_table(path: Path) -> bytes | None:
    entry(path, 0, 3)
    return None  # what is read of the block is the table's, before and after


@pytest.mark.parametrize("damage", [to_shared, to_beyond_the_end, to_inside_the_table])
def test_a_damaged_table_is_found_and_mended(path: Path, damage: Callable[[Path], bytes | None]) -> None:
    wanted = damage(path)
    before = path.read_bytes()
    with formats.open(path, writable=True) as disk, pytest.raises(Corrupt):
        disk.write(4 * BLOCK, b"x")  # a table that would harm is not written to
    with formats.open(path) as disk:
        report = disk.check()
        assert report.corruptions >= 1
        assert report.exit_status == 2
        assert all(finding.fix for finding in report.findings)
        with pytest.raises(StorageError, match="read-only"):
            disk.check(Repair.ALL)
    with formats.open(path, writable=True) as disk:
        disk.check(Repair.ALL, dry_run=True)
    assert path.read_bytes() == before, "a dry run changes nothing"

    with formats.open(path, writable=True) as disk:
        assert disk.check(Repair.ALL).exit_status == 0
    with formats.open(path, writable=True) as disk:
        assert disk.check().findings == []
        if wanted is not None:
            assert disk.read(0, disk.size) == wanted
        disk.write(0, b"writable again")


def test_a_file_that_was_cut_off_reads_up_to_there(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 512 - BLOCK // 2)
    with formats.open(path, writable=True) as disk:
        assert "footer at the end is damaged" in disk.describe().notes[0]
        assert disk.read(0, 5 * BLOCK) == CONTENT[: 5 * BLOCK]
        with pytest.raises(Corrupt, match="BAT entry of block 5"):
            disk.read(0, disk.size)
        with pytest.raises(Corrupt, match=r"file: expected at least"):
            disk.write(0, b"x")
        assert disk.check().exit_status == 2
        assert disk.check(Repair.ALL).exit_status == 0
        assert disk.read(0, disk.size) == CONTENT[: -BLOCK // 2] + bytes(BLOCK // 2)
    with formats.open(path) as disk:
        assert disk.check().findings == []


@pytest.mark.parametrize("where", ["front", "tail", "short"])
def test_a_damaged_footer_is_written_anew(path: Path, where: str) -> None:
    if where == "short":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
    else:
        patch(path, 30 if where == "front" else -400, b"\xee")
    with formats.open(path) as disk:
        report = disk.check()
        assert (report.corruptions, report.leaks, report.exit_status) == (0, 1, 3)
    with formats.open(path, writable=True) as disk:
        assert disk.check(Repair.LEAKS).exit_status == 0
    with formats.open(path) as disk:
        assert disk.check().findings == []
        assert disk.describe().notes == []
        assert disk.read(0, disk.size) == CONTENT


def test_a_write_mends_a_damaged_footer_first(path: Path) -> None:
    patch(path, 30, b"\xee")
    with formats.open(path, writable=True) as disk:
        disk.write(5, b"x")
    with formats.open(path) as disk:
        assert disk.check().findings == []


def test_a_wrong_checksum_of_the_header_is_computed_anew(path: Path) -> None:
    patch(path, 512 + 800, b"\xee")
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == CONTENT
        with pytest.raises(Corrupt, match="dynamic header checksum"):
            disk.write(0, b"x")
        assert disk.check(Repair.LEAKS).exit_status == 2
        assert disk.check(Repair.ALL).exit_status == 0
    with formats.open(path) as disk:
        assert disk.check().findings == []
        assert disk.describe().notes == []


def test_entries_behind_the_disks_end_hold_nothing(path: Path) -> None:
    with formats.open(path, writable=True) as disk:
        disk.resize(5 * BLOCK, shrink=True)
    entry(path, 5, 99)
    with formats.open(path, writable=True) as disk:
        report = disk.check(Repair.LEAKS)
        assert (report.leaks, report.exit_status) == (1, 0)
        assert disk.read(0, disk.size) == CONTENT[: 5 * BLOCK]
    assert entry_of(path, 5) == 0xFFFFFFFF


def test_space_that_nothing_refers_to_is_given_back(path: Path) -> None:
    end = path.stat().st_size
    entry(path, 5, 0xFFFFFFFF)
    entry(path, 2, 0xFFFFFFFF)
    with formats.open(path, writable=True) as disk:
        assert disk.check().leaks == 2
        assert disk.check(Repair.LEAKS).exit_status == 0
    assert path.stat().st_size < end - BLOCK
    with formats.open(path) as disk:
        assert disk.check().findings == []
        assert disk.read(0, disk.size) == CONTENT[: 2 * BLOCK] + bytes(BLOCK) + CONTENT[3 * BLOCK : 5 * BLOCK] + bytes(
            BLOCK
        )


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, {"subformat": "fixed"}, {"block_size": "16K"}, {"force_size": "off"}])
def test_growing_and_shrinking(tmp_path: Path, options: dict[str, str]) -> None:
    path, raw = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    model = bytearray(random.Random(1).randbytes(3 * MIB + 512))
    lay_out(path, "vhd", options, bytes(model))
    for size in (3 * MIB + 8192, 9 * MIB, 2 * MIB + 512, 40 * MIB, 2 * MIB - 512, 2 * MIB):
        with formats.open(path, writable=True) as disk:
            disk.resize(size, shrink=True)
            model = model[:size].ljust(size, b"\0")
            assert disk.size == size
            assert disk.read(0, size) == model
            disk.write(size - 512, b"\xee" * 512)
            model[size - 512 :] = b"\xee" * 512
        with formats.open(path) as disk:
            assert disk.read(0, size) == model
            check_map(disk, model)
            assert disk.check().findings == []
        raw.write_bytes(model)
        assert qemu_img_info(path, format="vpc")["virtual-size"] == size
        qemu_compare(path, raw, formats=("vpc", "raw"))


def test_cutting_off_needs_leave(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    formats.create(path, 2 * MIB)
    with formats.open(path, writable=True) as disk:
        with pytest.raises(OptionError, match="shrink"):
            disk.resize(MIB)
        with pytest.raises(OptionError, match="multiple of 512"):
            disk.resize(2 * MIB + 1)
        with pytest.raises(OptionError, match="2040 GiB"):
            disk.resize(2041 << 30)
        assert disk.size == 2 * MIB


@pytest.mark.peer
def test_a_table_that_is_too_small_moves(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    formats.create(path, 100 << 30)
    with formats.open(path, writable=True) as disk:
        assert isinstance(disk, VhdImage)
        assert disk.header is not None
        disk.write((100 << 30) - 5, b"inner")
        old = disk.header.table_offset
        disk.resize(2040 << 30)
        disk.write((2040 << 30) - 5, b"outer")
        assert disk.header.table_offset > old
    with formats.open(path, writable=True) as disk:
        assert disk.size == 2040 << 30
        assert disk.read((100 << 30) - 5, 6) == b"inner\0"
        assert disk.read((2040 << 30) - 5, 5) == b"outer"
        assert disk.check().corruptions == 0
        assert disk.check(Repair.LEAKS).exit_status == 0
    assert qemu_img_info(path, format="vpc")["virtual-size"] == 2040 << 30


def test_a_child_grows_without_showing_more_of_its_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write(MIB, b"own")
        disk.resize(MIB + 512, shrink=True)
        disk.resize(4 * MIB)
    content = content[: MIB + 512].ljust(4 * MIB, b"\0")
    content[MIB : MIB + 3] = b"own"
    assert read_all(child) == content
