"""Deltas: parents found, checked by their CID, read through, committed and rebased."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.formats.vmdk.handmade import cowd, descriptor
from tests.peers import qemu_compare, qemu_img_info
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError
from vdisk.formats.image import Backing
from vdisk.maintain.chain import commit, rebase

SIZE = (5 << 20) + 512
SPARSE = ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse")
noise = random.Random(1).randbytes


def make_child(path: Path, parent: str, size: int | None = None, **options: str) -> None:
    with formats.open_backing(path, parent, "vmdk") as behind:
        formats.create(
            path,
            behind.size if size is None else size,
            format="vmdk",
            options=options,
            backing=Backing(parent, "vmdk", behind),
        )


def cid_of(path: Path) -> int:
    with formats.open(path, backing=False) as disk:
        return int(disk.describe().specific["cid"])


def make_chain(folder: Path, subformat: str = "monolithicSparse", zeroed_grain: str = "off") -> bytearray:
    """base < middle < top, each with writes of its own; what top reads as."""
    content = bytearray(noise(SIZE))
    lay_out(folder / "base.vmdk", "vmdk", {}, bytes(content))
    options = {} if subformat == "vmfsSparse" else {"zeroed_grain": zeroed_grain}
    for number, (child, parent) in enumerate((("middle", "base"), ("top", "middle"))):
        make_child(folder / f"{child}.vmdk", f"{parent}.vmdk", subformat=subformat, **options)
        with formats.open(folder / f"{child}.vmdk", writable=True) as disk:
            for start, length in ((number * 100_000 + 7, 90_000), (SIZE - 1000 - number, 500)):
                data = noise(length)
                disk.write(start, data)
                content[start : start + length] = data
            start = (2 + number) << 20
            disk.write_zeroes(start, 200_000)
            content[start : start + 200_000] = bytes(200_000)
    return content


@pytest.mark.parametrize("zeroed_grain", ["off", "on"])
@pytest.mark.parametrize("subformat", SPARSE)
def test_a_chain_of_three_reads_through(tmp_path: Path, subformat: str, zeroed_grain: str) -> None:
    content = make_chain(tmp_path, subformat, zeroed_grain)
    with formats.open(tmp_path / "top.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
        said = disk.describe()
        assert (said.backing_name, said.backing_format) == ("middle.vmdk", "vmdk")
        assert {extent.depth for extent in disk.map()} == {0, 1, 2}


@pytest.mark.peer
@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse"])
def test_qemu_reads_the_chain(tmp_path: Path, subformat: str) -> None:
    content = make_chain(tmp_path, subformat, "on")
    (tmp_path / "top.raw").write_bytes(content)
    qemu_compare(tmp_path / "top.vmdk", tmp_path / "top.raw", formats=("vmdk", "raw"))
    assert qemu_img_info(tmp_path / "top.vmdk")["backing-filename"].endswith("middle.vmdk")


def test_a_parent_written_after_its_delta_is_refused(tmp_path: Path) -> None:
    make_chain(tmp_path)
    with formats.open(tmp_path / "base.vmdk", writable=True) as disk:
        disk.write(0, b"changed")
    with pytest.raises(Corrupt, match=r"parentCID: expected the CID .* found .* the parent was written"):
        formats.open(tmp_path / "top.vmdk")
    with formats.open(tmp_path / "middle.vmdk", backing=False) as disk:
        assert disk.describe().backing_name == "base.vmdk"


def test_a_missing_or_hostile_parent_is_named(tmp_path: Path) -> None:
    make_chain(tmp_path)
    (tmp_path / "base.vmdk").unlink()
    with pytest.raises(StorageError, match=r"parentFileNameHint: 'base\.vmdk'"):
        formats.open(tmp_path / "top.vmdk")
    with formats.open(tmp_path / "middle.vmdk", backing=False, writable=True) as disk:
        disk.descriptor.set_parent(5, "/etc/passwd")  # type: ignore[attr-defined]
        disk.write_descriptor()  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match="outside the image's folder"):
        formats.open(tmp_path / "middle.vmdk")


def test_a_chain_that_was_moved_is_found_beside_the_image(tmp_path: Path) -> None:
    content = make_chain(tmp_path)
    for hint in ("/vmfs/volumes/old/middle.vmdk", "C:\\VMs\\middle.vmdk"):
        with formats.open(tmp_path / "top.vmdk", backing=False, writable=True) as disk:
            disk.descriptor.set_parent(cid_of(tmp_path / "middle.vmdk"), hint)  # type: ignore[attr-defined]
            disk.write_descriptor()  # type: ignore[attr-defined]
        with formats.open(tmp_path / "top.vmdk") as disk:
            assert disk.read(0, disk.size) == content
            assert any("found beside" in note for note in disk.describe().notes)


def test_a_parent_s_name_without_a_parent_cid_is_no_parent(tmp_path: Path) -> None:
    formats.create(tmp_path / "a.vmdk", "1M")
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        disk.descriptor.set("parentFileNameHint", "/etc/passwd")  # type: ignore[attr-defined]
        disk.write_descriptor()  # type: ignore[attr-defined]
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.backing is None
        assert not any(disk.read(0, disk.size))


@pytest.mark.parametrize("subformat", SPARSE)
def test_committing_leaves_a_chain_that_opens(tmp_path: Path, subformat: str) -> None:
    content = make_chain(tmp_path, subformat)
    commit(tmp_path / "top.vmdk")
    for name in ("top", "middle"):
        with formats.open(tmp_path / f"{name}.vmdk") as disk:
            assert disk.read(0, disk.size) == content, name


@pytest.mark.parametrize("target", ["base.vmdk", "other.vmdk", None])
def test_rebasing_keeps_the_disk(tmp_path: Path, target: str | None) -> None:
    content = make_chain(tmp_path)
    lay_out(tmp_path / "other.vmdk", "vmdk", {"subformat": "monolithicFlat"}, noise(3 << 20))
    rebase(tmp_path / "top.vmdk", target, None if target is None else "vmdk")
    (tmp_path / "middle.vmdk").unlink()
    with formats.open(tmp_path / "top.vmdk") as disk:
        assert disk.describe().backing_name == target
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


def test_a_child_longer_or_shorter_than_its_parent(tmp_path: Path) -> None:
    data = noise(1 << 20)
    lay_out(tmp_path / "base.vmdk", "vmdk", {}, data)
    make_child(tmp_path / "long.vmdk", "base.vmdk", 3 << 20)
    make_child(tmp_path / "short.vmdk", "base.vmdk", 300 << 10)
    with formats.open(tmp_path / "long.vmdk") as disk:
        assert disk.read(0, disk.size) == data + bytes(2 << 20)
    with formats.open(tmp_path / "short.vmdk") as disk:
        assert disk.read(0, disk.size) == data[: 300 << 10]


def test_a_delta_of_several_extents_sees_the_right_part_of_its_parent(tmp_path: Path) -> None:
    data = noise(300 * 512)
    lay_out(tmp_path / "base.vmdk", "vmdk", {}, data)
    (tmp_path / "one.vmdk").write_bytes(cowd({3: b"one".ljust(512)}, 100))
    (tmp_path / "two.vmdk").write_bytes(cowd({5: b"two".ljust(512)}, 250))
    (tmp_path / "delta.vmdk").write_text(
        descriptor(
            'RW 100 VMFSSPARSE "one.vmdk"', "RW 10 ZERO", 'RW 250 VMFSSPARSE "two.vmdk"', create_type="vmfsSparse",
            parent=cid_of(tmp_path / "base.vmdk"), more='parentFileNameHint="base.vmdk"',
        )
    )  # fmt: skip
    content = bytearray((data + bytes(60 * 512))[: 360 * 512])
    content[3 * 512 : 4 * 512] = b"one".ljust(512)
    content[100 * 512 : 110 * 512] = bytes(10 * 512)
    content[115 * 512 : 116 * 512] = b"two".ljust(512)
    with formats.open(tmp_path / "delta.vmdk", writable=True) as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
        disk.write(99 * 512 - 1, b"xyz")
        disk.write(301 * 512, b"past the parent")
        content[99 * 512 - 1 : 99 * 512 + 2] = b"xyz"
        content[301 * 512 : 301 * 512 + 15] = b"past the parent"
    with formats.open(tmp_path / "delta.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


def test_what_cannot_have_a_parent_says_so(tmp_path: Path) -> None:
    formats.create(tmp_path / "base.vmdk", "1M")
    formats.create(tmp_path / "base.img", "1M")
    for subformat in ("monolithicFlat", "twoGbMaxExtentFlat", "streamOptimized", "vmfs"):
        with pytest.raises(OptionError, match="cannot have a backing file"):
            make_child(tmp_path / "a.vmdk", "base.vmdk", subformat=subformat)
    with formats.open_backing(tmp_path / "a.vmdk", "base.img", "raw") as raw, pytest.raises(OptionError, match="VMDK"):
        formats.create(tmp_path / "a.vmdk", "1M", backing=Backing("base.img", "raw", raw))
    formats.create(tmp_path / "flat.vmdk", "1M", options={"subformat": "monolithicFlat"})
    with (
        formats.open(tmp_path / "flat.vmdk", writable=True) as disk,
        pytest.raises(OptionError, match="only sparse extents"),
    ):
        disk.set_backing("base.vmdk", "vmdk")
