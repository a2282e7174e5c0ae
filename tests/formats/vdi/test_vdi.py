"""VDI images pass the suite, and VirtualBox's and QEMU's habits are met."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import ImageConformance, check_map, lay_out
from tests.peers import qemu_check, qemu_compare, qemu_img, qemu_io, sevenzip_sha256, sha256
from vdisk import formats


class TestDynamic(ImageConformance):
    format = "vdi"


class TestSmallBlocks(ImageConformance):
    format = "vdi"
    options = {"block_size": "64K"}


class TestStatic(ImageConformance):
    format = "vdi"
    options = {"static": "on"}


@pytest.mark.peer
@pytest.mark.parametrize("static", ["off", "on"])
def test_qemu_reads_what_we_write(tmp_path: Path, static: str) -> None:
    content = random.Random(1).randbytes(300_000) + bytes(5 << 20) + random.Random(2).randbytes(1 << 20)
    content = content[: len(content) // 512 * 512]
    lay_out(tmp_path / "a.vdi", "vdi", {"static": static}, content)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(tmp_path / "a.vdi", tmp_path / "a.raw", formats=("vdi", "raw"))
    qemu_check(tmp_path / "a.vdi", format="vdi")
    assert sevenzip_sha256(tmp_path / "a.vdi", kind="VDI") == sha256(tmp_path / "a.raw")
    with formats.open(tmp_path / "a.vdi", writable=True) as disk:
        disk.write(3 << 20, b"later")
        disk.write_zeroes(0, 2 << 20)
        content = disk.read(0, disk.size)
    (tmp_path / "a.raw").write_bytes(content)
    qemu_compare(tmp_path / "a.vdi", tmp_path / "a.raw", formats=("vdi", "raw"))
    qemu_check(tmp_path / "a.vdi", format="vdi")


@pytest.mark.peer
@pytest.mark.parametrize("static", ["off", "on"])
def test_we_read_what_qemu_writes(tmp_path: Path, static: str) -> None:
    path = tmp_path / "q.vdi"
    qemu_img("create", "-q", "-f", "vdi", "-o", f"static={static}", path, "5M")
    qemu_io(path, "write -P 1 4M 64k", "write -P 2 1M 4k", "write -P 3 2047k 2k", format="vdi")
    with formats.open(path) as disk:
        assert disk.size == 5 << 20
        wanted = bytearray(5 << 20)
        wanted[4 << 20 : (4 << 20) + 65536] = b"\1" * 65536
        wanted[1 << 20 : (1 << 20) + 4096] = b"\2" * 4096
        wanted[2047 << 10 : (2047 << 10) + 2048] = b"\3" * 2048
        # Blocks lie in the order of writing: a read across them must put them in order.
        assert disk.read(0, disk.size) == wanted
        check_map(disk, wanted)
