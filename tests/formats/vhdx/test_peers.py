"""VHDX files in the hands of QEMU and libvhdi, both ways."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.vhdx.test_differencing import make_child
from tests.peers import libyal_info, libyal_sha256, qemu_check, qemu_compare, qemu_img, qemu_img_info, qemu_io, sha256
from vdisk import formats

MIB = 1 << 20
SIZE = 13 * MIB + 512

pytestmark = pytest.mark.peer


def noisy(length: int, seed: int = 1) -> bytes:
    maker = random.Random(seed)
    content = bytearray(length)
    for _ in range(15):
        offset = maker.randrange(length)
        data = maker.randbytes(min(maker.choice([700, 100_000, MIB]), length - offset))
        content[offset : offset + len(data)] = data
    return bytes(content)


@pytest.mark.parametrize(
    "options",
    [{}, {"subformat": "fixed"}, {"block_size": "4M", "log_size": "2M"}, {"block_state_zero": "off"}],
)
def test_they_read_what_is_written(tmp_path: Path, options: dict[str, str]) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    content = bytearray(noisy(SIZE))
    lay_out(path, "vhdx", options, bytes(content))
    with formats.open(path, writable=True) as disk:
        disk.write(5 * MIB - 1000, b"w" * 3000)
        disk.write_zeroes(7 * MIB, 2 * MIB + 100)
    content[5 * MIB - 1000 : 5 * MIB + 2000] = b"w" * 3000
    content[7 * MIB : 9 * MIB + 100] = bytes(2 * MIB + 100)
    raw.write_bytes(content)
    qemu_check(path, format="vhdx")
    qemu_compare(path, raw, formats=("vhdx", "raw"))
    assert libyal_sha256("vhdx", path) == sha256(raw)
    said = qemu_img_info(path, format="vhdx")
    with formats.open(path) as disk:
        assert disk.describe().cluster_size == said["cluster-size"]
        assert disk.size == said["virtual-size"]


@pytest.mark.parametrize("options", ["subformat=dynamic", "subformat=fixed", "block_size=2M,block_state_zero=off"])
def test_what_qemu_writes_is_read_and_written(tmp_path: Path, options: str) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    content = bytearray(noisy(SIZE, 2))
    raw.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, path)
    qemu_io(path, "write -P 7 3M 2M", "flush", format="vhdx")
    content[3 * MIB : 5 * MIB] = b"\7" * (2 * MIB)
    with formats.open(path, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        assert disk.check().exit_status == 0
        disk.write(10 * MIB - 5, b"0123456789")
        disk.write_zeroes(0, 2 * MIB)
    content[10 * MIB - 5 : 10 * MIB + 5] = b"0123456789"
    content[: 2 * MIB] = bytes(2 * MIB)
    raw.write_bytes(content)
    qemu_check(path, format="vhdx")
    qemu_compare(path, raw, formats=("vhdx", "raw"))


def test_libvhdi_reads_a_chain_of_three(tmp_path: Path) -> None:
    """Without blocks of zeros, through which libvhdi 20210425 shows the parent: MS-VHDX 2.5.1.1 forbids that."""
    paths = [tmp_path / f"{name}.vhdx" for name in ("base", "middle", "top")]
    model = bytearray(noisy(SIZE))
    lay_out(paths[0], "vhdx", {}, bytes(model))
    maker = random.Random(3)
    for index in (1, 2):
        make_child(paths[index], paths[index - 1], SIZE)
        with formats.open(paths[index], writable=True) as disk:
            for _ in range(12):
                offset = maker.randrange(SIZE)
                data = maker.randbytes(min(maker.choice([1, 512, 9000, 1_500_000]), SIZE - offset))
                disk.write(offset, data)
                model[offset : offset + len(data)] = data
    raw = tmp_path / "disk.img"
    raw.write_bytes(model)
    assert libyal_sha256("vhdx", paths[2]) == sha256(raw)
    assert "middle.vhdx" in libyal_info("vhdx", paths[2])


def test_libvhdi_reads_sectors_of_4096(tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    raw.write_bytes(noisy(5 * MIB))
    lay_out(path, "vhdx", {"logical_sector_size": "4096"}, raw.read_bytes())
    assert libyal_sha256("vhdx", path) == sha256(raw)
    assert "4096" in libyal_info("vhdx", path)
