"""Boot a disk and give a verdict: how far did the system come, by what evidence, and what stopped it.

A `Watcher` looks at a running guest some times a second and climbs the ladder of `signs.Stage`; it knows no machine, so
that another engine can be watched by the same eyes. `boot` runs the embedded one.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vdisk.block.device import BlockDevice
from vdisk.hv.board import Stop
from vdisk.hv.config import Disk, Kernel
from vdisk.hv.cpu import ExitCounts, Sample
from vdisk.hv.machine import Machine
from vdisk.hv.profiles import CONTROLLERS, DEFAULT_PROFILE, DRIVERS, Controller, Profile, find_profile
from vdisk.hv.signs import Stage, find_failure, find_stages, plain_text

BOOT_GAP_BYTES = 1 << 20
"""Reads beyond this are those of a boot loader that reads a file system."""
_LOOK_SECONDS = 0.1
_TAIL_BYTES = 16384
_FAILURE_TAIL_BYTES = 4096
_FAILURE_SETTLES_SECONDS = 3.0
_PANIC_SETTLES_SECONDS = 0.5
_TYPED_SETTLES_SECONDS = 10.0
_STANDSTILL_SECONDS = 4.0
_IDLE_LOOK_SECONDS = 1.0
_LOOP_SECONDS = 60.0
_SILENCE_SECONDS = 90.0
"""A kernel that unpacks itself on an emulated KVM shows no other sign for a good while."""
_SAMPLES_KEPT = 64
_SAMPLES_FOR_STANDSTILL = 20
_KERNEL_HALF = 1 << 63


OnStage = Callable[[Stage, str, float], None]
"""Told of each stage when it is reached: the stage, its sign, the seconds from the start."""


class Guest(Protocol):
    """What a watcher sees of a running system."""

    def serial_tail(self, length: int) -> str:
        """The last `length` bytes of the serial port, as text."""
        ...

    def screen_text(self) -> str:
        """The text screen."""
        ...

    def activity(self) -> int:
        """A number that grows with everything the guest does to its disks and its serial port."""
        ...

    def evidence(self) -> dict[Stage, str]:
        """Stages known by other signs than text."""
        ...

    def sample(self) -> Sample | None:
        """Where the processor is, if the engine tells."""
        ...

    def is_idle(self) -> bool:
        """Whether no processor does anything: halted, or jumping on the spot. May take a moment to find out."""
        ...


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
    """False if the host and not the image is to blame: an emulation failure."""
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


class Watcher:
    """Climbs the ladder. `look` says True once there is nothing more to wait for; `kind` and `reason` then say why."""

    def __init__(
        self,
        guest: Guest,
        expect: str | None,
        now: Callable[[], float] = time.monotonic,
        on_stage: OnStage | None = None,
    ) -> None:
        self.evidence: dict[Stage, str] = {}
        self.seconds: dict[Stage, float] = {}
        self.kind = ""
        self.reason = ""
        self.ok = False
        self._guest = guest
        self._on_stage = on_stage
        self._expect = expect
        self._now = now
        self._start = now()
        self._next_look = self._start
        self._changed_at = self._start
        self._next_idle_look = self._start
        self._last_seen: tuple[str, str, int] | None = None
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_KEPT)

    @property
    def stage(self) -> Stage:
        """The furthest one so far."""
        return max(self.evidence, default=Stage.NOTHING)

    @property
    def quiet_seconds(self) -> float:
        """How long nothing has changed."""
        return self._now() - self._changed_at

    def _reach(self, stage: Stage, sign: str) -> None:
        if stage not in self.evidence:
            self.evidence[stage] = sign
            self.seconds[stage] = self._now() - self._start
            self._changed_at = self._now()
            if self._on_stage is not None:
                self._on_stage(stage, sign, self.seconds[stage])

    def _end(self, kind: str, reason: str, *, ok: bool = False) -> bool:
        self.kind, self.reason, self.ok = kind, reason, ok
        return True

    def look(self, *, now_or_never: bool = False) -> bool:
        """Look once; cheap when it is too early for another look, unless there will be no other."""
        now = self._now()
        sample = self._guest.sample()
        if sample is not None:
            self._samples.append(sample)
        if now < self._next_look and not now_or_never:
            return False
        self._next_look = now + _LOOK_SECONDS
        serial, screen = self._guest.serial_tail(_TAIL_BYTES), self._guest.screen_text()
        seen = (serial, screen, self._guest.activity())
        self._look_at_mode(sample)
        for stage, sign in self._guest.evidence().items():
            # A firmware with drivers of its own, SeaBIOS, runs the controllers too: only a kernel's count.
            if stage < Stage.DRIVER or Stage.KERNEL in self.evidence:
                self._reach(stage, sign)
        if seen != self._last_seen:
            is_first = self._last_seen is None
            self._last_seen = seen
            if not is_first:
                self._changed_at = now
            serial, screen = plain_text(serial), plain_text(screen)
            for text in (serial, screen):
                for stage, sign in find_stages(text).items():
                    self._reach(stage, sign)
            if self._expect is not None and (self._expect in serial or self._expect in screen):
                return self._end("expected text", f"{self._expect!r} was seen", ok=True)
        if Stage.LOGIN in self.evidence and self._expect is None:
            return self._end("login prompt", self.evidence[Stage.LOGIN], ok=True)
        return self._has_failed(now)

    def _look_at_mode(self, sample: Sample | None) -> None:
        if sample is None:
            return
        if sample.mode != "real":
            self._reach(Stage.PROTECTED_MODE, f"{sample.mode} mode, at {sample.rip:#x}")
        if sample.mode == "long" and sample.rip & _KERNEL_HALF:
            self._reach(Stage.KERNEL, f"code in the kernel's half of memory, at {sample.rip:#x}")

    def _has_failed(self, now: float) -> bool:
        quiet = self.quiet_seconds
        if quiet < _PANIC_SETTLES_SECONDS:
            return False
        serial = plain_text(self._guest.serial_tail(_FAILURE_TAIL_BYTES))
        failure = find_failure(serial) or find_failure(plain_text(self._guest.screen_text()))
        if failure is not None and (failure[0] == "kernel panic" or quiet >= _FAILURE_SETTLES_SECONDS):
            return self._end(*failure)
        standing = self._stands_still()
        is_kernel = self.stage >= Stage.KERNEL
        is_final = standing is not None and not (is_kernel and standing.interrupts_on)
        if standing is not None and is_final and self._is_idle(now, quiet):
            off = "" if standing.interrupts_on else ", with interrupts off"
            return self._settle("halted", f"nothing moves any more: the processor stands at {standing}{off}")
        if quiet >= _LOOP_SECONDS and not is_kernel and standing is None and self._loops():
            return self._settle("stuck in a loop", f"no sign of life for {quiet:.0f} s, around {self._samples[-1]}")
        if quiet >= _SILENCE_SECONDS:
            return self._settle("silence", f"no sign of life for {quiet:.0f} s")
        return False

    def _settle(self, kind: str, reason: str) -> bool:
        """What a system that does nothing more has come to: user space that waits is a success."""
        if self.stage >= Stage.USER_SPACE and self._expect is None:
            return self._end("user space", self.evidence[self.stage], ok=True)
        return self._end(kind, reason)

    def _stands_still(self) -> Sample | None:
        recent = list(self._samples)[-_SAMPLES_FOR_STANDSTILL:]
        if len(recent) < _SAMPLES_FOR_STANDSTILL:
            return None
        last = recent[-1]
        return last if all(one.rip == last.rip and one.cs_base == last.cs_base for one in recent) else None

    def _is_idle(self, now: float, quiet: float) -> bool:
        """The same place again and again may be one long string instruction: ask, but not too often."""
        if quiet < _STANDSTILL_SECONDS or now < self._next_idle_look:
            return False
        self._next_idle_look = now + _IDLE_LOOK_SECONDS
        return self._guest.is_idle()

    def _loops(self) -> bool:
        places = [one.cs_base + one.rip for one in self._samples]
        return len(places) == _SAMPLES_KEPT and max(places) - min(places) < 1 << 16

    def has_stopped(self, stop: Stop, resets: int) -> None:
        """The machine stands still for good."""
        if stop.reason == "emulation failure":
            self._end("emulation failure", f"inconclusive: {stop.detail}")
        elif stop.reason == "triple fault":
            where = f", last seen at {stop.detail}" if stop.detail is not None else ""
            self._end("triple fault", f"the processor shut down after a triple fault{where}")
        elif stop.reason == "reset":
            self._end("reset loop", f"the guest has reset the machine {resets} times")
        elif stop.reason == "power off":
            ok = self.stage >= Stage.USER_SPACE and self._expect is None
            self._end("power off", "the guest switched the machine off", ok=ok)
        else:
            self._end(stop.reason, str(stop.detail))

    def has_timed_out(self, timeout: float) -> None:
        """Time is up."""
        missing = f"{self._expect!r} was not seen" if self._expect is not None else "no login prompt"
        ok = self.stage >= Stage.USER_SPACE and self._expect is None
        self._end("user space" if ok else "timeout", f"{missing} within {timeout:g} s", ok=ok)


class MachineGuest:
    """The embedded machine as a watcher sees it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._idle_once: set[str] = set()
        """Controllers seen without a driver while a kernel ran: a driver after that is the kernel's."""

    def _kernels_drivers(self) -> list[str]:
        """Controllers that a driver runs, without those that a firmware file's drivers have left running."""
        machine = self._machine
        live = machine.live_drivers()
        if machine.config.firmware is None:
            return live
        sample = machine.sample()
        if sample is not None and sample.mode == "long" and sample.rip & _KERNEL_HALF:
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
) -> BootResult:
    """Boot `disks` and say how far the system came. The disks stay unchanged unless `write`, and open in any case.

    `expect` is a text to wait for on the screen or the serial port; without one a login prompt ends the run, or the
    furthest sign of life after which nothing more happens. `keys` are typed from the start on (`keys.parse_keys`).
    `on_serial` gets what the guest sends, `on_stage` each stage as it is reached; `on_machine` is called with the
    machine at the end, before it is closed.
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
        guest = MachineGuest(machine)
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
    return BootResult(
        ok=watcher.ok,
        stage=watcher.stage,
        kind=kind,
        reason=reason,
        conclusive=kind != "emulation failure",
        evidence=watcher.evidence,
        seconds=watcher.seconds,
        profile=profile.name,
        engine="embedded",
        drivers=drivers,
        exits=sum(counts.total for counts in machine.exit_counts()),
        exits_by=most_frequent_exits(machine.exit_counts()),
        screen=guest.screen_text(),
        serial=machine.serial_text(),
        notes=list(profile.notes),
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
