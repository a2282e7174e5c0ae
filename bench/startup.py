"""`python -m bench.startup`: what a command costs before it does anything, beside `python -c pass` in the same run.

The bar for `--help` and `info` is 2.5 times the interpreter's own start and 60 ms. Processor time, the median of ten;
bytecode is written first, as an installation does.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

_SAMPLES = Path(__file__).resolve().parents[1] / "samples"
_VDISK = Path(sys.executable).with_name("vdisk")


def milliseconds(command: list[str | Path]) -> float:
    """User and system time of a run, the median of ten after one that warms up."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = []
    for _ in range(11):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    return statistics.median(found[1:])


def main() -> None:
    """Measure and print each row with its bar."""
    floor = milliseconds([sys.executable, "-c", "pass"])
    bar = 2.5 * floor + 60
    print(f"{'python -c pass':<28}{floor:>6.0f} ms   (bar for the rest: {bar:.0f} ms)")
    rows: list[list[str | Path]] = [["--help"]]
    rows += [["info", path] for path in sorted(_SAMPLES.glob("hello.*"))]
    for arguments in rows:
        took = milliseconds([_VDISK, *arguments])
        name = " ".join(Path(argument).name for argument in arguments)
        print(f"{'vdisk ' + name:<28}{took:>6.0f} ms{'' if took <= bar else '  over the bar'}")


if __name__ == "__main__":
    main()
