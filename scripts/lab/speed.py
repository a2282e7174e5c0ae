#!/usr/bin/env python3
"""Inside the lab: vdisk's hypervisor beside QEMU on the same KVM, disk and controller (virtio-blk), by turns.

    scripts/lab/run.py -- python3 scripts/lab/speed.py /images/cloud.raw

For each: seconds to `login:` on the serial port, then the rate at which the guest reads its disk (dd, past its cache).
For vdisk too: how often the guest was left until then, and the time from `Machine.start` to the boot sector's first
instruction. Both numbers of a pair come from one run; the lab emulates the processor, so only their ratio means much.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

LOGIN = "debian ttyS0"
LIMIT_SECONDS = 600.0
PATIENCE_SECONDS = 30.0
"""getty throws away what is typed while it sets up the line."""
DD = "dd if=/dev/vda of=/dev/null bs=1M count=192 skip={skip} iflag=direct 2>&1 | tail -n 1; echo en''d\n"


@dataclass
class Measured:
    """One boot."""

    who: str
    login_seconds: float
    megabytes_per_second: float
    exits: int = 0
    first_instruction_ms: float = 0.0


class Console:
    """The guest's serial port: `pump` brings more of what it sent, `send` types."""

    def __init__(self, pump: Callable[[float], str], send: Callable[[bytes], None]) -> None:
        self._pump = pump
        self.send = send
        self.text = ""

    def wait_for(self, text: str, again: bytes = b"") -> str:
        """What came up to `text`, the rest is kept for the next call; `again` is typed when it is long in coming."""
        deadline = time.monotonic() + LIMIT_SECONDS
        impatient = time.monotonic() + PATIENCE_SECONDS
        while text not in self.text:
            if time.monotonic() > deadline:
                raise SystemExit(f"{text!r} did not come:\n{self.text[-2000:]}")
            if again and time.monotonic() > impatient:
                self.send(again)
                impatient += PATIENCE_SECONDS
            self.text += self._pump(0.02)
        came, _, self.text = self.text.partition(text)
        return came

    def measure(self, who: str, start: float) -> Measured:
        """To the login prompt, and the disk's rate after it."""
        self.wait_for(LOGIN)
        login_seconds = time.monotonic() - start
        self.wait_for("login: ")
        self.send(b"root\n")
        self.wait_for("Password: ", again=b"root\n")
        self.send(b"vdisk\n")
        self.wait_for("debian:~# ")
        rates = []
        for skip in (0, 192):
            self.send(DD.format(skip=skip).encode())
            self.wait_for("en''d\r\n")
            found = re.search(r"copied, ([\d.e-]+) s", self.wait_for("end\r\n"))
            if found is None:
                raise SystemExit("dd said nothing of its speed")
            rates.append((192 << 20) / 1e6 / float(found[1]))
        return Measured(who, login_seconds, statistics.mean(rates))


def boot_vdisk(path: str, memory_mib: int) -> Measured:
    """One boot by vdisk's own hypervisor."""
    start = time.monotonic()
    import vdisk
    from vdisk.hv.machine import Machine

    with vdisk.open(path) as disk, Machine("kvm", [disk], memory_mib << 20, controller="virtio-blk") as machine:
        switched_on = time.monotonic()
        machine.start()
        told = 0
        exits: list[int] = []

        def pump(seconds: float) -> str:
            nonlocal told
            machine.step(seconds)
            fresh = bytes(machine.serial[-(machine.serial_bytes - told) :]) if machine.serial_bytes > told else b""
            told = machine.serial_bytes
            if LOGIN.encode() in machine.serial and not exits:
                exits.append(sum(counts.total for counts in machine.exit_counts()))
            return fresh.decode("utf-8", "replace")

        measured = Console(pump, machine.send_serial).measure("vdisk", start)
        measured.exits = exits[0]
        measured.first_instruction_ms = ((machine.booted_at or 0.0) - switched_on) * 1000
    return measured


def boot_qemu(path: str, memory_mib: int) -> Measured:
    """One boot by QEMU with KVM."""
    command = ["qemu-system-x86_64", "-accel", "kvm", "-m", str(memory_mib), "-display", "none", "-serial", "stdio"]
    command += ["-nic", "none", "-snapshot", "-drive", f"file={path},format=raw,if=virtio", "-no-reboot"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    output, keyboard = process.stdout, process.stdin

    def pump(seconds: float) -> str:
        ready, _, _ = select.select([output], [], [], seconds)
        if not ready:
            return ""
        chunk = os.read(output.fileno(), 65536)
        if not chunk:
            raise SystemExit(f"QEMU ended with exit code {process.wait()}")
        return chunk.decode("utf-8", "replace")

    def send(data: bytes) -> None:
        keyboard.write(data)

    try:
        return Console(pump, send).measure("QEMU", start)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Prints each boot, and the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="a raw disk: QEMU is told so")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    arguments = parser.parse_args()
    runs: list[Measured] = []
    for _ in range(arguments.rounds):
        for one in (boot_qemu, boot_vdisk):
            measured = one(arguments.image, arguments.memory)
            runs.append(measured)
            text = f"{one.__name__}: login {measured.login_seconds:.1f} s, dd {measured.megabytes_per_second:.1f} MB/s"
            if measured.exits:
                text += f", {measured.exits} exits, boot sector after {measured.first_instruction_ms:.0f} ms"
            print(text, flush=True)
    ours, theirs = ([run for run in runs if run.who == who] for who in ("vdisk", "QEMU"))
    time_ratio = statistics.median(r.login_seconds for r in ours) / statistics.median(r.login_seconds for r in theirs)
    rates = [statistics.median(r.megabytes_per_second for r in side) for side in (ours, theirs)]
    print(f"vdisk / QEMU: time to login {time_ratio:.2f}, disk rate {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
