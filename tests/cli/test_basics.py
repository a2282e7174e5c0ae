"""The commands that look into images and change them, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from vdisk.cli import _COMMANDS


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"boot" + bytes(1 << 20) + b"tail" * 1023)
    return path


@pytest.mark.parametrize("name", [row.name for row in _COMMANDS])
def test_every_command_has_help_with_examples(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.status == 0
    assert "Examples:" in ran.out
    assert f"vdisk {name}" in ran.out


def test_an_unknown_command_is_wrong_usage(run: Run) -> None:
    ran = run("frobnicate")
    assert ran.status == 2
    assert "No such command 'frobnicate'" in ran.err


def test_a_missing_file_is_one_line(run: Run, tmp_path: Path) -> None:
    ran = run("info", tmp_path / "gone.img")
    assert ran.status == 1
    assert ran.err == f"vdisk: {tmp_path}/gone.img: open: No such file or directory\n"
    assert ran.out == ""


def test_a_terminals_control_characters_in_a_name_are_not_passed_on(run: Run, tmp_path: Path) -> None:
    ran = run("info", tmp_path / "a\x1b[31mb")
    assert "\x1b" not in ran.err
    assert "\\x1b[31mb" in ran.err


def test_info_for_people_and_machines(run: Run, disk: Path) -> None:
    ran = run("info", disk)
    assert ran.status == 0
    assert "format:           raw" in ran.out
    assert f"({disk.stat().st_size} bytes)" in ran.out
    found = json.loads(run("info", "--json", disk).out)
    assert found["virtual-size"] == disk.stat().st_size
    assert found["format"] == "raw"
    assert found["filename"] == str(disk)
    assert json.loads(run("info", "--json", "--chain", disk).out) == [found]


def test_map_as_a_table_and_as_json(run: Run, disk: Path) -> None:
    rows = json.loads(run("map", "--json", disk).out)
    assert sum(row["length"] for row in rows) == disk.stat().st_size
    assert run("map", disk).out.splitlines()[0].split() == ["Offset", "Length", "Kind", "Mapped", "to", "File"]
    rows = json.loads(run("map", "--json", "--start", "512", "--length", "1K", disk).out)
    assert (rows[0]["start"], sum(row["length"] for row in rows)) == (512, 1024)


def test_read_writes_the_bytes_asked_for(run: Run, disk: Path) -> None:
    assert run("read", disk, "--length", "4").out == "boot"
    assert run("read", disk, "--offset", (1 << 20) + 4).out == "tail" * 1023
    beyond = run("read", disk, "--offset", "1M", "--length", "1M")
    assert beyond.status == 2
    assert "lies outside the disk" in beyond.err


def test_write_puts_standard_input_into_the_disk(run: Run, disk: Path) -> None:
    before = disk.read_bytes()
    assert run("write", disk, "--offset", "8K", stdin=b"new" * 1000).status == 0
    assert disk.read_bytes() == before[:8192] + b"new" * 1000 + before[8192 + 3000 :]
    long = run("write", disk, "--offset", "1M", stdin=bytes(8192))
    assert long.status == 2
    assert "longer than the disk" in long.err


def test_compare_says_same_different_or_error(run: Run, disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(disk.read_bytes())
    assert run("compare", disk, other)[:2] == (0, "identical\n")
    changed = bytearray(disk.read_bytes())
    changed[(1 << 20) + 7] ^= 1
    other.write_bytes(changed)
    assert run("compare", disk, other)[:2] == (1, f"differ at offset {(1 << 20) + 7}\n")
    assert json.loads(run("compare", "--json", disk, other).out)["offset"] == (1 << 20) + 7
    assert run("compare", disk, tmp_path / "gone").status == 2


def test_compare_of_a_longer_disk_depends_on_its_tail(run: Run, disk: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer.img"
    longer.write_bytes(disk.read_bytes() + bytes(5000))
    assert run("compare", disk, longer).status == 0
    assert run("compare", "-s", disk, longer).status == 1
    longer.write_bytes(disk.read_bytes() + bytes(4999) + b"!")
    ran = run("compare", disk, longer)
    assert (ran.status, ran.out) == (1, f"differ at offset {disk.stat().st_size + 4999}\n")


def test_create_takes_the_format_from_the_suffix(run: Run, tmp_path: Path) -> None:
    assert run("create", tmp_path / "new.img", "3M").status == 0
    assert (tmp_path / "new.img").stat().st_size == 3 << 20
    nameless = run("create", tmp_path / "new.xyz", "3M")
    assert nameless.status == 2
    assert "name it with -O" in nameless.err
    unknown = run("create", "-O", "floppy", tmp_path / "new.img", "3M")
    assert unknown.status == 2
    assert "known are: qcow2, vmdk" in unknown.err


def test_create_with_wrong_options_says_which_exist(run: Run, tmp_path: Path) -> None:
    ran = run("create", tmp_path / "new.img", "3M", "-o", "cluster_size=4K")
    assert ran.status == 2
    assert ran.err == "vdisk: raw: unknown option 'cluster_size'; its options are: none\n"
    assert list(tmp_path.iterdir()) == []


def test_a_backing_format_is_not_guessed(run: Run, disk: Path, tmp_path: Path) -> None:
    ran = run("create", "-b", disk.name, tmp_path / "over.qcow2")
    assert ran.status == 2
    assert "-F FORMAT" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.status == 0
    assert "_VDISK_COMPLETE" in ran.out
