"""`info` and `map` can stand in for qemu-img's in a pipeline: the same keys, and values that agree."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.peers import qemu_img, qemu_img_info, qemu_img_map
from vdisk import formats
from vdisk.inspect.info import info
from vdisk.inspect.maps import map_of

KINDS = {
    "raw": ["-O", "raw"],
    "qcow2": ["-O", "qcow2"],
    "qcow2-compressed": ["-c", "-O", "qcow2"],
    "vmdk": ["-O", "vmdk"],
    "vmdk-flat": ["-O", "vmdk", "-o", "subformat=monolithicFlat"],
    "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "vdi": ["-O", "vdi"],
    "vhd": ["-O", "vpc", "-o", "force_size=on"],
    "vhdx": ["-O", "vhdx"],
}
QEMU_NAMES = {"vhd": "vpc"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    maker = random.Random(1)
    content = bytearray(20 << 20)
    for start in (0, 3 << 20, (3 << 20) + 65536, 9 << 20, 19 << 20):
        content[start : start + 100_000] = (maker.randbytes(500) * 200)[:100_000]
    path.write_bytes(content)
    return path


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, raw: Path, tmp_path: Path) -> Path:
    kind = request.param
    path = tmp_path / f"disk.{kind.split('-')[0]}"
    qemu_img("convert", "-f", "raw", *KINDS[kind], raw, path)
    return path


@pytest.mark.peer
def test_info_has_qemu_imgs_keys_and_values(image: Path) -> None:
    with formats.open(image) as disk:
        name = QEMU_NAMES.get(disk.format_name, disk.format_name)
    ours, theirs = info(image), qemu_img_info(image, format=name)
    for key, value in theirs.items():
        if key == "format":
            assert QEMU_NAMES.get(ours[key], ours[key]) == value
        elif key == "actual-size":
            assert abs(ours[key] - value) <= 65536
        elif key == "format-specific":
            for field, what in value["data"].items():
                assert ours[key]["data"][field] == what, field
        elif key != "children":
            assert ours[key] == value, key


@pytest.mark.peer
def test_map_tells_the_same_stretches_as_qemu_img(image: Path, raw: Path) -> None:
    with formats.open(image) as disk:
        name = QEMU_NAMES.get(disk.format_name, disk.format_name)
        ours = list(map_of(disk))
    theirs = qemu_img_map(image, format=name)
    assert {"start", "length", "depth", "present", "zero", "data"} <= ours[0].keys()

    def data(rows: list[dict[str, Any]]) -> set[int]:
        """Offsets, in 4 KiB, at which bytes are said to lie."""
        found: set[int] = set()
        for row in rows:
            if row["data"]:
                found.update(range(row["start"] // 4096, -(-(row["start"] + row["length"]) // 4096)))
        return found

    # Ours may be finer, where a block's file has holes: what it leaves out is zero.
    assert data(ours) <= data(theirs)
    content = raw.read_bytes()
    for block in data(theirs) - data(ours):
        assert not any(content[block * 4096 : (block + 1) * 4096])
    assert sum(row["length"] for row in ours) == sum(row["length"] for row in theirs)
    places = {row["start"]: row["offset"] for row in theirs if row["data"] and "offset" in row}
    for row in ours:
        if row["data"] and row["start"] in places and "filename" not in row and name != "vhdx":
            assert row["offset"] == places[row["start"]]
