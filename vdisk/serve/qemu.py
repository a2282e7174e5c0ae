"""Boot a disk in an installed QEMU, where there is no KVM for the embedded hypervisor, and judge it by the same eyes.

QEMU gets the disk by NBD on a private socket, so every format boots in it that we can open; its own format code sees
nothing. Screen, registers and keys go by QMP, the serial port by a file.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.block.overlay import Overlay
from vdisk.errors import HypervisorError, OptionError
from vdisk.hv.board import Stop
from vdisk.hv.boot import BOOT_GAP_BYTES, BootResult
from vdisk.hv.config import Disk, Kernel, guess_kind
from vdisk.hv.cpu import Sample
from vdisk.hv.devices.vga import decode_cells
from vdisk.hv.keys import Stroke, parse_keys
from vdisk.hv.meter import Meter, NameOf, describe_last_reads
from vdisk.hv.profiles import DEFAULT_PROFILE, Controller, Profile, find_profile
from vdisk.hv.signs import Stage
from vdisk.hv.watcher import OnStage, Watcher
from vdisk.serve.nbd import NbdServer

PROGRAM = "qemu-system-x86_64"
_STEP_SECONDS = 0.05
_SAMPLE_SECONDS = 0.5
_START_SECONDS = 20.0
_TEXT_WINDOW, _TEXT_WINDOW_BYTES, _COLUMNS = 0xB8000, 0x8000, 80
_RESETS_MOST = 3
_BUSES = {"ahci": "ich9-ahci", "lsi": "mptsas1068", "pvscsi": "pvscsi"}
"""QEMU's controllers that disks hang on; it has no 53C1030, so the SAS one of the same family stands for it."""


class QemuMissing(HypervisorError):
    """There is no QEMU to run."""


class QemuError(HypervisorError):
    """QEMU could not start, or ended on its own."""


class _NotStarted(QemuError):
    """QEMU ended before it took a command."""


class _Qmp:
    """QEMU's monitor: commands in, answers and events out, one JSON object a line."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.events: list[str] = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    self._socket.close()
                    raise _NotStarted("QEMU did not start") from None
                time.sleep(_STEP_SECONDS)
        self._socket.settimeout(_START_SECONDS)
        try:
            self._read()
            self.command("qmp_capabilities")
        except QemuError as error:
            self._socket.close()
            raise _NotStarted(f"QEMU did not start: {error}") from error

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                part = self._socket.recv(65536)
            except OSError as error:
                raise QemuError(f"QEMU's monitor: {error}") from error
            if not part:
                raise QemuError("QEMU has ended")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def command(self, name: str, **arguments: Any) -> Any:
        """Do one command and give its answer; events that come before it are kept."""
        try:
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise QemuError(f"QEMU's monitor: {error}") from error
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(self._name(answer))
            elif "error" in answer:
                raise QemuError(f"QEMU: {name}: {answer['error'].get('desc', '')}")
            elif "return" in answer:
                return answer["return"]

    @staticmethod
    def _name(event: dict[str, Any]) -> str:
        data = event.get("data") or {}
        return f"{event['event']} {data.get('reason', '')}".strip()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _disk_arguments(index: int, disk: Disk, controller: str, socket_path: Path, *, writable: bool) -> list[str]:
    export = {"driver": "nbd", "server": {"type": "unix", "path": str(socket_path)}}
    node = {"driver": "raw", "node-name": f"disk{index}", "read-only": not writable, "file": export}
    device = {
        "virtio-blk": f"virtio-blk-pci,drive=disk{index}",
        "ide": f"ide-hd,drive=disk{index}",
        "ahci": f"ide-hd,bus=ahci.{index},drive=disk{index}",
        "lsi": f"scsi-hd,bus=lsi.0,drive=disk{index}",
        "pvscsi": f"scsi-hd,bus=pvscsi.0,drive=disk{index}",
        "nvme": f"nvme,serial=vdisk{index},drive=disk{index}",
    }[controller]
    if disk.kind == "cdrom":
        device = f"ide-cd,drive=disk{index}"
    elif disk.kind == "floppy":
        raise OptionError("disks: a floppy does not boot by --engine qemu")
    # QEMU gives index 0 to a kernel that it is told to start.
    return ["-blockdev", json.dumps(node), "-device", f"{device},bootindex={index + 1}"]


def _arguments(profile: Profile, memory_bytes: int, cpus: int, folder: Path) -> list[str]:
    def quoted(text: str) -> str:
        return text.replace(",", ",,")

    smbios = f"type=1,manufacturer={quoted(profile.manufacturer)},product={quoted(profile.product)}"
    smbios += f",version={quoted(profile.version)}" if profile.version else ""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-machine", "pc", "-cpu", "max"),
        *("-m", f"{memory_bytes >> 20}M", "-smp", str(cpus), "-smbios", smbios),
        *("-serial", f"file:{folder / 'serial'}", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off", "-S"),
    ]


def _start(stack: ExitStack, arguments: list[str], folder: Path, *, emulate: bool) -> _Qmp:
    """QEMU, stopped before the guest's first instruction.

    There are KVMs that QEMU takes and then cannot use (it ends by an assertion): then once more, without.
    """
    if not emulate:
        try:
            return _attempt(stack, [*arguments, "-accel", "kvm", "-accel", "tcg"], folder)
        except _NotStarted:
            (folder / "qmp").unlink(missing_ok=True)
    return _attempt(stack, [*arguments, "-accel", "tcg"], folder)


def _attempt(stack: ExitStack, command: list[str], folder: Path) -> _Qmp:
    with (folder / "messages").open("wb") as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages, start_new_session=True
        )
    stack.callback(_end, process)
    qmp = _Qmp(folder / "qmp", process)
    stack.callback(qmp.close)
    return qmp


class QemuGuest:
    """A running QEMU as a watcher sees it."""

    def __init__(self, qmp: _Qmp, folder: Path, meters: list[Meter], name_of: NameOf | None) -> None:
        self.resets = 0
        self.stop: Stop | None = None
        self._qmp = qmp
        self._folder = folder
        self._meters = meters
        self._name_of = name_of
        self._sample: Sample | None = None
        self._halted = False
        self._next_sample = 0.0
        self._serial_bytes = 0

    def serial_tail(self, length: int) -> str:
        """The end of the serial port's file."""
        return self.serial(length).decode("utf-8", "replace")

    def serial(self, length: int) -> bytes:
        """The last `length` bytes that came by the serial port."""
        try:
            with (self._folder / "serial").open("rb") as log:
                self._serial_bytes = log.seek(0, 2)
                log.seek(max(0, self._serial_bytes - length))
                return log.read()
        except FileNotFoundError:
            return b""

    def screen_text(self) -> str:
        """Every row that is not blank in text memory: where the screen begins in it, QEMU does not tell."""
        path = self._folder / "screen"
        self._qmp.command("pmemsave", val=_TEXT_WINDOW, size=_TEXT_WINDOW_BYTES, filename=str(path))
        cells = path.read_bytes()[::2]
        rows = (decode_cells(cells[at : at + _COLUMNS]).rstrip() for at in range(0, len(cells), _COLUMNS))
        return "\n".join(row for row in rows if row)

    def activity(self) -> int:
        """Requests and serial bytes."""
        return sum(meter.requests for meter in self._meters) + self._serial_bytes + self.resets

    def evidence(self) -> dict[Stage, str]:
        """What the disks' meters know."""
        found = {Stage.FIRMWARE: "QEMU's firmware"}
        furthest = max((meter.furthest_read for meter in self._meters), default=0)
        if furthest > BOOT_GAP_BYTES:
            found[Stage.LOADER] = f"reads beyond the boot gap, up to byte {furthest}"
        written = sum(meter.bytes_written for meter in self._meters)
        if written:
            found[Stage.ROOT] = "the guest writes to its disk"
        return found

    def sample(self) -> Sample | None:
        """By `info registers`, twice a second."""
        now = time.monotonic()
        if now < self._next_sample:
            return None
        self._next_sample = now + _SAMPLE_SECONDS
        text: str = self._qmp.command("human-monitor-command", **{"command-line": "info registers"})
        values = {name: int(value, 16) for name, value in re.findall(r"\b(\w+)=([0-9a-fA-F]{4,16})\b", text)}
        flags = re.search(r"[ER](?:FL|FLAGS)=([0-9a-f]+)", text)
        segment = re.search(r"^CS =(\w+) (\w+)", text, re.MULTILINE)
        if segment is None:
            return None
        self._halted = "HLT=1" in text
        efer = values.get("EFER", 0)
        self._sample = Sample(
            values.get("RIP", values.get("EIP", 0)),
            values.get("RSP", values.get("ESP", 0)),
            int(flags[1], 16) if flags else 0,
            int(segment[1], 16),
            int(segment[2], 16),
            values.get("CR0", 0),
            values.get("CR3", 0),
            values.get("CR4", 0),
            efer,
            64 if "CS64" in text else 16,
        )
        return self._sample

    def is_idle(self) -> bool:
        """Whether the processor was halted at the last sample."""
        return self._halted

    def slowness(self) -> float:
        """QEMU's own emulation is fast enough; how fast its KVM is, it does not tell."""
        return 1.0

    def last_reads(self) -> str:
        """What the meters have kept, with the caller's names."""
        return describe_last_reads(self._meters, self._name_of)

    def press(self, stroke: Stroke) -> None:
        """One stroke: its keys together."""
        keys, extended = [], 0
        for code in stroke.scan:
            if code == 0xE0:
                extended = 0x80
            elif not code & 0x80:
                keys.append({"type": "number", "data": code | extended})
                extended = 0
        if keys:
            self._qmp.command("send-key", keys=keys)

    def has_stopped(self) -> bool:
        """Read the events: resets, and the end of the machine."""
        events = self._qmp.events[:]
        self._qmp.events.clear()
        for event in events:
            if event.startswith("RESET guest"):
                self.resets += 1
                if self.resets > _RESETS_MOST:
                    self.stop = Stop("reset")
            elif event.startswith("SHUTDOWN guest"):
                self.stop = Stop("power off")
            elif event.startswith("STOP") and self._qmp.command("query-status")["status"] == "internal-error":
                self.stop = Stop("emulation failure", "QEMU's KVM cannot go on with this guest")
        return self.stop is not None


def boot_in_qemu(
    disks: BlockDevice | Disk | Sequence[BlockDevice | Disk],
    *,
    profile: str | Profile = DEFAULT_PROFILE,
    memory_bytes: int = 512 << 20,
    cpus: int = 1,
    firmware_path: str | None = None,
    kernel: Kernel | None = None,
    controller: Controller | None = None,
    expect: str | None = None,
    timeout: float = 180.0,
    keys: str = "",
    write: bool = False,
    on_serial: Callable[[bytes], object] | None = None,
    on_stage: OnStage | None = None,
    emulate: bool = False,
    name_of: NameOf | None = None,
) -> BootResult:
    """Like `vdisk.hv.boot.boot`, in QEMU: with KVM if there is one, else or if `emulate` in its own emulation.

    Raises `QemuMissing` if it is not installed.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise QemuMissing(f"{PROGRAM} is not installed (Debian package qemu-system-x86)")
    chosen = profile if isinstance(profile, Profile) else find_profile(profile)
    rows = [disks] if isinstance(disks, BlockDevice | Disk) else list(disks)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vdisk-qemu-")))
        arguments = [program, *_arguments(chosen, memory_bytes, cpus, folder)]
        meters = []
        buses: set[str] = set()
        for index, row in enumerate(rows):
            disk = row if isinstance(row, Disk) else Disk(row, guess_kind(row), controller)
            target = disk.device if write or disk.kind == "cdrom" else Overlay(disk.device)
            meters.append(Meter(target))
            server = stack.enter_context(NbdServer(meters[-1]))
            name = disk.controller or controller or chosen.controller
            if name in _BUSES and name not in buses and disk.kind == "disk":
                arguments += ["-device", f"{_BUSES[name]},id={name}"]
                buses.add(name)
            arguments += _disk_arguments(index, disk, name, server.path, writable=meters[-1].writable)
        arguments += _firmware_arguments(firmware_path, kernel, folder)
        try:
            qmp = _start(stack, arguments, folder, emulate=emulate)
            guest = QemuGuest(qmp, folder, meters, name_of)
            qmp.command("cont")
            watcher = Watcher(guest, expect, on_stage=on_stage)
            _watch(guest, watcher, qmp, parse_keys(keys), timeout, expect)
            serial = guest.serial(1 << 20)
            screen = guest.screen_text()
        except QemuError as error:
            said = (folder / "messages").read_text(errors="replace").strip().splitlines()
            raise QemuError(f"{error}{': ' + said[-1] if said else ''}") from error
        if on_serial is not None:
            on_serial(serial)
        return BootResult(
            ok=watcher.ok,
            stage=watcher.stage,
            kind=watcher.kind,
            reason=watcher.reason,
            conclusive=watcher.is_conclusive,
            evidence=watcher.evidence,
            seconds=watcher.seconds,
            profile=chosen.name,
            engine="qemu",
            screen=screen,
            serial=serial.decode("utf-8", "replace"),
            notes=["QEMU's board and controllers stand for the profile's; SMBIOS is the profile's"],
        )


def _firmware_arguments(firmware_path: str | None, kernel: Kernel | None, folder: Path) -> list[str]:
    arguments = ["-bios", firmware_path] if firmware_path is not None else []
    if kernel is not None:
        (folder / "kernel").write_bytes(kernel.image)
        arguments += ["-kernel", str(folder / "kernel"), "-append", kernel.append]
        if kernel.initrd:
            (folder / "initrd").write_bytes(kernel.initrd)
            arguments += ["-initrd", str(folder / "initrd")]
    return arguments


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    if process.poll() is None:
        process.kill()
        process.wait()


def _watch(
    guest: QemuGuest, watcher: Watcher, qmp: _Qmp, strokes: list[Stroke], timeout: float, expect: str | None
) -> None:
    """Look and type until there is a verdict."""
    deadline = time.monotonic() + timeout
    next_stroke = 0.0
    while True:
        done = watcher.look()
        if guest.has_stopped() and guest.stop is not None:
            if watcher.kind != "expected text":
                watcher.has_stopped(guest.stop, guest.resets)
            return
        if done and not (strokes and watcher.kind == "login prompt"):
            return
        now = time.monotonic()
        if now >= deadline:
            watcher.has_timed_out(timeout)
            return
        if strokes and now >= next_stroke:
            stroke = strokes[0]
            if stroke.wait_text and stroke.wait_text not in guest.serial_tail(1 << 16) + guest.screen_text():
                next_stroke = now + 0.5
            else:
                guest.press(strokes.pop(0))
                next_stroke = now + max(stroke.wait_seconds, 0.15)
        time.sleep(_STEP_SECONDS)
