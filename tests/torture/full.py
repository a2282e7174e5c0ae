"""A file system that is really full: a small one, and a file in it that takes all but a little of the room."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.torture.faults import judge_refusal
from tests.torture.processes import Stage, run_forked
from tests.torture.scenarios import scenarios
from tests.torture.tally import Tally

_SIZE_BYTES = 64 << 20
_FREE_BYTES = (0, 4 << 10, 32 << 10, 128 << 10, 512 << 10)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MiB at `folder`; `PermissionError` where none can be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_BYTES}", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        raise PermissionError("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(format: str, count: int, seed: int, root: Path, *, only: str = "", sample: int | None = None) -> Tally:
    """Run each operation of a format (or a `sample`) `count` times where some room is left, and none more."""
    tally = Tally()
    maker = random.Random(f"{seed}/{format}/full")
    todo = [scenario for scenario in scenarios(format) if only in scenario.name]
    with small_disk(root / "small") as folder:
        for scenario in todo if sample is None else maker.sample(todo, min(sample, len(todo))):
            stage = Stage(scenario, folder / "stage")
            for _ in range(count):
                free = maker.choice(_FREE_BYTES)
                work = stage.reset()
                filler = folder / "filler"
                _take(filler, shutil.disk_usage(folder).free - free)
                tally.runs["full file system"] += 1
                try:
                    run = run_forked(scenario, work)
                    filler.unlink()
                    word = "fits" if run.status == 0 else "refused"
                    if run.status:
                        judge_refusal(run, os.strerror(errno.ENOSPC))
                    tally.ends[f"{word}: {scenario}: {scenario.judge(work, run.outcome)}"] += 1
                except Exception as error:
                    tally.failures.append(f"{scenario}, {free} bytes free: {type(error).__name__}: {error}")
                    filler.unlink(missing_ok=True)
            shutil.rmtree(folder / "stage")
    return tally


def _take(path: Path, length: int) -> None:
    with path.open("wb") as file:
        if length > 0:
            os.posix_fallocate(file.fileno(), 0, length)
