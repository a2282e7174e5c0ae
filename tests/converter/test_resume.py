"""A conversion goes on where it was interrupted, and what comes out is what an uninterrupted one makes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vdisk
from tests.converter.test_convert import TARGETS, some_content
from tests.crash import Event, crash_states
from tests.peers import qemu_check, qemu_compare
from tests.signalled import signalled
from vdisk import formats
from vdisk.block import codecs
from vdisk.compat.fit import convert_for
from vdisk.converter import Conversion, resume
from vdisk.converter import journal as journal_module
from vdisk.converter.engine import Engine
from vdisk.converter.journal import ENCODED, PLACED, SIZED, ZEROED, Journal, Record
from vdisk.errors import Corrupt, OptionError, StorageError, Unsupported, VdiskError
from vdisk.formats.image import Backing
from vdisk.formats.qcow2 import layout as qcow2_layout
from vdisk.formats.vhd import create as vhd_create
from vdisk.formats.vmdk import layout as vmdk_layout
from vdisk.storage import kept, staging
from vdisk.storage.base import Buffer
from vdisk.storage.file import FileStorage
from vdisk.storage.kept import KeptStaging, kept_folder

SIZE = (5 << 20) + 3 * 512

KINDS: dict[str, tuple[str, dict[str, str], bool]] = {
    **TARGETS,
    "qcow2-subclusters": ("qcow2", {"extended_l2": "on"}, False),
    "qcow2-data-file": ("qcow2", {"data_file": "disk.data", "data_file_raw": "on"}, False),
    "qcow2-preallocated": ("qcow2", {"preallocation": "metadata"}, False),
    "vmdk-vmfs": ("vmdk", {"subformat": "vmfsSparse"}, False),
    "vhdx": ("vhdx", {}, False),
    "vhdx-fixed": ("vhdx", {"subformat": "fixed"}, False),
    "parallels": ("parallels", {"cluster_size": "96K"}, False),
    "bundle": ("hdd", {}, False),
    "bundle-plain": ("hdd", {"subformat": "plain"}, False),
    "ova": ("ova", {}, False),
}
SAME_BYTES = {"raw", "qcow2", "qcow2-small", "qcow2-zlib", "qcow2-zstd", "qcow2-subclusters", "qcow2-data-file"}
"""Kinds without an identifier or a time: two runs write the same bytes."""
FORMAT_NAMES = {"hdd": "parallels"}


def how_of(kind: str) -> dict[str, Any]:
    suffix, options, compress = KINDS[kind]
    return {"target_format": FORMAT_NAMES.get(suffix, suffix), "options": options, "compress": compress}


@pytest.fixture(autouse=True)
def flush_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece that is stored may be flushed and noted; the flushes do not reach the disk, for that takes time."""
    monkeypatch.setattr(resume, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(resume, "_FLUSH_SHARE", 0)
    monkeypatch.setattr(FileStorage, "flush", lambda self: None)


@pytest.fixture
def flush_beside_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is flushed, while the next one is stored."""
    stored = resume._Safety.stored

    def wait_and_store(self: resume._Safety, position: int) -> None:
        self.wait()
        stored(self, position)

    monkeypatch.setattr(resume._Safety, "stored", wait_and_store)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(some_content(5, SIZE))
    return path


def in_child(call: Callable[[], object]) -> int:
    """Call in a child of its own; returns its exit status, below zero for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork where there are threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(convert: Callable[[], object], number: int) -> bool:
    """Call in a child that is killed in the midst of its write of that number; whether it came so far."""

    def convert_and_die() -> None:
        with counted_writes(die_at=number):
            convert()

    status = in_child(convert_and_die)
    assert status in (0, -signal.SIGKILL)
    return status != 0


@contextmanager
def counted_writes(die_at: int = 0) -> Iterator[Callable[[], int]]:
    """Count the writes to files; the one of number `die_at` is done half, and kills the process.

    Every piece is noted as soon as it is stored.
    """
    done, write, stored = 0, FileStorage.write, resume._Safety.stored

    def write_or_die(self: FileStorage, offset: int, data: Buffer) -> None:
        nonlocal done
        done += 1
        if done == die_at:
            write(self, offset, memoryview(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, offset, data)

    def stored_and_noted(self: resume._Safety, position: int) -> None:
        stored(self, position)
        self.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileStorage, "write", write_or_die)
        patch.setattr(resume._Safety, "stored", stored_and_noted)
        yield lambda: done


def leave_some(source: Path, target: Path, **how: Any) -> int:
    """Interrupt a conversion half way; returns the bytes it had done."""

    def stop(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vdisk.convert(source, target, resume=True, progress=stop, **how)
    with Journal(kept_folder(target) / "journal") as journal:
        return [block.position for block in journal.blocks()][-1]


def content_of(target: Path) -> bytes:
    """The whole disk, of an image that is sound."""
    if target.suffix == ".ova":
        from vdisk.ova import open_disk

        with open_disk(target, verify=True) as disk:
            return disk.read(0, SIZE)
    with formats.open(target) as disk:
        try:
            report = disk.check()
        except Unsupported:
            report = None
        assert report is None or report.exit_status == 0, report.findings[:3]
        return disk.read(0, SIZE)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def resume_through_kills(source: Path, target: Path, seed: str, *, kills: int = 4, **how: Any) -> None:
    """Convert, killed at random points, and compare with a conversion that nothing interrupted."""
    maker = random.Random(seed)
    at_once = target.parent / "at once" / target.name
    at_once.parent.mkdir(exist_ok=True)
    with counted_writes() as count:
        vdisk.convert(source, at_once, resume=True, **how)
        writes = count()

    def convert() -> Conversion:
        return vdisk.convert(source, target, resume=True, **how)

    assert killed(convert, writes // 2)
    for _ in range(kills - 1):
        if not target.exists():
            killed(convert, maker.randrange(1, writes // 2))
    if not target.exists():
        assert convert().resumed_bytes > 0
    assert not kept_folder(target).exists()
    assert content_of(target) == content_of(at_once)


class TestKill:
    @pytest.mark.parametrize("kind", KINDS)
    def test_killed_again_and_again_it_comes_to_its_end(self, kind: str, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "out" / f"disk.{KINDS[kind][0]}"
        target.parent.mkdir()
        resume_through_kills(source, target, kind, **how_of(kind))
        assert content_of(target) == source.read_bytes()
        if kind in SAME_BYTES:
            assert files_in(target.parent) == files_in(target.parent / "at once")

    @pytest.mark.parametrize("kind", ["qcow2", "qcow2-v2", "vmdk", "vmdk-zero-grains", "vdi", "vhd", "vhdx"])
    def test_with_a_backing_file(self, kind: str, source: Path, tmp_path: Path) -> None:
        name, options = {
            "qcow2-v2": ("qcow2", {"compat": "0.10"}),
            "vmdk-zero-grains": ("vmdk", {"zeroed_grain": "on"}),
        }.get(kind, (kind, {}))
        content = bytearray(source.read_bytes())
        base = tmp_path / f"base.{name}"
        vdisk.convert(source, base)
        for at in range(300_000, SIZE - 90_000, 700_000):
            content[at : at + 90_000] = bytes(90_000) if at % 3 else random.Random(at).randbytes(90_000)
        content[3 << 20 : 4 << 20] = bytes(1 << 20)
        source.write_bytes(content)
        target = tmp_path / "out" / f"overlay.{name}"
        (target.parent / "at once").mkdir(parents=True)
        for folder in (target.parent, target.parent / "at once"):
            shutil.copy2(base, folder)
        resume_through_kills(source, target, kind, backing=base.name, backing_format=name, options=options)
        with formats.open(target) as disk:
            assert disk.read(0, SIZE) == content

    @pytest.mark.parametrize("kind", ["qcow2", "vhd", "vmdk"])
    def test_tables_that_were_written_in_the_midst(
        self, kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qcow2_layout, "_TABLES_KEPT_BYTES", 4096)
        monkeypatch.setattr(vhd_create, "_BITMAPS_KEPT", 2)
        monkeypatch.setattr(vmdk_layout, "_WINDOW_ENTRIES", 16)
        options = {"qcow2": {"cluster_size": "512"}, "vhd": {"block_size": "16K"}}.get(kind, {})
        target = tmp_path / "out" / f"disk.{kind}"
        target.parent.mkdir()
        resume_through_kills(source, target, kind, options=options)
        assert content_of(target) == source.read_bytes()

    def test_units_that_are_passed_on(self, source: Path, tmp_path: Path) -> None:
        packed = tmp_path / "packed.vmdk"
        vdisk.convert(source, packed, compress=True)
        target = tmp_path / "out" / "disk.qcow2"
        target.parent.mkdir()
        resume_through_kills(packed, target, "", compress=True)
        assert content_of(target) == source.read_bytes()

    @pytest.mark.peer
    def test_qemu_reads_what_comes_out(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "out" / "disk.qcow2"
        target.parent.mkdir()
        resume_through_kills(source, target, "", compress=True)
        qemu_check(target)
        qemu_compare(source, target)


@pytest.mark.usefixtures("flush_beside_each_piece")
class TestInterrupt:
    @pytest.mark.parametrize("kind", ["qcow2-zlib", "vhd", "bundle"])
    def test_it_may_come_at_any_line(self, kind: str, source: Path, tmp_path: Path) -> None:
        target = tmp_path / f"target.{KINDS[kind][0]}"

        def convert() -> Conversion:
            return vdisk.convert(source, target, resume=True, **how_of(kind))

        lines = 0
        with interrupt_at_line(0) as count:
            convert()
            lines = count()
        assert lines > 300
        maker = random.Random(kind)
        for number in sorted(maker.sample(range(1, lines), 8)):
            remove_all(target, {target.name})
            assert in_child(lambda number=number: interrupted(convert, number)) == 0
            if not target.exists():  # else it came after the rename
                convert()
                assert not kept_folder(target).exists()
            assert content_of(target) == source.read_bytes(), number


def interrupted(convert: Callable[[], object], number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_at_line(number):
        convert()


@contextmanager
def interrupt_at_line(number: int) -> Iterator[Callable[[], int]]:
    """Count the lines that the main thread runs of what keeps work, and raise `KeyboardInterrupt` in one of them."""
    files = {module.__file__ for module in (resume, journal_module, kept, staging)}
    done = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal done
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            done += 1
            if done == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: done
    finally:
        sys.settrace(before)


class TestGoingOn:
    def test_what_is_done_is_neither_read_nor_compressed_again(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "disk.qcow2"
        position = leave_some(source, target, compress=True)
        assert position >= 2 << 20
        encode, read = codecs.encode, Engine._fill
        encoded: list[int] = []
        reads: list[int] = []
        monkeypatch.setattr(codecs, "encode", lambda *args: encoded.append(1) or encode(*args))
        monkeypatch.setattr(Engine, "_fill", lambda self, start, *rest: reads.append(start) or read(self, start, *rest))
        done = vdisk.convert(source, target, compress=True, resume=True)
        assert min(reads) == position
        assert len(encoded) <= -(-(SIZE - position) // 65536)
        assert done.resumed_bytes == position
        assert content_of(target) == source.read_bytes()

    def test_it_reports_what_an_uninterrupted_one_does(self, source: Path, tmp_path: Path) -> None:
        whole = vdisk.convert(source, tmp_path / "whole.vmdk")
        leave_some(source, tmp_path / "disk.vmdk")
        done = vdisk.convert(source, tmp_path / "disk.vmdk", resume=True)
        assert done._replace(resumed_bytes=0) == whole

    def test_progress_starts_at_what_is_done(self, source: Path, tmp_path: Path) -> None:
        position = leave_some(source, tmp_path / "disk.vdi")
        seen: list[tuple[int, int]] = []
        vdisk.convert(source, tmp_path / "disk.vdi", resume=True, progress=lambda *now: seen.append(now))
        assert seen[0][0] == position
        assert seen == sorted(seen)
        assert seen[-1] == (SIZE, SIZE)

    def test_with_nothing_to_go_on_with_it_begins(self, source: Path, tmp_path: Path) -> None:
        folder = kept_folder(tmp_path / "disk.qcow2")
        folder.mkdir()
        (folder / "journal").touch()
        (folder / "disk.qcow2").write_bytes(b"of a run that ended before it had noted anything")
        done = vdisk.convert(source, tmp_path / "disk.qcow2", resume=True)
        assert done.resumed_bytes == 0
        assert content_of(tmp_path / "disk.qcow2") == source.read_bytes()
        assert not folder.exists()

    def test_without_resume_it_starts_over_and_clears_up(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        done = vdisk.convert(source, target, compress=True)
        assert done.resumed_bytes == 0
        assert sorted(files_in(tmp_path)) == ["disk.qcow2", "disk.raw"]
        assert not kept_folder(target).exists()

    def test_a_source_that_breaks_at_once_leaves_nothing(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError):
            vdisk.convert(source, tmp_path / "disk.vmdk", resume=True, options={"ddb": "no colon"})
        assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]

    def test_an_old_target_is_there_until_the_end(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        target.write_bytes(b"old")
        leave_some(source, target)
        assert target.read_bytes() == b"old"
        vdisk.convert(source, target, resume=True)
        assert content_of(target) == source.read_bytes()


class TestCommand:
    def run(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vdisk", "convert", "--resume", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_same_command_goes_on_after_a_signal(self, number: int, tmp_path: Path) -> None:
        source, target = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
        source.write_bytes(random.Random(1).randbytes(48 << 20))
        arguments = ("-c", "-o", "compression_level=9", "--json", source, target)
        folder = kept_folder(target)
        part = folder / target.name
        ended = signalled(
            number, lambda: part.exists() and part.stat().st_size >= 8 << 20, "convert", "--resume", *arguments
        )
        kept = f"vdisk: kept in {folder}: the same command goes on from there"
        assert ended == (128 + number, f"{kept}\nvdisk: interrupted")
        assert not target.exists()
        process = self.run(*arguments)
        report, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
        assert json.loads(report)["resumed-bytes"] >= 4 << 20
        with formats.open(target) as disk:
            assert disk.read(0, disk.size) == source.read_bytes()

    def test_the_same_command_goes_on_when_the_disk_has_room_again(self, source: Path, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2500k", "none", small], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip("only root can mount a small file system")
        try:
            process = self.run(source, small / "disk.qcow2")
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "disk.qcow2.vdisk-resume: the same command goes on from there\n" in said
            assert "No space left on device" in said
            subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
            assert vdisk.convert(source, small / "disk.qcow2", resume=True).resumed_bytes >= 1 << 20
            assert content_of(small / "disk.qcow2") == source.read_bytes()
        finally:
            subprocess.run(["umount", small], check=True)

    def test_a_pipe_is_refused(self, source: Path) -> None:
        process = self.run(source, "-", "-O", "raw")
        assert "--resume goes neither with a pipe nor with --dry-run" in process.communicate()[1]
        assert process.returncode == 2


class TestRefused:
    """One line that says what differs, and the work stays as it is."""

    def refused(self, source: Path, target: Path, what: str, **how: Any) -> None:
        before = files_in(kept_folder(target))
        with pytest.raises(StorageError, match=what) as caught:
            vdisk.convert(source, target, resume=True, **how)
        assert "delete the folder to start over, or leave --resume out" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert files_in(kept_folder(target)) == before

    def test_a_source_that_has_changed(self, source: Path, tmp_path: Path) -> None:
        leave_some(source, tmp_path / "disk.vdi")
        status = source.stat()
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        self.refused(source, tmp_path / "disk.vdi", "time of the last change of .*disk.raw, in ns: expected")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert vdisk.convert(source, tmp_path / "disk.vdi", resume=True).resumed_bytes

    def test_a_source_that_has_grown(self, source: Path, tmp_path: Path) -> None:
        leave_some(source, tmp_path / "disk.vdi")
        status = source.stat()
        with source.open("ab") as file:
            file.write(bytes(512))
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.refused(source, tmp_path / "disk.vdi", f"size of the disk: expected {SIZE}, found {SIZE + 512};")

    @pytest.mark.parametrize("changed", ["base.qcow2", "behind.qcow2"])
    def test_a_file_behind_that_has_changed(self, changed: str, source: Path, tmp_path: Path) -> None:
        """Behind the source, and behind the target."""
        overlay, target = tmp_path / "overlay.qcow2", tmp_path / "disk.qcow2"
        vdisk.convert(source, tmp_path / "base.qcow2")
        formats.create(tmp_path / "behind.qcow2", SIZE)
        with formats.open_backing(overlay, "base.qcow2", "qcow2") as base:
            formats.create(overlay, SIZE, backing=Backing("base.qcow2", "qcow2", base))
        how = {"backing": "behind.qcow2", "backing_format": "qcow2"}
        leave_some(overlay, target, **how)
        os.utime(tmp_path / changed)
        self.refused(overlay, target, f"time of the last change of .*{changed}", **how)

    @pytest.mark.parametrize(
        ("how", "what"),
        [
            ({"options": {"cluster_size": "4K"}}, "option cluster_size: expected 65536, found 4096;"),
            ({"compress": True}, "compression: expected False, found True;"),
            ({"target_format": "vmdk"}, "target format: expected qcow2, found vmdk;"),
            ({"smallest_bytes": 16 << 20}, "size of the disk: expected .*, found 16777216;"),
            ({"backing": "base.raw", "backing_format": "raw"}, "backing file: expected None, found base.raw;"),
        ],
    )
    def test_another_conversion(self, how: dict[str, Any], what: str, source: Path, tmp_path: Path) -> None:
        (tmp_path / "base.raw").write_bytes(bytes(512))
        leave_some(source, tmp_path / "disk.qcow2")
        self.refused(source, tmp_path / "disk.qcow2", what, **how)

    def test_another_source(self, source: Path, tmp_path: Path) -> None:
        leave_some(source, tmp_path / "disk.qcow2")
        other = source.rename(tmp_path / "other.raw")
        self.refused(other, tmp_path / "disk.qcow2", "source: expected .*disk.raw, found .*other.raw;")

    def test_another_version_of_vdisk(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        leave_some(source, tmp_path / "disk.qcow2")
        monkeypatch.setattr(resume, "__version__", "99")
        self.refused(source, tmp_path / "disk.qcow2", "version of vdisk: expected .*, found 99;")

    def test_another_run_at_the_same_time(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        with KeptStaging(target), pytest.raises(StorageError, match="another run is at it"):
            vdisk.convert(source, target, resume=True)
        with KeptStaging(target):
            vdisk.convert(source, target)  # and one that starts over leaves that run its folder
            assert kept_folder(target).exists()

    def test_a_folder_that_is_none(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        kept_folder(tmp_path / "disk.qcow2").symlink_to("elsewhere")
        with pytest.raises(StorageError, match="is no folder"):
            vdisk.convert(source, tmp_path / "disk.qcow2", resume=True)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_encryption(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(b"secret")
        options = {"encrypt.format": "luks", "encrypt.secret": f"file:{tmp_path / 'key'}", "encrypt.iterations": "1000"}
        with pytest.raises(Unsupported, match="--resume with encryption"):
            vdisk.convert(source, tmp_path / "disk.qcow2", options=options, resume=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "key"]

    def test_a_device_does_not_tell_whether_it_has_changed(self) -> None:
        with pytest.raises(Unsupported, match="a source that is a device"):
            resume.fields_of("/dev/null", ["/dev/null"], formats.find_format("raw").writer_class(), {}, {})

    def test_a_dry_run_and_what_is_packed_afterwards(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="a dry run cannot be resumed"):
            vdisk.convert(source, tmp_path / "disk.qcow2", resume=True, dry_run=True)
        with pytest.raises(OptionError, match="is packed after it was converted"):
            convert_for(source, tmp_path / "disk.tar.gz", "gcp", resume=True)


class TestDamage:
    def test_a_torn_block_is_left_out(self, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target, compress=True)
        path = kept_folder(target) / "journal"
        raw = path.read_bytes()
        with Journal(path) as journal:
            positions = [block.position for block in journal.blocks()]
        assert len(positions) > 1
        start = raw.rindex(b"safe")
        for length in {start, start + 1, *range(start + 3, len(raw), 7)}:
            path.write_bytes(raw[:length])
            with Journal(path) as journal:
                assert [block.position for block in journal.blocks()] == positions[:-1]
        assert vdisk.convert(source, target, compress=True, resume=True).resumed_bytes == positions[-2]
        assert content_of(target) == source.read_bytes()

    def test_a_torn_header_says_nothing(self, source: Path, tmp_path: Path) -> None:
        """It is on the disk before the first block comes."""
        target = tmp_path / "disk.vdi"
        leave_some(source, target)
        path = kept_folder(target) / "journal"
        header = path.read_bytes()[: path.read_bytes().index(b"safe")]
        for torn in (b"", header[:5], header[:100], header[:100] + bytes(len(header) - 100), bytes(len(header))):
            path.write_bytes(torn)
            with Journal(path) as journal:
                assert journal.is_empty
        path.write_bytes(header[:100] + bytes(len(header) - 100) + b"safe")
        with pytest.raises(Corrupt, match="checksum"):
            Journal(path)

    @pytest.mark.parametrize("kind", ["raw", "qcow2-zlib", "vmdk", "vmdk-stream", "vhd", "parallels", "ova"])
    def test_what_was_written_after_the_last_note_is_as_if_it_had_not_been(
        self, kind: str, source: Path, tmp_path: Path
    ) -> None:
        """After a loss of power there may be anything: here it is noise wherever no note says what there is."""
        target = tmp_path / f"target.{KINDS[kind][0]}"
        leave_some(source, target, **how_of(kind))
        known = bytearray()
        with Journal(kept_folder(target) / "journal") as journal:
            for record in (record for block in journal.blocks() for record in block.records):
                start, end = record.host_offset, record.host_offset + record.length
                known.extend(bytes(max(0, end - len(known))))
                if record.kind != SIZED:
                    known[start:end] = b"\1" * record.length
        part = kept_folder(target) / target.name
        data = part.read_bytes()
        noise = random.Random(1).randbytes(len(data) + (3 << 20))
        known = known.ljust(len(noise), b"\0")
        part.write_bytes(
            bytes(b if is_known else n for b, n, is_known in zip(data.ljust(len(noise)), noise, known, strict=True))
        )
        vdisk.convert(source, target, resume=True, **how_of(kind))
        assert content_of(target) == source.read_bytes()
        whole = tmp_path / "whole" / target.name
        whole.parent.mkdir()
        vdisk.convert(source, whole, **how_of(kind))
        assert target.stat().st_size == whole.stat().st_size
        assert kind not in SAME_BYTES or target.read_bytes() == whole.read_bytes()

    def test_a_flipped_byte_is_one_line_or_work_done_again(self, source: Path, tmp_path: Path) -> None:
        maker = random.Random(8)
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        kept = files_in(kept_folder(target))
        outcomes = set()
        for _ in range(30):
            kept_folder(target).mkdir(exist_ok=True)
            for name, data in kept.items():
                (kept_folder(target) / name).write_bytes(data)
            damaged = bytearray(kept["journal"])
            damaged[maker.randrange(len(damaged))] ^= maker.randrange(1, 256)
            (kept_folder(target) / "journal").write_bytes(damaged)
            try:
                vdisk.convert(source, target, resume=True)
            except VdiskError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
            else:
                outcomes.add("done")
                assert content_of(target) == source.read_bytes()
        assert outcomes == {"refused", "done"}

    @pytest.mark.parametrize(
        ("position", "record"),
        [
            (1 << 40, Record(PLACED, 0, 0, 65536, 65536)),
            (1000, Record(PLACED, 0, 0, 512, 65536)),
            (65536, Record(PLACED, 0, 0, 1 << 20, 65536)),
            (65536, Record(PLACED, 0, 512, 65536, 65536)),
            (65536, Record(PLACED, 0, 0, 65536, 1 << 20)),
            (65536, Record(PLACED, 5, 0, 65536, 65536)),
            (65536, Record(PLACED, 0, 0, 0, 65536)),
            (65536, Record(ZEROED, 0, 0, 65536)),
            (65536, Record(SIZED, 0, length=1 << 50)),
            (65536, Record(SIZED, 1 << 31, length=1 << 50)),
            (65536, Record(ENCODED, 0, 0, 100, 65536, array("I", [100]))),
            (65536, Record(9)),
            (65536, Record(PLACED, 0, 0, 1 << 63, 65536)),
            (65536, Record(PLACED, 0, 0, 65536, 65536, array("I", [1, 2]))),
        ],
    )
    def test_a_journal_of_nonsense_is_one_line(
        self, position: int, record: Record, source: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        with Journal(kept_folder(target) / "journal") as journal:
            fields = journal.fields
            assert fields is not None
            journal.start(fields)
            journal.add(position, [record])
        if (record.kind, record.file) == (SIZED, 1 << 31):  # a file that nobody asks for
            assert vdisk.convert(source, target, resume=True).resumed_bytes == position
            return
        with pytest.raises(Corrupt, match="start over"):
            vdisk.convert(source, target, resume=True)

    @pytest.mark.parametrize("damage", ["missing", "shorter"])
    def test_a_file_that_has_lost_what_was_in_it(self, damage: str, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        part = kept_folder(target) / target.name
        if damage == "missing":
            part.unlink()
        else:
            os.truncate(part, 65536)
        with pytest.raises(Corrupt, match=r"is not there|expected at least"):
            vdisk.convert(source, target, resume=True)

    @pytest.mark.parametrize("content", [b"not a journal, but some text", b"vdiskJ2\n" + bytes(100)])
    def test_another_file_in_the_journals_place(self, content: bytes, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.qcow2"
        leave_some(source, target)
        (kept_folder(target) / "journal").write_bytes(content)
        with pytest.raises(Corrupt, match="expected the mark of a journal"):
            vdisk.convert(source, target, resume=True)


@pytest.mark.usefixtures("flush_beside_each_piece")
class TestPowerLoss:
    @pytest.mark.parametrize("kind", ["raw", "qcow2-zlib", "vmdk-stream", "vhd", "vmdk-split"])
    def test_the_journal_is_never_ahead_of_the_data(self, kind: str, source: Path, tmp_path: Path) -> None:
        """Every state that the disk could have been left in is gone on from, and the image is right."""
        target = tmp_path / f"target.{KINDS[kind][0]}"
        folder = kept_folder(target)
        events: list[Event] = []
        with recorded(events, folder):
            vdisk.convert(source, target, resume=True, **how_of(kind))
        assert sum(event.kind == "flush" for event in events) > 4
        names = {event.file for event in events}
        of_journal = [event.kind for event in events if event.file == "journal" and event.kind != "truncate"]
        assert of_journal == ["write", "flush"] * (len(of_journal) // 2)
        resumed = 0
        for state in crash_states(dict.fromkeys(names, b""), events, 3, every=max(1, len(events) // 10), mixtures=2):
            remove_all(target, names)
            folder.mkdir()
            for name, data in state.files.items():
                (folder / name).write_bytes(data)
            resumed += vdisk.convert(source, target, resume=True, **how_of(kind)).resumed_bytes > 0
            assert content_of(target) == source.read_bytes(), state.what
        assert resumed > 4

    def test_after_a_flush_that_failed_nothing_is_noted(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "disk.raw.qcow2"
        flush, calls = KeptStaging.flush, itertools.count(1)

        def fail_once(self: KeptStaging) -> None:
            if next(calls) == 2:
                raise StorageError(target, "flush", "Input/output error")
            flush(self)

        monkeypatch.setattr(KeptStaging, "flush", fail_once)
        with pytest.raises(StorageError, match="Input/output error"):
            vdisk.convert(source, target, resume=True)
        with Journal(kept_folder(target) / "journal") as journal:
            assert len(list(journal.blocks())) == 1
        assert next(calls) == 3
        vdisk.convert(source, target, resume=True)
        assert content_of(target) == source.read_bytes()


@contextmanager
def recorded(events: list[Event], folder: Path) -> Iterator[None]:
    """Note what is done to the files in a folder, in its order."""
    lock = threading.Lock()
    originals = {name: getattr(FileStorage, name) for name in ("write", "truncate", "zero", "flush")}

    def note(self: FileStorage, kind: str, offset: int = 0, data: bytes = b"") -> None:
        if self.path.parent == folder:
            events.append(Event(self.path.name, kind, offset, data))

    def write(self: FileStorage, offset: int, data: Buffer) -> None:
        with lock:
            note(self, "write", offset, bytes(data))
            originals["write"](self, offset, data)

    def truncate(self: FileStorage, size: int) -> None:
        with lock:
            note(self, "truncate", size)
            originals["truncate"](self, size)

    def zero(self: FileStorage, offset: int, length: int, *, unmap: bool = True) -> None:
        with lock:
            note(self, "write", offset, bytes(length))
            originals["zero"](self, offset, length, unmap=True)

    def flush(self: FileStorage) -> None:
        with lock:
            note(self, "flush")
            originals["flush"](self)

    with pytest.MonkeyPatch.context() as patch:
        for name, method in (("write", write), ("truncate", truncate), ("zero", zero), ("flush", flush)):
            patch.setattr(FileStorage, name, method)
        yield


def remove_all(target: Path, names: set[str]) -> None:
    shutil.rmtree(kept_folder(target), ignore_errors=True)
    for path in (target.with_name(name) for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
