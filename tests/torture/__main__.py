"""`python -m tests.torture`: everything at length, with counts. Exit status 1 where anything broke."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.torture import corpus, faults, full, kills, power
from tests.torture.processes import import_all, scratch
from tests.torture.scenarios import FORMATS


class Part(NamedTuple):
    """One kind of torture."""

    run: Callable[..., Any]
    """(format, count, seed, folder, only=..., sample=...) to a tally: `count`, `failures`, `ends`, the rest as text."""
    count: int
    """How much of it is the long form: of each format; of faults and full disks, of each operation and fault."""
    unit: str


PARTS = {
    "kills": Part(kills.kill, 500, "kills"),
    "signals": Part(kills.ask_to_end, 100, "signals"),
    "faults": Part(faults.walk, 8, "faults"),
    "full": Part(full.fill, 4, "full file systems"),
    "power": Part(power.lose, 3000, "states after a loss of power"),
}


def main() -> int:
    """Kills, signals, faults and losses of power for each format, then the hostile images; prints counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=main.__doc__)
    parser.add_argument("what", nargs="*", help=f"{', '.join([*PARTS, 'corpus'])}; without it, all of them")
    parser.add_argument("--format", action="append", choices=FORMATS, help="without it, all")
    parser.add_argument("--count", type=int, help="of each format; of faults and full disks, of each operation")
    parser.add_argument("--sample", type=int, help="the short form: so many of each format, chosen by the seed")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="operations whose name has this in it")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    unknown = set(given.what) - {*PARTS, "corpus"}
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    import_all()
    print(f"seed {given.seed}")
    failures = 0
    with scratch() as folder:
        for name in given.what or [*PARTS, "corpus"]:
            if name == "corpus":
                failures += corpus.hold_out_all(Path(folder))
            else:
                failures += _run(PARTS[name], given, Path(folder))
    return 1 if failures else 0


def _run(part: Part, given: argparse.Namespace, folder: Path) -> int:
    total = failures = 0
    for format in given.format or FORMATS:
        start = time.monotonic()
        tally = part.run(format, given.count or part.count, given.seed, folder, only=given.only, sample=given.sample)
        seconds = time.monotonic() - start
        total += tally.count
        failures += len(tally.failures)
        print(
            f"{format}: {tally.count} {part.unit}: {tally}; {len(tally.failures)} failures, {seconds:.0f} s", flush=True
        )
        for name, count in sorted(tally.ends.items()) if given.verbose else ():
            print(f"    {count:5} {name}")
        for failure in tally.failures[:40]:
            print(f"    FAILED {failure}", flush=True)
    print(f"{total} {part.unit} in all, {failures} failures", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
