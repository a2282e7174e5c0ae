"""Climb the ladder of `signs.Stage` while a guest runs, and come to a verdict: what stopped it, by what evidence.

A `Watcher` knows no machine, only what a `Guest` shows, so that another engine can be watched by the same eyes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from vdisk.hv.board import Stop
from vdisk.hv.cpu import Sample
from vdisk.hv.signs import Stage, find_failure, find_stages, plain_text

_LOOK_SECONDS = 0.1
_TAIL_BYTES = 16384
_FAILURE_TAIL_BYTES = 4096
_FAILURE_SETTLES_SECONDS = 3.0
_PANIC_SETTLES_SECONDS = 0.5
_STANDSTILL_SECONDS = 4.0
_IDLE_LOOK_SECONDS = 1.0
_LOOP_SECONDS = 60.0
_SILENCE_SECONDS = 90.0
"""Both hold where the guest is not slower than it may be (`pace.py`); elsewhere they grow by as much."""
_SAMPLES_KEPT = 4096
"""Those of the whole quiet time before a loop is called one."""
_SAMPLES_FOR_STANDSTILL = 20
_SAMPLES_FOR_LOOP = 64
_STRAY_SAMPLES = 16
"""One sample of so many may lie outside of a loop: an interrupt's."""

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

    def slowness(self) -> float:
        """How many times too slow the guest runs for a judgement by silence; 1 or more. May take a moment."""
        ...

    def last_reads(self) -> str:
        """Where the last reads of its disks fell, in words; "" where that is not known."""
        ...


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
        """Those since the last change."""
        self._slowness: float | None = None

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
            self._note_change(self._now())
            if self._on_stage is not None:
                self._on_stage(stage, sign, self.seconds[stage])

    def _note_change(self, now: float) -> None:
        self._changed_at = now
        self._samples.clear()

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
                self._note_change(now)
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
        if sample.is_in_kernel_half:
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
        if self._is_quiet_for(_LOOP_SECONDS) and not is_kernel and standing is None and self._loops():
            return self._settle("stuck in a loop", f"no sign of life for {quiet:.0f} s, around {self._samples[-1]}")
        if self._is_quiet_for(_SILENCE_SECONDS):
            return self._settle("silence", f"no sign of life for {quiet:.0f} s")
        return False

    def _is_quiet_for(self, seconds: float) -> bool:
        """Whether nothing has changed for so long: for longer where the guest is slow, since that is not yet stuck."""
        return self.quiet_seconds >= seconds and self.quiet_seconds >= seconds * self.slowness

    @property
    def slowness(self) -> float:
        """That of the guest; measured when first asked for."""
        if self._slowness is None:
            self._slowness = self._guest.slowness()
        return self._slowness

    def _settle(self, kind: str, reason: str) -> bool:
        """What a system that does nothing more has come to: user space that waits is a success."""
        if self.stage >= Stage.USER_SPACE and self._expect is None:
            return self._end("user space", self.evidence[self.stage], ok=True)
        return self._end(kind, self._with_last_reads(reason))

    def _with_last_reads(self, reason: str) -> str:
        """What a silent guest read last is the only thing that it says of what it was at."""
        reads = self._guest.last_reads()
        return f"{reason}; {reads}" if reads else reason

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
        places = sorted(one.cs_base + one.rip for one in self._samples)
        stray = len(places) // _STRAY_SAMPLES
        return len(places) >= _SAMPLES_FOR_LOOP and places[-1 - stray] - places[stray] < 1 << 16

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
        """Time is up. Where the guest is slow that says nothing about it, and the verdict is not conclusive."""
        missing = f"{self._expect!r} was not seen" if self._expect is not None else "no login prompt"
        reason = f"{missing} within {timeout:g} s"
        if self.stage >= Stage.USER_SPACE and self._expect is None:
            self._end("user space", reason, ok=True)
            return
        if self.slowness > 1:
            reason = (
                f"inconclusive: {reason}, but this host's KVM is {self.slowness:.0f} times too slow to judge by time"
            )
        self._end("timeout", self._with_last_reads(reason))

    @property
    def is_conclusive(self) -> bool:
        """False if the host and not the image is to blame."""
        return self.kind != "emulation failure" and not (self.kind == "timeout" and self.slowness > 1)
