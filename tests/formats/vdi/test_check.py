"""Damage that `check` finds in VDIs, what repair makes of it, and disks that grow and shrink."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vdi.handmade import FREE, NULL, vdi
from tests.formats.vdi.test_differencing import make_base, make_child, read_all
from tests.peers import qemu_check, qemu_compare, qemu_img_info, qemu_io
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, StorageError
from vdisk.formats.check import Repair
from vdisk.formats.vdi.image import VdiImage

MIB = 1 << 20
CONTENT = b"".join(bytes([1 + block]) * MIB for block in range(6))
TABLE_OFFSET, DATA_OFFSET = 512, 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "disk.vdi"
    lay_out(found, "vdi", {}, CONTENT)
    return found


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def entry(path: Path, block: int, value: int) -> None:
    patch(path, TABLE_OFFSET + 4 * block, value.to_bytes(4, "little"))


def test_a_whole_file_is_clean(path: Path) -> None:
    with formats.open(path) as disk:
        report = disk.check()
    assert (report.corruptions, report.leaks, report.exit_status) == (0, 0, 0)
    assert (report.total_clusters, report.allocated_clusters) == (6, 6)
    assert report.image_end_offset == path.stat().st_size


def to_shared(path: Path) -> bytes:
    entry(path, 2, 0)
    return CONTENT[: 2 * MIB] + CONTENT[:MIB] + CONTENT[3 * MIB :]


def to_beyond_the_end(path: Path) -> bytes:
    entry(path, 5, 0x7FFFFFFF)
    return CONTENT[: 5 * MIB] + bytes(MIB)


def to_a_count_too_low(path: Path) -> bytes:
    patch(path, 388, b"\x05")
    return CONTENT


def to_null_uuids(path: Path) -> bytes:
    patch(path, 392, bytes(32))
    return CONTENT


@pytest.mark.peer
@pytest.mark.parametrize("damage", [to_shared, to_beyond_the_end, to_a_count_too_low, to_null_uuids])
def test_damage_is_found_and_mended(path: Path, damage: Callable[[Path], bytes]) -> None:
    wanted = damage(path)
    before = path.read_bytes()
    with formats.open(path) as disk:
        report = disk.check()
        assert report.corruptions >= 1
        assert report.exit_status == 2
        assert all(finding.fix for finding in report.findings if finding.severity == "corruption")
        with pytest.raises(StorageError, match="read-only"):
            disk.check(Repair.ALL)
    with formats.open(path, writable=True) as disk:
        disk.check(Repair.ALL, dry_run=True)
    assert path.read_bytes() == before, "a dry run changes nothing"

    with formats.open(path, writable=True) as disk:
        assert disk.check(Repair.ALL).exit_status == 0
    with formats.open(path, writable=True) as disk:
        assert disk.check().findings == []
        assert disk.read(0, disk.size) == wanted
        disk.write(0, b"writable again")
    qemu_check(path, format="vdi")


@pytest.mark.parametrize("damage", [to_shared, to_beyond_the_end])
def test_a_table_that_would_harm_is_not_written_to(path: Path, damage: Callable[[Path], bytes]) -> None:
    damage(path)
    before = path.read_bytes()
    with formats.open(path, writable=True) as disk, pytest.raises(Corrupt):
        disk.write(4 * MIB, b"x")
    assert path.read_bytes() == before


def test_leaks_alone_are_mended_only_where_no_data_is_at_risk(path: Path) -> None:
    to_shared(path)
    with formats.open(path, writable=True) as disk:
        report = disk.check(Repair.LEAKS)
        assert (report.corruptions_fixed, report.leaks_fixed) == (0, 0)
        assert report.leaks == 1, "the slot that block 2 had"
        assert report.exit_status == 2


def test_a_file_that_was_cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - MIB // 2)
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, 5 * MIB) == CONTENT[: 5 * MIB]
        with pytest.raises(Corrupt, match="block map entry 5"):
            disk.read(0, disk.size)
        with pytest.raises(Corrupt, match=r"file: expected at least"):
            disk.write(0, b"x")
        assert disk.check().exit_status == 2
        assert disk.check(Repair.ALL).exit_status == 0
        assert disk.read(0, disk.size) == CONTENT[: -MIB // 2] + bytes(MIB // 2)
        assert disk.check().findings == []


@pytest.mark.peer
def test_slots_without_a_block_are_filled_and_the_file_is_cut(path: Path) -> None:
    """QEMU would take the number of blocks in use, 4, for the next slot, and that is block 4's or 5's."""
    entry(path, 1, FREE)
    entry(path, 3, FREE)
    patch(path, 388, b"\x04")
    wanted = CONTENT[:MIB] + bytes(MIB) + CONTENT[2 * MIB : 3 * MIB] + bytes(MIB) + CONTENT[4 * MIB :]
    with formats.open(path, writable=True) as disk:
        assert (disk.check().corruptions, disk.check().leaks) == (0, 1)
        assert disk.check(Repair.LEAKS).exit_status == 0
        assert disk.read(0, disk.size) == wanted
    assert path.stat().st_size == DATA_OFFSET + 4 * MIB
    with formats.open(path) as disk:
        assert disk.check().findings == []
        assert disk.read(0, disk.size) == wanted
    qemu_io(path, "write -P 9 3M 64k", format="vdi")
    with formats.open(path) as disk:
        assert disk.read(3 * MIB, 65536) == b"\x09" * 65536
        assert disk.read(4 * MIB, 2 * MIB) == wanted[4 * MIB :]


def test_a_write_fills_the_first_slot_that_is_free(path: Path) -> None:
    entry(path, 1, FREE)
    patch(path, 388, b"\x05")
    end = path.stat().st_size
    with formats.open(path, writable=True) as disk:
        disk.write(MIB + 100, b"again")
        assert disk.read(MIB, MIB) == (bytes(100) + b"again").ljust(MIB, b"\0")
        disk.flush()
        assert disk.check().findings == []
    assert path.stat().st_size == end


def test_a_file_that_is_too_long_is_cut(path: Path) -> None:
    end = path.stat().st_size
    patch(path, end, b"x" * 100)
    with formats.open(path, writable=True) as disk:
        assert disk.check(Repair.LEAKS).leaks_fixed == 1
    assert path.stat().st_size == end


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, {"static": "on"}])
def test_growing_and_shrinking(tmp_path: Path, options: dict[str, str]) -> None:
    path, raw = tmp_path / "disk.vdi", tmp_path / "disk.raw"
    model = bytearray(random.Random(1).randbytes(3 * MIB + 512))
    lay_out(path, "vdi", options, bytes(model))
    for size in (3 * MIB + 8192, 9 * MIB, 2 * MIB + 512, 40 * MIB, 2 * MIB - 512, 512, 2 * MIB):
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
        qemu_check(path, format="vdi")
        qemu_compare(path, raw, formats=("vdi", "raw"))


@pytest.mark.peer
@pytest.mark.parametrize("extra", [b"", b"!" * 512])
@pytest.mark.parametrize("used", [0, 1, 3])
def test_a_table_that_is_too_small_moves(tmp_path: Path, used: int, extra: bytes) -> None:
    """Its new place is where the first blocks were, which move to the end with their prefixes."""
    block = 4096
    path = tmp_path / "disk.vdi"
    blocks = {slot: bytes([65 + slot]) * block for slot in range(used)}
    entries = [*range(used)][::-1] + [FREE] * (4 - used)
    path.write_bytes(vdi(entries, blocks, disk_bytes=4 * block - 512, block_bytes=block, extra=extra))
    model = bytearray(b"".join(blocks[slot] for slot in reversed(range(used))).ljust(4 * block - 512, b"\0"))
    for size in (500 * block, 8000 * block, 20_000 * block):
        with formats.open(path, writable=True) as disk:
            disk.resize(size)
            model = model.ljust(size, b"\0")
            disk.write(size - 1000, b"end")
            model[size - 1000 : size - 997] = b"end"
        with formats.open(path) as disk:
            assert disk.read(0, disk.size) == model
            assert disk.check().findings == []
    if used and extra:
        assert path.read_bytes().count(extra + b"A" * block) == 1


@pytest.mark.peer
def test_a_table_of_many_blocks_moves(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    formats.create(path, 10 << 30)
    with formats.open(path, writable=True) as disk:
        disk.write((10 << 30) - 5, b"inner")
        disk.resize(4 << 40)
        disk.write((4 << 40) - 5, b"outer")
    with formats.open(path) as disk:
        assert disk.read((10 << 30) - 5, 6) == b"inner\0"
        assert disk.read((4 << 40) - 5, 5) == b"outer"
        assert disk.check().findings == []
    assert qemu_img_info(path, format="vdi")["virtual-size"] == 4 << 40
    qemu_check(path, format="vdi")


def test_cutting_off_needs_leave(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    formats.create(path, 2 * MIB)
    with formats.open(path, writable=True) as disk:
        with pytest.raises(OptionError, match="shrink"):
            disk.resize(MIB)
        with pytest.raises(OptionError, match="multiple of 512"):
            disk.resize(2 * MIB + 1)
        with pytest.raises(OptionError, match="up to"):
            disk.resize(1 << 50)
        assert disk.size == 2 * MIB


def test_a_child_grows_without_showing_more_of_its_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write(MIB, b"own")
        disk.resize(2 * MIB + 512, shrink=True)
        disk.resize(4 * MIB)
    content = content[: 2 * MIB + 512].ljust(4 * MIB, b"\0")
    content[MIB : MIB + 3] = b"own"
    assert read_all(child) == content


def test_a_childs_missing_link_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.vdi"
    path.write_bytes(vdi([FREE], {}, disk_bytes=MIB, image_type=4, parent=NULL, own=uuid.uuid4()))
    with formats.open(path, backing=False) as disk:
        assert isinstance(disk, VdiImage)
        report = disk.check()
        assert (report.corruptions, report.findings[0].where) == (1, "parent UUID")
