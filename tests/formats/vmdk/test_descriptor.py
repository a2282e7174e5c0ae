"""Descriptors: long ones, renamed files, identifiers that change with the content, options that reach the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.vmdk.handmade import descriptor, header, write_descriptor
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.vmdk.descriptor import Descriptor


def test_a_renamed_file_opens_whatever_its_descriptor_calls_it(tmp_path: Path) -> None:
    lay_out(tmp_path / "old.vmdk", "vmdk", {}, b"x" * 70_000 + bytes(2 * 512 - 70_000 % 512))
    (tmp_path / "old.vmdk").rename(tmp_path / "new.vmdk")
    with formats.open(tmp_path / "new.vmdk") as disk:
        assert disk.read(0, 70_000) == b"x" * 70_000
        assert any("renamed" in note for note in disk.describe().notes)


def test_a_descriptor_of_many_extents_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"".join(i.to_bytes(2, "little") * 256 for i in range(500)))
    lines = [f'RW 1 FLAT "a.img" {499 - i}' for i in range(500)]
    path = write_descriptor(tmp_path / "disk.vmdk", *lines)
    assert path.stat().st_size > 10 << 10
    with formats.open(path) as disk:
        assert disk.size == 500 * 512
        assert disk.read(0, 2) == (499).to_bytes(2, "little")
        assert disk.read(499 * 512, 2) == bytes(2)


def test_an_embedded_descriptor_longer_than_ten_kilobytes_is_read_whole(tmp_path: Path) -> None:
    text = descriptor('RW 256 SPARSE "a.vmdk"', more="# filler\n" * 2000 + 'ddb.late = "yes"\n')
    raw = header(capacity=256, descriptor=(1, 60), directory=62, overhead=128)
    raw += text.encode().ljust(60 * 512, b"\0")
    (tmp_path / "a.vmdk").write_bytes(raw.ljust(65536, b"\0"))
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        assert disk.describe().specific["ddb"]["late"] == "yes"
        disk.write(0, b"data")
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.describe().specific["ddb"]["late"] == "yes"
        assert disk.read(0, 4) == b"data"


def test_a_long_extent_list_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "800G", options={"subformat": "twoGbMaxExtentSparse"})
    assert path.stat().st_size > 10 << 10
    with formats.open(path, writable=True) as disk:
        disk.write((799 << 30) + 5, b"far")
    with formats.open(path) as disk:
        assert disk.size == 800 << 30
        assert disk.read((799 << 30) + 5, 3) == b"far"
    assert len(list(tmp_path.glob("a-s*.vmdk"))) == 401


@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "vmfsSparse"])
def test_the_cid_changes_with_the_first_write_and_only_then(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "1M", options={"subformat": subformat})

    def cid() -> int:
        with formats.open(path, force_share=True) as disk:
            return int(disk.describe().specific["cid"])

    first = cid()
    with formats.open(path, writable=True) as disk:
        disk.read(0, 512)
    assert cid() == first
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x")
        second = cid()  # on the disk already: a delta must notice before the data changes
        disk.write(1, b"y")
    assert second != first
    assert cid() == second
    assert cid() not in (0, 0xFFFFFFFF, 0xFFFFFFFE)


def test_the_identifiers_of_vmware_and_virtualbox_follow_the_cid(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    old = "00112233-4455-6677-8899-aabbccddeeff"
    formats.create(path, "1M", options={"ddb": f"longContentID:{'0' * 32};uuid.modification:{old};uuid.image:{old}"})
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x")
    with formats.open(path) as disk:
        found = disk.describe().specific
    assert found["ddb"]["longContentID"].endswith(f"{found['cid']:08x}")
    assert len(found["ddb"]["longContentID"]) == 32
    assert found["ddb"]["uuid.modification"] != old
    assert found["ddb"]["uuid.image"] == old


def test_an_unclean_shutdown_is_marked_while_written(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "1M")
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x")
        disk.flush()
        with formats.open(path, force_share=True) as other:
            assert other.describe().is_dirty
    with formats.open(path) as disk:
        assert not disk.describe().is_dirty


def test_options_reach_the_data_base(tmp_path: Path) -> None:
    options = {
        "adapter_type": "lsilogic", "hwversion": "21", "toolsversion": "12352",
        "uuid": "60002C29-1234-5678-9abc-def012345678", "geometry": "17/128/32",
        "ddb": "thinProvisioned:1;ddb.comment:hi",
    }  # fmt: skip
    formats.create(tmp_path / "a.vmdk", "10G", options=options)
    with formats.open(tmp_path / "a.vmdk") as disk:
        ddb = disk.describe().specific["ddb"]
    assert ddb == {
        "virtualHWVersion": "21",
        "geometry.cylinders": "17",
        "geometry.heads": "128",
        "geometry.sectors": "32",
        "adapterType": "lsilogic",
        "toolsVersion": "12352",
        "uuid": "60 00 2c 29 12 34 56 78-9a bc de f0 12 34 56 78",
        "thinProvisioned": "1",
        "comment": "hi",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subformat": "sideways"}, "subformat"),
        ({"uuid": "nonsense"}, "uuid"),
        ({"geometry": "1/2"}, "geometry"),
        ({"ddb": "novalue"}, "ddb"),
        ({"ddb": 'x:a"b'}, "ddb.x"),
        ({"compat6": "on", "hwversion": "7"}, "compat6"),
        ({"compression_level": "10"}, "compression_level"),
        ({"subformat": "monolithicFlat", "zeroed_grain": "on"}, "zeroed grains"),
        ({"hwversion": "4\nddb.x = 1"}, "virtualHWVersion"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        formats.create(tmp_path / "a.vmdk", "1M", options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("# Disk DescriptorFile\nversion=1\nCID=xyz\nRW 1 ZERO\n", Corrupt, "CID"),
        ("# Disk DescriptorFile\nversion=9\nRW 1 ZERO\n", Unsupported, "descriptor version 9"),
        ("# Disk DescriptorFile\nversion=1\n", Corrupt, "expected an extent, found none"),
        (
            '# Disk DescriptorFile\nversion=1\nencryption.keySafe = "vmware:key/x"\nRW 1 ZERO\n',
            Unsupported,
            "encrypted",
        ),
    ],
)
def test_a_descriptor_that_cannot_be_right_is_named(
    tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "a.vmdk").write_text(text)
    with pytest.raises(error, match=words):
        formats.open(tmp_path / "a.vmdk")


def test_lines_that_are_not_understood_stay_as_they_are() -> None:
    text = '# Disk DescriptorFile\r\nversion=1\r\nCID=7\r\nparentCID=ffffffff\r\nfoo = bar\r\nisNativeSnapshot="no"\r\n'
    text += 'createType="custom"\r\n# my comment\r\nRW 5 ZERO\r\nddb.x.y = "1"\r\n'
    found = Descriptor.parse(text.encode(), "a")
    found.set_cid(0xABCDEF)
    found.set_parent(0x11, "base.vmdk")
    again = Descriptor.parse(found.to_bytes(), "a")
    assert (again.cid, again.parent_cid, again.parent_name) == (0xABCDEF, 0x11, "base.vmdk")
    for line in ("foo = bar", 'isNativeSnapshot="no"', "# my comment", "RW 5 ZERO", 'ddb.x.y = "1"'):
        assert line in again.lines
    again.set_parent(0xFFFFFFFF, None)
    assert "parentFileNameHint" not in again.to_bytes().decode()


def test_an_embedded_descriptor_alone_names_extents_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "b.img").write_bytes(b"z" * 1024)
    text = descriptor('RW 2 FLAT "b.img" 0')
    raw = header(capacity=0, descriptor=(1, 20)) + text.encode().ljust(20 * 512, b"\0")
    (tmp_path / "a.vmdk").write_bytes(raw)
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == b"z" * 1024


def test_a_disk_whose_changes_are_tracked_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(512))
    path = write_descriptor(tmp_path / "a.vmdk", 'RW 1 FLAT "a.img" 0', more='changeTrackPath="a-ctk.vmdk"')
    with formats.open(path) as disk:
        assert disk.read(0, 512) == bytes(512)
    with pytest.raises(Unsupported, match="changes are tracked"):
        formats.open(path, writable=True)
