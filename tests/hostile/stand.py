"""Holds images out to every command that opens one, under limits of memory and time. Run as a process of its own.

`python -m tests.hostile.stand FOLDER IMAGE...` prints a line of JSON for each image: how each command ended.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

MOST_SECONDS = 5.0
MOST_BYTES = 256 << 20
_LARGEST_TARGET = 256 << 20
COMMANDS = ("info", "info --strict", "info --chain", "map", "check", "read", "compare", "measure", "compat", "convert")


class Overdue(BaseException):
    """The alarm rang."""


def _overdue(number: int, frame: FrameType | None) -> None:
    raise Overdue


@contextlib.contextmanager
def _silence() -> Iterator[io.StringIO]:
    """Standard output goes nowhere, standard error into what is yielded."""
    said = io.StringIO()
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(said):
        yield said


def hold_out(image: str, command: str, folder: str) -> dict[str, object]:
    """Run one command on one image: its status, its lines on standard error, seconds, and what escaped."""
    from vdisk.cli import main

    words = command.split()
    arguments = [*words, image]
    if words[0] == "compare":
        arguments.append(image)
    if words[0] == "read":
        arguments += ["--length", "512"]
    if words[0] == "convert":
        arguments += [os.path.join(folder, "target.raw"), "--threads", "1", "--no-progress"]
    found: dict[str, object] = {"command": command, "status": None, "escaped": None}
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    with _silence() as said:
        try:
            main(arguments)
        except SystemExit as left:
            found["status"] = left.code or 0
        except Overdue:
            found["escaped"] = "overdue: " + traceback.format_exc()[-1500:]
        except BaseException:
            found["escaped"] = traceback.format_exc()[-1500:]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    for left_over in Path(folder).iterdir():
        left_over.unlink()
    found["error"] = said.getvalue()
    found["seconds"] = time.process_time() - start
    return found


def main() -> None:
    """Every command on every image named on the command line."""
    import numpy  # noqa: F401  (maps its libraries before the limit counts)

    import vdisk.converter
    import vdisk.ova  # noqa: F401

    signal.signal(signal.SIGPROF, _overdue)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES,) * 2)
    # A disk of exabytes becomes a sparse file of exabytes if nothing stops it; nor is there room for one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_TARGET,) * 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        for image in sys.argv[2:]:
            for command in COMMANDS:
                print(json.dumps({"image": image} | hold_out(image, command, folder)), flush=True)
    # Not ru_maxrss, which a child takes over from its parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_bytes": int(status["VmHWM"].split()[0]) << 10}))


if __name__ == "__main__":
    main()
