"""Disks of several extents: every line keeps its place, whatever its type and access."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.conformance.image import check_map
from tests.formats.vmdk.handmade import cowd, sparse, write_descriptor
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.errors import Corrupt, PolicyError, StorageError, Unsupported

noise = random.Random(1).randbytes


def test_zero_noaccess_and_rdonly_extents_stand_in_their_places(tmp_path: Path) -> None:
    one, two, three = noise(63 * 512), noise(200 * 512), noise(40 * 512)
    (tmp_path / "one.img").write_bytes(one)
    (tmp_path / "two.img").write_bytes(bytes(512 * 10) + two)
    (tmp_path / "three.vmdk").write_bytes(sparse({0: three}, 40))
    path = write_descriptor(
        tmp_path / "disk.vmdk",
        'RW 63 FLAT "one.img" 0',
        "RW 77 ZERO",
        'RDONLY 200 FLAT "two.img" 10',
        'NOACCESS 33 FLAT "secret.img" 0',
        'RW 40 SPARSE "three.vmdk"',
    )
    content = one + bytes(77 * 512) + two + bytes(33 * 512) + three
    with formats.open(path) as disk:
        assert disk.size == len(content)
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
        assert any("NOACCESS" in note for note in disk.describe().notes)
        kinds = [extent.kind for extent in disk.map()]
        assert kinds == [Kind.DATA, Kind.ZERO, Kind.DATA, Kind.ZERO, Kind.DATA]


def test_a_write_across_extents_goes_to_each_and_stops_at_one_that_forbids_it(tmp_path: Path) -> None:
    (tmp_path / "one.img").write_bytes(bytes(63 * 512))
    (tmp_path / "two.vmdk").write_bytes(sparse({}, 1000))
    (tmp_path / "three.img").write_bytes(bytes(100 * 512))
    path = write_descriptor(
        tmp_path / "disk.vmdk",
        'RW 63 FLAT "one.img" 0',
        'RW 1000 SPARSE "two.vmdk"',
        'RDONLY 100 FLAT "three.img" 0',
        "RW 8 ZERO",
    )
    content = bytearray(1171 * 512)
    with formats.open(path, writable=True) as disk:
        for start, length in ((62 * 512 + 5, 3 * 512), (500 * 512 + 7, 200_000), (1062 * 512, 512)):
            data = noise(length)
            disk.write(start, data)
            content[start : start + length] = data
        disk.write_zeroes(1163 * 512, 8 * 512)
        with pytest.raises(StorageError, match="extent 3 is RDONLY"):
            disk.write(1063 * 512, b"no")
        with pytest.raises(StorageError, match="extent 4 is of type ZERO"):
            disk.write(1170 * 512, b"no")
        assert disk.read(0, disk.size) == content
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


def test_vmfs_vmfssparse_and_raw_device_lines_are_read(tmp_path: Path) -> None:
    flat, delta = noise(64 * 512), {5: noise(512), 4200: noise(512), 7: noise(512)}
    (tmp_path / "a-flat.vmdk").write_bytes(flat)
    (tmp_path / "a-delta.vmdk").write_bytes(cowd(delta, 5000))
    path = write_descriptor(
        tmp_path / "a.vmdk", 'RW 64 VMFS "a-flat.vmdk"', 'RW 5000 VMFSSPARSE "a-delta.vmdk"',
        'RW 64 VMFSRAW "a-flat.vmdk"', create_type="vmfs",
    )  # fmt: skip
    content = bytearray(flat + bytes(5000 * 512) + flat)
    for number, data in delta.items():
        content[(64 + number) * 512 :][:0] = b""
        content[(64 + number) * 512 : (65 + number) * 512] = data
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


def test_a_flat_extent_that_its_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.img").write_bytes(bytes(99 * 512))
    path = write_descriptor(tmp_path / "disk.vmdk", 'RW 100 FLAT "short.img" 0')
    with pytest.raises(Corrupt, match="flat extent"):
        formats.open(path)


def test_a_sparse_extent_shorter_than_its_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.vmdk").write_bytes(sparse({}, 100))
    with pytest.raises(Corrupt, match="extent 1: capacity"):
        formats.open(write_descriptor(tmp_path / "disk.vmdk", 'RW 101 SPARSE "s.vmdk"'))


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ('RW 10 FLAT "x.img"', Corrupt, "an offset behind the name"),
        ("RW 10 FLAT", Corrupt, "a file name in quotes"),
        ('RW 10 PMEM "x.img"', Unsupported, "extents of type PMEM"),
        ("RW ten ZERO", Corrupt, "expected an extent"),
        ("RW 99999999999999999999 ZERO", Corrupt, "less than 2"),
        ('RW 10 FLAT "../../etc/passwd" 0', PolicyError, "outside the image's folder"),
        ('RW 10 FLAT "/etc/passwd" 0', PolicyError, "outside the image's folder"),
        ('RW 10 FLAT "nbd://localhost/x" 0', PolicyError, "protocol"),
        ('RW 10 FLAT "/dev/zero" 0', PolicyError, "/dev/zero"),
        ('RW 10 FLAT "disk.vmdk" 0', PolicyError, "the image itself"),
        ('RW 10 FLAT "gone.img" 0', StorageError, "gone.img"),
    ],
)
def test_a_line_that_cannot_be_followed_is_refused_by_name(
    tmp_path: Path, line: str, error: type[Exception], words: str
) -> None:
    path = write_descriptor(tmp_path / "disk.vmdk", line)
    with pytest.raises(error, match=words) as caught:
        formats.open(path)
    assert "\n" not in str(caught.value)


def test_several_lines_may_name_parts_of_one_file(tmp_path: Path) -> None:
    data = noise(100 * 512)
    (tmp_path / "whole.img").write_bytes(data)
    path = write_descriptor(
        tmp_path / "disk.vmdk", 'RW 40 FLAT "whole.img" 60', 'RW 60 FLAT "whole.img" 0', create_type="fullDevice"
    )
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == data[60 * 512 :] + data[: 60 * 512]


@pytest.mark.parametrize("accesses", [("RW", "RW"), ("RW", "RDONLY"), ("RDONLY", "RW")])
def test_one_file_may_be_written_to_by_one_line_and_not_by_another(tmp_path: Path, accesses: tuple[str, str]) -> None:
    (tmp_path / "whole.img").write_bytes(b"a" * 512 * 100)
    first, second = accesses
    path = write_descriptor(
        tmp_path / "disk.vmdk", f'{first} 40 FLAT "whole.img" 60', f'{second} 60 FLAT "whole.img" 0'
    )
    with formats.open(path, writable=True) as disk:
        for access, offset in ((first, 0), (second, 40 * 512)):
            with pytest.raises(StorageError, match="is RDONLY") if access == "RDONLY" else nullcontext():
                disk.write(offset, b"b")
        assert disk.read(0, 1) + disk.read(40 * 512, 1) == b"".join(b"a" if a == "RDONLY" else b"b" for a in accesses)


def test_names_in_other_encodings_are_found(tmp_path: Path) -> None:
    (tmp_path / "größe.img").write_bytes(b"x" * 512)
    text = '# Disk DescriptorFile\nversion=1\nencoding="windows-1252"\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'
    text += 'RW 1 FLAT "größe.img" 0\n'
    (tmp_path / "disk.vmdk").write_bytes(text.encode("cp1252"))
    with formats.open(tmp_path / "disk.vmdk", writable=True) as disk:
        disk.write(0, b"y")
    assert "größe.img".encode("cp1252") in (tmp_path / "disk.vmdk").read_bytes()
    with formats.open(tmp_path / "disk.vmdk") as disk:
        assert disk.read(0, 2) == b"yx"
