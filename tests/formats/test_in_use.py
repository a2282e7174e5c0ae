"""An image that somebody has open: every file of it is held, and our own work does not stand in its own way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vdisk
from tests.conformance.chain import SIZE, make_base, make_child, read_all
from tests.conformance.image import lay_out
from tests.formats.vmdk.handmade import descriptor
from vdisk import formats
from vdisk.converter import convert
from vdisk.errors import InUse, OptionError
from vdisk.formats.image import Backing
from vdisk.inspect.info import chain_of, info
from vdisk.maintain import chain
from vdisk.storage.locks import open_held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system has these locks")

VARIANTS = {
    "qcow2": ("qcow2", {}),
    "data file": ("qcow2", {"data_file": "disk.data"}),
    "vmdk": ("vmdk", {}),
    "flat": ("vmdk", {"subformat": "monolithicFlat"}),
    "split": ("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    "vdi": ("vdi", {}),
    "vhd": ("vhd", {}),
    "vhdx": ("vhdx", {}),
    "parallels": ("parallels", {}),
    "raw": ("raw", {}),
}


@contextmanager
def in_use(path: Path, *, writable: bool) -> Iterator[None]:
    """Somebody else, of whom a second open of the file in this process is the like."""
    with open_held(path, writable=writable):
        yield


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_of_an_image_is_held(variant: str, tmp_path: Path) -> None:
    name, options = VARIANTS[variant]
    path = tmp_path / "disk"
    lay_out(path, name, options, b"x" * 65536)
    files = list(tmp_path.iterdir())
    assert len(files) == (2 if variant in ("data file", "flat", "split") else 1)
    with formats.open(path, writable=True, format=name):
        for file in files:
            with pytest.raises(InUse, match="writes to it"):
                open_held(file)
    with formats.open(path, format=name):
        for file in files:
            open_held(file).close()
            with pytest.raises(InUse, match="reads it"):
                open_held(file, writable=True)
    for file in files:
        with in_use(file, writable=True):
            with pytest.raises(InUse, match="--force-share"):
                formats.open(path, format=name)
            with pytest.raises(InUse):
                formats.open(path, writable=True, format=name)
            with formats.open(path, format=name, force_share=True) as disk:
                assert disk.read(0, 4) == b"xxxx"
    formats.open(path, writable=True, format=name).close()


@pytest.mark.parametrize("suffix", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
class TestChains:
    def test_what_lies_behind_is_held_as_read(self, suffix: str, tmp_path: Path) -> None:
        base, child, second = (tmp_path / f"{name}.{suffix}" for name in ("base", "child", "second"))
        make_base(base)
        make_child(child, base)
        make_child(second, base)
        with vdisk.open(child, writable=True), vdisk.open(second, writable=True):
            vdisk.open(base).close()
            with pytest.raises(InUse, match="reads it"):
                vdisk.open(base, writable=True)
        with in_use(base, writable=True):
            with pytest.raises(InUse, match="writes to it"):
                vdisk.open(child)
            with vdisk.open(child, force_share=True) as disk:
                assert disk.size == SIZE
            assert len(chain_of(child, force_share=True)) == 2
            info(child)

    def test_a_commit_waits_for_nobody_and_spoils_nothing(self, suffix: str, tmp_path: Path) -> None:
        base, child, other = (tmp_path / f"{name}.{suffix}" for name in ("base", "child", "other"))
        make_base(base)
        make_child(child, base)
        make_child(other, base)
        with vdisk.open(child, writable=True) as disk:
            disk.write(0, b"child")
        before = base.read_bytes(), child.read_bytes()
        for file, writable in ((other, False), (base, False), (child, False), (child, True), (base, True)):
            with vdisk.open(file, writable=writable), pytest.raises(InUse):
                chain.commit(child)
            assert (base.read_bytes(), child.read_bytes()) == before
        content = read_all(child)
        chain.commit(child)
        assert read_all(base) == read_all(child) == content

    def test_a_rebase_does_not_lock_itself_out(self, suffix: str, tmp_path: Path) -> None:
        base, child = tmp_path / f"base.{suffix}", tmp_path / f"child.{suffix}"
        make_base(base)
        make_child(child, base)
        with in_use(base, writable=True), pytest.raises(InUse):
            chain.rebase(child, base.name, suffix)
        chain.rebase(child, base.name, suffix)
        assert read_all(child) == read_all(base)


def test_a_parent_in_use_is_not_looked_for_under_another_name(tmp_path: Path) -> None:
    """A VMDK's parent that cannot be had where it is named is sought beside the image: not when it is only busy."""
    (tmp_path / "old").mkdir()
    base, child = tmp_path / "old" / "base.vmdk", tmp_path / "child.vmdk"
    make_base(base)
    with formats.open(base) as device:
        formats.create(child, SIZE, backing=Backing("old/base.vmdk", "vmdk", device))
    (tmp_path / "base.vmdk").write_bytes(base.read_bytes())
    with in_use(base, writable=True), pytest.raises(InUse, match=r"old/base\.vmdk"):
        vdisk.open(child)


def test_two_extents_in_one_file_are_no_two_programs(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    (tmp_path / "flat").write_bytes(bytes(128 << 10))
    path.write_text(descriptor('RW 128 FLAT "flat" 128', 'RW 128 FLAT "flat" 0'))
    with vdisk.open(path, writable=True) as disk:
        disk.write((64 << 10) - 2, b"edge")
        with pytest.raises(InUse):
            open_held(tmp_path / "flat")
    data = (tmp_path / "flat").read_bytes()
    assert (data[-2:], data[:2]) == (b"ed", b"ge")


def test_a_stranger_beside_a_vdi_is_nobody_s_business(tmp_path: Path) -> None:
    """A VDI seeks its parent among its neighbours: those may be in use, and are not held."""
    base, child, stranger = (tmp_path / f"{name}.vdi" for name in ("base", "child", "a-stranger"))
    make_base(base)
    make_child(child, base)
    make_base(stranger, seed=2)
    with in_use(stranger, writable=True):
        vdisk.open(child, writable=True).close()
    with vdisk.open(child):
        vdisk.open(stranger, writable=True).close()


def test_only_readers_share(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.qcow2", "1M")
    with pytest.raises(OptionError, match="only who reads"):
        vdisk.open(tmp_path / "disk.qcow2", writable=True, force_share=True)


class TestConvert:
    def test_neither_side_may_be_in_use(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
        content = bytes(make_base(source))
        vdisk.create(target, "1M")
        before = target.read_bytes()
        for writable in (True, False):
            with vdisk.open(target, writable=writable), pytest.raises(InUse, match=r"b\.qcow2.*stop it first$"):
                convert(source, target)
            assert target.read_bytes() == before
        with vdisk.open(source, writable=True) as disk:
            with pytest.raises(InUse, match=r"a\.qcow2"):
                convert(source, target)
            disk.flush()
            convert(source, target, force_share=True)
        assert read_all(target) == content

    def test_a_resumable_one_leaves_no_folder_behind(self, tmp_path: Path) -> None:
        vdisk.create(tmp_path / "a.qcow2", "1M")
        vdisk.create(tmp_path / "b.qcow2", "1M")
        with in_use(tmp_path / "b.qcow2", writable=False), pytest.raises(InUse):
            convert(tmp_path / "a.qcow2", tmp_path / "b.qcow2", resume=True)
        assert {path.name for path in tmp_path.iterdir()} == {"a.qcow2", "b.qcow2"}
        convert(tmp_path / "a.qcow2", tmp_path / "b.qcow2", resume=True)

    def test_extents_that_would_be_replaced_count(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a.qcow2", tmp_path / "b.vmdk"
        vdisk.create(source, "1M")
        convert(source, target, options={"subformat": "monolithicFlat"})
        with in_use(tmp_path / "b-flat.vmdk", writable=False), pytest.raises(InUse, match="b-flat"):
            convert(source, target, options={"subformat": "monolithicFlat"})
        convert(source, target, options={"subformat": "monolithicFlat"})

    def test_packages_are_held_too(self, tmp_path: Path) -> None:
        source, package = tmp_path / "a.qcow2", tmp_path / "a.ova"
        vdisk.create(source, "1M")
        convert(source, package)
        with in_use(package, writable=True):
            with pytest.raises(InUse):
                convert(package, tmp_path / "b.qcow2")
            convert(package, tmp_path / "b.qcow2", force_share=True)


def test_a_new_overlay_does_not_mind_a_busy_base_when_told(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    vdisk.create(base, "1M")
    with in_use(base, writable=True):
        with pytest.raises(InUse):
            formats.open_backing(tmp_path / "top.qcow2", "base.qcow2", "qcow2")
        formats.open_backing(tmp_path / "top.qcow2", "base.qcow2", "qcow2", force_share=True).close()


def test_a_bundle_stays_held_when_its_descriptor_is_written_anew(tmp_path: Path) -> None:
    bundle = tmp_path / "disk.hdd"
    vdisk.create(bundle, "8M", format="parallels")
    assert bundle.is_dir()
    with vdisk.open(bundle, writable=True) as disk:
        disk.resize(16 << 20)
        with pytest.raises(InUse):
            vdisk.open(bundle)
        disk.write(12 << 20, b"there")
    with vdisk.open(bundle) as disk:
        assert disk.read(12 << 20, 5) == b"there"


def test_a_split_disk_holds_the_files_that_it_grows_by(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    vdisk.create(path, 2 << 30, options={"subformat": "twoGbMaxExtentSparse"})
    with vdisk.open(path, writable=True) as disk:
        disk.resize(5 << 30)
        new = sorted(tmp_path.glob("disk-s*.vmdk"))[-1]
        with pytest.raises(InUse):
            open_held(new)
