"""An operating system in which the Nth call goes wrong, for every N.

Read errors, short reads, write errors, a disk that is full or dead from then on, a kill or a signal just then.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import vdisk.storage.file
import vdisk.storage.staging
from tests.crash import SECTOR_BYTES
from tests.torture.processes import Prelude, Run, Stage, run_forked
from tests.torture.scenario import Scenario
from tests.torture.scenarios import scenarios
from tests.torture.tally import Tally

_READS = {"pread", "preadv"}
_STORES = {"pwrite", "copy_file_range", "fallocate"}
_CHANGES = {*_STORES, "ftruncate", "fsync", "replace", "rename", "create"}


class Fault(NamedTuple):
    """What goes wrong."""

    name: str
    calls: frozenset[str]
    """It is the Nth of these calls that it befalls."""
    lasts: bool = False
    """All later ones too."""


FAULTS = (
    Fault("read error", frozenset(_READS)),
    Fault("short read", frozenset(_READS)),
    Fault("write error", frozenset(_CHANGES)),
    Fault("dead disk", frozenset(_CHANGES), lasts=True),
    Fault("full disk", frozenset(_STORES), lasts=True),
    Fault("kill", frozenset(_CHANGES)),
    Fault("SIGTERM", frozenset(_READS | _CHANGES)),
    Fault("SIGINT", frozenset(_READS | _CHANGES)),
)
_SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


class FailingOs:
    """The `os` module as the storages see it. It counts the calls that a fault may befall, and lets one fail."""

    def __init__(self, fault: Fault, number: int | None) -> None:
        """`number` from 1 on; None only counts."""
        self._fault = fault
        self._number = number
        self._lock = threading.Lock()
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "open":
            return functools.partial(self._open, real)
        return functools.partial(self._call, name, real) if name in _READS | _CHANGES else real

    def punch(self, real: Callable[..., bool], fd: int, offset: int, length: int) -> bool:
        """A hole, by the storage's own function: it says False where the system cannot."""
        try:
            return bool(self._call("fallocate", real, fd, offset, length))
        except OSError:
            return False

    def _open(self, real: Callable[..., Any], path: Any, flags: int, *more: Any) -> Any:
        if flags & os.O_CREAT:
            return self._call("create", real, path, flags, *more)
        return real(path, flags, *more)

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if name in self._fault.calls:
            with self._lock:
                self.count += 1
                is_first = self.count == self._number
                is_now = is_first or (self._fault.lasts and self._number is not None and self.count > self._number)
            if is_now:
                return self._fail(name, real, arguments, is_first)
        return real(*arguments)

    def _fail(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], is_first: bool) -> Any:
        what = self._fault.name
        if what in _SIGNALS:
            if self.count % 2:  # just behind the call, and else just before it
                result = real(*arguments)
                os.kill(os.getpid(), _SIGNALS[what])
                return result
            os.kill(os.getpid(), _SIGNALS[what])
            return real(*arguments)
        if what == "short read":
            return _read_less(name, real, arguments)
        if what == "full disk":
            return self._fill_up(name, real, arguments, is_first)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _fill_up(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], is_first: bool) -> Any:
        """What has its room already can still be written; of the first that has none, a half."""
        if name == "fallocate":
            return real(*arguments)
        if name == "copy_file_range":
            _, fd, length, _, offset = arguments
        else:
            fd, data, offset = arguments
            length = len(data)
        if _has_room(fd, offset, length):
            return real(*arguments)
        if is_first and name == "pwrite" and length > SECTOR_BYTES:
            return real(fd, memoryview(data)[: length // 2 // SECTOR_BYTES * SECTOR_BYTES], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _has_room(fd: int, offset: int, length: int) -> bool:
    try:
        return offset + length <= os.fstat(fd).st_size and os.lseek(fd, offset, os.SEEK_HOLE) >= offset + length
    except OSError:
        return False


def _read_less(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if name == "pread":
        fd, length, offset = arguments
        return real(fd, max(1, length // 2), offset)
    fd, (buffer,), offset = arguments
    return real(fd, (memoryview(buffer)[: max(1, len(buffer) // 2)],), offset)


def prelude_of(fault: Fault, number: int | None) -> Prelude:
    """What a child does before its work: it puts the failing system in the place of the real one."""

    def begin() -> Callable[[], int]:
        failing = FailingOs(fault, number)
        vdisk.storage.file.os = failing  # type: ignore[attr-defined]
        vdisk.storage.staging.os = failing  # type: ignore[attr-defined]
        vdisk.storage.file._punch_hole = functools.partial(failing.punch, vdisk.storage.file._punch_hole)
        return lambda: failing.count

    return begin


def walk(format: str, most: int, seed: int, root: Path, *, only: str = "", sample: int | None = None) -> Tally:
    """Let each call of each operation of a format go wrong; of a run with more than `most`, so many.

    With `sample`, only so many pairs of an operation and a fault.
    """
    tally = Tally()
    maker = random.Random(f"{seed}/{format}/faults")
    todo = [scenario for scenario in scenarios(format) if only in scenario.name]
    pairs = [
        (scenario, fault)
        for scenario in todo
        for fault in FAULTS
        if not (scenario.is_library and fault.name in ("SIGTERM", "SIGINT"))
    ]
    chosen = pairs if sample is None else maker.sample(pairs, min(sample, len(pairs)))
    for scenario in todo:
        faults = [fault for one, fault in chosen if one is scenario]
        if not faults:
            continue
        stage = Stage(scenario, root / format)
        for fault in faults:
            for number in _numbers(scenario, stage, fault, most, maker):
                folder = stage.reset()
                tally.runs[fault.name] += 1
                try:
                    run = run_forked(scenario, folder, prelude=prelude_of(fault, number))
                    tally.ends[f"{fault.name}: {_judge(scenario, folder, fault, run)}"] += 1
                except Exception as error:
                    label = f"{scenario}, {fault.name} at call {number}"
                    tally.failures.append(f"{label}: {type(error).__name__}: {error}")
    return tally


def _numbers(scenario: Scenario, stage: Stage, fault: Fault, most: int, maker: random.Random) -> Iterator[int]:
    total = run_forked(scenario, stage.reset(), prelude=prelude_of(fault, None)).count
    yield from range(1, total + 1) if total <= most else sorted(maker.sample(range(1, total + 1), most))


def _judge(scenario: Scenario, folder: Path, fault: Fault, run: Run) -> str:
    lines = run.said.splitlines()
    if fault.name in _SIGNALS and run.status != 0:
        which = _SIGNALS[fault.name]
        expected, said = (-which, []) if fault.name == "kill" else (128 + which, ["vdisk: interrupted"])
        if run.status != expected or lines != said:
            raise AssertionError(f"status {run.status}: {run.said}")
        return f"{scenario.judge(folder, run.outcome)}"
    if run.status == 0:
        if fault.name == "read error":
            raise AssertionError("a read error went unnoticed")
        if lines:
            raise AssertionError(f"done, and said: {run.said}")
        return f"not noticed, {scenario.judge(folder, run.outcome)}"
    if fault.name == "short read":
        raise AssertionError(f"a short read is no error: {run.said}")
    judge_refusal(run, os.strerror(errno.ENOSPC if fault.name == "full disk" else errno.EIO))
    return f"refused, {scenario.judge(folder, run.outcome)}"


def judge_refusal(run: Run, reason: str) -> None:
    """One line that says why, and exit status 1."""
    lines = run.said.splitlines()
    if run.status != 1 or len(lines) != 1 or not lines[0].startswith("vdisk: "):
        raise AssertionError(f"status {run.status}: {run.said}")
    if reason not in lines[0]:
        raise AssertionError(f"it does not say why: {run.said}")
