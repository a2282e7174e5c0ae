"""kill -9 at random moments of every operation, and signals that ask nicely."""

from __future__ import annotations

import random
import shutil
import signal
import statistics
from dataclasses import dataclass
from pathlib import Path

from tests.torture.processes import OUTSIDE_STATUS, Stage, run_forked
from tests.torture.scenario import Scenario
from tests.torture.scenarios import qemu_finds_it_sound, scenarios
from tests.torture.tally import Tally

_REHEARSALS = 2
_JUDGED_BY_QEMU = 5
"""Of so many runs on qcow2, one is held out to qemu-img as well."""


@dataclass
class KillTally(Tally):
    """Of kills by scenario; of those that came too late, and of files that qemu-img judged too."""

    finished: int = 0
    """Runs that were done before the signal came."""
    by_qemu: int = 0

    def __str__(self) -> str:
        text = f"{len(self.runs)} operations, {self.finished} runs were done before"
        return text + (f", {self.by_qemu} files judged by qemu-img too" if self.by_qemu else "")


class Rehearsed:
    """A scenario on its stage, and how long it takes when left alone."""

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self.scenario = scenario
        self.stage = Stage(scenario, root)
        seconds = []
        for _ in range(_REHEARSALS):
            run = run_forked(scenario, self.stage.reset())
            if run.status != 0:
                raise AssertionError(f"{scenario} fails when left alone: status {run.status}: {run.said}")
            scenario.judge(self.stage.folder, run.outcome)
            seconds.append(run.seconds)
        self.seconds = statistics.mean(seconds)


class Cast:
    """The operations of a format, in a shuffled order, each rehearsed when its first turn comes."""

    def __init__(self, format: str, maker: random.Random, root: Path, only: str, *, commands_only: bool) -> None:
        todo = [one for one in scenarios(format) if only in one.name and not (commands_only and one.is_library)]
        self._scenarios = maker.sample(todo, len(todo))
        self._root = root / format
        self._rehearsed: dict[int, Rehearsed] = {}

    def take(self, turn: int) -> Rehearsed:
        """Whose turn it is."""
        number = turn % len(self._scenarios)
        if number not in self._rehearsed:
            self._rehearsed[number] = Rehearsed(self._scenarios[number], self._root / str(number))
        return self._rehearsed[number]


def kill(format: str, count: int, seed: int, root: Path, *, only: str = "", sample: int | None = None) -> KillTally:
    """Kill the operations of a format `count` times (or `sample` times), each as often as the others."""
    tally = KillTally()
    maker = random.Random(f"{seed}/{format}")
    cast = Cast(format, maker, root, only, commands_only=False)
    has_qemu = shutil.which("qemu-img") is not None
    number = 0
    while tally.count < (sample or count):
        one = cast.take(number)
        number += 1
        scenario = one.scenario
        delay = maker.uniform(0, 0.8 * one.seconds)
        folder = one.stage.reset()
        run = run_forked(scenario, folder, delay=delay)
        if run.status == 0:
            tally.finished += 1
        else:
            tally.runs[scenario.name] += 1
        label = f"{scenario}, kill {number} of seed {seed} after {delay * 1000:.2f} ms"
        try:
            if run.status not in (0, -signal.SIGKILL):
                raise AssertionError(f"status {run.status}: {run.said}")
            if has_qemu and format == "qcow2" and scenario.starts_sound and number % _JUDGED_BY_QEMU == 0:
                for path in folder.glob("[!.]*.qcow2"):
                    tally.by_qemu += 1
                    if not qemu_finds_it_sound(path):
                        raise AssertionError(f"qemu-img check finds {path.name} corrupt")
            tally.ends[f"{scenario}: {scenario.judge(folder, run.outcome)}"] += 1
        except Exception as error:
            tally.failures.append(f"{label}: {type(error).__name__}: {error}")
    return tally


def ask_to_end(
    format: str, count: int, seed: int, root: Path, *, only: str = "", sample: int | None = None
) -> KillTally:
    """SIGINT and SIGTERM at random moments: one line, status 128 and the signal's number, nothing left behind."""
    tally = KillTally()
    maker = random.Random(f"{seed}/{format}/signals")
    cast = Cast(format, maker, root, only, commands_only=True)
    number = 0
    while tally.count < (sample or count):
        one = cast.take(number)
        number += 1
        scenario = one.scenario
        which = maker.choice([signal.SIGINT, signal.SIGTERM])
        delay = maker.uniform(0.0005, 1.05 * one.seconds)
        folder = one.stage.reset()
        label = f"{scenario}, {which.name} {number} of seed {seed} after {delay * 1000:.2f} ms"
        try:
            run = run_forked(scenario, folder, delay=delay, number=which)
            if run.status in (0, -which) or (run.status == OUTSIDE_STATUS and not run.said):
                tally.finished += 1  # done before it came, or not yet begun
            else:
                tally.runs[scenario.name] += 1
            if run.status not in (0, -which, 128 + which, OUTSIDE_STATUS) or run.said.strip() not in (
                "",
                "vdisk: interrupted",
            ):
                raise AssertionError(f"status {run.status}: {run.said}")
            tally.ends[f"{scenario}: {scenario.judge(folder, run.outcome)}"] += 1
        except Exception as error:
            tally.failures.append(f"{label}: {type(error).__name__}: {error}")
    return tally
