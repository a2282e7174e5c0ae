"""`Scenario`: an operation that something may happen to, what it starts from, and what may come of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy

from tests.torture.shapes import Shape, corruptions, read_all
from vdisk import formats

Confirm = Callable[[int], None]
"""Called with a number when that much is safe."""


@dataclass
class Outcome:
    """How a run ended."""

    confirmed: int = 0
    """The last number that was confirmed."""
    is_done: bool = False
    """It ended by itself, with status 0."""
    may_leave_temporary: bool = False
    """Nobody could remove temporary files: the process was killed, or there was no power."""


class Broken(AssertionError):
    """What must not happen, happened."""


class Scenario:
    """One operation on files in one folder. The folder is always the same, for images know names and paths."""

    is_library = False
    """It calls the library, not the command."""
    starts_sound = True
    """Its images are not damaged at the start."""
    may_differ = ""
    """Where a finding is none of ours to judge: what only repeats something else, and is written after it."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = f"{shape.name}: {name}"
        self.shape = shape

    def __repr__(self) -> str:
        return self.name

    def prepare(self, folder: Path) -> None:
        """Make the files that it starts from, and note what they hold."""
        raise NotImplementedError

    def run(self, folder: Path, confirm: Confirm) -> None:
        """Do it, as the real program does. Leaves by an exception or `SystemExit` when it fails."""
        raise NotImplementedError

    def judge(self, folder: Path, outcome: Outcome) -> str:
        """`Broken` when the files are not what they may be; else a word for what they are."""
        raise NotImplementedError

    # Help ------------------------------------------------------------------------------------------------------

    def file(self, folder: Path, name: str) -> Path:
        """A file of this scenario's format."""
        return folder / (name + self.shape.suffix)

    def keep(self, folder: Path, *names: str) -> None:
        """Note files that are to stay as they are."""
        self._kept = {name: _digest(folder / name) for name in names}

    def judge_kept(self, folder: Path) -> None:
        """The source is unharmed."""
        for name, digest in self._kept.items():
            if not (folder / name).exists() or _digest(folder / name) != digest:
                raise Broken(f"{name}, which was only read, has changed")

    def judge_sound(self, path: Path, most: int = 0) -> None:
        """Not corrupt, by our check."""
        found = corruptions(path, self.shape.format)
        if found <= most:
            return
        with formats.open(path, format=self.shape.format, backing=False) as disk:
            findings = [one for one in disk.check().findings if one.severity != "leak" and one.where != self.may_differ]
        if findings:
            raise Broken(f"{path.name}: {found} corruptions: {findings[:3]}")

    def judge_writable(self, path: Path, seed: int) -> None:
        """What is left can be worked on: a write arrives, and the image is sound after it."""
        maker = random.Random(seed)
        with formats.open(path, format=self.shape.format, writable=True) as disk:
            offset, data = maker.randrange(disk.size - 3000), maker.randbytes(3000)
            wanted = bytearray(disk.read(0, disk.size))
            disk.write(offset, data)
            wanted[offset : offset + len(data)] = data
        if read_all(path, format=self.shape.format) != wanted:
            raise Broken(f"{path.name}: does not hold what was written to it afterwards")
        self.judge_sound(path)

    def judge_leftovers(self, folder: Path, known: set[str], outcome: Outcome) -> None:
        """Nothing else lies about."""
        others = {path.name for path in folder.iterdir()} - known
        if outcome.may_leave_temporary:
            others = {name for name in others if not (name.startswith(".") and name.endswith(".part"))}
        if others:
            raise Broken(f"left behind: {', '.join(sorted(others))}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def judge_mixture(found: bytes, old: bytes, new: bytes) -> None:
    """Every byte is the old or the new one."""
    if not len(found) == len(old) == len(new):
        raise Broken(f"the disk has {len(found)} bytes")
    one, other, now = (numpy.frombuffer(data, numpy.uint8) for data in (old, new, found))
    good = (now == one) | (now == other)
    if not good.all():
        raise Broken(f"byte {int(numpy.flatnonzero(~good)[0])} is neither the old nor the new one")
