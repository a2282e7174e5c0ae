"""Files as storage: positions, holes, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vdisk.errors import StorageError
from vdisk.storage.base import Storage
from vdisk.storage.file import FileStorage
from vdisk.storage.memory import MemoryStorage
from vdisk.storage.staging import Staging


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return FileStorage(tmp_path / "f", create=True) if request.param == "file" else MemoryStorage()


def test_bytes_come_back_from_where_they_went(storage: Storage) -> None:
    storage.write(5000, b"here")
    assert storage.size == 5004
    assert storage.read(4998, 100) == b"\0\0here"
    buffer = bytearray(10)
    assert storage.readinto(5002, memoryview(buffer)) == 2
    assert storage.read(9999, 4) == b""
    storage.truncate(5001)
    storage.truncate(5003)
    assert storage.read(5000, 9) == b"h\0\0"


def test_a_wild_length_takes_no_memory(storage: Storage) -> None:
    storage.write(0, b"abc")
    assert storage.read(1, 1 << 62) == b"bc"


def test_zeroing_reads_as_zeros_and_grows(storage: Storage) -> None:
    storage.write(0, b"x" * 10_000)
    storage.zero(100, 9000)
    storage.zero(9_990, 100)
    assert storage.size == 10_090
    assert storage.read(0, 20_000) == b"x" * 100 + bytes(9000) + b"x" * 890 + bytes(100)


def test_segments_cover_the_range_and_tell_holes(tmp_path: Path) -> None:
    with FileStorage(tmp_path / "f", create=True) as storage:
        storage.write(1 << 20, b"x" * 65536)
        storage.truncate(4 << 20)
        found = list(storage.segments(0, 5 << 20))
    assert [start for start, _, _ in found] == [sum(n for _, n, _ in found[:i]) for i in range(len(found))]
    assert sum(length for _, length, _ in found) == 5 << 20
    data = [(start, length) for start, length, is_data in found if is_data]
    assert data[0][0] <= 1 << 20 <= data[0][0] + data[0][1]


def test_the_kernel_copies_between_files(tmp_path: Path) -> None:
    with FileStorage(tmp_path / "a", create=True) as a, FileStorage(tmp_path / "b", create=True) as b:
        a.write(0, b"0123456789")
        copied = b.copy_from(a, 2, 4096, 5)
        assert copied in (0, 5)
        if copied:
            assert b.read(4096, 9) == b"23456"
        assert b.copy_from(MemoryStorage(b"abc"), 0, 0, 3) == 0


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing", "device"])
def test_what_is_no_file_is_refused_and_does_not_hang(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(StorageError, match=str(path)):
        FileStorage(path)


def test_writing_a_read_only_file_names_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    with FileStorage(path) as storage, pytest.raises(StorageError, match="opened read-only"):
        storage.write(0, b"x")


def test_an_existing_file_is_not_created_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    with pytest.raises(StorageError, match="create"):
        FileStorage(path, create=True)
    assert path.read_bytes() == b"abc"


class TestStaging:
    def test_nothing_appears_before_the_commit(self, tmp_path: Path) -> None:
        target = tmp_path / "disk.vmdk"
        target.write_bytes(b"old")
        with Staging(target) as staging:
            staging.create().write(0, b"new")
            staging.create("disk-s001.vmdk").write(0, b"extent")
            assert target.read_bytes() == b"old"
            assert not (tmp_path / "disk-s001.vmdk").exists()
            staging.commit()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk-s001.vmdk", "disk.vmdk"]
        assert target.read_bytes() == b"new"

    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        target = tmp_path / "disk.vmdk"
        target.write_bytes(b"old")

        def fail_halfway() -> None:
            with Staging(target) as staging:
                staging.create().write(0, b"new")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_halfway()
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]

    def test_the_old_file_lends_its_permissions(self, tmp_path: Path) -> None:
        target = tmp_path / "disk.raw"
        target.write_bytes(b"old")
        target.chmod(0o640)
        with Staging(target) as staging:
            staging.create()
            staging.commit()
        assert target.stat().st_mode & 0o777 == 0o640

    def test_a_folder_is_no_target(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="is a folder"):
            Staging(tmp_path)
