"""Running a scenario in a process of its own, forked from this one with all its imports done."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.torture.scenario import Outcome, Scenario
from vdisk.errors import VdiskError

LONGEST_SECONDS = 30.0
"""A run that takes longer hangs."""
TRACEBACK_STATUS = 99
OUTSIDE_STATUS = 98
"""An interrupt came while the command had not begun, or behind its end."""


def import_all() -> None:
    """Import what the scenarios need, so that a fork is a process ready to work."""
    import importlib

    import vdisk.cli
    from vdisk.formats import FORMATS

    for row in vdisk.cli._COMMANDS:
        importlib.import_module(f"vdisk.cli.{row.module}")
    for row in FORMATS:
        folder = Path(vdisk.formats.__file__).parent / row.name
        for path in folder.glob("*.py"):
            importlib.import_module(f"vdisk.formats.{row.name}.{path.stem}")
    for name in ("converter.engine", "converter.stream", "maintain.chain", "block.codecs", "cli.progress"):
        importlib.import_module(f"vdisk.{name}")
    import numpy  # noqa: F401


class Stage:
    """A scenario's folder, made anew for each run from files that were prepared once."""

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self.scenario = scenario
        self.folder, self._start = root / "work", root / "start"
        shutil.rmtree(root, ignore_errors=True)
        self.folder.mkdir(parents=True)
        scenario.prepare(self.folder)
        self.folder.rename(self._start)

    def reset(self) -> Path:
        """The folder as it was at the start."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._start, self.folder)
        return self.folder


@dataclass
class Run:
    """How a process ended."""

    status: int
    """As `os.waitstatus_to_exitcode` gives it: negative for a signal."""
    said: str
    """What it wrote on standard error."""
    confirmed: int
    seconds: float
    count: int = 0
    """What the preparation's `count` came to, where it counts something."""

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.confirmed, self.status == 0, self.status == -signal.SIGKILL)


Prelude = Callable[[], Callable[[], int]]
"""Called in the child before it starts; what it returns is called at the end, and its number comes to `Run.count`."""


def run_forked(
    scenario: Scenario, folder: Path, *, delay: float | None = None, number: int = signal.SIGKILL,
    prelude: Prelude | None = None,
) -> Run:  # fmt: skip
    """Run a scenario in a child; with `delay`, send it a signal so many seconds after its start."""
    reader, writer = os.pipe()
    gc.freeze()
    with tempfile.TemporaryFile() as said:  # not in the scenario's folder: that disk may be full
        child = os.fork()
        if child == 0:
            os.close(reader)
            _be_the_child(scenario, folder, writer, said.fileno(), prelude)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            heard = pipe.read(1)
            start = time.monotonic()
            if delay is not None:
                time.sleep(delay)
                os.kill(child, number)
            status = _wait(child)
            seconds = time.monotonic() - start
            while part := pipe.read(65536):
                heard += part
        said.seek(0)
        text = said.read().decode()
    words = heard[1:].decode().split()
    confirmed = [int(word[1:]) for word in words if word[0] == "c"]
    counts = [int(word[1:]) for word in words if word[0] == "n"]
    return Run(status, text, max(confirmed, default=0), seconds, sum(counts))


def _wait(child: int) -> int:
    deadline = time.monotonic() + LONGEST_SECONDS
    pause = 0.0002
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGABRT)  # faulthandler tells where it was
            os.waitpid(child, 0)
            raise AssertionError("it hangs")
        time.sleep(pause)
        pause = min(pause * 1.3, 0.005)


def _be_the_child(scenario: Scenario, folder: Path, writer: int, said: int, prelude: Prelude | None) -> None:
    import faulthandler

    status = TRACEBACK_STATUS
    count: Callable[[], int] | None = None
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = open(said, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(said, 2)
        faulthandler.enable(sys.stderr)
        if prelude is not None:
            count = prelude()
        os.write(writer, b"s")
        scenario.run(folder, lambda number: _tell(writer, f"c{number}"))
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else TRACEBACK_STATUS
    except KeyboardInterrupt:  # before the command had begun, or behind its end
        status = OUTSIDE_STATUS
    except VdiskError as error:  # the library called as the command calls it
        print(f"vdisk: {error}", file=sys.stderr)
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        if count is not None:
            _tell(writer, f"n{count()}")
        os._exit(status)


def _tell(writer: int, word: str) -> None:
    os.write(writer, f" {word} ".encode())


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: killing a process loses nothing that it wrote there."""
    shared = Path("/dev/shm")
    place = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vdisk-torture-", dir=place) as folder:
        yield Path(folder)
