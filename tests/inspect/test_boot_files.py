"""Where a guest's kernels and boot loader lie on its disk, by file system."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import vdisk
from tests.inspect.guests import START, Files, ext_disk, xfs_disk
from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.inspect.boot_files import BootFile
from vdisk.inspect.filesystems import recognise
from vdisk.inspect.guest_reader import Volume, read_boot_files
from vdisk.inspect.places import Places

RANDOM = random.Random(6)
FILES: Files = {
    "boot/vmlinuz-6.1": RANDOM.randbytes(100_000),
    "boot/initrd.img-6.1": RANDOM.randbytes(300_001),
    "boot/grub/i386-pc/normal.mod": RANDOM.randbytes(5000),
    "etc/passwd": RANDOM.randbytes(5000),
    "initrd.img": "boot/initrd.img-6.1",
}


def volume_of(disk: BlockDevice) -> Volume:
    window = Window(disk, START, disk.size - START)
    return Volume("partition 1", recognise(window).kind, window)


def content(volume: Volume, file: BootFile) -> bytes:
    return b"".join(volume.device.read(start, end - start) for start, end in file.extents)


def check(path: Path, files: Files, top: str) -> None:
    """Each file below `top` is where it is said to be, and no other is told."""
    with vdisk.open(path, format="raw") as disk:
        volume = volume_of(disk)
        found = {one.path: content(volume, one) for one in read_boot_files(volume)}
    wanted = {f"/{name}": data for name, data in files.items() if isinstance(data, bytes) and name.startswith(top)}
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        assert found[name][: len(data)] == data


@pytest.mark.peer
def test_the_files_of_an_ext4_lie_where_they_are_said_to(tmp_path: Path) -> None:
    check(ext_disk(tmp_path / "disk.img", FILES), FILES, "boot/")


@pytest.mark.peer
def test_the_files_of_an_xfs_are_not_told(tmp_path: Path) -> None:
    # The library's extents are wrong there: better no name than a wrong one.
    with vdisk.open(xfs_disk(tmp_path / "disk.img", FILES), format="raw") as disk:
        assert read_boot_files(volume_of(disk)) == []


@pytest.mark.peer
def test_a_volume_that_is_mounted_at_boot_is_told_whole(tmp_path: Path) -> None:
    files: Files = {"vmlinuz": RANDOM.randbytes(9000), "grub/grub.cfg": b"set timeout=1\n" * 1000}
    check(ext_disk(tmp_path / "disk.img", files), files, "")


@pytest.mark.peer
def test_a_byte_of_a_file_is_named_by_it(tmp_path: Path) -> None:
    with vdisk.open(ext_disk(tmp_path / "disk.img", FILES), format="raw") as disk:
        (initrd,) = (one for one in read_boot_files(volume_of(disk)) if "initrd" in one.path)
        first, last = START + initrd.extents[0][0], START + initrd.extents[-1][1] - 1
        places = Places()
        for offset in (first, last):
            assert places.name_of(disk, offset) == "/boot/initrd.img-6.1 in partition 1 (ext4)"
        assert places.name_of(disk, START) == "partition 1 (ext4)"


def test_a_volume_that_cannot_be_read_has_no_files(tmp_path: Path) -> None:
    path = tmp_path / "noise.img"
    path.write_bytes(RANDOM.randbytes(1 << 20))
    with vdisk.open(path, format="raw") as disk:
        for kind in ("ext4", "XFS", "LVM", "Btrfs"):
            assert read_boot_files(Volume("it", kind, disk)) == []


@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"path": 1, "extents": []}, {"path": "/x", "extents": [[1]]}, {"path": "/x", "extents": [[1, True]]},
     {"path": "/" + "x" * 5000, "extents": []}, {"path": "/x", "extents": {}}],
)  # fmt: skip
def test_what_the_reader_says_is_checked(said: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        BootFile.from_dict(said)


def test_a_path_that_a_terminal_would_act_on_is_shown() -> None:
    assert BootFile.from_dict({"path": "/\x1b[31m", "extents": [[0, 5]]}) == BootFile("/?[31m", [(0, 5)])
