"""Snapshots, bitmaps, amend, measure, secrets, check and resize, from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.peers import qemu_check, qemu_img, qemu_img_info
from vdisk import formats


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    formats.create(path, "4M")
    with formats.open(path, writable=True) as image:
        image.write(0, b"first")
    return path


def first(path: Path) -> bytes:
    with formats.open(path) as image:
        return image.read(0, 6)


def write(path: Path, data: bytes) -> None:
    with formats.open(path, writable=True) as image:
        image.write(0, data)


def test_a_snapshots_life(run: Run, disk: Path, tmp_path: Path) -> None:
    assert run("snapshot", "create", disk, "one")[:2] == (0, "")
    write(disk, b"second")
    assert "one" in run("snapshot", "list", disk).out
    assert json.loads(run("snapshot", "list", "--json", disk).out)[0]["name"] == "one"
    assert run("convert", "-l", "one", disk, tmp_path / "old.raw").status == 0
    assert (tmp_path / "old.raw").read_bytes()[:6] == b"first\0"
    assert run("snapshot", "apply", disk, "one").status == 0
    assert first(disk) == b"first\0"
    assert run("snapshot", "delete", disk, "one").status == 0
    assert run("snapshot", "list", disk).out == ""
    gone = run("snapshot", "apply", disk, "one")
    assert gone.status == 2
    assert gone.err == f"vdisk: {disk}: has no snapshot 'one'\n"


@pytest.mark.peer
def test_a_snapshot_is_converted_with_its_own_size(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    formats.create(path, "8M")
    with formats.open(path, writable=True) as image:
        image.write((8 << 20) - 4, b"tail")
    assert run("snapshot", "create", path, "large").status == 0
    qemu_img("snapshot", "-l", path)
    assert run("resize", "--shrink", path, "4M").status in (0, 1)
    assert run("convert", "-l", "large", path, tmp_path / "large.raw").status == 0
    assert (tmp_path / "large.raw").stat().st_size == 8 << 20
    assert (tmp_path / "large.raw").read_bytes()[-4:] == b"tail"


def test_what_is_for_qcow2_refuses_others(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    for arguments in (("snapshot", "list"), ("bitmap", "list"), ("amend", "-o", "compat=1.1")):
        ran = run(*arguments, path)
        assert ran.status == 2
        assert "qcow2 only" in ran.err


def test_a_bitmaps_life(run: Run, disk: Path) -> None:
    assert run("bitmap", "add", "--granularity", "64K", disk, "backup").status == 0
    assert json.loads(run("bitmap", "list", "--json", disk).out)[0]["granularity"] == 65536
    assert run("bitmap", "clear", disk, "backup").status == 0
    assert run("bitmap", "remove", disk, "backup").status == 0
    assert json.loads(run("bitmap", "list", "--json", disk).out) == []


@pytest.mark.peer
def test_amend_changes_version_and_widths(run: Run, disk: Path) -> None:
    assert run("amend", "-o", "refcount_bits=64", disk).status == 0
    assert qemu_img_info(disk)["format-specific"]["data"]["refcount-bits"] == 64
    qemu_check(disk)
    assert run("amend", "-o", "compat=0.10", disk).status == 0
    assert qemu_img_info(disk)["format-specific"]["data"]["compat"] == "0.10"
    qemu_check(disk)
    assert run("amend", disk).status == 2


@pytest.mark.peer
def test_measure_agrees_with_qemu_img(run: Run, disk: Path) -> None:
    ours = json.loads(run("measure", "--json", "--size", "10G").out)
    theirs = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", "--size", "10G"))
    assert {name: ours[name] for name in ("required", "fully-allocated")} == {
        name: theirs[name] for name in ("required", "fully-allocated")
    }
    assert "required" in run("measure", disk).out


def test_a_secret_is_read_from_a_file_or_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, path, raw = tmp_path / "secret", tmp_path / "locked.qcow2", tmp_path / "disk.raw"
    secret.write_text("open sesame\n")
    raw.write_bytes(b"hidden" * 20_000)
    options = f"encrypt.format=luks,encrypt.secret=file:{secret},encrypt.iterations=1000"
    assert run("convert", "-o", options, raw, path).status == 0
    assert b"hidden" not in path.read_bytes()
    assert "encrypt" in run("info", path).out
    refused = run("read", path, "--length", "6")
    assert refused.status == 2
    assert "--secret names it" in refused.err
    assert run("read", path, "--length", "6", "--secret", f"file:{secret}").out == "hidden"
    monkeypatch.setenv("SESAME", "open sesame")
    assert run("convert", "--secret", "env:SESAME", path, tmp_path / "open.raw").status == 0
    assert (tmp_path / "open.raw").read_bytes()[:120_000] == raw.read_bytes()
    wrong = run("read", path, "--length", "6", "--secret", "sesame")
    assert wrong.status == 2
    assert "never given itself" in wrong.err


class TestCheck:
    def test_a_clean_image(self, run: Run, disk: Path) -> None:
        ran = run("check", disk)
        assert ran.status == 0
        assert ran.out.startswith("no errors were found")

    @pytest.mark.peer
    def test_a_leak_is_told_planned_and_mended(self, run: Run, disk: Path) -> None:
        size = disk.stat().st_size
        with disk.open("r+b") as file:  # the last refcount of the first block: a cluster that nothing uses
            with formats.open(disk) as image:
                at = image.header.refcount_table_offset  # type: ignore[attr-defined]
            file.seek(at)
            block = int.from_bytes(file.read(8), "big")
            file.seek(block + 2 * -(-size // 65536))
            file.write(b"\x00\x01")
            file.truncate((-(-size // 65536) + 1) * 65536)
        assert run("check", disk).status == 3
        dry = run("check", "--repair", "leaks", "--dry-run", disk)
        assert "would mend" in dry.out
        assert run("check", disk).status == 3
        assert run("check", "--repair", "leaks", disk).status == 0
        qemu_check(disk)

    def test_json_has_the_keys_of_qemu_img(self, run: Run, disk: Path) -> None:
        found = json.loads(run("check", "--json", disk).out)
        assert found["check-errors"] == 0
        assert found["format"] == "qcow2"
        assert found["total-clusters"] == 64

    def test_what_cannot_be_checked_is_status_1(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "disk.img"
        path.write_bytes(bytes(4096))
        ran = run("check", path)
        assert ran.status == 1
        assert "Unsupported: raw: check" in ran.err


class TestResize:
    def test_up_by_and_down(self, run: Run, disk: Path) -> None:
        assert run("resize", disk, "+4M").status == 0
        assert json.loads(run("info", "--json", disk).out)["virtual-size"] == 8 << 20
        refused = run("resize", disk, "4M")
        assert refused.status == 2
        assert "--shrink allows it" in refused.err
        assert run("resize", "--shrink", disk, "-4M").status == 0
        assert json.loads(run("info", "--json", disk).out)["virtual-size"] == 4 << 20
        assert first(disk) == b"first\0"
