"""The mutation fuzzer: valid images with one number at its edge, several wrong at once, or bytes flipped.

Run at length by `make fuzz` (`python -m tests.hostile.mutate --seconds 600`), in short form by the test suite.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.hostile.bases import Base, Table, bases
from tests.hostile.fields import Field, edges
from vdisk import formats
from vdisk.errors import StorageError, VdiskError
from vdisk.formats.check import Repair
from vdisk.inspect.maps import map_of
from vdisk.storage.base import Buffer
from vdisk.storage.memory import MemoryStorage

MOST_SECONDS = 5.0
"""A mutation takes no longer."""
MOST_EXTENTS = 3000
READ_BYTES = 8192
_ROOM_BYTES = 64 << 20
"""How far a repair may let a file grow, as on a disk that is soon full."""


class Overdue(BaseException):
    """Raised by the alarm: no `except Exception` holds it up."""


class SmallDisk(MemoryStorage):
    """A storage that is soon full."""

    def write(self, offset: int, data: Buffer) -> None:
        if offset + len(data) > _ROOM_BYTES:
            raise StorageError(self.name, f"write at {offset}", "No space left on device")
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        if not 0 <= size <= _ROOM_BYTES:
            raise StorageError(self.name, f"truncate to {size}", "File too large")
        super().truncate(size)


def structured(base: Base) -> Iterator[tuple[str, bytearray]]:
    """(what was done, the image): every field and table entry at every edge, one at a time."""
    places: list[tuple[int, Field]] = list(base.fields)
    for table in base.tables:
        places += [(table.offset, _entry(table, index)) for index in sorted({0, 1, table.count // 2, table.count - 1})
                   if 0 <= index < table.count]  # fmt: skip
    for offset, field in places:
        for value in edges(field.width, field.get(base.data, offset), len(base.data)):
            data = bytearray(base.data)
            field.put(data, offset, value)
            yield f"{field.name} = {value:#x}", data


def _entry(table: Table, index: int) -> Field:
    return Field(f"{table.name}[{index}]", index * table.width, table.width, table.byteorder)


def scattered(base: Base, seed: int) -> tuple[str, bytearray]:
    """One image with a few things wrong at random: fields, entries, bytes, a cut."""
    maker = random.Random(f"{base.name}/{seed}")
    data = bytearray(base.data)
    done = []
    for _ in range(maker.choice((1, 1, 2, 3, 6))):
        kind = maker.random()
        if kind < 0.35 and base.fields:
            offset, field = maker.choice(base.fields)
            value = maker.choice(edges(field.width, field.get(data, offset), len(data)))
            field.put(data, offset, value)
            done.append(f"{field.name} = {value:#x}")
        elif kind < 0.6 and base.tables:
            table = maker.choice(base.tables)
            field = _entry(table, maker.randrange(table.count))
            now = field.get(data, table.offset)
            value = maker.choice([*edges(table.width, now, len(data)), now ^ 1 << maker.randrange(8 * table.width)])
            field.put(data, table.offset, value)
            done.append(f"{field.name} = {value:#x}")
        elif kind < 0.97 or base.is_text:
            offset, length = maker.choice(base.spans)
            at = min(offset + maker.randrange(max(1, length)), len(data) - 1)
            if base.is_text and maker.random() < 0.5:
                words = (b"\n", b'"', b"=", b"99999999999999999999", b"-1", b"\0", b"\xff", b"ZERO", b'RW 1 FLAT "x"')
                data[at : at + maker.choice((0, 1, 5))] = maker.choice(words)
            else:
                data[at] ^= 1 << maker.randrange(8) if maker.random() < 0.5 else maker.randrange(1, 256)
            done.append(f"byte {at}")
        else:
            cut = maker.choice((maker.randrange(len(data)), len(data) - 1, 512, 511, 1 << 16))
            del data[cut:]
            done.append(f"cut at {cut}")
            break
    return ", ".join(done), data


def attempt(base: Base, data: bytearray, *, repair: bool = False) -> str:
    """Open, describe, map, read and check an image; how it ended. Anything but a `VdiskError` goes through."""
    outcome = "read"
    storage = SmallDisk(data, base.name, writable=repair)
    try:
        with formats.open(storage, format=base.format, writable=repair) as image:
            try:
                image.describe()
                for _ in itertools.islice(map_of(image), MOST_EXTENTS):
                    pass
                for offset in {0, image.size // 2, max(0, image.size - READ_BYTES)}:
                    image.read(offset, min(READ_BYTES, image.size - offset))
            except VdiskError:
                outcome = "refused later"
            if repair:
                try:
                    image.write(0, b"x" * min(512, image.size))
                except VdiskError:
                    outcome = "refused later"
            try:
                image.check(Repair.ALL if repair else Repair.NONE)
            except VdiskError:
                outcome = "refused later"
    except VdiskError as error:
        outcome = "refused"
        assert "\n" not in str(error), f"more than one line: {error}"
    return outcome


def run_one(base: Base, data: bytearray, *, seal: bool, repair: bool) -> tuple[str, float]:
    """`attempt` under the alarm: (outcome, seconds of processor time). An escape is raised."""
    if seal and base.seal is not None and len(data) == len(base.data):
        base.seal(data)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    start = time.process_time()
    try:
        outcome = attempt(base, data, repair=repair)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome, time.process_time() - start


def _overdue(number: int, frame: FrameType | None) -> None:
    raise Overdue


def plan(every: list[Base], seed: int, share: float) -> Iterator[tuple[Base, str, bytearray, bool, bool]]:
    """(base, what, image, seal, repair): `share` of the structured ones, then scattered ones without end."""
    maker = random.Random(seed)
    walks = [structured(base) for base in every]
    for base, walk in zip(every, walks, strict=True):
        for what, data in walk:
            if maker.random() < share:
                yield base, what, data, True, maker.random() < 0.2
    for number in itertools.count(seed * 1_000_000_000):
        base = every[number % len(every)]
        what, data = scattered(base, number)
        yield base, what, data, maker.random() < 0.8, maker.random() < 0.2


class Tally:
    """What a run of the fuzzer has seen."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.escapes: list[str] = []
        self.slowest = (0.0, "")

    @property
    def count(self) -> int:
        """Mutations tried."""
        return sum(self.outcomes.values())

    def one(self, base: Base, what: str, data: bytearray, seal: bool, repair: bool) -> None:
        """Try one mutation and note how it ended."""
        label = f"{base.name}: {what}{' (repaired)' if repair else ''}"
        try:
            outcome, seconds = run_one(base, data, seal=seal, repair=repair)
        except Overdue:
            outcome, seconds = "overdue", MOST_SECONDS
            self.escapes.append(f"{label}: took more than {MOST_SECONDS} s\n{_last_frames()}")
        except Exception:
            outcome, seconds = "escaped", 0.0
            self.escapes.append(f"{label}\n{_last_frames()}")
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, label))

    def report(self) -> str:
        """The counts, in a few lines."""
        parts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.count} mutations: {parts}; slowest {self.slowest[0]:.2f} s ({self.slowest[1]})"


def _last_frames() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-7:])


def fuzz(folder: Path, *, seed: int, most: int | None, seconds: float | None, share: float, only: str = "") -> Tally:
    """Run until `most` mutations or `seconds` have gone by."""
    before = signal.signal(signal.SIGPROF, _overdue)
    tally = Tally()
    end = None if seconds is None else time.monotonic() + seconds
    try:
        every = [base for base in bases(folder) if only in base.name]
        for step in plan(every, seed, share):
            if (most is not None and tally.count >= most) or (end is not None and time.monotonic() > end):
                break
            tally.one(*step)
    finally:
        signal.signal(signal.SIGPROF, before)
    return tally


def main() -> int:
    """`python -m tests.hostile.mutate`: counts, and each escape; exit status 1 where there was one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--share", type=float, default=1.0, help="how many of the structured mutations are tried")
    parser.add_argument("--only", default="", help="base images whose name has this in it")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of address space beyond the start")
    given = parser.parse_args()
    import resource

    import numpy  # noqa: F401  (maps its libraries before the limit counts)

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (given.memory << 20),) * 2)
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(Path(folder), seed=given.seed, most=given.count, seconds=given.seconds, share=given.share,
                     only=given.only)  # fmt: skip
    kinds: dict[str, list[str]] = {}
    for escape in tally.escapes:
        kinds.setdefault("\n".join(escape.splitlines()[1:]), []).append(escape.splitlines()[0])
    for frames, labels in kinds.items():
        print(f"{len(labels)} times, such as {labels[0]}\n{frames}\n")
    print(f"seed {given.seed}: {tally.report()}; {len(tally.escapes)} escapes of {len(kinds)} kinds")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
