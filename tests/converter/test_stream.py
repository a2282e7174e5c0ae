"""Conversions to pipes and out of them: every byte arrives, in order, whatever the format has to know beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.converter.test_convert import SIZE, some_content
from tests.peers import qemu_check, qemu_compare
from vdisk import formats
from vdisk.converter import Conversion, convert, convert_from_pipe
from vdisk.converter.stream import DraftStorage
from vdisk.errors import OptionError, StorageError
from vdisk.storage.stream import InputPipe, OutputPipe

KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "raw": ("raw", {}, False),
    "qcow2": ("qcow2", {}, False),
    "qcow2-v2-4k": ("qcow2", {"compat": "0.10", "cluster_size": "4K"}, False),
    "qcow2-zlib": ("qcow2", {}, True),
    "qcow2-zstd": ("qcow2", {"compression_type": "zstd"}, True),
    "qcow2-metadata": ("qcow2", {"preallocation": "metadata"}, False),
    "vmdk-stream": ("vmdk", {}, False),
    "vmdk-sparse": ("vmdk", {"subformat": "monolithicSparse"}, False),
    "vdi": ("vdi", {}, False),
    "vhd": ("vhd", {}, False),
    "vhd-fixed": ("vhd", {"subformat": "fixed"}, False),
    "vhdx": ("vhdx", {}, False),
    "parallels": ("parallels", {}, False),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "disk.raw"
    path.write_bytes(some_content(5))
    return path


def through_a_pipe(source: Path, target: Path, **how: Any) -> Conversion:
    """Convert into a real pipe; what comes out of it is written to `target`."""
    reading, writing = os.pipe()

    def drain() -> None:
        with open(reading, "rb") as pipe, target.open("wb") as file:
            while piece := pipe.read(1 << 16):
                file.write(piece)

    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        return convert(source, OutputPipe(writing), **how)
    finally:
        os.close(writing)
        drainer.join()


def fed(content: bytes, target: Path, *, size: int | None = None, **how: Any) -> Conversion:
    """Convert `content` out of a real pipe."""
    reading, writing = os.pipe()

    def feed() -> None:
        try:
            with open(writing, "wb") as pipe:
                pipe.write(content)
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        return convert_from_pipe(InputPipe(reading, size=size), target, **how)
    finally:
        os.close(reading)
        feeder.join()


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_of_the_pipe_is_the_image(kind: str, raw: Path, tmp_path: Path) -> None:
    name, options, compress = KINDS[kind]
    target = tmp_path / f"out.{name}"
    done = through_a_pipe(raw, target, target_format=name, options=options, compress=compress)
    assert done.written_bytes > 0
    with formats.open(target) as disk:
        assert disk.read(0, SIZE) == raw.read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("qcow2", "vdi", "vhdx", "vmdk"))])
def test_qemu_finds_it_sound(kind: str, raw: Path, tmp_path: Path) -> None:
    name, options, compress = KINDS[kind]
    target = tmp_path / f"out.{name}"
    through_a_pipe(raw, target, target_format=name, options=options, compress=compress)
    qemu_compare(target, raw, formats=(name, "raw"), same_size=True)
    if name != "vmdk":
        qemu_check(target, format=name)


@pytest.mark.parametrize("kind", ["qcow2", "qcow2-zlib", "raw"])
def test_a_pipe_gets_the_bytes_that_a_file_gets(kind: str, raw: Path, tmp_path: Path) -> None:
    """Where no identifier is drawn, an image is the same by either way."""
    name, options, compress = KINDS[kind]
    through_a_pipe(raw, tmp_path / "pipe", target_format=name, options=options, compress=compress)
    convert(raw, tmp_path / "file", target_format=name, options=options, compress=compress)
    assert (tmp_path / "pipe").read_bytes() == (tmp_path / "file").read_bytes()


def test_compressed_units_are_passed_on_to_a_pipe(raw: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.qcow2", tmp_path / "second.vmdk"
    convert(raw, first, compress=True)
    done = through_a_pipe(first, second, target_format="vmdk")
    assert done.passed_bytes > SIZE // 4
    with formats.open(second) as disk:
        assert disk.read(0, SIZE) == raw.read_bytes()


def test_a_stream_with_several_grain_tables_keeps_its_order(tmp_path: Path) -> None:
    """A table goes out between two grains of one piece."""
    source, target = tmp_path / "disk.raw", tmp_path / "out.vmdk"
    with source.open("wb") as file:
        file.truncate(200 << 20)
        for offset in range((32 << 20) - (1 << 17), 200 << 20, 16 << 20):
            file.seek(offset)
            file.write(b"grain" * 40_000)
    through_a_pipe(source, target, target_format="vmdk")
    with formats.open(target) as disk, source.open("rb") as file:
        for offset in range(0, 200 << 20, 8 << 20):
            assert disk.read(offset, 8 << 20) == file.read(8 << 20)


def test_an_overlay_goes_through_a_pipe(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(raw, tmp_path / "base.qcow2")
    content = bytearray(raw.read_bytes())
    content[1 << 20 : 2 << 20] = bytes(1 << 20)
    content[3 << 20 : (3 << 20) + 6] = b"change"
    (tmp_path / "changed.raw").write_bytes(content)
    monkeypatch.chdir(tmp_path)  # the overlay's own folder is not known: names are seen from here
    target = tmp_path / "overlay.qcow2"
    how = {"target_format": "qcow2", "backing": "base.qcow2", "backing_format": "qcow2"}
    through_a_pipe(tmp_path / "changed.raw", target, **how)
    assert target.stat().st_size < 1 << 20
    with formats.open(target) as disk:
        assert disk.read(0, SIZE) == content


def test_a_source_that_changes_between_the_passes_is_found_out(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(b"begins".ljust(SIZE, b"\0"))

    def change(done: int, total: int) -> None:
        with source.open("r+b") as file:
            file.write(bytes(6))
            file.seek(65536 + 100)
            file.write(b"goes on")

    with pytest.raises(StorageError, match="the two passes differ"):
        through_a_pipe(source, tmp_path / "out", target_format="qcow2", progress=change)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"target_format": "vmdk", "options": {"subformat": "monolithicFlat"}}, "several files"),
        ({"target_format": "qcow2", "options": {"data_file": "data.raw"}}, "several files"),
        ({"target_format": "ova"}, "cannot go to a pipe"),
    ],
)
def test_what_a_pipe_cannot_take_is_refused_before_a_byte(
    how: dict[str, Any], why: str, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=why):
        through_a_pipe(raw, tmp_path / "out", **how)
    assert (tmp_path / "out").read_bytes() == b""


# Out of a pipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2", "qcow2-v2-4k", "qcow2-zlib"])
@pytest.mark.parametrize("length", [0, 1, 70_001, SIZE])
def test_a_disk_of_unknown_length_is_taken_from_a_pipe(kind: str, length: int, raw: Path, tmp_path: Path) -> None:
    name, options, compress = KINDS[kind]
    content = raw.read_bytes()[:length]
    target = tmp_path / f"in.{name}"
    done = fed(content, target, options=options, compress=compress)
    assert done.size_bytes == length
    with formats.open(target) as disk:
        assert disk.read(0, disk.size).rstrip(b"\0") == content.rstrip(b"\0")
        assert length <= disk.size < length + 512
    if name == "qcow2":
        with formats.open(target) as disk:
            assert disk.check().exit_status == 0


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_size_every_format_is_made_from_a_pipe(kind: str, raw: Path, tmp_path: Path) -> None:
    name, options, compress = KINDS[kind]
    target = tmp_path / f"in.{name}"
    fed(raw.read_bytes(), target, size=SIZE, target_format=name, options=options, compress=compress)
    with formats.open(target) as disk:
        assert disk.read(0, SIZE) == raw.read_bytes()


def test_a_format_that_begins_with_the_size_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"vdi begins with the disk's size.*--size"):
        fed(b"", tmp_path / "in.vdi")


@pytest.mark.parametrize(("size", "why"), [(SIZE + 512, "ends before"), (SIZE - 512, "more than")])
def test_a_pipe_of_another_length_leaves_no_target(size: int, why: str, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=why):
        fed(raw.read_bytes(), tmp_path / "in.qcow2", size=size)
    assert not list(tmp_path.iterdir())


# The command ---------------------------------------------------------------------------------------------------


def vdisk(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vdisk", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **how)


def test_nothing_but_the_image_is_on_standard_output(raw: Path, tmp_path: Path) -> None:
    done = vdisk("convert", raw, "-", "-O", "raw", "--json")
    assert done.returncode == 0
    assert done.stdout == raw.read_bytes()
    assert b'"target-format": "raw"' in done.stderr


def test_commands_are_joined_by_pipes(raw: Path, tmp_path: Path) -> None:
    done = vdisk("convert", "-", "-", "-f", "raw", "-O", "vmdk", "--size", str(SIZE), input=raw.read_bytes())
    assert done.returncode == 0
    target = tmp_path / "out.vmdk"
    target.write_bytes(done.stdout)
    with formats.open(target) as disk:
        assert disk.read(0, SIZE) == raw.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["-", "out.qcow2"], b"-f raw"),
        (["-", "-", "-f", "raw", "-O", "vhdx", "--size", "1M"], b"read its source twice"),
        (["disk.raw", "out.qcow2", "--size", "1M"], b"SOURCE is to be -"),
        (["disk.raw", "-"], b"does not tell the format"),
        (["disk.raw", "-", "--for", "azure"], b"--for"),
    ],
)
def test_wrong_uses_of_a_pipe_are_told(arguments: list[str], why: bytes, raw: Path) -> None:
    done = vdisk("convert", *arguments, input=b"", cwd=raw.parent)
    assert done.returncode == 2
    assert why in done.stderr


# The draft -----------------------------------------------------------------------------------------------------


def test_a_draft_keeps_the_last_word_on_every_byte() -> None:
    draft = DraftStorage("draft")
    model = bytearray(64)
    steps = [(0, b"a" * 16), (32, b"b" * 16), (8, b"c" * 32), (4, b"d"), (40, b"e" * 20), (0, b"f" * 4), (10, b"g" * 2)]
    for offset, data in steps:
        draft.write(offset, data)
        model[offset : offset + len(data)] = data
    draft.zero(12, 9)
    model[12:21] = bytes(9)
    draft.truncate(50)
    kept = bytearray(draft.size)
    end = 0
    for offset, data in draft.pieces:
        assert offset >= end
        end = offset + len(data)
        kept[offset:end] = data
    assert kept == model[:50]
