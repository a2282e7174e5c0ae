"""The helpers that call other programs find faults, and don't find what isn't one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import peers

MARK = b"vdisk peers " * 40_000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 4 MiB with some text in it."""
    path = tmp_path / "disk.raw"
    path.write_bytes(MARK.ljust(4 << 20, b"\0"))
    return path


def test_a_missing_program_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VDISK_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program"):
        peers.require("no-such-program")
    monkeypatch.setenv("VDISK_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        peers.require("no-such-program")


@pytest.mark.peer
@pytest.mark.parametrize(
    ("format", "qemu_format", "sevenzip_kind"),
    [("qcow2", "qcow2", "QCOW"), ("vmdk", "vmdk", "VMDK"), ("vhd", "vpc", "VHD"), ("vhdx", "vhdx", "VHDX")],
)
def test_three_readers_agree(disk: Path, tmp_path: Path, format: str, qemu_format: str, sevenzip_kind: str) -> None:
    image = tmp_path / f"image.{format}"
    options = ["-o", "force_size=on"] if qemu_format == "vpc" else []
    peers.qemu_img("convert", "-f", "raw", "-O", qemu_format, *options, disk, image)
    peers.qemu_compare(disk, image, formats=("raw", qemu_format))
    assert peers.qemu_img_info(image)["virtual-size"] == 4 << 20
    # libvhdi reads a VHD's size, as Virtual PC did, from the heads and cylinders: what qemu-img wrote at the front.
    assert peers.libyal_sha256(format, image, length=len(MARK)) == peers.sha256(disk, length=len(MARK))
    assert peers.sevenzip_sha256(image, kind=sevenzip_kind) == peers.sha256(disk)
    assert "4" in peers.libyal_info(format, image)


@pytest.mark.peer
def test_a_difference_fails(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(disk.read_bytes()[:-1] + b"\1")
    with pytest.raises(pytest.fail.Exception, match="Content mismatch"):
        peers.qemu_compare(disk, other, formats=("raw", "raw"))
    with pytest.raises(pytest.fail.Exception, match="Pattern verification failed"):
        peers.qemu_io(disk, "read -P 7 0 512", format="raw", writable=False)
    with pytest.raises(pytest.fail.Exception, match="exit code"):
        peers.libyal_sha256("qcow2", disk)
    with pytest.raises(pytest.fail.Exception, match="exit code"):
        peers.sevenzip_sha256(disk, kind="QCOW")


def test_real_images_are_unpacked(tmp_path: Path) -> None:
    path = peers.real_image("windows-dynamic.vhd", tmp_path)
    assert path.read_bytes()[:8] == b"conectix"
    assert (peers.real_image("expanding.hdd", tmp_path) / "DiskDescriptor.xml").is_file()
