"""VHD: footers and their copies, geometry, bitmaps; held against qemu-img, libvhdi and images of Microsoft's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import (
    libyal_sha256,
    qemu_compare,
    qemu_img,
    qemu_img_info,
    qemu_io,
    real_image,
    sevenzip_sha256,
    sha256,
)
from vdisk import formats
from vdisk.errors import Corrupt, NotThisFormat, OptionError
from vdisk.formats.check import Repair
from vdisk.formats.vhd.footer import Footer, geometry_for
from vdisk.formats.vhd.header import DynamicHeader

SIZE = (5 << 20) + 512


def some_content(seed: int = 1) -> bytes:
    maker = random.Random(seed)
    return maker.randbytes(700_000) + bytes(SIZE - 700_000 - 5120) + maker.randbytes(5120)


@pytest.mark.peer
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_others_read_what_we_write(tmp_path: Path, subformat: str) -> None:
    path, raw = tmp_path / "a.vhd", tmp_path / "a.raw"
    content = bytearray(some_content())
    lay_out(path, "vhd", {"subformat": subformat}, bytes(content))
    raw.write_bytes(content)
    qemu_compare(path, raw, formats=("vpc", "raw"))
    assert libyal_sha256("vhd", path) == sevenzip_sha256(path, kind="VHD") == sha256(raw)
    with formats.open(path, writable=True) as disk:
        disk.write(3 << 20, b"later" * 1000)
        disk.write_zeroes(0, 300_000)
        raw.write_bytes(disk.read(0, disk.size))
    qemu_compare(path, raw, formats=("vpc", "raw"))
    assert libyal_sha256("vhd", path) == sha256(raw)


@pytest.mark.peer
@pytest.mark.parametrize("options", ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on"])
def test_we_read_what_qemu_writes(tmp_path: Path, options: str) -> None:
    path, raw = tmp_path / "q.vhd", tmp_path / "q.raw"
    qemu_img("create", "-q", "-f", "vpc", "-o", options, path, "7M")
    qemu_io(path, "write -P 1 4M 64k", "write -P 2 1M 4k", "write -P 3 2047k 2k", format="vpc")
    qemu_img("convert", "-f", "vpc", "-O", "raw", path, raw)
    with formats.open(path) as disk:
        assert disk.format_name == "vhd"  # a fixed one has its mark at the end only
        assert disk.size == qemu_img_info(path, format="vpc")["virtual-size"]
        assert disk.read(0, disk.size) == raw.read_bytes()
        check_map(disk, raw.read_bytes())


@pytest.mark.peer
def test_a_size_by_geometry_is_that_of_qemu_img(tmp_path: Path) -> None:
    for number, size in enumerate([1 << 20, 10 << 20, 100 << 20, 600 << 20, 9 << 30, 130 << 30]):
        ours, theirs = tmp_path / f"{number}.vhd", tmp_path / f"q{number}.vhd"
        formats.create(ours, size, options={"force_size": "off"})
        qemu_img("create", "-q", "-f", "vpc", theirs, size)
        with formats.open(ours) as disk, formats.open(theirs) as other:
            assert disk.size == other.size >= size
        assert qemu_img_info(ours, format="vpc")["virtual-size"] == other.size


def test_a_fixed_disk_for_azure_is_its_size_and_a_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    formats.create(path, "10M", options={"subformat": "fixed"})
    assert path.stat().st_size == (10 << 20) + 512
    with formats.open(path) as disk:
        assert disk.size == 10 << 20


@pytest.mark.parametrize("damage", [b"conectiz", b"\0" * 8, b"conectix\xff\xff\xff\xff"])
def test_a_damaged_front_footer_is_recovered_from_the_tail_and_said(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.vhd"
    lay_out(path, "vhd", {}, some_content())
    with path.open("r+b") as file:
        file.write(damage)
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == some_content()
        assert "copy in front is damaged" in disk.describe().notes[0]


def test_a_damaged_tail_is_recovered_from_the_front_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    lay_out(path, "vhd", {}, some_content())
    path.write_bytes(path.read_bytes()[:-300])
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == some_content()
        assert "footer at the end is damaged" in disk.describe().notes[0]


def test_a_footer_of_511_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    lay_out(path, "vhd", {}, some_content())
    path.write_bytes(path.read_bytes()[:-1])
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == some_content()
        assert "511 bytes" in disk.describe().notes[0]


@pytest.mark.parametrize("subformat", ["fixed", "dynamic"])
def test_a_disk_of_wrong_checksums_is_read_with_a_note_and_not_written(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "a.vhd"
    lay_out(path, "vhd", {"subformat": subformat}, some_content())
    raw = bytearray(path.read_bytes())
    for offset in (0, len(raw) - 512) if subformat == "dynamic" else (len(raw) - 512,):
        raw[offset + 24] ^= 1  # the timestamp
    path.write_bytes(raw)
    with formats.open(path, writable=True) as disk:
        assert "checksum is wrong" in disk.describe().notes[0]
        assert disk.read(0, disk.size) == some_content()
        with pytest.raises(Corrupt, match=r"footer checksum: .*check --repair all"):
            disk.write(0, b"x")
        assert disk.check(Repair.ALL).exit_status == 0
    with formats.open(path, writable=True) as disk:
        assert disk.describe().notes == []
        assert disk.check().exit_status == 0
        disk.write(0, b"x")


def test_a_fixed_disk_without_a_footer_is_not_a_vhd(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    formats.create(path, "1M", options={"subformat": "fixed"})
    with path.open("r+b") as file:
        file.seek(-512, 2)
        file.write(b"x")
    with pytest.raises(NotThisFormat, match="footer cookie"):
        formats.open(path, format="vhd")


def test_blocks_of_less_than_eight_sectors_have_a_part_of_a_byte(tmp_path: Path) -> None:
    """QEMU makes none of the kind; the specification allows them."""
    path = tmp_path / "a.vhd"
    count = 9
    header = DynamicHeader(1536, count, 1024)
    footer = Footer(3, count * 1024 - 512, 0, (1, 1, 17), data_offset=512)
    entries = [0xFFFFFFFF] * count
    entries[2], entries[3] = 4, 7
    table = b"".join(entry.to_bytes(4, "big") for entry in entries).ljust(512, b"\xff")
    places = b"\xc0".ljust(512, b"\0") + b"a" * 1024 + b"\x40".ljust(512, b"\0") + b"b" * 1024
    path.write_bytes(footer.to_bytes() + header.to_bytes() + table + places + footer.to_bytes())
    wanted = bytearray(footer.current_bytes)
    wanted[2048:3072], wanted[3584:4096] = b"a" * 1024, b"b" * 512
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == wanted
        check_map(disk, wanted)
        disk.write(3000, b"c" * 3000)
        wanted[3000:6000] = b"c" * 3000
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == wanted
        check_map(disk, wanted)
        assert disk.check().exit_status == 0


def test_sectors_whose_bit_is_not_set_are_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    lay_out(path, "vhd", {}, b"\xaa" * (2 << 20))
    with formats.open(path) as disk:
        bitmap_at = next(iter(disk.map())).host - 512
    with path.open("r+b") as file:
        file.seek(bitmap_at)
        file.write(b"\x7f\xff\x00")
    wanted = bytearray(b"\xaa" * (2 << 20))
    wanted[:512] = bytes(512)
    wanted[16 * 512 : 24 * 512] = bytes(8 * 512)
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == wanted
        check_map(disk, wanted)
        disk.write(17 * 512 + 5, b"set")
        wanted[17 * 512 + 5 : 17 * 512 + 8] = b"set"
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == wanted
        check_map(disk, wanted)


def test_more_than_2040_gib_is_refused_and_vhdx_named(tmp_path: Path) -> None:
    formats.create(tmp_path / "a.vhd", 2040 << 30)
    with pytest.raises(OptionError, match=r"at most 2040 GiB.*VHDX"):
        formats.create(tmp_path / "b.vhd", (2040 << 30) + 512)


def test_geometry_follows_the_specification() -> None:
    for sectors in (100, 20_000, 1 << 20, 1 << 24, 1 << 28, 1 << 34):
        cylinders, heads, track = geometry_for(sectors)
        assert cylinders * heads * track <= max(sectors, 0)
        assert cylinders <= 65535
        assert heads <= 16


def test_a_footer_goes_to_bytes_and_back() -> None:
    footer = Footer(2, 1 << 20, 1 << 20, (30, 4, 17))
    assert Footer.parse(footer.to_bytes(), "f", "footer") == footer


class TestRealImages:
    def test_virtual_pc_counts_by_geometry(self, tmp_path: Path) -> None:
        with formats.open(real_image("virtualpc-dynamic.vhd", tmp_path)) as disk:
            assert disk.size == 136363130880
            assert all(extent.kind.name == "ZERO" for extent in disk.map()) or not any(disk.read(0, 1 << 20))

    def test_hyper_v_counts_by_current_size(self, tmp_path: Path) -> None:
        with formats.open(real_image("hyperv2012r2-dynamic.vhd", tmp_path)) as disk:
            assert disk.size == 136365211648

    def test_windows(self, tmp_path: Path) -> None:
        import hashlib

        with formats.open(real_image("windows-dynamic.vhd", tmp_path)) as disk:
            assert disk.size == 10485760
            digest = hashlib.sha256(disk.read(0, disk.size)).hexdigest()
        assert digest == "ecff2ef6615a3cddc6a6885f1c6d9cf13a232697e1dc6575f2c2f01f57247784"

    def test_a_fuzzers_image_is_one_clear_line(self, tmp_path: Path) -> None:
        with pytest.raises(Corrupt, match=r"afl5\.img: "):
            formats.open(real_image("afl5.img", tmp_path))
