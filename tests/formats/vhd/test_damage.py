"""Damaged VHDs and VDIs: whatever is done to one, it is done, or refused in one line; repair leaves nothing corrupt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from vdisk import formats
from vdisk.errors import PolicyError, VdiskError
from vdisk.formats.check import Repair
from vdisk.formats.vhd.footer import sealed
from vdisk.storage.memory import MemoryStorage

CONTENT = random.Random(1).randbytes(40_448) + bytes(99_840) + b"x" * 60_416


def damaged(raw: bytes, maker: random.Random, format_name: str) -> bytearray:
    """A few fields overwritten; checksums mended mostly, so that what is behind them is reached."""
    found = bytearray(raw)
    zones = [(0, 512), (512, 1700), (len(found) - 512, len(found)), (0, len(found)), (340, 456)]
    for _ in range(maker.choice([1, 1, 2, 5])):
        at = maker.randrange(*maker.choice(zones))
        width = min(maker.choice([1, 2, 4, 8]), len(found) - at)
        small = maker.randrange(64)
        found[at : at + width] = maker.choice(
            [b"\xff" * width, bytes(width), maker.randbytes(width), small.to_bytes(width, "big")]
        )
    if format_name == "vhd" and maker.random() < 0.7:
        for start, length, place in ((0, 512, 64), (512, 1024, 36), (len(found) - 512, 512, 64)):
            found[start : start + length] = sealed(bytes(found[start : start + length]), place)
    if maker.random() < 0.2:
        del found[maker.randrange(len(found)) :]
    return found


def use(storage: MemoryStorage, format_name: str, what: str, maker: random.Random) -> None:
    """Do something to a disk; what was read, written or kept must be right."""
    with formats.open(storage, format=format_name, writable=True) as disk:
        if what == "repair":
            if disk.check(Repair.ALL).exit_status == 0:
                assert disk.check().corruptions == 0
        elif what == "resize":
            before = disk.read(0, min(disk.size, 300_000))
            size = maker.choice([512, 51_200, 1 << 20, 5 << 20])
            disk.resize(size, shrink=True)
            kept = min(size, len(before))
            assert disk.read(0, kept) == before[:kept]
        else:
            for _ in range(5 if disk.size else 0):
                offset = maker.randrange(min(disk.size, 4 << 20))
                data = maker.randbytes(min(maker.randrange(1, 30_000), disk.size - offset))
                disk.write(offset, data)
                assert disk.read(offset, len(data)) == data


@pytest.mark.parametrize("what", ["repair", "resize", "write"])
@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("vhd", {"block_size": "16K"}),
        ("vhd", {"subformat": "fixed"}),
        ("vdi", {"block_size": "8K"}),
        ("vdi", {"static": "on", "block_size": "16K"}),
    ],
)
def test_it_is_done_or_refused(tmp_path: Path, format_name: str, options: Mapping[str, str], what: str) -> None:
    path = tmp_path / f"disk.{format_name}"
    lay_out(path, format_name, options, CONTENT)
    raw = path.read_bytes()
    done = 0
    for seed in range(150):
        maker = random.Random(seed)
        storage = MemoryStorage(damaged(raw, maker, format_name), path.name)
        try:
            use(storage, format_name, what, maker)
            done += 1
        except VdiskError as error:
            assert "\n" not in str(error)
            # The gate knows an image by its path, and this one has none to look for a parent in.
            assert path.name in str(error) or isinstance(error, PolicyError)
    assert done > 20
