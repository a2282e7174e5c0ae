"""Internal snapshots: ours are qemu's, and qemu's are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.qcow2.test_matrix import SIZE, scribble, some_content
from tests.peers import qemu_check, qemu_compare, qemu_img, qemu_img_info
from vdisk import formats
from vdisk.errors import OptionError, Unsupported
from vdisk.formats.qcow2.image import Qcow2Image
from vdisk.formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot


def open_qcow2(path: Path, *, writable: bool = False, force_share: bool = False) -> Qcow2Image:
    disk = formats.open(path, format="qcow2", writable=writable, force_share=force_share)
    assert isinstance(disk, Qcow2Image)
    return disk


SHAPES = [
    {"cluster_size": "4K"},
    {"compat": "0.10"},
    {"extended_l2": "on"},
    {"cluster_size": "512", "refcount_bits": "4"},
    {"compression_type": "zstd"},
]


@pytest.mark.peer
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_snapshots_of_ours_live_through_changes(number: int, tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(number)
    lay_out(path, "qcow2", SHAPES[number], bytes(content), compress="compression_type" in SHAPES[number])
    kept: dict[str, bytes] = {}
    with open_qcow2(path, writable=True) as disk:
        for name in ("one", "two", "three"):
            kept[name] = bytes(content)
            create_snapshot(disk, name)
            scribble(disk, content, number)
        assert disk.read(0, SIZE) == content
    qemu_check(path)
    raw.write_bytes(content)
    qemu_compare(path, raw)
    assert [s["name"] for s in qemu_img_info(path)["snapshots"]] == list(kept)
    with open_qcow2(path) as disk:
        assert disk.check().findings == []
        assert disk.describe().snapshots == qemu_img_info(path)["snapshots"]
        for name, wanted in kept.items():
            with disk.open_snapshot(name) as old:
                assert old.read(0, old.size) == wanted
                check_map(old, wanted)
            qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", path, raw)
            assert raw.read_bytes() == wanted
    with open_qcow2(path, writable=True) as disk:
        apply_snapshot(disk, "one")
        assert disk.read(0, SIZE) == kept["one"]
        content[:] = kept["one"]
        scribble(disk, content, 99)
        delete_snapshot(disk, "two")
        assert disk.read(0, SIZE) == content
        with disk.open_snapshot("one") as old:
            assert old.read(0, SIZE) == kept["one"]
    qemu_check(path)
    raw.write_bytes(content)
    qemu_compare(path, raw)
    with open_qcow2(path, writable=True) as disk:
        for name in ("one", "three"):
            if name in kept:
                delete_snapshot(disk, name)
        scribble(disk, content, 100)
        assert disk.check().findings == []
    qemu_check(path)
    raw.write_bytes(content)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_a_snapshot_has_its_own_size(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = bytes(some_content(20))
    lay_out(path, "qcow2", {"cluster_size": "4K"}, content)
    qemu_img("snapshot", "-c", "long", path)
    qemu_img("resize", "-q", "--shrink", path, 1 << 20)
    with open_qcow2(path, writable=True) as disk:
        assert disk.size == 1 << 20
        with disk.open_snapshot("long") as old:
            assert old.size == SIZE
            assert old.read(0, SIZE) == content
        apply_snapshot(disk, "1")  # by its ID
        assert disk.size == SIZE
        assert disk.read(0, SIZE) == content
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, "1M", options={"refcount_bits": "1"})
    with open_qcow2(path, writable=True) as disk:
        with pytest.raises(Unsupported, match="one bit"):
            create_snapshot(disk, "x")
        with pytest.raises(OptionError, match="has no snapshot 'y'"):
            delete_snapshot(disk, "y")
    formats.create(path, "1M", options={"refcount_bits": "2"})
    with open_qcow2(path, writable=True) as disk:
        disk.write(0, b"x")
        create_snapshot(disk, "x")
        create_snapshot(disk, "y")
        before = path.read_bytes()
        with pytest.raises(OptionError, match="already"):
            create_snapshot(disk, "x")
        with pytest.raises(OptionError, match="reference counts of 2 bits"):
            create_snapshot(disk, "z")
        disk.flush()
        assert path.read_bytes() == before
        assert disk.check().findings == []
