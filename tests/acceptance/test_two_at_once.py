"""QEMU and vdisk on one image: each sees whether the other has it open, and who only reads does not disturb readers."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vdisk
from tests.cli.conftest import Run, run
from tests.peers import qemu_img, require
from tests.peers import run as run_peer
from vdisk.errors import InUse

__all__ = ["run"]
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(sys.platform != "linux", reason="no other system has these locks"),
]

QEMU_NAMES = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx", "raw": "raw"}
READING = ("info", "info --chain", "map", "check", "read", "measure", "compat", "boot --timeout 1", "snapshot list",
           "bitmap list", "convert")  # fmt: skip
WRITING = ("write --offset 0", "resize", "check --repair all", "snapshot create", "bitmap add",
           "amend -o lazy_refcounts=on", "boot --write --timeout 1", "rebase -b ''")  # fmt: skip
BUSY = "is in use by another program that"
REMEDY = "stop it first, or read it all the same with --force-share (what is read may be inconsistent)"


@contextmanager
def held(command: list[str], address: Path, ask: bytes = b"") -> Iterator[None]:
    """A program that is running, and answers on its socket: by then it has opened its images."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + 60
            while not _answers(address, ask):
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    assert process.stderr is not None
                    pytest.fail(f"{command}: {process.stderr.read().decode()}")
                time.sleep(0.01)
            yield
        finally:
            process.terminate()
            process.wait()
            address.unlink(missing_ok=True)


def _answers(address: Path, ask: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        try:
            line.connect(str(address))
            greeting = line.recv(4096)
            line.sendall(ask)
            return bool(line.recv(4096) if ask else greeting)
        except OSError:
            return False


@contextmanager
def in_qemu_nbd(path: Path, *flags: str, format: str = "qcow2") -> Iterator[None]:
    """`qemu-nbd` has the image open: for writing, or with "-r" for reading."""
    address = path.parent / "s"
    with held([require("qemu-nbd"), "-t", "-k", str(address), "-f", QEMU_NAMES[format], *flags, str(path)], address):
        yield


@contextmanager
def in_a_guest(path: Path, format: str, drive: str = "if=virtio") -> Iterator[None]:
    """A virtual machine has it as its disk. It is stopped, which makes no difference to the locks."""
    address = path.parent / "q"
    machine = ("-S", "-display", "none", "-nodefaults", "-M", "q35,accel=tcg", "-m", "32")
    monitor = ("-qmp", f"unix:{address},server=on,wait=off")
    command = [require("qemu-system-x86_64"), *machine, *monitor, "-drive", f"file={path},format={format},{drive}"]
    with held(command, address, b'{"execute": "qmp_capabilities"}'):  # its main loop answers this
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, "1M")
    return path


def arguments(command: str, image: Path) -> list[object]:
    """The words of a command on an image; what else it needs comes behind."""
    words = [word.strip("'") for word in command.split(" ")]
    behind: dict[str, list[object]] = {"convert": [image.with_name("out.raw")], "resize": ["2M"]}
    named = {"snapshot create", "bitmap add"}
    return [*words, image, *behind.get(words[0], []), *(["name"] if command in named else [])]


@pytest.mark.parametrize("writable", [True, False])
def test_commands_beside_a_qemu_that_has_it(writable: bool, run: Run, disk: Path) -> None:
    with in_qemu_nbd(disk, *([] if writable else ["-r"])):
        before = disk.read_bytes()
        for command in WRITING:
            ran = run(*arguments(command, disk), stdin=b"x" * 512)
            assert ran.status == 1, command
            assert ran.err.count("\n") == 1, command
            assert f"{disk}: {BUSY} {'writes to it' if writable else 'reads it'}; stop it first" in ran.err, command
        assert disk.read_bytes() == before
        for command in READING:
            ran = run(*arguments(command, disk))
            if writable:
                assert (ran.status, ran.err) == (1, f"vdisk: {disk}: {BUSY} writes to it; {REMEDY}\n"), command
            assert (BUSY in ran.err) is writable, command
            ran = run(*arguments(command, disk), "--force-share")
            assert BUSY not in ran.err, command
            assert ran.status == 0 or command.startswith("boot"), ran
        ran = run("compare", disk, disk)
        assert (ran.status, BUSY in ran.err) == ((2, True) if writable else (0, False))
        assert run("compare", "-U", disk, disk).status == 0


@pytest.mark.parametrize("writable", [True, False])
def test_a_target_that_qemu_has_is_not_replaced(writable: bool, run: Run, disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.raw"
    source.write_bytes(b"a" * 65536)
    before = disk.read_bytes()
    with in_qemu_nbd(disk, *([] if writable else ["-r"])):
        for command in (("convert", "-f", "raw", source, disk), ("create", disk, "2M")):
            ran = run(*command)
            assert ran.status == 1
            assert ran.err.endswith("; stop it first\n")
    assert disk.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.raw", "disk.qcow2"}
    assert run("convert", "-f", "raw", source, disk).status == 0


@pytest.mark.parametrize("format", QEMU_NAMES)
def test_qemu_beside_a_vdisk_that_has_it(format: str, tmp_path: Path) -> None:
    path, name = tmp_path / "disk", QEMU_NAMES[format]
    vdisk.create(path, "4M", format=format)
    write = ("qemu-io", "-f", name, "-c", "write 0 512", path)

    def says(*command: object) -> str:
        ran = run_peer(*command, check=False)  # type: ignore[arg-type]
        assert ran.returncode in (0, 1)
        return (ran.stderr + ran.stdout).decode() if ran.returncode else ""

    with vdisk.open(path, format=format, writable=True):
        assert 'Failed to get "write" lock' in says(*write)
        assert "lock" in says("qemu-nbd", "-t", "-k", tmp_path / "s", "-f", name, path)
        assert "lock" in says("qemu-img", "convert", "-O", "raw", "-f", "raw", write[-1], path)  # as a target
        if format != "raw":  # whose readers QEMU lets change under them, and so does not test
            assert 'Failed to get shared "write" lock' in says("qemu-img", "info", "-f", name, path)
        assert "virtual size" in qemu_img("info", "-U", "-f", name, path)
    with vdisk.open(path, format=format):
        qemu_img("info", "-f", name, path)
        assert 'Failed to get "write" lock' in says(*write)
    assert not says(*write)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_running_guest(format: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    vdisk.create(path, "1M", format=format)
    with in_a_guest(path, format):
        assert REMEDY in run("info", "-f", format, path).err
        assert run("info", "-f", format, "-U", path).status == 0
        assert BUSY in run("write", "--offset", 0, "-f", format, path, stdin=b"x").err
    with (
        vdisk.open(path, format=format, writable=True),
        pytest.raises(pytest.fail.Exception, match="lock"),
        in_a_guest(path, format),
    ):
        pass
    with in_a_guest(path, format, "if=virtio,snapshot=on"):  # reads alone
        assert run("info", "-f", format, path).status == 0
        assert "reads it" in run("write", "--offset", 0, "-f", format, path, stdin=b"x").err
    with vdisk.open(path, format=format), in_a_guest(path, format, "if=virtio,snapshot=on"):
        pass


def test_what_lies_behind_a_guest_s_disk_is_read_and_not_written(run: Run, disk: Path, tmp_path: Path) -> None:
    overlay, second = tmp_path / "overlay.qcow2", tmp_path / "second.qcow2"
    for path in (overlay, second):
        qemu_img("create", "-q", "-f", "qcow2", "-b", disk.name, "-F", "qcow2", path)
    with in_a_guest(overlay, "qcow2"):
        assert run("info", disk).status == 0
        assert run("write", "--offset", 0, second, stdin=b"x" * 512).status == 0
        before = disk.read_bytes()
        for command in (("write", "--offset", 0, disk), ("commit", second), ("resize", disk, "2M")):
            ran = run(*command, stdin=b"x" * 512)
            assert (ran.status, f"{disk}: {BUSY} reads it; stop it first" in ran.err) == (1, True), ran
        assert disk.read_bytes() == before
        ran = run("commit", overlay)
        assert (ran.status, BUSY in ran.err) == (1, True)
    assert run("commit", second).status == 0
    with vdisk.open(overlay, writable=True):  # the other way round
        assert "lock" in run_peer("qemu-img", "commit", second, codes=(1,)).stderr.decode()
        qemu_img("info", disk)
    with in_qemu_nbd(disk), pytest.raises(InUse):
        vdisk.open(overlay)
    with in_qemu_nbd(disk):
        assert run("info", "--chain", "-U", overlay).status == 0
