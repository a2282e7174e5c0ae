"""Boot a disk and give a verdict: how far did the system come, by what evidence, and what stopped it.

`boot` runs the embedded machine under the eyes of a `watcher.Watcher`; `MachineGuest` is what that sees of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.hv.config import Disk, Kernel
from vdisk.hv.cpu import EmulationFailure, ExitCounts, Sample
from vdisk.hv.machine import Machine
from vdisk.hv.meter import NameOf, describe_last_reads
from vdisk.hv.pace import slowness
from vdisk.hv.profiles import CONTROLLERS, DEFAULT_PROFILE, DRIVERS, Controller, Profile, find_profile
from vdisk.hv.signs import Stage
from vdisk.hv.watcher import OnStage, Watcher

BOOT_GAP_BYTES = 1 << 20
"""Reads beyond this are those of a boot loader that reads a file system."""
_TYPED_SETTLES_SECONDS = 10.0


@dataclass(slots=True)
class BootResult:
    """The verdict."""

    ok: bool
    """The expected text was seen; without one, user space was reached."""
    stage: Stage
    """The furthest stage reached."""
    kind: str
    """How it ended: "expected text", "login prompt", "user space", or the kind of failure."""
    reason: str
    """The same in a sentence, with its evidence."""
    conclusive: bool
    """False if the host and not the image is to blame: an emulation failure, or a KVM too slow for the time given."""
    evidence: dict[Stage, str]
    """What proved each stage."""
    seconds: dict[Stage, float]
    """When each stage was first seen, from the start."""
    profile: str
    engine: str
    drivers: list[str] = field(default_factory=list)
    """Controllers that a driver of the guest runs."""
    exits: int = 0
    """How often the guest was left, on all processors, since the last reset."""
    exits_by: dict[str, int] = field(default_factory=dict)
    """The same by port, page of memory or reason; the most frequent ones."""
    screen: str = ""
    serial: str = ""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain types, stages by name."""
        return {
            "ok": self.ok,
            "stage": self.stage.name.lower().replace("_", "-"),
            "stage-number": int(self.stage),
            "kind": self.kind,
            "reason": self.reason,
            "conclusive": self.conclusive,
            "evidence": [
                {
                    "stage": stage.name.lower().replace("_", "-"),
                    "sign": sign,
                    "seconds": round(self.seconds.get(stage, 0.0), 3),
                }
                for stage, sign in sorted(self.evidence.items())
            ],
            "profile": self.profile,
            "engine": self.engine,
            "drivers": self.drivers,
            "exits": self.exits,
            "exits-by": self.exits_by,
            "screen": self.screen,
            "serial": self.serial,
            "notes": self.notes,
        }


class MachineGuest:
    """The embedded machine as a watcher sees it."""

    def __init__(self, machine: Machine, name_of: NameOf | None = None) -> None:
        self._machine = machine
        self._name_of = name_of
        self._idle_once: set[str] = set()
        """Controllers seen without a driver while a kernel ran: a driver after that is the kernel's."""

    def _kernels_drivers(self) -> list[str]:
        """Controllers that a driver runs, without those that a firmware file's drivers have left running."""
        machine = self._machine
        live = machine.live_drivers()
        if machine.config.firmware is None:
            return live
        sample = machine.sample()
        if sample is not None and sample.is_in_kernel_half:
            self._idle_once |= {name for name in CONTROLLERS if name not in live}
        return [name for name in live if name in self._idle_once]

    def serial_tail(self, length: int) -> str:
        """The end of the serial port's log."""
        return bytes(self._machine.serial[-length:]).decode("utf-8", "replace")

    def screen_text(self) -> str:
        """The text screen."""
        return self._machine.screen_text()

    def activity(self) -> int:
        """Requests to disks, and serial bytes."""
        machine = self._machine
        return sum(meter.requests for meter in machine.meters) + machine.serial_bytes + machine.resets

    def sample(self) -> Sample | None:
        """The first processor's."""
        return self._machine.sample()

    def is_idle(self) -> bool:
        """Whether every processor has halted or jumps on the spot."""
        return self._machine.is_idle()

    def slowness(self) -> float:
        """Measured on this host, beside the guest."""
        return slowness()

    def last_reads(self) -> str:
        """What the meters have kept, with the caller's names."""
        return describe_last_reads(self._machine.meters, self._name_of)

    def evidence(self) -> dict[Stage, str]:
        """What the firmware, the meters and the devices know."""
        machine = self._machine
        found: dict[Stage, str] = {}
        log = machine.bios_log
        if log is None or log.calls:
            found[Stage.FIRMWARE] = "our own firmware" if log is not None else "a firmware file"
        if log is not None and log.booted:
            found[Stage.BOOT_SECTOR] = log.booted
        furthest = max((meter.furthest_read for meter in machine.meters), default=0)
        if furthest > BOOT_GAP_BYTES:
            found[Stage.LOADER] = f"reads beyond the boot gap, up to byte {furthest}"
        drivers = self._kernels_drivers()
        if drivers:
            found[Stage.DRIVER] = f"the guest's driver runs {', '.join(drivers)}"
            written = sum(meter.bytes_written for meter in machine.meters)
            if written:
                found[Stage.ROOT] = f"the guest writes to its disk through {', '.join(drivers)}"
        return found


def boot(
    disks: BlockDevice | Disk | Sequence[BlockDevice | Disk],
    *,
    profile: str | Profile = DEFAULT_PROFILE,
    memory_bytes: int = 512 << 20,
    cpus: int = 1,
    firmware: bytes | None = None,
    option_rom: bytes | None = None,
    kernel: Kernel | None = None,
    controller: Controller | None = None,
    expect: str | None = None,
    timeout: float = 180.0,
    keys: str = "",
    write: bool = False,
    on_serial: Callable[[bytes], None] | None = None,
    on_stage: OnStage | None = None,
    on_machine: Callable[[Machine], None] | None = None,
    name_of: NameOf | None = None,
) -> BootResult:
    """Boot `disks` and say how far the system came. The disks stay unchanged unless `write`, and open in any case.

    `expect` is a text to wait for on the screen or the serial port; without one a login prompt ends the run, or the
    furthest sign of life after which nothing more happens. `keys` are typed from the start on (`keys.parse_keys`).
    `on_serial` gets what the guest sends, `on_stage` each stage as it is reached; `on_machine` is called with the
    machine at the end, before it is closed. `name_of` says in words what lies at a byte of a disk: by it the verdict on
    a guest that has gone silent tells what that read last.
    """
    rows = [disks] if isinstance(disks, BlockDevice | Disk) else list(disks)
    chosen = profile if isinstance(profile, Profile) else find_profile(profile)
    machine = Machine(
        chosen,
        rows,
        memory_bytes,
        cpus,
        firmware=firmware,
        option_rom=option_rom,
        kernel=kernel,
        controller=controller,
        write=write,
        on_serial=on_serial,
    )
    with machine:
        guest = MachineGuest(machine, name_of)
        machine.start()
        watcher = Watcher(guest, expect, on_stage=on_stage)
        if keys:
            machine.type_keys(keys)
        deadline = time.monotonic() + timeout
        while True:
            if not machine.step():
                # Its last words may not have been read yet.
                watcher.look(now_or_never=True)
                if machine.stop is not None and watcher.kind != "expected text":
                    watcher.has_stopped(machine.stop, machine.resets)
                break
            if watcher.look():
                # What was typed at a login prompt is to have its effect, a command or a power-off.
                is_at_work = machine.is_typing or watcher.quiet_seconds < _TYPED_SETTLES_SECONDS
                if not (keys and is_at_work and watcher.kind == "login prompt"):
                    break
            if time.monotonic() >= deadline:
                watcher.has_timed_out(timeout)
                break
        result = _result(machine, watcher, guest, chosen)
        if on_machine is not None:
            on_machine(machine)
    return result


def _result(machine: Machine, watcher: Watcher, guest: MachineGuest, profile: Profile) -> BootResult:
    drivers = machine.live_drivers()
    kind, reason = watcher.kind, watcher.reason
    log = machine.bios_log
    if log is not None and log.gave_up and not watcher.ok:
        kind, reason = "nothing to boot", "; ".join(log.refusals) or "there is no disk"
        if log.booted:
            reason = f"the boot sector gave up (int 18h): {reason}"
    elif machine.meters and not (watcher.ok or drivers) and watcher.stage >= Stage.KERNEL and kind in _ROOT_FAILURES:
        names = sorted({disk.controller or profile.controller for disk in machine.config.disks if disk.kind == "disk"})
        wanted = ", ".join(f"{name} needs {DRIVERS[name]}" for name in names)
        reason += f"; no driver of the guest runs the disk's controller{f' ({wanted})' if wanted else ''}"
    failure = machine.stop.detail if machine.stop is not None else None
    return BootResult(
        ok=watcher.ok,
        stage=watcher.stage,
        kind=kind,
        reason=reason,
        conclusive=watcher.is_conclusive,
        evidence=watcher.evidence,
        seconds=watcher.seconds,
        profile=profile.name,
        engine="embedded",
        drivers=drivers,
        exits=sum(counts.total for counts in machine.exit_counts()),
        exits_by=most_frequent_exits(machine.exit_counts()),
        screen=guest.screen_text(),
        serial=machine.serial_text(),
        notes=[*profile.notes, *([failure.state()] if isinstance(failure, EmulationFailure) else [])],
    )


def most_frequent_exits(counts: Sequence[ExitCounts], most: int = 12) -> dict[str, int]:
    """The `most` frequent kinds of exits of all processors: "port 3f8", "memory febf4000", "INTR"."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update({f"port {port:x}": count for port, count in one.ports.items()})
        total.update({f"memory {page << 12:x}": count for page, count in one.pages.items()})
        total.update(one.others)
    return dict(total.most_common(most))


_ROOT_FAILURES = frozenset(("no root disk", "rescue shell", "kernel panic", "silence", "timeout"))
