"""Differencing VDIs: blocks that are not their own are the parent's, which is the right one and unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.chain import SIZE, ChainConformance, make_base, make_child, read_all, write_chain
from vdisk import converter, formats
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError
from vdisk.formats.image import Backing
from vdisk.maintain import chain
from vdisk.storage.staging import Staging


class TestChain(ChainConformance):
    format = "vdi"
    alone = {"image-type": "dynamic"}


@pytest.mark.parametrize("block_size", ["4K", "64K", "1M"])
@pytest.mark.parametrize("static", ["off", "on"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_chain_of_three_reads_as_its_model(tmp_path: Path, seed: int, static: str, block_size: str) -> None:
    paths = [tmp_path / f"{name}.vdi" for name in ("base", "middle", "top")]
    states = write_chain(paths, seed, {"static": static}, {"block_size": block_size})
    for path, state in zip(paths, states, strict=True):
        # The parents were not written after their children were made, for those would not open.
        assert read_all(path) == state
        with formats.open(path, backing=False) as disk:
            assert disk.check().findings == []


def test_the_parent_is_named_without_being_opened(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    make_base(base)
    make_child(child, base)
    with formats.open(child, backing=False) as disk:
        said = disk.describe()
        assert (said.backing_name, said.backing_format, said.notes) == ("base.vdi", "vdi", [])
    base.unlink()
    with formats.open(child, backing=False) as disk:
        assert disk.describe().backing_name is None
        assert "not among the .vdi files" in disk.describe().notes[0]


def test_only_the_folder_itself_is_looked_at(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    content = make_base(base)
    make_child(child, base)
    (tmp_path / "below").mkdir()
    base.rename(tmp_path / "below" / "base.vdi")
    with pytest.raises(StorageError, match=r"no \.vdi file beside the image has it"):
        formats.open(child)
    # Links out of the folder are not followed, and what is no VDI is passed over.
    (tmp_path / "a.vdi").symlink_to("/etc/passwd")
    (tmp_path / "b.vdi").mkdir()
    (tmp_path / "c.vdi").write_bytes(b"no VDI")
    (tmp_path / "d.vdi").write_bytes((tmp_path / "below" / "base.vdi").read_bytes())
    assert read_all(child) == content
    with pytest.raises(PolicyError, match="no-references"):
        formats.open(child, references=False)


def test_of_copies_of_the_parent_the_unchanged_one_is_taken(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    content = make_base(base)
    make_child(child, base)
    for name in ("a.vdi", "z.vdi"):
        (tmp_path / name).write_bytes(base.read_bytes())
        with formats.open(tmp_path / name, writable=True) as disk:
            disk.write(0, b"changed")
    assert read_all(child) == content


@pytest.mark.parametrize("unmap", [True, False])
def test_zeros_hide_the_parent(tmp_path: Path, unmap: bool) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    content = make_base(base)
    make_child(child, base)
    with formats.open(child, writable=True) as disk:
        disk.write_zeroes(512, 3 << 20, unmap=unmap)
    content[512 : 512 + (3 << 20)] = bytes(3 << 20)
    assert read_all(child) == content


def test_a_writer_lays_out_a_child(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    content = make_base(base, block_size="64K")
    new = bytes(range(256)) * 1024
    with formats.open(base) as device, Staging(child) as staging:
        writer = formats.find_format("vdi").writer_class()(
            staging, SIZE, {}, backing=Backing("base.vdi", "vdi", device)
        )
        for at in (1 << 20, 5 << 20):
            for place in writer.place(at, len(new)):
                place.storage.write(place.host, new[place.offset - at :][: place.length])
            content[at : at + len(new)] = new
        writer.zero(1 << 18, 1 << 16)
        content[1 << 18 : (1 << 18) + (1 << 16)] = bytes(1 << 16)
        writer.finish()
        staging.commit()
    assert read_all(child) == content
    with formats.open(child, backing=False) as disk:
        assert disk.check().findings == []
        assert disk.describe().cluster_size == 65536, "the parent's block size"


def test_a_conversion_onto_a_base_stores_the_difference(tmp_path: Path) -> None:
    content = make_base(tmp_path / "base.vdi")
    content[3 << 20 : (3 << 20) + 4096] = b"n" * 4096
    content[0 : 2 << 20] = bytes(2 << 20)
    (tmp_path / "new.raw").write_bytes(content)
    converter.convert(tmp_path / "new.raw", tmp_path / "child.vdi", backing="base.vdi", backing_format="vdi")
    assert read_all(tmp_path / "child.vdi") == content
    converter.convert(tmp_path / "child.vdi", tmp_path / "flat.vdi")
    assert read_all(tmp_path / "flat.vdi") == content


def test_a_parent_that_was_written_since_is_refused(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vdi", tmp_path / "child.vdi"
    make_base(base)
    make_child(child, base)
    with formats.open(base, writable=True) as disk:
        disk.write(0, b"changed")
    with pytest.raises(Corrupt, match="parent modification UUID"):
        formats.open(child)
    formats.open(child, backing=False).close()
    chain.rebase(child, "base.vdi", "vdi", unsafe=True)
    with formats.open(child) as disk:
        assert disk.read(0, 7) == b"changed"


def test_a_parent_elsewhere_would_not_be_found(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    make_base(tmp_path / "base.vdi")
    with formats.open(tmp_path / "base.vdi") as device, pytest.raises(OptionError, match="in its own folder"):
        formats.create(inside / "child.vdi", SIZE, backing=Backing("../base.vdi", "vdi", device))
    (tmp_path / "base.vdi").rename(tmp_path / "base.img")
    with formats.open(tmp_path / "base.img") as device, pytest.raises(OptionError, match="in its own folder"):
        formats.create(tmp_path / "child.vdi", SIZE, backing=Backing("base.img", "vdi", device))


def test_what_cannot_be_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(SIZE))
    with (
        formats.open(tmp_path / "base.img") as device,
        pytest.raises(OptionError, match="expected a VDI file, found raw"),
    ):
        formats.create(tmp_path / "child.vdi", SIZE, backing=Backing("base.img", "raw", device))
    make_base(tmp_path / "base.vdi")
    with pytest.raises(OptionError, match="a static image cannot"):
        make_child(tmp_path / "child.vdi", tmp_path / "base.vdi", static="on")
