"""Booting images in the lab, and talking to what has been booted."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import vdisk
from tests.debian import PASSWORD
from vdisk.hv.boot import BootResult, boot
from vdisk.hv.machine import Machine
from vdisk.hv.pace import slowness
from vdisk.hv.profiles import DEFAULT_PROFILE, Controller
from vdisk.inspect.places import Places

LOGIN_ON_SERIAL = "debian ttyS0"
"""What getty writes before `login:` on the serial port, and only there; on the screen it says tty1."""

BOOT_SECONDS = 420.0
"""Debian's generic kernel is there after 60 to 150 s of the lab's clock, where the lab has most of a processor."""
_MOST_TIMES_SLOWER = 3.0
"""Beyond that systemd gives up waiting for its own devices: no patience helps."""


def boot_seconds() -> float:
    """How long to wait for a login: longer where other work leaves the lab little of the machine."""
    return BOOT_SECONDS * min(slowness(), _MOST_TIMES_SLOWER)


def boot_image(
    path: Path, *, profile: str = DEFAULT_PROFILE, controller: Controller | None = None, cpus: int = 1, **options: Any
) -> BootResult:
    """Boots an image until getty is on the serial port (or `expect=`), and keeps the serial log if there is a place."""
    options.setdefault("expect", LOGIN_ON_SERIAL)
    options.setdefault("timeout", boot_seconds())
    with vdisk.open(path) as disk:
        result = boot(disk, profile=profile, controller=controller, cpus=cpus, name_of=Places().name_of, **options)
    machine = f"{controller or profile}-{cpus}"
    _keep(path.name, machine, result)
    seconds = ", ".join(f"{stage.name.lower()} {result.seconds[stage]:.1f}" for stage in sorted(result.evidence))
    print(f"{path.name} {machine}: {result.kind}; {seconds}; {result.exits} exits {result.exits_by}")
    return result


def _keep(file: str, machine: str, result: BootResult) -> None:
    """The serial log, and a line of figures, in the folder that outlives the lab."""
    exchange = Path("/exchange")
    if not exchange.is_dir():
        return
    (exchange / f"{file}-{machine}.serial").write_text(result.serial)
    seconds = {stage.name.lower(): round(value, 1) for stage, value in sorted(result.seconds.items())}
    row = {"file": file, "machine": machine, "kind": result.kind, "seconds": seconds, "exits": result.exits}
    with (exchange / "boots.jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")


def explain(result: BootResult) -> str:
    """For an assertion's message: the verdict and the last words."""
    return f"{result.kind}: {result.reason}\nserial port:\n{result.serial[-1500:]}\nscreen:\n{result.screen}"


class Session:
    """A machine with somebody logged in on its serial port."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._read = 0

    def wait_for(self, text: str, timeout: float = 60.0) -> str:
        """Runs until `text` comes on the serial port, after what was waited for before; what came until then."""
        if not self.machine.run(lambda _: text in self._fresh(), timeout=timeout):
            stop = self.machine.stop
            pytest.fail(f"{text!r} did not come within {timeout:g} s (stop: {stop}); got:\n{self._fresh()[-1500:]}")
        came, _, _ = self._fresh().partition(text)
        self._read += len(came) + len(text)
        return came

    def _fresh(self) -> str:
        return bytes(self.machine.serial).decode("utf-8", "replace")[self._read :]

    def log_in(self) -> None:
        """From power-on to a root shell."""
        self.wait_for(LOGIN_ON_SERIAL, boot_seconds())
        self.wait_for("login: ")
        # getty throws away what is typed while it sets up the line: so once more, and again.
        for _ in range(10):
            self.machine.send_serial(b"root\n")
            if self.machine.run(lambda _: "Password: " in self._fresh(), timeout=30):
                break
        self.wait_for("Password: ")
        self.machine.send_serial(PASSWORD.encode() + b"\n")
        self.wait_for("debian:~# ")

    def run(self, command: str, timeout: float = 120.0) -> str:
        """Runs a command in the guest's shell; what it printed."""
        # The mark is not in what the terminal echoes.
        self.machine.send_serial(f"{command}; echo en''d\n".encode())
        self.wait_for("en''d\r\n")
        return self.wait_for("end\r\n", timeout)

    def power_off(self) -> None:
        """Shuts the guest down in order, and waits until the machine is off."""
        self.machine.send_serial(b"systemctl poweroff\n")
        deadline = time.monotonic() + 180
        while self.machine.step():
            if time.monotonic() > deadline:
                pytest.fail(f"the guest did not power off:\n{self.machine.serial_text()[-1500:]}")
        assert self.machine.stop is not None
        assert self.machine.stop.reason == "power off"


def session(stack: ExitStack, path: Path, *, write: bool, controller: Controller = "virtio-blk") -> Session:
    """Boots an image and logs in; the machine and the image are closed with `stack`."""
    disk = stack.enter_context(vdisk.open(path, writable=write))
    machine = stack.enter_context(Machine("kvm", [disk], controller=controller, write=write))
    machine.start()
    made = Session(machine)
    made.log_in()
    return made
