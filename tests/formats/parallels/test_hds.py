"""Expandable images against QEMU, and what is kept of what others wrote."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import qemu_check, qemu_compare, qemu_img, qemu_img_info, qemu_img_map, qemu_io, real_image
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.errors import Corrupt, OptionError, StorageError, Unsupported
from vdisk.formats.check import Repair
from vdisk.formats.parallels import structs
from vdisk.formats.parallels.extension import Feature, build_extension, read_features
from vdisk.formats.parallels.hds import HdsImage

MIB = 1 << 20
VARIANTS = [{}, {"version": "1"}, {"cluster_size": "64K"}, {"version": "1", "cluster_size": str(63 * 512)}]


def noisy(length: int, seed: int = 1) -> bytes:
    """Data, and stretches of zeros."""
    maker = random.Random(seed)
    content = bytearray(length)
    for _ in range(12):
        offset = maker.randrange(length)
        data = maker.randbytes(min(200_000, length - offset))
        content[offset : offset + len(data)] = data
    return bytes(content)


@pytest.mark.parametrize("name", ["parallels-v1", "parallels-v2"])
def test_what_parallels_wrote(tmp_path: Path, name: str) -> None:
    with formats.open(real_image(name, tmp_path)) as disk:
        content = disk.read(0, disk.size)
        digest = hashlib.sha256(content).hexdigest()
        assert digest == "15faf41ebc93b5f734341cb7a2d909001e3f7306960f9d8bc63894f2a8e5bc45"
        check_map(disk, content)
        assert disk.check().exit_status == 0


@pytest.mark.peer
@pytest.mark.parametrize("options", VARIANTS)
def test_qemu_reads_what_is_written(tmp_path: Path, options: dict[str, str]) -> None:
    path, raw = tmp_path / "disk.hds", tmp_path / "disk.img"
    content = bytearray(noisy(9 * MIB + 512))
    lay_out(path, "parallels", options, bytes(content))
    raw.write_bytes(content)
    qemu_check(path, format="parallels")
    qemu_compare(path, raw, formats=("parallels", "raw"))
    with formats.open(path, writable=True) as disk:
        disk.write(3 * MIB - 100, b"y" * 300_000)
        disk.write_zeroes(5 * MIB, 2 * MIB + 700)
        disk.write(8 * MIB, b"z" * 1000)
    content[3 * MIB - 100 : 3 * MIB - 100 + 300_000] = b"y" * 300_000
    content[5 * MIB : 7 * MIB + 700] = bytes(2 * MIB + 700)
    content[8 * MIB : 8 * MIB + 1000] = b"z" * 1000
    raw.write_bytes(content)
    qemu_check(path, format="parallels")
    qemu_compare(path, raw, formats=("parallels", "raw"))


@pytest.mark.peer
def test_what_qemu_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    qemu_img("create", "-f", "parallels", path, "9M")
    qemu_io(path, "write -P 7 1M 70k", "write -P 9 5M 3M", format="parallels")
    with formats.open(path) as disk:
        assert disk.size == qemu_img_info(path, format="parallels")["virtual-size"]
        assert disk.read(MIB, 71 << 10) == b"\7" * (70 << 10) + bytes(1 << 10)
        assert disk.read(5 * MIB, 3 * MIB) == b"\11" * (3 * MIB)
        assert disk.check().corruptions == 0
        allocated = [(item["start"], item["length"]) for item in qemu_img_map(path) if item["data"]]
        clusters = {at >> 20 for extent in disk.map() if extent.kind is Kind.DATA for at in (extent.start,)}
        assert clusters <= {start >> 20 for start, length in allocated} | {
            at >> 20 for start, length in allocated for at in range(start, start + length, MIB)
        }


def test_the_file_says_that_it_is_in_use(tmp_path: Path) -> None:
    path, killed = tmp_path / "disk.hds", tmp_path / "killed.hds"
    formats.create(path, 4 * MIB)
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x")
        disk.flush()
        killed.write_bytes(path.read_bytes())
    assert int.from_bytes(path.read_bytes()[44:48], "little") == structs.CLOSED
    assert int.from_bytes(killed.read_bytes()[44:48], "little") == structs.IN_USE
    with formats.open(killed) as disk:
        assert disk.describe().is_dirty
        assert disk.read(0, 1) == b"x"
        assert disk.check().exit_status == 3
    with formats.open(killed, writable=True) as disk:
        assert disk.check(Repair.LEAKS).exit_status == 0
    with formats.open(killed) as disk:
        assert not disk.describe().is_dirty
        assert disk.check().exit_status == 0


def test_an_image_flagged_as_empty_is(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    lay_out(path, "parallels", {}, b"x" * 4 * MIB)
    data = bytearray(path.read_bytes())
    data[52] |= structs.EMPTY_IMAGE
    path.write_bytes(data)
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == bytes(4 * MIB)
        disk.write(MIB, b"new")
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == bytes(MIB) + b"new".ljust(3 * MIB, b"\0")


def with_features(path: Path, features: list[Feature]) -> None:
    """An image of one cluster with a format extension behind it."""
    lay_out(path, "parallels", {"cluster_size": "64K"}, b"x" * (64 << 10))
    data = bytearray(path.read_bytes())
    data[56:64] = (len(data) // 512).to_bytes(8, "little")
    path.write_bytes(bytes(data) + build_extension(features, 64 << 10))


DIRTY_BITMAP = Feature(structs.DIRTY_BITMAP, 0, bytes(32))
UNKNOWN_KEPT = Feature(0x1234, structs.TRANSIT, b"keep me")
UNKNOWN_DROPPED = Feature(0x5678, 0, b"drop me")
UNKNOWN_NEEDED = Feature(0x9ABC, structs.NECESSARY, b"")


def test_features_stay_or_go_when_the_image_is_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    with_features(path, [DIRTY_BITMAP, UNKNOWN_KEPT, UNKNOWN_DROPPED])
    with formats.open(path, writable=True) as disk:
        assert disk.describe().specific["extension"] == [
            "dirty bitmap",
            "0x0000000000001234",
            "0x0000000000005678",
        ]
        assert disk.check().exit_status == 0
        disk.write(5, b"y")
    with formats.open(path) as disk:
        assert isinstance(disk, HdsImage)
        cluster = disk.storage.read(disk.header.extension_offset, 64 << 10)
        assert read_features(disk.name, cluster) == [UNKNOWN_KEPT]
        assert disk.read(0, 7) == b"xxxxxyx"


def test_a_necessary_feature_forbids_writing(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    with_features(path, [UNKNOWN_NEEDED])
    before = path.read_bytes()
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, 1) == b"x"
        with pytest.raises(Unsupported, match="0x0000000000009abc"):
            disk.write(0, b"y")
    assert path.read_bytes() == before


@pytest.mark.peer
@pytest.mark.parametrize("options", VARIANTS)
def test_damage_is_found_and_mended(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "disk.hds"
    content = random.Random(2).randbytes(6 * MIB)
    lay_out(path, "parallels", options, content)
    data = bytearray(path.read_bytes())
    data[64 + 4 * 2 : 64 + 4 * 3] = data[64 + 4 * 4 : 64 + 4 * 5]
    data[64 + 4 * 3 : 64 + 4 * 4] = (0x00FFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    with formats.open(path, writable=True) as disk:
        assert disk.check().corruptions == 2
        with pytest.raises(Corrupt):
            disk.write(0, b"x")
        assert disk.check(Repair.ALL).exit_status == 0
    size = int(options.get("cluster_size", MIB)) if options.get("cluster_size") != "64K" else 64 << 10
    wanted = bytearray(content)
    wanted[2 * size : 3 * size] = content[4 * size : 5 * size]
    wanted[3 * size : 4 * size] = bytes(size)
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == wanted
        assert disk.check().exit_status == 0
    qemu_check(path, format="parallels")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["disk.hds", "disk.hdd"])
@pytest.mark.parametrize("options", [*VARIANTS, {"bundle": "on", "subformat": "plain"}])
def test_growing_and_shrinking(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = tmp_path / name
    model = bytearray(random.Random(1).randbytes(3 * MIB + 512))
    lay_out(path, "parallels", options, bytes(model))
    for size in (3 * MIB + 1024, 9 * MIB, 2 * MIB + 512, 5 * MIB, 2 * MIB):
        with formats.open(path, writable=True) as disk:
            disk.resize(size, shrink=True)
            model = model[:size].ljust(size, b"\0")
            assert disk.read(0, disk.size) == model
            disk.write(size - 512, b"\xee" * 512)
            model[size - 512 :] = b"\xee" * 512
        with formats.open(path) as disk:
            assert disk.read(0, disk.size) == model
            check_map(disk, model)
            assert disk.check().exit_status == 0
        if path.is_file():
            assert qemu_img_info(path, format="parallels")["virtual-size"] == size
            qemu_check(path, format="parallels")


def test_a_table_that_is_too_small_takes_the_place_of_clusters(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    content = random.Random(3).randbytes(MIB)
    lay_out(path, "parallels", {"cluster_size": "4K"}, content)
    with formats.open(path, writable=True) as disk:
        disk.resize(64 * MIB)
        disk.write(60 * MIB, b"far")
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == content + bytes(59 * MIB) + b"far".ljust(4 * MIB, b"\0")
        assert disk.check().exit_status == 0


def test_cutting_off_needs_leave(tmp_path: Path) -> None:
    path = tmp_path / "disk.hds"
    formats.create(path, 2 * MIB)
    with formats.open(path, writable=True) as disk, pytest.raises(OptionError, match="shrink"):
        disk.resize(MIB)
    with formats.open(path) as disk, pytest.raises(StorageError, match="read-only"):
        disk.resize(4 * MIB)


def test_version_1_ends_at_2_tib(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="version 1"):
        formats.create(tmp_path / "disk.hds", 3 << 40, options={"version": "1"})
    formats.create(tmp_path / "disk.hds", 3 << 40, options={"version": "2"})
    with formats.open(tmp_path / "disk.hds") as disk:
        assert disk.size == 3 << 40
        assert [(extent.kind, extent.length) for extent in disk.map()] == [(Kind.ZERO, 3 << 40)]
