"""Images made to do harm: whatever stands in the metadata, there is an answer or one line of error, soon."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.qcow2.test_matrix import some_content
from tests.formats.qcow2.test_snapshots import open_qcow2
from vdisk.errors import VdiskError
from vdisk.formats.check import Repair
from vdisk.formats.qcow2.bitmaps import (
    add_bitmap,
    clear_bitmap,
    directory_place,
    load_bits,
    read_bitmaps,
    remove_bitmap,
)
from vdisk.formats.qcow2.image import Qcow2Image
from vdisk.formats.qcow2.maintain import amend
from vdisk.formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot

SIZE = 1 << 20

READS: list[Callable[[Qcow2Image], object]] = [
    lambda disk: disk.describe(),
    lambda disk: disk.read(0, disk.size) if disk.size <= 8 << 20 else disk.read(0, 1 << 20),
    lambda disk: sum(1 for _ in disk.map()),
    lambda disk: disk.check(),
    lambda disk: disk.open_snapshot("s").read(0, 4096),
    lambda disk: [load_bits(disk, bitmap) for bitmap in read_bitmaps(disk)],
]
CHANGES: list[Callable[[Qcow2Image], object]] = [
    lambda disk: disk.write(min(disk.size, 300_000) // 2, b"x" * min(disk.size // 2, 70_000)),
    lambda disk: disk.write_zeroes(0, min(disk.size, 200_000)),
    lambda disk: disk.discard(0, min(disk.size, 200_000)),
    lambda disk: create_snapshot(disk, "t"),
    lambda disk: apply_snapshot(disk, "s"),
    lambda disk: delete_snapshot(disk, "s"),
    lambda disk: add_bitmap(disk, "c"),
    lambda disk: clear_bitmap(disk, "b"),
    lambda disk: remove_bitmap(disk, "b"),
    lambda disk: disk.resize(disk.size + (1 << 20)),
    lambda disk: disk.resize(disk.size // 2, shrink=True),
    lambda disk: amend(disk, refcount_bits=32),
    lambda disk: amend(disk, compat="0.10"),
    lambda disk: disk.check(Repair.LEAKS),
    lambda disk: disk.check(Repair.ALL),
]


@pytest.mark.parametrize(
    "options", [{"cluster_size": "4K"}, {"cluster_size": "16K", "extended_l2": "on"}, {"cluster_size": "512"}]
)
@pytest.mark.parametrize("compress", [False, True])
def test_damage_of_any_kind_ends_in_an_answer(options: dict[str, str], compress: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    lay_out(path, "qcow2", options, bytes(some_content(1, SIZE)), compress=compress)
    with open_qcow2(path, writable=True) as disk:
        create_snapshot(disk, "s")
        add_bitmap(disk, "b")
        disk.write(1000, b"y" * 100_000)
        header = disk.header
        bitmap = read_bitmaps(disk)[0]
        places = [(0, 512), (header.l1_offset, 64), (header.refcount_table_offset, 16), (header.snapshots_offset, 96)]
        places += [(entry & (1 << 56) - 512, 4096) for entry in disk.tables.l1 if entry]
        block = int.from_bytes(path.read_bytes()[header.refcount_table_offset :][:8], "big")
        places += [(bitmap.table_offset, 16), (directory_place(disk)[0], 64), (block, 512)]
    whole = path.read_bytes()
    maker = random.Random(repr((options, compress)))
    refused = 0
    for number in range(40):
        damaged = bytearray(whole)
        for _ in range(maker.randrange(1, 4)):
            start, length = maker.choice(places)
            width = maker.choice([1, 4, 8])
            at = start + maker.randrange(length) // width * width
            value = maker.choice(
                [0, (1 << 64) - 1, 1 << 62, 1 << 55, maker.randrange(1 << 64), maker.randrange(1 << 20)]
            )
            damaged[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
        path.write_bytes(damaged)
        for is_writable, actions in ((False, READS), (True, maker.sample(CHANGES, 3))):
            for action in actions:
                try:
                    with open_qcow2(path, writable=is_writable) as disk:
                        action(disk)
                except VdiskError as error:
                    refused += 1
                    assert "\n" not in str(error)
                except Exception as error:
                    raise AssertionError(f"damage {number}: {error!r}") from error
        assert path.stat().st_blocks * 512 < 64 << 20
    assert refused > 15
