"""Who has an image open, and who may join in: the locks, byte for byte QEMU's."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from pathlib import Path

import pytest

from vdisk.errors import InUse, OptionError
from vdisk.storage import locks
from vdisk.storage.locks import open_held
from vdisk.storage.staging import Staging

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system has these locks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


def locked_bytes(path: Path) -> set[int]:
    """The bytes of a file that anybody holds by a shared open-file-description lock."""
    inode = path.stat().st_ino
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        match = re.search(rf"OFDLCK +ADVISORY +READ .*:{inode} (\d+) (\d+)$", line)
        if match:
            found |= set(range(int(match[1]), int(match[2]) + 1))
    return found


READER, WRITER, SHARING = {100, 201, 203}, {100, 101, 103, 201, 203}, {100}


def test_the_bytes_are_qemu_s(path: Path) -> None:
    """What `qemu-nbd` 7.2 holds: of a qcow2 that it writes, of one that it reads, and of one that it shares."""
    with open_held(path, writable=True):
        assert locked_bytes(path) == WRITER
    with open_held(path):
        assert locked_bytes(path) == READER
    with open_held(path, force_share=True):
        assert locked_bytes(path) == SHARING
    assert locked_bytes(path) == set()


def test_readers_go_beside_readers(path: Path) -> None:
    with open_held(path), open_held(path), open_held(path, force_share=True):
        pass


@pytest.mark.parametrize("writable", [True, False])
def test_beside_a_writer_there_is_nobody(path: Path, writable: bool) -> None:
    with open_held(path, writable=True):
        with pytest.raises(InUse) as refused:
            open_held(path, writable=writable)
        text = str(refused.value)
        assert text.startswith(f"{path}: is in use by another program that writes to it; stop it first")
        assert ("--force-share" in text) is not writable
    open_held(path, writable=writable).close()


def test_a_reader_keeps_writers_away(path: Path) -> None:
    with open_held(path), pytest.raises(InUse, match=r"that reads it; stop it first$"):
        open_held(path, writable=True)
    open_held(path, writable=True).close()


def test_force_share_goes_beside_a_writer_whoever_comes_first(path: Path) -> None:
    with open_held(path, writable=True), open_held(path, force_share=True) as reader:
        assert reader.size == 4096
    with open_held(path, force_share=True), open_held(path, writable=True):
        pass


def test_a_link_is_the_same_file(path: Path) -> None:
    path.with_name("hard").hardlink_to(path)
    path.with_name("soft").symlink_to(path)
    with open_held(path, writable=True):
        for name in ("hard", "soft"):
            with pytest.raises(InUse, match=name):
                open_held(path.with_name(name))


def test_one_that_lets_nobody_read_is_told_so(path: Path) -> None:
    """As QEMU's commit job does with the images between top and base."""
    with path.open("rb") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, locks._byte(fcntl.F_RDLCK, 200))
        for force_share in (False, True):
            with pytest.raises(InUse, match="lets nobody read it"):
                open_held(path, force_share=force_share)


def test_an_exclusive_lock_is_somebody_s_too(path: Path) -> None:
    with path.open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, locks._byte(fcntl.F_WRLCK, 100))
        with pytest.raises(InUse, match="has locked it"):
            open_held(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_without_locks_nothing_fails(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that has none, or a kernel."""

    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with open_held(path, writable=True), open_held(path, writable=True):
        pass


def test_a_system_without_them_opens_as_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_HAS_LOCKS", False)
    with open_held(path, writable=True), open_held(path, writable=True), Staging(path) as staging:
        staging.create().write(0, b"new")
        staging.commit()
    assert path.read_bytes() == b"new"


class TestTargets:
    """What is to be replaced is held as by a writer."""

    @pytest.mark.parametrize("writable", [True, False])
    def test_one_in_use_is_refused_before_anything_is_made(self, path: Path, writable: bool) -> None:
        with open_held(path, writable=writable), pytest.raises(InUse, match=r"stop it first$"), Staging(path):
            pytest.fail("entered")
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_it_is_held_until_it_is_replaced(self, path: Path) -> None:
        with Staging(path) as staging:
            staging.create().write(0, b"new")
            with pytest.raises(InUse, match="writes to it"):
                open_held(path)
            staging.commit()
            open_held(path, writable=True).close()
        assert path.read_bytes() == b"new"

    def test_it_is_let_go_when_nothing_came_of_it(self, path: Path) -> None:
        with Staging(path) as staging:
            staging.create()
        open_held(path, writable=True).close()

    def test_further_files_are_held_as_well(self, path: Path) -> None:
        with (
            open_held(path),
            Staging(path.with_name("disk.vmdk")) as staging,
            pytest.raises(InUse, match=r"disk\.raw"),
        ):
            staging.create("disk.raw")

    def test_what_the_caller_holds_is_no_hindrance(self, path: Path) -> None:
        with open_held(path, writable=True), Staging(path, is_held=True) as staging:
            staging.create().write(0, b"new")
            staging.commit()
        assert path.read_bytes() == b"new"

    def test_a_source_is_told_from_a_file_in_use(self, path: Path) -> None:
        with open_held(path), Staging(path, keep=[path]) as staging, pytest.raises(OptionError, match="of the source"):
            staging.create()

    def test_what_is_no_file_is_left_alone(self, tmp_path: Path) -> None:
        """Opening a FIFO to look would wait for ever."""
        os.mkfifo(tmp_path / "fifo")
        assert locks.hold_target(tmp_path / "fifo", "fifo") is None
