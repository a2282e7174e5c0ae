"""`vdisk boot`, as a user calls it."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from samples.make_samples import MESSAGE, hello_disk
from tests.hv.guests import boot_sector, needs_kvm
from vdisk.cli import boot
from vdisk.errors import OptionError, StorageError
from vdisk.hv.profiles import CONTROLLERS, DRIVERS, PROFILES


def test_the_commands_choices_are_those_that_there_are():
    # The command names them itself, so that its help imports no hypervisor.
    assert tuple(PROFILES) == boot._PROFILES
    assert boot._CONTROLLERS == CONTROLLERS
    assert set(DRIVERS) == set(CONTROLLERS)


@pytest.fixture
def hello(tmp_path):
    path = tmp_path / "hello.raw"
    path.write_bytes(hello_disk())
    return path


def run(*arguments):
    return CliRunner().invoke(boot.command, [str(argument) for argument in arguments])


@pytest.mark.kvm
@needs_kvm
def test_expect_met_is_success_and_everything_asked_for_is_written(hello, tmp_path):
    done = run(
        hello,
        *("--expect", "is running", "--timeout", 30, "--engine", "embedded"),
        *("--screenshot", tmp_path / "screen.txt", "--serial", tmp_path / "serial.log"),
    )
    assert done.exit_code == 0, done.output
    assert "booted: expected text" in done.output
    assert MESSAGE in (tmp_path / "screen.txt").read_text()
    assert MESSAGE.encode() in (tmp_path / "serial.log").read_bytes()


@pytest.mark.kvm
@needs_kvm
def test_json_has_the_verdict_and_a_failure_exits_with_1(tmp_path):
    path = tmp_path / "empty.raw"
    path.write_bytes(bytes(1 << 20))
    done = run(path, "--json", "--engine", "embedded")
    verdict = json.loads(done.output)
    assert done.exit_code == 1
    assert (verdict["ok"], verdict["kind"], verdict["stage"]) == (False, "nothing to boot", "firmware")


@pytest.mark.kvm
@needs_kvm
def test_a_picture_of_the_screen(hello, tmp_path):
    image = pytest.importorskip("PIL.Image")
    run(hello, "--expect", "is running", "--engine", "embedded", "--screenshot", tmp_path / "screen.png")
    with image.open(tmp_path / "screen.png") as picture:
        assert picture.size == (720, 400)
        assert len(picture.getcolors()) > 1


@pytest.mark.kvm
@needs_kvm
def test_a_guest_writes_the_image_only_with_write(tmp_path):
    path = tmp_path / "writer.raw"
    write = "mov ax, 0301h\nmov bx, 7C00h\nmov cx, 2\nmov dx, 80h\nint 13h\nmov si, text\ncall print\ncall stop\n"
    content = boot_sector(write + 'text: db "written", 0').ljust(1 << 20, b"\0")
    path.write_bytes(content)
    assert run(path, "--expect", "written", "--engine", "embedded").exit_code == 0
    assert path.read_bytes() == content
    assert run(path, "--expect", "written", "--write", "--engine", "embedded").exit_code == 0
    assert path.read_bytes()[512:1024] == content[:512]


def test_no_image_is_wrong_usage():
    assert run().exit_code == 2


@pytest.mark.kvm
@needs_kvm
def test_a_kernel_that_is_none_is_refused(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"not a kernel")
    done = run("--kernel", path, "--engine", "embedded")
    assert done.exit_code == 1
    assert "without a Linux setup header" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--firmware", "/nowhere/bios.bin"], StorageError),
        (["--keys", "<nokey>"], OptionError),
        (["--memory", "1M"], OptionError),
    ],
)
@pytest.mark.kvm
@needs_kvm
def test_what_makes_no_sense_is_refused(hello, arguments, error):
    done = run(hello, "--engine", "embedded", *arguments)
    assert isinstance(done.exception, error)


class TerminalUser:
    """Somebody at a terminal: a pseudo-terminal whose other end is the command's."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "vdisk", "boot", "--interactive", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = b""

    def wait_for(self, text, seconds=30):
        end = time.monotonic() + seconds
        while text not in self.seen and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        assert text in self.seen, self.seen

    def leave(self):
        os.write(self.master, b"\x01x")
        status = self.process.wait(20)
        os.close(self.master)
        return status


@pytest.mark.kvm
@needs_kvm
def test_a_terminal_shows_the_serial_port_and_its_keys_go_there(tmp_path):
    echo = """
again:
    mov dx, 3FDh
    in al, dx
    test al, 1
    jz again
    mov dx, 3F8h
    in al, dx
    out dx, al
    jmp short again
text: db "I echo.", 0
"""
    path = tmp_path / "echo.raw"
    path.write_bytes(boot_sector("mov si, text\ncall print\n" + echo).ljust(1 << 20, b"\0"))
    user = TerminalUser(path)
    user.wait_for(b"I echo.")
    os.write(user.master, b"Hello?")
    user.wait_for(b"I echo.Hello?")
    assert user.leave() == 0


@pytest.mark.kvm
@needs_kvm
def test_a_terminal_shows_the_screen_of_a_guest_without_a_serial_port(tmp_path):
    teletype = """
again:
    xor ax, ax
    int 16h
    mov ah, 0Eh
    int 10h
    jmp short again
"""
    path = tmp_path / "teletype.raw"
    path.write_bytes(boot_sector(teletype).ljust(1 << 20, b"\0"))
    user = TerminalUser(path)
    user.wait_for(b"\x1b[25H")
    os.write(user.master, b"Typed!")
    user.wait_for(b"Typed!")
    assert user.leave() == 0
