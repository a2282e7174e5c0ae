"""The reader's process: real file systems in every format, damaged ones, and a process that misbehaves."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import vdisk
from tests import peers
from tests.inspect.guests import START, Files, debian, disk_of, ext_disk, put, xfs_disk
from tests.inspect.windows_guests import ntfs_disk, windows
from vdisk.block.device import BlockDevice
from vdisk.block.filters import Window
from vdisk.errors import StorageError
from vdisk.formats import FORMATS
from vdisk.inspect import guest_reader
from vdisk.inspect.filesystems import recognise
from vdisk.inspect.guest import Guest
from vdisk.inspect.guest_reader import DONE, REQUEST, Volume, is_available, read_guest
from vdisk.storage.memory import MemoryStorage

FILES = debian("virtio_blk", "ahci", shipped=["net/nothing"])
KINDS = {"ext4": "ext4", "xfs": "XFS", "ntfs": "NTFS"}
"""Fixtures, and what `vdisk.inspect.filesystems` calls what is on them."""


def guest_on(disk: BlockDevice, title: str = "partition 1") -> Guest:
    """As `vdisk compat` asks: the partition of `disk_of`, by what is in it."""
    window = Window(disk, START, disk.size - START)
    return read_guest([Volume(title, recognise(window).kind, window)])


def check(guest: Guest, root: str) -> None:
    assert guest.problems == []
    assert guest.root == root
    assert guest.os == "Debian GNU/Linux 12 (bookworm)"
    assert guest.kernels[0].modules == ["ahci", "sd_mod", "virtio_blk"]
    assert guest.fstab[1].device == "/dev/sda5"
    assert guest.architecture == "x86_64"


def test_the_extra_is_installed_for_the_tests() -> None:
    assert is_available(), "pip install 'vdisk-toolkit[test]'"


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ext_disk(tmp_path_factory.mktemp("ext4") / "disk.img", FILES)


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xfs_disk(tmp_path_factory.mktemp("xfs") / "disk.img", FILES)


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ntfs_disk(tmp_path_factory.mktemp("ntfs") / "disk.img", windows())


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_ext(kind: str, tmp_path: Path) -> None:
    with vdisk.open(ext_disk(tmp_path / "disk.img", FILES, kind=kind)) as disk:
        check(guest_on(disk), f"partition 1 ({kind})")


@pytest.mark.peer
@pytest.mark.parametrize("options", [("-i", "nrext64=1"), ("-m", "crc=0"), ("-n", "size=65536", "-m", "rmapbt=1")])
def test_xfs_of_each_kind(options: tuple[str, ...], tmp_path: Path) -> None:
    # Folders from a few names to thousands: they are stored in other ways.
    many: Files = {f"lib-many/folder{count}/file{n}": b"" for count in (3, 100, 900) for n in range(count)}
    whole = {path: value for path, value in FILES.items() if path != "etc/fstab"}
    link = {"etc/fstab": "/lib-many/folder900/fstab", "lib-many/folder900/fstab": FILES["etc/fstab"]}
    with vdisk.open(xfs_disk(tmp_path / "disk.img", {**whole, **many, **link}, *options)) as disk:
        check(guest_on(disk), "partition 1 (XFS)")


@pytest.mark.peer
def test_a_logical_volume(tmp_path: Path, ext4: Path) -> None:
    disk = lvm_disk(tmp_path, ext4)
    with vdisk.open(disk) as image:
        check(guest_on(image), "partition 1, LVM system/root (ext4)")


def lvm_disk(folder: Path, ext4: Path) -> Path:
    """A disk with a volume group in its partition: a small logical volume, then one with the file system of `ext4`."""
    if os.geteuid() != 0:
        peers.missing("loop devices need root")
    volume, size = folder / "pv", 40 << 20
    volume.write_bytes(bytes(size))
    loop = peers.run("losetup", "--find", "--show", volume).stdout.decode().strip()
    here = f'devices {{ use_devicesfile=0 filter=["a|^{loop}$|","r|.*|"] }}'
    new = ("--config", here, "--driverloaded", "n", "-an", "-Zn", "-Wn", "-y")
    try:
        peers.run("pvcreate", "--config", here, "-y", "-ff", loop)
        peers.run("vgcreate", "--config", here, "system", loop)
        peers.run("lvcreate", *new, "-L", "4M", "-n", "first", "system")
        peers.run("lvcreate", *new, "-L", "16M", "-n", "root", "system")
    finally:
        peers.run("losetup", "-d", loop)
    with ext4.open("rb") as file:
        file.seek(START)
        (folder / "fs").write_bytes(file.read())
    put(folder / "fs", volume, (1 << 20) + (4 << 20))  # the first extents, of 4 MiB, begin at 1 MiB
    disk = disk_of(folder / "disk.img", size + START, 0x8E)
    put(volume, disk, START)
    return disk


@pytest.mark.peer
@pytest.mark.parametrize("format_name", [row.name for row in FORMATS])
def test_in_every_format(format_name: str, tmp_path: Path, ext4: Path) -> None:
    path = tmp_path / ("disk.hdd" if format_name == "parallels" else f"disk.{format_name}")
    compress = format_name in ("qcow2", "vmdk")
    vdisk.convert(ext4, path, target_format=format_name, compress=compress)
    with vdisk.open(path, format=None if format_name != "raw" else "raw") as disk:
        check(guest_on(disk), "partition 1 (ext4)")


@pytest.mark.peer
def test_what_is_not_looked_into_is_named(ext4: Path) -> None:
    with vdisk.open(ext4) as disk:
        window = Window(disk, START, disk.size - START)
        guest = read_guest([Volume("partition 1", "ext4", window), Volume("partition 2", "Btrfs", disk)])
        assert guest.passed_over == ["partition 2: Btrfs"]
        assert read_guest([Volume("the whole disk", "LUKS", disk)]).passed_over == ["the whole disk: LUKS"]


# Damage


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs"])
def test_a_cut_file_system_is_told(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    for length in (2, 64, 300, 2048, 5 << 10):  # KiB
        with vdisk.open(path, format="raw") as disk:
            guest = read_guest([Volume("partition 1", KINDS[kind], Window(disk, START, length << 10))])
        assert guest.problems or guest.os, length
        assert all(len(problem.splitlines()) == 1 for problem in guest.problems)


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs"])
def test_flipped_bytes_are_told_or_harmless(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    chance, told = random.Random(kind), 0
    used = used_sectors(path)
    for _ in range(20):
        with vdisk.Overlay(vdisk.open(path, format="raw")) as disk:
            for _ in range(chance.choice((1, 10, 100))):
                disk.write(chance.choice(used) + chance.randrange(512), bytes([chance.randrange(256)]))
            window = Window(disk, START, disk.size - START)
            guest = read_guest([Volume("partition 1", KINDS[kind], window)], seconds=20)
        assert all(len(problem.splitlines()) == 1 for problem in guest.problems)
        assert not any("20 s" in problem for problem in guest.problems), "it hangs"
        told += bool(guest.problems)
    assert told, "some of it must be seen"


def used_sectors(path: Path) -> list[int]:
    """The first sectors of the file system that hold anything: where its tables are."""
    with vdisk.open(path, format="raw") as disk:
        found = [
            at
            for extent in disk.map(START, 64 << 20 if disk.size > 64 << 20 else disk.size - START)
            if extent.kind.name == "DATA"
            for at in range(extent.start, extent.end, 512)
            if any(disk.read(at, 512))
        ]
    return found[:300]


@pytest.mark.peer
def test_a_feature_that_the_reader_does_not_know_is_named(tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk.img", 9 << 20)
    peers.run("mkfs.ext4", "-q", "-F", "-O", "large_dir", "-E", f"offset={START}", path, "8192k")
    with vdisk.open(path) as disk:
        (problem,) = guest_on(disk).problems
    assert problem.startswith("partition 1 (ext4): could not be read: unable to open volume: unsupported incompatible")


# The process


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the reader's process be one that runs `code`."""

    def start() -> subprocess.Popen[bytes]:
        head = "import os, sys, struct, json, time\nask = struct.Struct('<IQI').pack\nout = sys.stdout.buffer\n"
        command = [sys.executable, "-c", head + code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    monkeypatch.setattr(guest_reader, "_start", start)


def read_small(seconds: float = 30.0) -> Guest:
    with vdisk.formats.open(MemoryStorage(bytes(4096)), format="raw") as disk:
        return read_guest([Volume("partition 1", "ext4", disk)], seconds=seconds)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), 11)", "ended by signal 11"),
        ("sys.exit(7)", "ended by status 7"),
        ("out.write(ask(0, 0, 1 << 30)); out.flush(); time.sleep(60)", "ended by signal 9"),
        ("out.write(ask(9, 0, 1)); out.flush(); time.sleep(60)", "ended by signal 9"),
        (f"out.write(ask({DONE}, 0, 1 << 31)); out.flush(); time.sleep(60)", "ended by signal 9"),
        (f"out.write(ask({DONE}, 0, 3) + b'{{x}}'); out.flush()", "ended by"),
        (f"out.write(ask({DONE}, 0, 200000) + b'[' * 200000); out.flush()", "ended by"),
    ],
)
def test_a_process_that_breaks_is_told(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, code)
    guest = read_small()
    assert len(guest.problems) == 1
    assert said in guest.problems[0]


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "time.sleep(600)")
    assert read_small(seconds=0.5).problems == [
        "the file systems could not be read: the reader was not done within 0.5 s"
    ]


def test_what_a_process_says_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "root": "partition 1", "os": "evil\x1b[31m\nname" + "x" * 1000, "os_like": "text", "more": 1,
        "fstab": [{"device": ["list"], "point": "/"}] * 1000, "problems": [None, {}], "has_boot_entries": "yes",
        "kernels": [{"version": 5}, 7],
    }  # fmt: skip
    text = json.dumps(said).encode()
    instead(monkeypatch, f"out.write(ask({DONE}, 0, {len(text)}) + {text!r}); out.flush()")
    guest = read_small()
    assert guest.os.startswith("evil?[31m?name")
    assert len(guest.os) == 200
    assert (guest.os_like, guest.has_boot_entries) == ([], False)
    assert [kernel.version for kernel in guest.kernels] == ["", ""]
    assert len(guest.fstab) == 256
    assert guest.problems == ["", ""]
    json.dumps(guest.as_dict())


def test_bytes_behind_the_volume_are_zeros_and_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    size = REQUEST.size
    instead(
        monkeypatch,
        f"assert {size} == 16; sys.stdin.buffer.readline(); out.write(ask(0, 500, 24)); out.flush()\n"
        f"data = json.dumps({{'os': sys.stdin.buffer.read(24).hex()}}).encode()\n"
        f"out.write(ask({DONE}, 0, len(data)) + data); out.flush()",
    )
    with vdisk.formats.open(MemoryStorage(b"\xaa" * 4096), format="raw") as disk:
        guest = read_guest([Volume("partition 1", "ext4", Window(disk, 1024, 512))])
    assert guest.os == "aa" * 12 + "00" * 12


def test_a_disk_that_cannot_be_read_is_told() -> None:
    class Broken(MemoryStorage):
        def readinto(self, offset: int, buffer: object) -> None:
            raise StorageError("disk.img", "read", "input/output error")

    with vdisk.formats.open(MemoryStorage(bytes(4096)), format="raw") as disk:
        disk.readinto = Broken().readinto  # type: ignore[method-assign,assignment]
        disk.read = lambda *_: Broken().readinto(0, None)  # type: ignore[method-assign,assignment,return-value]
        guest = read_guest([Volume("partition 1", "ext4", disk)])
    assert guest.problems == ["the disk could not be read: disk.img: read: input/output error"]


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are those of Linux")
def test_the_process_opens_nothing_and_takes_little() -> None:
    code = """
import socket
from vdisk.inspect.guest_process import limit
limit()
for refused in (lambda: open("/etc/passwd"), lambda: socket.socket(), lambda: bytearray(3 << 30)):
    try:
        refused()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["OSError", "OSError", "MemoryError"]
