"""qemu-img, libvmdk and 7z read what is written here, and what they write is read here."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import (
    libyal_sha256,
    qemu_check,
    qemu_compare,
    qemu_img,
    qemu_img_info,
    qemu_img_map,
    qemu_io,
    sevenzip_sha256,
)
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.converter import convert
from vdisk.formats.image import Backing

HOSTED = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized")
SIZE = (7 << 20) + 3 * 512


def disk_content(seed: int = 1, size: int = SIZE) -> bytes:
    """Noise, repetition and zeros; the last grain is partial and holds data."""
    maker = random.Random(seed)
    content = bytearray(size)
    content[:100_000] = maker.randbytes(100_000)
    content[3 << 20 : (3 << 20) + 500_000] = b"vmdk " * 100_000
    content[-70_000:] = maker.randbytes(70_000)
    return bytes(content)


@pytest.mark.peer
@pytest.mark.parametrize("subformat", [*HOSTED, "vmfs", "vmfsSparse"])
def test_qemu_reads_what_is_written(tmp_path: Path, subformat: str) -> None:
    content = disk_content()
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, content)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(tmp_path / "a.vmdk", tmp_path / "a.raw", formats=("vmdk", "raw"))
    if subformat in ("monolithicSparse", "twoGbMaxExtentSparse"):
        qemu_check(tmp_path / "a.vmdk", format="vmdk")


@pytest.mark.peer
@pytest.mark.parametrize("subformat", HOSTED)
def test_what_qemu_writes_is_read(tmp_path: Path, subformat: str) -> None:
    content = disk_content(2)
    (tmp_path / "a.raw").write_bytes(content)
    arguments = ["-c"] if subformat == "streamOptimized" else []
    qemu_img(
        "convert", *arguments, "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}",
        tmp_path / "a.raw", tmp_path / "a.vmdk",
    )  # fmt: skip
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


@pytest.mark.peer
@pytest.mark.parametrize("subformat", [*HOSTED[:4], "vmfs", "vmfsSparse"])
def test_qemu_reads_what_is_written_at_random(tmp_path: Path, subformat: str) -> None:
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, disk_content())
    maker = random.Random(3)
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        for _ in range(40):
            offset = maker.randrange(SIZE)
            disk.write(offset, maker.randbytes(min(maker.choice([1, 512, 70_000]), SIZE - offset)))
        disk.write_zeroes(0, 80_000)
        content = disk.read(0, disk.size)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(tmp_path / "a.vmdk", tmp_path / "a.raw", formats=("vmdk", "raw"))


@pytest.mark.peer
@pytest.mark.parametrize("zeroed_grain", ["off", "on"])
def test_images_of_qemu_take_writes_of_both(tmp_path: Path, zeroed_grain: str) -> None:
    path = tmp_path / "q.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", f"zeroed_grain={zeroed_grain}", path, "40M")
    qemu_io(path, "write -P 1 0 100k", "write -P 2 33M 64k", format="vmdk")
    with formats.open(path, writable=True) as disk:
        disk.write(50_000, b"\7" * 100_000)
        disk.write((33 << 20) - 10, b"\7" * 20)
        disk.write_zeroes(35 << 20, 1 << 20)
    qemu_io(path, "write -P 3 36M 1k", "write -z 0 64k", "read -P 7 64k 50k", "read -P 0 35M 1M", format="vmdk")
    with formats.open(path) as disk:
        found = disk.read(0, disk.size)
    wanted = bytearray(40 << 20)
    wanted[65536:150_000] = b"\7" * (150_000 - 65536)
    wanted[33 << 20 : (33 << 20) + 65536] = b"\2" * 65536
    wanted[(33 << 20) - 10 : (33 << 20) + 10] = b"\7" * 20
    wanted[36 << 20 : (36 << 20) + 1024] = b"\3" * 1024
    assert found == wanted
    qemu_check(path, format="vmdk")


@pytest.mark.peer
@pytest.mark.parametrize("subformat", [name for name in HOSTED if name != "monolithicFlat"])  # it mounts none of those
def test_libvmdk_reads_what_is_written(tmp_path: Path, subformat: str) -> None:
    content = disk_content(4, 7 << 20)
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, content)
    assert libyal_sha256("vmdk", tmp_path / "a.vmdk") == hashlib.sha256(content).hexdigest()


@pytest.mark.peer
@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_7z_reads_what_is_written(tmp_path: Path, subformat: str) -> None:
    content = disk_content(5)
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, content)
    assert sevenzip_sha256(tmp_path / "a.vmdk", kind="VMDK") == hashlib.sha256(content).hexdigest()


@pytest.mark.peer
@pytest.mark.parametrize("subformat", HOSTED)
def test_info_says_what_qemu_says(tmp_path: Path, subformat: str) -> None:
    lay_out(tmp_path / "a.vmdk", "vmdk", {"subformat": subformat}, disk_content())
    with formats.open(tmp_path / "a.vmdk") as disk:
        said = disk.describe()
        theirs = qemu_img_info(tmp_path / "a.vmdk")
        assert theirs["virtual-size"] == disk.size
    assert theirs.get("cluster-size") == said.cluster_size
    data = theirs["format-specific"]["data"]
    assert {name: said.specific[name] for name in data} == data


@pytest.mark.peer
def test_a_delta_of_qemu_is_read_and_one_of_ours_by_qemu(tmp_path: Path) -> None:
    content = bytearray(disk_content(6, 8 << 20))
    lay_out(tmp_path / "base.vmdk", "vmdk", {}, bytes(content))
    qemu_img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", tmp_path / "child.vmdk")
    qemu_io(tmp_path / "child.vmdk", "write -P 5 10k 1k", "write -P 6 7M 128k", format="vmdk")
    content[10240:11264] = b"\5" * 1024
    content[7 << 20 : (7 << 20) + 131072] = b"\6" * 131072
    with formats.open(tmp_path / "child.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
    with formats.open_backing(tmp_path / "grand.vmdk", "child.vmdk", "vmdk") as parent:
        formats.create(tmp_path / "grand.vmdk", parent.size, backing=Backing("child.vmdk", "vmdk", parent))
    with formats.open(tmp_path / "grand.vmdk", writable=True) as disk:
        disk.write(1 << 20, b"ours")
        content[1 << 20 : (1 << 20) + 4] = b"ours"
        assert disk.read(0, disk.size) == content
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(tmp_path / "grand.vmdk", tmp_path / "a.raw", formats=("vmdk", "raw"))


@pytest.mark.peer
@pytest.mark.parametrize("zeroed_grain", ["off", "on"])
def test_the_map_is_that_of_qemu(tmp_path: Path, zeroed_grain: str) -> None:
    content = disk_content(7, 8 << 20)
    lay_out(tmp_path / "base.vmdk", "vmdk", {}, content)
    qemu_img(
        "create", "-q", "-f", "vmdk", "-o", f"zeroed_grain={zeroed_grain}", "-b", "base.vmdk", "-F", "vmdk",
        tmp_path / "child.vmdk",
    )  # fmt: skip
    qemu_io(tmp_path / "child.vmdk", "write -P 5 10k 1k", "write -z 0 64k", "write -P 6 7M 128k", format="vmdk")
    for name in ("base.vmdk", "child.vmdk"):
        theirs = [
            (piece["start"], piece["start"] + piece["length"], piece["data"], piece["zero"], piece.get("offset"))
            for piece in qemu_img_map(tmp_path / name, format="vmdk")
        ]
        with formats.open(tmp_path / name) as disk:
            for extent in disk.map():
                piece = next(piece for piece in theirs if piece[0] <= extent.start < piece[1])
                assert extent.end <= piece[1]
                assert piece[2] == (extent.kind is Kind.DATA)
                assert piece[3] == (extent.kind is Kind.ZERO)
                if extent.kind is Kind.DATA:
                    assert piece[4] is not None
                    assert extent.host == piece[4] + extent.start - piece[0]


@pytest.mark.peer
def test_a_stream_of_qemu_is_passed_on_grain_by_grain(tmp_path: Path) -> None:
    content = disk_content(8)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_img(
        "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", tmp_path / "a.raw", tmp_path / "q.vmdk"
    )
    done = convert(tmp_path / "q.vmdk", tmp_path / "b.vmdk", options={"subformat": "streamOptimized"})
    assert done.passed_bytes > 0
    qemu_compare(tmp_path / "b.vmdk", tmp_path / "a.raw", formats=("vmdk", "raw"))
    assert sevenzip_sha256(tmp_path / "b.vmdk", kind="VMDK") == hashlib.sha256(content).hexdigest()
