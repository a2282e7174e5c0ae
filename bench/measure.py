"""Timing whole commands in pairs: A B A B, so that both meet the same machine; medians, and the ratio pair by pair."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = Sequence[str | Path]


@dataclass
class Timing:
    """The runs of one command."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Median of wall seconds."""
        return statistics.median(self.seconds)


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
    def difference(self) -> float:
        """Median of ours - theirs in seconds, pair by pair."""
        return statistics.median(a - b for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True))


def run(command: Command) -> tuple[float, int]:
    """Run a command to its end: (wall seconds, peak resident bytes). A failure ends the benchmark."""
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
    return seconds, usage.ru_maxrss * 1024


def pair(ours: Command, theirs: Command, runs: int, before_each: Callable[[], None]) -> Pair:
    """Run both in turn, `runs` times after one warm-up; `before_each` clears what a run leaves."""
    found = Pair(Timing(), Timing())
    for number in range(-1, runs):
        for command, timing in ((ours, found.ours), (theirs, found.theirs)):
            before_each()
            seconds, peak = run(command)
            timing.peak_bytes = max(timing.peak_bytes, peak)
            if number >= 0:
                timing.seconds.append(seconds)
    return found
