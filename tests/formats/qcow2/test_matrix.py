"""Shapes of qcow2, written at random and held against a model: qemu-img finds nothing wrong, and reads the same."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.qcow2.matrix import name_of, options_of, shapes
from tests.peers import qemu_check, qemu_compare
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.formats.check import Repair

SIZE = (5 << 20) + 3 * 512


def some_content(seed: int, size: int = SIZE) -> bytearray:
    """Noise, text and zeros in stretches of all lengths."""
    maker = random.Random(seed)
    content = bytearray()
    while len(content) < size:
        length = maker.choice([512, 3000, 65536, 300_000])
        content += maker.choice(
            [bytes(length), maker.randbytes(length), (b"text %d " % maker.randrange(9)) * (length // 7)]
        )
    return content[:size]


def scribble(disk: BlockDevice, content: bytearray, seed: int, count: int = 50) -> None:
    """Change a disk and its model in the same way."""
    maker = random.Random(seed)
    for number in range(count):
        offset = maker.randrange(disk.size - 1)
        length = min(maker.choice([1, 512, 2048, 4096, 70_000, 400_000]), disk.size - offset)
        what = maker.randrange(8)
        if what == 0:
            disk.write_zeroes(offset, length, unmap=bool(number & 1))
            content[offset : offset + length] = bytes(length)
        elif what == 1 and disk.backing is None:
            disk.discard(offset, length)
            content[offset : offset + length] = disk.read(offset, length)
        else:
            data = maker.randbytes(length)
            disk.write(offset, data)
            content[offset : offset + length] = data
        if what == 7:
            disk.flush()


@pytest.mark.peer
@pytest.mark.parametrize("shape", shapes(), ids=name_of)
def test_every_shape_takes_random_changes(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # QEMU seeks a data file in the folder it is run in
    seed = zlib.crc32(name_of(shape).encode())
    content = some_content(seed)
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    lay_out(path, "qcow2", options_of(shape, "a.data"), bytes(content), compress=bool(shape["compress"]))
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    for round_number in range(2):
        with formats.open(path, writable=True) as disk:
            scribble(disk, content, seed + round_number)
            assert disk.read(0, SIZE) == content
            check_map(disk, content)
        with formats.open(path) as disk:
            assert disk.read(0, SIZE) == content
            report = disk.check(Repair.NONE)
            assert report.findings == []
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    if shape["data_file"] == "raw":
        assert (tmp_path / "a.data").read_bytes() == content
