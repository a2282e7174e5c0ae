"""What stands at the target and is no regular file: a block device is written to, anything else is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import vdisk
from tests import peers
from tests.converter.test_stream import fed
from vdisk.errors import StorageError, Unsupported

MIB = 1 << 20
CONTENT = (b"data" * 1024).ljust(MIB, b"\0") + bytes(2 * MIB) + os.urandom(MIB) + bytes(512)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.qcow2"
    (tmp_path / "source.raw").write_bytes(CONTENT)
    vdisk.convert(tmp_path / "source.raw", path)
    return path


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device full of old data, longer than the disk."""
    if os.geteuid():
        pytest.skip("loop devices are root's")
    behind = tmp_path / "behind"
    behind.write_bytes(b"\xaa" * (5 * MIB))
    name = peers.run("losetup", "--find", "--show", behind).stdout.decode().strip()
    yield Path(name)
    peers.run("losetup", "-d", name)


@pytest.mark.peer
class TestBlockDevice:
    def test_it_has_the_disk_and_behind_it_what_was_there(self, source: Path, device: Path) -> None:
        vdisk.convert(source, device, target_format="raw")
        assert device.is_block_device()
        content = device.read_bytes()
        assert content[: len(CONTENT)] == CONTENT
        assert content[len(CONTENT) :] == b"\xaa" * (5 * MIB - len(CONTENT))

    def test_a_pipe_of_unknown_length_leaves_no_old_data(self, device: Path) -> None:
        fed(CONTENT, device, target_format="raw")
        assert device.read_bytes()[: len(CONTENT)] == CONTENT

    def test_a_shorter_one_is_refused_untouched(self, tmp_path: Path, device: Path) -> None:
        vdisk.create(tmp_path / "long.qcow2", 6 * MIB)
        with pytest.raises(StorageError, match=f"the disk has {6 * MIB} bytes, and the device {5 * MIB}"):
            vdisk.convert(tmp_path / "long.qcow2", device, target_format="raw")
        assert device.read_bytes() == b"\xaa" * (5 * MIB)

    def test_other_formats_and_resume_are_refused_by_name(self, source: Path, device: Path) -> None:
        with pytest.raises(Unsupported, match="block device: writing another format than raw"):
            vdisk.convert(source, device, target_format="vdi")
        with pytest.raises(Unsupported, match="resume: a block device as the target"):
            vdisk.convert(source, device, target_format="raw", resume=True)
        assert device.is_block_device()
        assert device.read_bytes() == b"\xaa" * (5 * MIB)

    def test_a_mounted_one_is_refused(self, source: Path, tmp_path: Path, device: Path) -> None:
        peers.run("mkfs.ext4", "-q", device)
        (tmp_path / "mounted").mkdir()
        peers.run("mount", device, tmp_path / "mounted")
        try:
            before = device.read_bytes()
            with pytest.raises(StorageError, match="busy"):
                vdisk.convert(source, device, target_format="raw")
            assert device.read_bytes() == before
        finally:
            peers.run("umount", device)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_is_neither_file_nor_device_stays(kind: str, source: Path, tmp_path: Path) -> None:
    """As /dev/null would not have, for root."""
    target = tmp_path / "target.raw"
    if kind == "fifo":
        os.mkfifo(target)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(target))
    with pytest.raises(StorageError, match="neither a regular file nor a block device"):
        vdisk.convert(source, target)
    assert not target.is_file()
