"""Differencing VHDX files: sectors that are not their own are the parent's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.chain import SIZE, ChainConformance, make_base, make_child, read_all, write_chain
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError
from vdisk.formats.image import Backing
from vdisk.formats.vhdx.image import VhdxImage
from vdisk.storage.staging import Staging


class TestChain(ChainConformance):
    format = "vhdx"


@pytest.mark.parametrize("sector", ["512", "4096"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chain_of_three_reads_as_its_model(tmp_path: Path, seed: int, sector: str) -> None:
    size = SIZE if sector == "512" else 6 << 20
    paths = [tmp_path / f"{name}.vhdx" for name in ("base", "middle", "top")]
    states = write_chain(paths, seed, {"logical_sector_size": sector}, {"logical_sector_size": sector}, size)
    for path, state in zip(paths, states, strict=True):
        assert read_all(path) == state
        with formats.open(path) as disk:
            assert disk.check().exit_status == 0


def test_one_sector_is_copied_up_and_not_a_block(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write(1_048_576 + 700, b"x" * 10)
    content[1_048_576 + 700 : 1_048_576 + 710] = b"x" * 10
    assert read_all(child) == content
    with formats.open(child) as disk:
        own = [extent for extent in disk.map() if extent.depth == 0 and extent.is_present]
        assert [(extent.start, extent.length, extent.kind) for extent in own] == [(1_048_576 + 512, 512, Kind.DATA)]


def test_zeros_hide_the_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write_zeroes(512, 3 << 20)
    content[512 : 512 + (3 << 20)] = bytes(3 << 20)
    assert read_all(child) == content


def test_a_writer_lays_out_a_child(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    content = make_base(base, block_size="1M")
    new = bytes(range(256)) * 1024
    with formats.open(base) as device, Staging(child) as staging:
        writer = formats.find_format("vhdx").writer_class()(
            staging, SIZE, {"block_size": "2M"}, backing=Backing("base.vhdx", "vhdx", device)
        )
        for at in (1 << 20, 5 << 20):
            for place in writer.place(at, len(new)):
                place.storage.write(place.host, new[place.offset - at :][: place.length])
            content[at : at + len(new)] = new
        writer.zero(1 << 18, 1 << 16)
        content[1 << 18 : (1 << 18) + (1 << 16)] = bytes(1 << 16)
        writer.zero(2 << 20, 2 << 20)
        content[2 << 20 : 4 << 20] = bytes(2 << 20)
        writer.finish()
        staging.commit()
    assert read_all(child) == content
    with formats.open(child) as disk:
        assert disk.check().exit_status == 0


def test_the_locator_says_where_the_parent_is(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    make_base(base)
    make_child(child, base)
    with formats.open(child) as disk:
        assert isinstance(disk, VhdxImage)
        assert isinstance(disk.backing, VhdxImage)
        locator = disk.metadata.locator
        assert locator["relative_path"] == ".\\base.vhdx"
        assert locator["parent_linkage"] == f"{{{disk.backing.data_write_guid}}}"
        said = disk.describe()
        assert (said.backing_name, said.backing_format) == ("base.vhdx", "vhdx")


def test_a_parent_that_was_written_since_is_refused(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    make_base(base)
    make_child(child, base)
    with formats.open(base, writable=True) as disk:
        disk.write(0, b"changed")
    with pytest.raises(Corrupt, match="parent_linkage"):
        formats.open(child)
    formats.open(child, backing=False).close()


def test_a_parent_is_found_by_its_name_beside_the_child(tmp_path: Path) -> None:
    """Windows' paths lead nowhere here; the file's name does, and its identity is checked."""
    away = tmp_path / "elsewhere"
    away.mkdir()
    content = make_base(away / "base.vhdx")
    with formats.open(away / "base.vhdx") as device:
        backing = Backing("C:\\VMs\\base.vhdx", "vhdx", device)
        formats.create(tmp_path / "child.vhdx", SIZE, backing=backing)
    with pytest.raises(StorageError, match=r"base\.vhdx"):
        formats.open(tmp_path / "child.vhdx")
    (away / "base.vhdx").rename(tmp_path / "base.vhdx")
    assert read_all(tmp_path / "child.vhdx") == content


def test_a_parent_outside_the_folder_needs_leave(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    content = make_base(tmp_path / "base.vhdx")
    with formats.open(tmp_path / "base.vhdx") as device:
        formats.create(inside / "child.vhdx", SIZE, backing=Backing("../base.vhdx", "vhdx", device))
    with pytest.raises(PolicyError, match="outside"):
        formats.open(inside / "child.vhdx")
    with formats.open(inside / "child.vhdx", allow=[tmp_path]) as disk:
        assert disk.read(0, disk.size) == content


def test_a_parent_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(SIZE))
    with formats.open(tmp_path / "base.img") as device, pytest.raises(OptionError, match="VHDX"):
        formats.create(tmp_path / "child.vhdx", SIZE, backing=Backing("base.img", "raw", device))
