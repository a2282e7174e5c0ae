#!/usr/bin/env python3
"""Runs a command in the lab: a Debian with a complete /dev/kvm, in QEMU's own emulation.

    scripts/lab/run.py [options] [--] COMMAND [ARGUMENT...]
    scripts/lab/run.py -- python3 -m vdisk boot /images/debian.qcow2

The command runs in a copy of the repository as it is at the start, which can't be written; /images is the folder that
`--images` names, /exchange one that can be written (`--exchange`, by default a temporary folder). What the command
prints comes out here as it is printed, and its exit code is this program's. 124: the time limit has passed. 125: the
lab itself failed; then the end of its console is shown. 126: it stalled, `--again` notwithstanding. The lab is built
by the first run (scripts/lab/build.py), as root.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
import debian_disk  # noqa: E402

EXIT_TIME_LIMIT = 124
EXIT_LAB_FAILED = 125
EXIT_STALLED = 126
STALL_SECONDS = 60.0
"""QEMU has used no processor time at all for so long: even an idle lab ticks."""


def say(text: str) -> None:
    """Tells what goes on, apart from what the command prints."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def copy_repository(target: Path) -> None:
    """What is in the work tree now: a run takes long, and the files may be edited meanwhile."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "results"
    )
    shutil.copytree(REPOSITORY, target, ignore=ignored, symlinks=True, ignore_dangling_symlinks=True)


def qemu_command(lab: Path, *, repository: Path, exchange: Path, images: Path, cpus: int, memory_mib: int) -> list[str]:
    """QEMU with the lab's disk (written to a temporary overlay), the shared folders and two serial ports."""
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,svm=on,npt=on"]
    command += ["-smp", str(cpus), "-m", str(memory_mib), "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(lab / "vmlinuz"), "-initrd", str(lab / "initrd")]
    # A periodic tick: with one-shot timers the emulated machine, when starved, has lost one and slept on for good.
    append = "root=/dev/vda rw init=/lab-init console=ttyS0,115200 panic=-1 loglevel=5 mitigations=off"
    command += ["-append", f"{append} nohz=off highres=off"]
    command += ["-drive", f"file={lab / 'root.raw'},format=raw,if=virtio,snapshot=on,cache=unsafe"]
    shares = {
        "exchange": (exchange, ""),
        "repository": (repository, ",readonly=on"),
        "images": (images, ",readonly=on"),
    }
    for tag, (folder, option) in shares.items():
        # QEMU reads a doubled comma as one.
        path = str(folder).replace(",", ",,")
        command += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{option}"]
    command += ["-serial", f"file:{exchange / 'console.log'}", "-chardev", "stdio,id=output,signal=off"]
    return [*command, "-serial", "chardev:output"]


def run(
    command: Sequence[str],
    *,
    images: Path,
    exchange: Path,
    time_limit: float,
    cpus: int = 1,
    memory_mib: int = 3072,
    environment: Sequence[str] = (),
) -> int:
    """Runs `command` in the lab; its exit code, or EXIT_TIME_LIMIT or EXIT_LAB_FAILED."""
    lab = build.lab()
    if not shutil.which("qemu-system-x86_64"):
        say("qemu-system-x86_64 is not installed (`make peers` installs it)")
        return EXIT_LAB_FAILED
    lines = [f"export {shlex.quote(assignment)}" for assignment in environment]
    (exchange / "command").write_text("\n".join([*lines, shlex.join(command)]) + "\n")
    with tempfile.TemporaryDirectory(prefix="vdisk-lab-") as temporary, ExitStack() as files:
        repository = Path(temporary) / "repository"
        copy_repository(repository)
        # Images that are made anew under a lab that reads them would be read half old, half new.
        lock = os.open(images, os.O_RDONLY)
        files.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        folders = {"repository": repository, "exchange": exchange, "images": images}
        return _boot(qemu_command(lab, **folders, cpus=cpus, memory_mib=memory_mib), exchange, time_limit)


def _cpu_ticks(pid: int) -> int:
    """The processor time that a process has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _watch(process: subprocess.Popen[bytes], time_limit: float, ended: threading.Event, why: list[int]) -> None:
    """Ends QEMU, and says why, when its time is up or when it has slept for so long that it will not wake again."""
    deadline = time.monotonic() + time_limit
    ticks, moved_at = -1, time.monotonic()
    while not ended.wait(2):
        now = time.monotonic()
        with contextlib.suppress(OSError):
            if (used := _cpu_ticks(process.pid)) != ticks:
                ticks, moved_at = used, now
        if now >= deadline or now - moved_at >= STALL_SECONDS:
            why.append(EXIT_TIME_LIMIT if now >= deadline else EXIT_STALLED)
            process.kill()
            return


def _boot(qemu: list[str], exchange: Path, time_limit: float) -> int:
    status_file = exchange / "status"
    status_file.unlink(missing_ok=True)
    start = time.monotonic()
    process = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    ended = threading.Event()
    why: list[int] = []
    watcher = threading.Thread(target=_watch, args=(process, time_limit, ended, why), daemon=True)
    watcher.start()
    try:
        while chunk := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        process.wait()
    finally:
        ended.set()
        process.kill()
        process.wait()
    seconds = time.monotonic() - start
    if status_file.is_file() and (text := status_file.read_text().strip()):
        say(f"exit code {text} after {seconds:.0f} s")
        return int(text)
    console = exchange / "console.log"
    tail = console.read_bytes()[-3000:].decode(errors="replace") if console.is_file() else ""
    say(f"the end of the lab's console:\n{tail}")
    if EXIT_TIME_LIMIT in why:
        say(f"stopped: the time limit of {time_limit:.0f} s has passed")
        return EXIT_TIME_LIMIT
    if EXIT_STALLED in why:
        asleep = seconds - STALL_SECONDS
        say(f"a fault of the lab: the emulated machine fell asleep after {asleep:.0f} s and did not wake")
        return EXIT_STALLED
    say(f"QEMU ended after {seconds:.0f} s (exit code {process.returncode}) and the command left no exit code")
    return EXIT_LAB_FAILED


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=1800, metavar="SECONDS")
    parser.add_argument("--again", type=int, default=1, metavar="N", help="starts anew after the lab has stalled (1)")
    parser.add_argument("--images", type=Path, help="the folder to be shared as /images (default: the cache)")
    parser.add_argument("--exchange", type=Path, help="the folder to be shared as /exchange, to keep")
    parser.add_argument("--cpus", type=int, default=1, help="more than one has been seen to be unreliable")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the command")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    arguments = parser.parse_args()
    # A lab must not outlive its runner, nor leave its folders behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="vdisk-lab-") as temporary:
        exchange: Path = arguments.exchange or Path(temporary)
        exchange.mkdir(parents=True, exist_ok=True)
        try:
            for attempt in range(1 + arguments.again):
                if attempt:
                    say("once more from the start")
                status = run(
                    arguments.command,
                    images=(arguments.images or debian_disk.cache_folder()).resolve(),
                    exchange=exchange.resolve(),
                    time_limit=arguments.time_limit,
                    cpus=arguments.cpus,
                    memory_mib=arguments.memory,
                    environment=arguments.env,
                )
                if status != EXIT_STALLED:
                    return status
            return EXIT_STALLED
        except debian_disk.BuildError as error:
            say(str(error))
            return EXIT_LAB_FAILED


if __name__ == "__main__":
    sys.exit(main())
