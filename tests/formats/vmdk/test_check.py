"""Checking VMDK: clean images are clean, each kind of damage is named, and what can be mended is."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vmdk.handmade import GRAIN, descriptor, sparse, stream
from tests.peers import qemu_check, qemu_compare
from vdisk import formats
from vdisk.errors import Corrupt, VdiskError
from vdisk.formats.check import CheckReport, Repair

SIZE = (40 << 20) + 5 * 512
SECTOR = 512


def content() -> bytes:
    maker = random.Random(7)
    data = bytearray(SIZE)
    for start in (0, 3 << 20, 35 << 20, SIZE - 70_000):
        data[start : start + 70_000] = maker.randbytes(70_000)
    return bytes(data)


def check(path: Path, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
    with formats.open(path, writable=repair is not Repair.NONE and not dry_run, backing=False) as disk:
        return disk.check(repair, dry_run=dry_run)


def number(raw: bytearray, at: int, width: int = 8) -> int:
    return int.from_bytes(raw[at : at + width], "little")


def put(raw: bytearray, at: int, value: int, width: int = 4) -> None:
    raw[at : at + width] = value.to_bytes(width, "little")


class Layout:
    """Where the parts of an image of ours lie, in bytes."""

    def __init__(self, raw: bytearray) -> None:
        self.redundant, self.directory = number(raw, 48) * SECTOR, number(raw, 56) * SECTOR
        self.tables = number(raw, self.directory, 4) * SECTOR
        self.redundant_tables = number(raw, self.redundant, 4) * SECTOR


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized", "vmfsSparse"])
def test_a_new_image_is_clean(tmp_path: Path, subformat: str) -> None:
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, content())
    report = check(tmp_path / "a.vmdk")
    assert not report.findings
    assert report.exit_status == 0
    grain = 512 if subformat == "vmfsSparse" else GRAIN
    assert report.total_clusters == -(-SIZE // grain)
    assert report.allocated_clusters
    assert bool(report.compressed_clusters) == (subformat == "streamOptimized")


@pytest.mark.parametrize("options", [{}, {"zeroed_grain": "on"}, {"subformat": "vmfsSparse"}])
def test_an_image_written_at_random_is_clean(tmp_path: Path, options: dict[str, str]) -> None:
    formats.create(tmp_path / "a.vmdk", SIZE, options=options)
    maker = random.Random(8)
    for _ in range(3):
        with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
            for _ in range(20):
                offset = maker.randrange(SIZE - 100_000)
                disk.write(offset, maker.randbytes(maker.choice([5, 512, 99_000])))
                disk.write_zeroes(maker.randrange(SIZE - 100_000), 100_000)
    assert not check(tmp_path / "a.vmdk").findings


def a_stale_copy(raw: bytearray, at: Layout) -> None:
    put(raw, at.redundant_tables, 0)


def a_wrong_copy(raw: bytearray, at: Layout) -> None:
    put(raw, at.redundant_tables, 12345)


def a_lost_entry(raw: bytearray, at: Layout) -> None:
    put(raw, at.tables, 0xFFFFFFF0)


def a_lost_table(raw: bytearray, at: Layout) -> None:
    put(raw, at.directory + 4, 0xFFFFFFF0)


def a_missing_table(raw: bytearray, at: Layout) -> None:
    put(raw, at.directory + 4, 0)


def a_shared_table(raw: bytearray, at: Layout) -> None:
    raw[at.directory + 4 : at.directory + 8] = raw[at.directory : at.directory + 4]


def a_lost_redundant_table(raw: bytearray, at: Layout) -> None:
    put(raw, at.redundant, 0xFFFFFFF0)


def a_lost_directory(raw: bytearray, at: Layout) -> None:
    put(raw, 56, 1 << 40, 8)


def a_lost_redundant_directory(raw: bytearray, at: Layout) -> None:
    put(raw, 48, 1 << 40, 8)


def a_wrong_extent_line(raw: bytearray, at: Layout) -> None:
    line = raw.index(b"RW 819")
    raw[line : line + 8] = b"RW 12345"


DAMAGES = [
    a_stale_copy,
    a_wrong_copy,
    a_lost_entry,
    a_lost_table,
    a_missing_table,
    a_shared_table,
    a_lost_redundant_table,
    a_lost_directory,
    a_lost_redundant_directory,
    a_wrong_extent_line,
]


@pytest.mark.peer
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_a_copy_tells_is_mended(tmp_path: Path, damage: Callable[[bytearray, Layout], None]) -> None:
    path = tmp_path / "a.vmdk"
    lay_out(path, "vmdk", {}, content())
    raw = bytearray(path.read_bytes())
    damage(raw, Layout(raw))
    path.write_bytes(raw)
    found = check(path)
    assert found.findings
    assert found.exit_status in (2, 3)
    assert all(finding.fix is not None and not finding.is_fixed for finding in found.findings)
    check(path, Repair.ALL, dry_run=True)
    assert path.read_bytes() == raw
    mended = check(path, Repair.ALL)
    assert mended.exit_status == 0
    assert all(finding.is_fixed for finding in mended.findings)
    assert not check(path).findings
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == content()
        disk.write(20 << 20, b"and it takes writes")
        disk.write(0, content()[:5])
        wanted = disk.read(0, disk.size)
        check_map(disk, wanted)
    assert not check(path).findings
    (tmp_path / "a.raw").write_bytes(wanted)
    qemu_compare(path, tmp_path / "a.raw", formats=("vmdk", "raw"))
    qemu_check(path, format="vmdk")


@pytest.mark.parametrize("damage", [a_lost_table, a_lost_directory], ids=lambda damage: damage.__name__)
def test_the_redundant_tables_serve_until_then(tmp_path: Path, damage: Callable[[bytearray, Layout], None]) -> None:
    path = tmp_path / "a.vmdk"
    lay_out(path, "vmdk", {}, content())
    raw = bytearray(path.read_bytes())
    damage(raw, Layout(raw))
    path.write_bytes(raw)
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == content()
        with pytest.raises(Corrupt, match="check --repair"):
            disk.write(0, b"x")


def test_grains_that_share_a_place_are_parted(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    lay_out(path, "vmdk", {}, content())
    raw = bytearray(path.read_bytes())
    at = Layout(raw)
    for tables in (at.tables, at.redundant_tables):
        first = number(raw, tables, 4)
        put(raw, tables + 4 * 10, first)  # grain 10 is grain 0
        put(raw, tables + 4 * 11, 2)  # grain 11 lies in the descriptor, and reaches into grain 0
    path.write_bytes(raw)
    with formats.open(path) as disk:
        before = disk.read(0, disk.size)
    report = check(path)
    assert report.corruptions == 3
    assert {finding.message.split(" with ")[1] for finding in report.findings} == {"another grain", "the descriptor"}
    assert check(path, Repair.ALL).exit_status == 0
    assert not check(path).findings
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, 11 * GRAIN) == before[: 11 * GRAIN]  # what grain 11 was, nobody knows
        assert disk.read(12 * GRAIN, disk.size - 12 * GRAIN) == before[12 * GRAIN :]
        disk.write(10 * GRAIN, b"x" * GRAIN)
        assert disk.read(0, GRAIN) == before[:GRAIN]


def test_leaked_space_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    lay_out(path, "vmdk", {}, content())
    raw = bytearray(path.read_bytes())
    at = Layout(raw)
    for tables in (at.tables, at.redundant_tables):
        put(raw, tables, 0)  # the grain in front is given up
    path.write_bytes(raw + b"x" * 3 * GRAIN)
    size = path.stat().st_size
    report = check(path)
    assert (report.corruptions, report.leaks, report.exit_status) == (0, 4, 3)
    assert check(path, Repair.LEAKS).exit_status == 0
    assert not check(path).findings
    assert path.stat().st_size == size - 3 * GRAIN
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == bytes(GRAIN) + content()[GRAIN:]


def test_an_unclean_shutdown_is_said_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, SIZE)
    raw = bytearray(path.read_bytes())
    raw[72] = 1
    path.write_bytes(raw)
    assert check(path).exit_status == 3
    assert check(path, Repair.LEAKS).exit_status == 0
    assert check(path).exit_status == 0


def test_an_entry_without_a_copy_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    path.write_bytes(sparse({0: b"a" * GRAIN, 1: 0xFFFFFF, 2: 1}, 128 * 8))
    raw = path.read_bytes()
    report = check(path, Repair.ALL)
    assert report.corruptions == 2
    assert report.exit_status == 2
    assert [finding.fix for finding in report.findings] == [None, None]
    assert path.read_bytes() == raw


def test_a_grain_marker_that_says_another_place_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    text = descriptor('RW 1024 SPARSE "a.vmdk"')
    raw = bytearray(stream({0: b"a" * GRAIN, 3: b"b" * GRAIN}, 1024, text=text))
    path.write_bytes(raw)
    assert not check(path).findings
    struct.pack_into("<Q", raw, 128 * SECTOR, 77)
    path.write_bytes(raw)
    report = check(path)
    assert report.corruptions == 1
    assert "grain marker at sector 128" in str(report.findings[0])


def test_damaged_tables_are_checked_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    lay_out(path, "vmdk", {}, content())
    whole = path.read_bytes()
    maker = random.Random(9)
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(maker.choice([1, 5, 40])):
            at = maker.choice([maker.randrange(512), maker.randrange(0x20000)])
            raw[at] = maker.randrange(256)
        path.write_bytes(raw[: maker.choice([len(raw), maker.randrange(len(raw))])])
        for repair in (Repair.NONE, Repair.ALL):
            try:
                report = check(path, repair)
            except VdiskError:
                continue
            assert report.exit_status in (0, 2, 3)


def test_what_was_just_written_outlives_a_repair(tmp_path: Path) -> None:
    """Its grain table waits in memory, and the repair mends tables in the file."""
    path = tmp_path / "disk.vmdk"
    formats.create(path, "1M")
    with formats.open(path, writable=True) as disk:
        disk.write(70_000, b"written before the repair")
        assert disk.check(Repair.ALL).corruptions == 0
    with formats.open(path) as disk:
        assert disk.read(70_000, 25) == b"written before the repair"
