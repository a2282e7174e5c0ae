"""Damage that `check` finds in VHDX files, and what repair makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.peers import qemu_check
from vdisk import formats
from vdisk.errors import Corrupt, StorageError
from vdisk.formats.check import Repair

MIB = 1 << 20
CONTENT = b"".join(bytes([1 + block]) * MIB for block in range(6))
BAT_OFFSET = 3 * MIB
DATA_OFFSET = 4 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "disk.vhdx"
    lay_out(found, "vhdx", {}, CONTENT)
    return found


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def entry(path: Path, block: int, value: int) -> None:
    patch(path, BAT_OFFSET + 8 * block, value.to_bytes(8, "little"))


def test_a_whole_file_is_clean(path: Path) -> None:
    with formats.open(path) as disk:
        report = disk.check()
    assert (report.corruptions, report.leaks, report.exit_status) == (0, 0, 0)
    assert (report.total_clusters, report.allocated_clusters) == (6, 6)
    assert report.image_end_offset == path.stat().st_size


def to_shared(path: Path) -> bytes:
    entry(path, 2, DATA_OFFSET | 6)
    return CONTENT[: 2 * MIB] + CONTENT[:MIB] + CONTENT[3 * MIB :]


def to_beyond_the_end(path: Path) -> bytes:
    entry(path, 5, (1 << 40) | 6)
    return CONTENT[: 5 * MIB] + bytes(MIB)


def to_unknown_state(path: Path) -> bytes:
    entry(path, 1, 4)
    return CONTENT[:MIB] + bytes(MIB) + CONTENT[2 * MIB :]


def to_partial_without_parent(path: Path) -> bytes:
    entry(path, 3, (DATA_OFFSET + 3 * MIB) | 7)
    return CONTENT


def to_inside_the_log(path: Path) -> bytes | None:
    entry(path, 0, MIB | 6)
    return None  # what is read of the block is the log's, before and after


@pytest.mark.parametrize(
    "damage", [to_shared, to_beyond_the_end, to_unknown_state, to_partial_without_parent, to_inside_the_log]
)
def test_a_damaged_table_is_found_and_mended(path: Path, damage: Callable[[Path], bytes | None]) -> None:
    wanted = damage(path)
    before = path.read_bytes()
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
        mended = disk.check(Repair.ALL)
        assert mended.exit_status == 0
        assert mended.corruptions_fixed == mended.corruptions
    with formats.open(path, writable=True) as disk:
        assert disk.check().exit_status == 0
        if wanted is not None:
            assert disk.read(0, disk.size) == wanted
        disk.write(0, b"writable again")


@pytest.mark.parametrize("damage", [to_shared, to_beyond_the_end, to_inside_the_log])
def test_a_table_that_would_harm_is_not_written_to(path: Path, damage: Callable[[Path], object]) -> None:
    damage(path)
    before = path.read_bytes()
    with formats.open(path, writable=True) as disk, pytest.raises(Corrupt):
        disk.write(4 * MIB, b"x")
    assert path.read_bytes() == before


@pytest.mark.parametrize("offset", [64 << 10, 128 << 10, 192 << 10, 256 << 10])
def test_a_damaged_copy_of_header_or_region_table_costs_nothing(path: Path, offset: int) -> None:
    patch(path, offset + 8, b"\xff" * 3)
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == CONTENT
        report = disk.check()
        assert (report.corruptions, report.leaks, report.exit_status) == (0, 1, 3)
    with formats.open(path, writable=True) as disk:
        assert disk.check(Repair.LEAKS).exit_status == 0
    with formats.open(path) as disk:
        assert disk.check().exit_status == 0
        assert disk.read(0, disk.size) == CONTENT


def test_space_that_nothing_refers_to_is_given_back(path: Path) -> None:
    end = path.stat().st_size
    patch(path, end, b"x" * 2 * MIB)
    entry(path, 0, 0)
    with formats.open(path, writable=True) as disk:
        report = disk.check()
        assert (report.corruptions, report.leaks) == (0, 2)
        assert disk.check(Repair.LEAKS).exit_status == 0
    assert path.stat().st_size == end
    with formats.open(path) as disk:
        assert disk.check().exit_status == 0
        assert disk.read(0, disk.size) == bytes(MIB) + CONTENT[MIB:]


def test_space_that_was_given_up_is_used_again(path: Path) -> None:
    end = path.stat().st_size
    with formats.open(path, writable=True) as disk:
        disk.write_zeroes(MIB, 2 * MIB)
    with formats.open(path, writable=True) as disk:
        disk.write(2 * MIB, b"again")
        assert disk.read(MIB, 2 * MIB) == bytes(MIB) + b"again".ljust(MIB, b"\0")
    assert path.stat().st_size == end


@pytest.mark.peer
def test_qemu_finds_nothing_wrong_with_what_was_mended(path: Path) -> None:
    entry(path, 2, DATA_OFFSET | 6)
    entry(path, 5, (1 << 40) | 6)
    with formats.open(path, writable=True) as disk:
        disk.check(Repair.ALL)
    qemu_check(path, format="vhdx")
