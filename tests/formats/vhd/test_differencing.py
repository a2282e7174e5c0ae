"""Differencing VHDs: sectors that are not their own are the parent's, which is the right one and unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.conformance.chain import SIZE, ChainConformance, make_base, make_child, read_all, write_chain
from tests.peers import libyal_info, libyal_sha256
from vdisk import converter, formats
from vdisk.block.extent import Kind
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError
from vdisk.formats.image import Backing
from vdisk.formats.vhd.image import VhdImage
from vdisk.maintain import chain
from vdisk.storage.staging import Staging


class TestChain(ChainConformance):
    format = "vhd"
    alone = {"subformat": "dynamic"}


@pytest.mark.peer
@pytest.mark.parametrize("block_size", ["4K", "64K", "2M"])
@pytest.mark.parametrize("base_kind", ["fixed", "dynamic"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_chain_of_three_reads_as_its_model(tmp_path: Path, seed: int, base_kind: str, block_size: str) -> None:
    paths = [tmp_path / f"{name}.vhd" for name in ("base", "middle", "top")]
    states = write_chain(paths, seed, {"subformat": base_kind}, {"block_size": block_size})
    for path, state in zip(paths, states, strict=True):
        # The parents were not written after their children were made, for those would not open.
        assert read_all(path) == state
        with formats.open(path, backing=False) as disk:
            assert disk.check().findings == []
    # Of reads over several blocks, libvhdi gives zeros for some sectors that are the child's own; FUSE reads 128 KiB.
    if block_size != "64K":
        assert libyal_sha256("vhd", paths[2]) == hashlib.sha256(states[2]).hexdigest()


@pytest.mark.peer
def test_libvhdi_finds_nothing_strange(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    make_base(base)
    make_child(child, base)
    said = libyal_info("vhd", child)
    assert "Differential" in said
    assert "base.vhd" in said


def test_one_sector_is_copied_up_and_not_a_block(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write(1_048_576 + 700, b"x" * 10)
    content[1_048_576 + 700 : 1_048_576 + 710] = b"x" * 10
    assert read_all(child) == content
    with formats.open(child) as disk:
        own = [extent for extent in disk.map() if extent.depth == 0 and extent.is_present]
        assert [(extent.start, extent.length, extent.kind) for extent in own] == [(1_048_576 + 512, 512, Kind.DATA)]


@pytest.mark.parametrize("unmap", [True, False])
def test_zeros_hide_the_parent(tmp_path: Path, unmap: bool) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write_zeroes(512, 3 << 20, unmap=unmap)
    content[512 : 512 + (3 << 20)] = bytes(3 << 20)
    assert read_all(child) == content


def test_a_writer_lays_out_a_child(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base, block_size="64K")
    new = bytes(range(256)) * 1024
    with formats.open(base) as device, Staging(child) as staging:
        writer = formats.find_format("vhd").writer_class()(
            staging, SIZE, {}, backing=Backing("base.vhd", "vhd", device)
        )
        for at in (1 << 20, (5 << 20) + 4096):
            for place in writer.place(at, len(new)):
                place.storage.write(place.host, new[place.offset - at :][: place.length])
            content[at : at + len(new)] = new
        writer.zero(1 << 18, 1 << 12)
        content[1 << 18 : (1 << 18) + (1 << 12)] = bytes(1 << 12)
        writer.finish()
        staging.commit()
    assert read_all(child) == content
    with formats.open(child, backing=False) as disk:
        assert disk.check().findings == []
        assert disk.describe().cluster_size == 65536, "the parent's block size"


@pytest.mark.peer
def test_a_conversion_onto_a_base_stores_the_difference(tmp_path: Path) -> None:
    content = make_base(tmp_path / "base.vhd")
    content[3 << 20 : (3 << 20) + 4096] = b"n" * 4096
    content[0 : 2 << 20] = bytes(2 << 20)
    (tmp_path / "new.raw").write_bytes(content)
    converter.convert(tmp_path / "new.raw", tmp_path / "child.vhd", backing="base.vhd", backing_format="vhd")
    assert read_all(tmp_path / "child.vhd") == content
    converter.convert(tmp_path / "child.vhd", tmp_path / "flat.vhd")
    assert read_all(tmp_path / "flat.vhd") == content
    assert libyal_sha256("vhd", tmp_path / "child.vhd") == hashlib.sha256(content).hexdigest()


def test_the_locators_say_where_the_parent_is(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    make_base(base)
    make_child(child, base)
    raw = child.read_bytes()
    assert ".\\base.vhd".encode("utf-16-le") in raw
    assert str(base).replace("/", "\\").encode("utf-16-le") in raw
    assert "base.vhd".encode("utf-16-be") in raw
    assert [raw[512 + 576 + 24 * number :][:4] for number in range(3)] == [b"W2ru", b"W2ku", bytes(4)]
    with formats.open(child) as disk:
        said = disk.describe()
        assert (said.backing_name, said.backing_format, said.specific["subformat"]) == (
            "base.vhd",
            "vhd",
            "differencing",
        )


@pytest.mark.parametrize("lost", [b"W2ru", b"W2ku", b"both"])
def test_any_of_the_parents_names_will_do(tmp_path: Path, lost: bytes) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True, backing=False) as disk:
        assert isinstance(disk, VhdImage)
        assert disk.header is not None
        disk.header.parent_locators = [one for one in disk.header.parent_locators if lost not in (one.code, b"both")]
        disk.write_header()
    assert read_all(child) == content


def test_a_parent_that_was_written_since_is_refused(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    make_base(base)
    make_child(child, base)
    with formats.open(base, writable=True) as disk:
        disk.write(0, b"changed")
    with pytest.raises(Corrupt, match="parent_timestamp"):
        formats.open(child)
    formats.open(child, backing=False).close()
    chain.rebase(child, "base.vhd", "vhd", unsafe=True)
    with formats.open(child) as disk:
        assert disk.read(0, 7) == b"changed"


def test_another_disk_of_the_parents_name_is_refused(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    make_base(base)
    make_child(child, base)
    make_base(base)
    with pytest.raises(Corrupt, match="parent_unique_id"):
        formats.open(child)


def test_a_parent_is_found_by_its_name_beside_the_child(tmp_path: Path) -> None:
    """Windows' paths lead nowhere here; the file's name does, and its identity is checked."""
    away = tmp_path / "elsewhere"
    away.mkdir()
    content = make_base(away / "base.vhd")
    with formats.open(away / "base.vhd") as device:
        backing = Backing("C:\\VMs\\base.vhd", "vhd", device)
        formats.create(tmp_path / "child.vhd", SIZE, backing=backing)
    with pytest.raises(StorageError, match=r"base\.vhd"):
        formats.open(tmp_path / "child.vhd")
    (away / "base.vhd").rename(tmp_path / "base.vhd")
    assert read_all(tmp_path / "child.vhd") == content


def test_a_parent_outside_the_folder_needs_leave(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    content = make_base(tmp_path / "base.vhd")
    for name in ("../base.vhd", str(tmp_path / "base.vhd")):
        with formats.open(tmp_path / "base.vhd") as device:
            formats.create(inside / "child.vhd", SIZE, backing=Backing(name, "vhd", device))
        with pytest.raises(PolicyError, match="outside"):
            formats.open(inside / "child.vhd")
        with formats.open(inside / "child.vhd", allow=[tmp_path]) as disk:
            assert disk.describe().backing_name == name
            assert disk.read(0, disk.size) == content


def test_what_cannot_be_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(SIZE))
    with (
        formats.open(tmp_path / "base.img") as device,
        pytest.raises(OptionError, match="expected a VHD file, found raw"),
    ):
        formats.create(tmp_path / "child.vhd", SIZE, backing=Backing("base.img", "raw", device))
    make_base(tmp_path / "base.vhd")
    with pytest.raises(OptionError, match="a fixed disk cannot"):
        make_child(tmp_path / "child.vhd", tmp_path / "base.vhd", subformat="fixed")


def test_a_longer_name_gets_room_of_its_own(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    content = make_base(base)
    make_child(child, base)
    long = "x" * 230 + ".vhd"
    base.rename(tmp_path / long)
    chain.rebase(child, long, "vhd", unsafe=True)
    assert read_all(child) == content
    with formats.open(child) as disk:
        assert disk.describe().backing_name == long
        assert disk.check().corruptions == 0
