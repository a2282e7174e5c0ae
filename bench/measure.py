"""Timing whole commands in pairs: A B A B, so that both meet the same machine; medians, and the ratio pair by pair."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Command = Sequence[str | Path]


@dataclass
class Timing:
    """The runs of one command."""

    seconds: list[float] = field(default_factory=list)
    """Wall time."""
    processor_seconds: list[float] = field(default_factory=list)
    """User and system time of all threads: what neighbours on the machine hardly change."""
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Median of wall seconds."""
        return statistics.median(self.seconds)

    @property
    def processor_median(self) -> float:
        """Median of processor seconds."""
        return statistics.median(self.processor_seconds)


@dataclass
class Pair:
    """Two commands, run in turn."""

    ours: Timing
    theirs: Timing

    @property
    def ratio(self) -> float:
        """Median of ours / theirs, pair by pair."""
        return statistics.median(a / b for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True))

    @property
    def processor_ratio(self) -> float:
        """The same of processor time."""
        pairs = zip(self.ours.processor_seconds, self.theirs.processor_seconds, strict=True)
        return statistics.median(a / max(b, 0.001) for a, b in pairs)

    @property
    def spread(self) -> float:
        """How far the pairs' ratios lie apart: the highest / the lowest. What a busy machine makes uncertain."""
        ratios = [a / b for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True)]
        return max(ratios) / min(ratios)

    @property
    def difference(self) -> float:
        """Median of ours - theirs in seconds, pair by pair."""
        return statistics.median(a - b for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True))


class Run(NamedTuple):
    """One run of a command."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    """Most memory it had resident."""


def run(command: Command) -> Run:
    """Run a command to its end. A failure ends the benchmark."""
    arguments = [str(part) for part in command]
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(arguments)}: exit status {process.returncode}: {said.decode().strip()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def pair(ours: Command, theirs: Command, runs: int, before_each: Callable[[], None]) -> Pair:
    """Run both in turn, `runs` times after one warm-up; `before_each` clears what a run leaves."""
    found = Pair(Timing(), Timing())
    for number in range(-1, runs):
        for command, timing in ((ours, found.ours), (theirs, found.theirs)):
            before_each()
            done = run(command)
            timing.peak_bytes = max(timing.peak_bytes, done.peak_bytes)
            if number >= 0:
                timing.seconds.append(done.seconds)
                timing.processor_seconds.append(done.processor_seconds)
    return found
