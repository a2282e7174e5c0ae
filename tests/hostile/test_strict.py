"""Format confusion: `info` and `convert` say what a format was guessed from; strict mode refuses what could be two."""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import vdisk
from tests.cli.conftest import Run
from tests.conformance.image import lay_out
from tests.formats.vmdk.handmade import descriptor
from tests.hostile.making import qcow2
from vdisk import formats
from vdisk.errors import NotThisFormat, PolicyError, VdiskError


def put(data: bytes, offset: int, patch: bytes) -> bytes:
    data = data.ljust(max(len(data), 1 << 16), b"\0")
    return data[:offset] + patch + data[offset + len(patch) :]


MBR = struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, 4096).ljust(64, b"\0") + b"\x55\xaa"
FOOTER = b"conectix".ljust(512, b"\0")
TEXT = descriptor("RW 128 ZERO", create_type="monolithicSparse").encode()

POLYGLOTS: dict[str, bytes] = {
    "qcow2 and ISO": put(qcow2(), 0x8001, b"CD001"),
    "qcow2 and MBR": put(qcow2(), 446, MBR),
    "qcow2 and GPT": put(qcow2(), 512, b"EFI PART"),
    "qcow2 and GPT of 4K sectors": put(qcow2(), 4096, b"EFI PART"),
    "qcow2 and VHD's footer": put(qcow2(), 0, b"") + FOOTER,
    "qcow2 and VDI": put(qcow2(), 64, b"\x7f\x10\xda\xbe"),
    "VMDK descriptor and GPT": put(TEXT.ljust(512, b"\n"), 512, b"EFI PART"),
    "VMDK descriptor and ISO": put(TEXT, 0x8001, b"CD001"),
    "raw and VHD's footer": bytes(1 << 16) + FOOTER,
    "raw disk with GPT and VHD's footer": put(b"", 512, b"EFI PART") + FOOTER,
    "QED": b"QED\0".ljust(1 << 16, b"\0"),
    "qcow of version 1": b"QFI\xfb\0\0\0\1".ljust(1 << 16, b"\0"),
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_polyglots_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(POLYGLOTS[name])
    with pytest.raises(VdiskError):
        vdisk.open(path, strict=True)
    ran = run("info", "--strict", path)
    assert ran.status == 1
    assert "format: " in ran.err


@pytest.mark.parametrize("name", POLYGLOTS)
def test_polyglots_are_not_converted(name: str, run: Run, tmp_path: Path) -> None:
    path, target = tmp_path / "image", tmp_path / "out.qcow2"
    path.write_bytes(POLYGLOTS[name])
    ran = run("convert", "--strict", path, target)
    assert (ran.status, ran.err.count("\n"), target.exists()) == (1, 1, False)
    assert "format: " in ran.err
    with pytest.raises(VdiskError):
        vdisk.convert(path, target, strict=True)


class TestConvertSaysWhatItGuessed:
    """A raw disk whose guest wrote a qcow2 header into its first sector is taken for qcow2: at least that is said."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "disk.raw"
        path.write_bytes(qcow2())
        return path

    def test_on_standard_error(self, path: Path, run: Run) -> None:
        ran = run("convert", path, path.with_name("out.qcow2"))
        assert (ran.status, ran.out) == (0, "")
        assert ran.err == f"{path}: read as qcow2 (guessed from a mark at its beginning); -f names the format\n"

    def test_a_raw_disk_is_told_too(self, path: Path, run: Run) -> None:
        path.write_bytes(bytes(65536))
        assert "read as raw (guessed from no mark of another format)" in run("convert", path, f"{path}.vdi").err
        path.write_bytes(bytes(65536) + FOOTER)
        assert run("convert", path, f"{path}.vdi").err.startswith("vdisk: "), "an error is one line"
        lay_out(path, "vhd", {"subformat": "fixed"}, bytes(1 << 20))
        assert "read as vhd (guessed from a mark at its end)" in run("convert", path, f"{path}.vdi").err

    def test_not_where_the_format_is_named(self, path: Path, run: Run) -> None:
        assert run("convert", "-f", "raw", path, path.with_name("out.qcow2")).err == ""

    def test_in_json(self, path: Path, run: Run) -> None:
        ran = run("convert", "--json", path, path.with_name("out.qcow2"))
        assert ran.err == ""
        assert json.loads(ran.out)["source-format-guessed-from"] == "a mark at its beginning"
        named = json.loads(run("convert", "--json", "-f", "raw", path, path.with_name("out.qcow2")).out)
        assert "source-format-guessed-from" not in named

    def test_in_a_dry_run(self, path: Path, run: Run) -> None:
        ran = run("convert", "--dry-run", path, path.with_name("out.vdi"))
        assert ran.out.startswith("qcow2 (guessed from a mark at its beginning) to vdi")

    def test_beside_an_image_on_standard_output(self, path: Path, run: Run) -> None:
        ran = run("convert", path, "-", "-O", "raw")
        assert ran.out == "\0" * 65536
        assert "guessed from" in ran.err

    def test_to_a_library_user(self, path: Path) -> None:
        done = vdisk.convert(path, path.with_name("out.vdi"))
        assert (done.source_format, done.source_format_guessed_from) == ("qcow2", "a mark at its beginning")
        with formats.open(path, format="raw") as disk:
            assert disk.guessed_from is None


@pytest.mark.parametrize("name", ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels"])
def test_a_format_that_is_named_is_not_second_guessed(name: str, run: Run, tmp_path: Path) -> None:
    """`-f` means it: an image of another format is refused, and not opened as what it is."""
    path = tmp_path / "image"
    lay_out(path, "qcow2" if name != "qcow2" else "vdi", {}, bytes(65536))
    with pytest.raises(NotThisFormat):
        formats.open(path, format=name)
    for command in (("info",), ("map",), ("convert", tmp_path / "out.raw")):
        ran = run(command[0], "-f", name, path, *command[1:])
        assert (ran.status, ran.err.count("\n")) == (1, 1)


class TestPackages:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        disk, package = tmp_path / "disk.qcow2", tmp_path / "machine.ova"
        disk.write_bytes(qcow2())
        vdisk.convert(disk, package)
        return package

    def test_an_honest_one_passes(self, package: Path) -> None:
        vdisk.convert(package, package.with_name("out.raw"), strict=True)
        assert package.with_name("out.raw").stat().st_size == 65536

    def test_one_that_is_an_optical_disk_too_is_refused(self, package: Path) -> None:
        package.write_bytes(put(package.read_bytes(), 0x8001, b"CD001"))
        with pytest.raises(VdiskError, match="the marks of ova alone"):
            vdisk.convert(package, package.with_name("out.raw"), strict=True)

    def test_a_descriptor_with_its_files_beside_it_is_not_whole(self, package: Path, tmp_path: Path) -> None:
        with tarfile.open(package) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        descriptor = next((tmp_path / "unpacked").glob("*.ovf"))
        vdisk.convert(descriptor, tmp_path / "out.raw")
        with pytest.raises(PolicyError, match="--strict"):
            vdisk.convert(descriptor, tmp_path / "out.raw", strict=True)


def test_a_guest_s_raw_disk_that_begins_like_qcow2_is_only_raw_when_told(run: Run, tmp_path: Path) -> None:
    """`-f raw` is honoured; strict mode does not even then take a file with another format's mark."""
    path = tmp_path / "disk.raw"
    path.write_bytes(qcow2(backing="/etc/passwd"))
    with formats.open(path, format="raw") as disk:
        assert disk.size == path.stat().st_size
    assert "format:           raw\n" in run("info", "-f", "raw", path).out
    assert "(guessed from a mark at its beginning)" in run("info", path).out
    assert run("info", "--strict", "-f", "raw", path).status == 1


REFUSED: dict[str, Callable[[], bytes]] = {
    "backing file": lambda: qcow2(backing="base"),
    "flat extent": lambda: descriptor('RW 1 FLAT "x" 0', create_type="monolithicFlat").encode(),
    "create type": lambda: descriptor("RW 128 ZERO", create_type="custom").encode(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_whole_in_one_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(1 << 16))
    (tmp_path / "x").write_bytes(bytes(512))
    path = tmp_path / "image"
    path.write_bytes(REFUSED[name]())
    formats.open(path).close()
    with pytest.raises(VdiskError):
        formats.open(path, strict=True)
    with pytest.raises(VdiskError):
        vdisk.convert(path, tmp_path / "out.raw", strict=True)


@pytest.mark.parametrize("name", ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels", "raw"])
def test_honest_images_pass(name: str, run: Run, tmp_path: Path) -> None:
    """With a partitioned disk in them: its boot sector lies in the guest's bytes, not in the file's."""
    path = tmp_path / "image"
    lay_out(path, name, {}, put(put(b"", 446, MBR), 512, b"EFI PART"))
    with formats.open(path, strict=True) as disk:
        assert disk.read(510, 2) == b"\x55\xaa"
    found = json.loads(run("info", "--strict", "--json", path).out)
    assert found["format"] == name
    wanted = "no mark of another format" if name == "raw" else "a mark at its beginning"
    assert found["format-guessed-from"] == wanted


def test_a_fixed_vhd_is_told_by_name_alone(tmp_path: Path) -> None:
    """Its mark is at the end, where the guest of a raw disk could have put it."""
    path = tmp_path / "image.vhd"
    lay_out(path, "vhd", {"subformat": "fixed"}, put(b"", 446, MBR))
    with pytest.raises(VdiskError, match="name it with -f"):
        formats.open(path, strict=True)
    formats.open(path, format="vhd", strict=True).close()
