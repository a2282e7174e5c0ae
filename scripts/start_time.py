#!/usr/bin/env python3
"""Measures how long `vdisk boot` takes to the boot sector's first instruction, beside Python's own start.

    scripts/start_time.py [--runs N] [IMAGE...]

The images are by default the samples. "python" is `python -c pass`; "first" is from the start of the command's process
until the firmware has handed over to the boot sector. The goal is less than 150 ms more than Python's start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "samples"

# CLOCK_MONOTONIC is the same in both processes.
_COMMAND = """
import sys
from vdisk.cli import main

def watch(name, module):
    import time
    note = module.Machine._note_boot
    def noted(self):
        note(self)
        sys.stderr.write(f"booted {time.monotonic()}\\n")
        sys.stderr.flush()
    module.Machine._note_boot = noted

class Finder:
    # Changes nothing in what the command imports, nor in when it does.
    def find_spec(self, name, path=None, target=None):
        if name != "vdisk.hv.machine":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def execute_and_watch(module):
            execute(module)
            watch(name, module)
        spec.loader.exec_module = execute_and_watch
        return spec

sys.meta_path.insert(0, Finder())
main(["boot", "--engine", "embedded", "--expect", "running", sys.argv[1]])
"""


def python_seconds() -> float:
    """The interpreter alone."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.monotonic() - start


def first_seconds(image: Path, cache: Path) -> float:
    """From the command's start to the boot sector's first instruction."""
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(image)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        cwd=REPOSITORY,
        # As when it is installed: compiled, wherever this tree is.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache)},
    )
    return float(run.stderr.split("booted ")[1].split()[0]) - start


def main() -> None:
    """One line an image: medians, and the slowest run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    arguments = parser.parse_args()
    images = arguments.images or sorted(path for path in SAMPLES.glob("hello*") if path.suffix != ".py")
    python = [python_seconds() for _ in range(arguments.runs)]
    print(f"python: median {statistics.median(python) * 1000:.0f} ms, slowest {max(python) * 1000:.0f} ms")
    with tempfile.TemporaryDirectory() as cache:
        for image in images:
            first_seconds(image, Path(cache))  # compiles
            runs = [first_seconds(image, Path(cache)) for _ in range(arguments.runs)]
            more = statistics.median(runs) - statistics.median(python)
            print(
                f"{image.name}: first instruction after {statistics.median(runs) * 1000:.0f} ms, slowest "
                f"{max(runs) * 1000:.0f} ms; {more * 1000:.0f} ms more than Python's start"
            )


if __name__ == "__main__":
    main()
