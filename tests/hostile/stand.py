"""Holds images out to every command that opens one, under limits of memory and time. Run as a process of its own.

`python -m tests.hostile.stand FOLDER SHARE IMAGE...` prints a line of JSON for each command on each image.
`SHARE` is how many of the commands in `MORE` each image meets, in turns; the others it always meets.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vdisk.errors import VdiskError
from vdisk.storage.file import FileStorage

MOST_SECONDS = 5.0
MOST_BYTES = 256 << 20
_LARGEST_TARGET = 256 << 20
_LARGEST_KEPT = 16 << 20
COMMANDS = (
    "info IMAGE",
    "info --chain IMAGE",
    "map IMAGE",
    "check IMAGE",
    "read IMAGE --length 512",
    "info --strict IMAGE",
    "compare IMAGE IMAGE",
    "measure IMAGE",
    "compat IMAGE",
    "convert IMAGE TARGET.raw --threads 1 --no-progress",
)
"""Each image meets these; TARGET is in a folder that is emptied afterwards."""
MORE = (
    "snapshot list IMAGE",
    "bitmap list IMAGE",
    "convert -c IMAGE TARGET.qcow2 --threads 1 --no-progress",
    "convert IMAGE TARGET.vmdk -o subformat=streamOptimized --threads 1 --no-progress",
    "create -b IMAGE -F FORMAT BESIDE.qcow2",
    "check --repair leaks IMAGE",
    "check --repair all IMAGE",
    "resize IMAGE +1M",
    "resize --shrink IMAGE 64K",
    "write IMAGE --offset 0",
    "commit --no-progress IMAGE",
    "rebase --no-progress -b  IMAGE",
    "snapshot create IMAGE new",
    "bitmap add IMAGE new",
    "amend -o refcount_bits=32 IMAGE",
)
"""Those that change the image find it as it was at first."""


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

    arguments = [_filled_in(word, image, folder) for word in command.split(" ")]
    found: dict[str, object] = {"command": command, "status": None, "escaped": None}
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    with _silence() as said:
        sys.stdin = io.TextIOWrapper(io.BytesIO(b"written " * 512))
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
    for left_over in [*Path(folder).iterdir(), *_beside(image).parent.glob(_beside("").name + "*")]:
        left_over.unlink()
    found["error"] = said.getvalue()
    found["seconds"] = time.process_time() - start
    return found


def _beside(image: str) -> Path:
    """A new image next to one that it names as its backing file."""
    return Path(image).with_name("stand-beside.qcow2") if image else Path("stand-beside.qcow2")


def _filled_in(word: str, image: str, folder: str) -> str:
    if word == "FORMAT":
        from vdisk import formats

        if os.path.isdir(image):
            return "parallels"
        with contextlib.suppress(VdiskError), FileStorage(image) as storage:
            return formats.probe(storage).name
        return "raw"
    word = word.replace("TARGET", os.path.join(folder, "target"))
    return str(_beside(image)) if word == "BESIDE.qcow2" else image if word == "IMAGE" else word


class Kept:
    """An image's main file, to be put back after a command that may have changed it."""

    def __init__(self, image: str) -> None:
        self._path = Path(image)
        is_small = self._path.is_file() and self._path.stat().st_size <= _LARGEST_KEPT
        self._data = self._path.read_bytes() if is_small else None

    def put_back(self) -> None:
        """Make it what it was."""
        if self._data is not None and self._path.read_bytes() != self._data:
            self._path.write_bytes(self._data)


def run_apart(images: Sequence[str], scratch: Path, share: int) -> tuple[list[dict[str, Any]], int]:
    """Hold images out in a process of its own: how each command ended, and the most memory that it had, in bytes."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile.stand", str(scratch), str(share), *images],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    if ran.returncode:
        raise AssertionError(ran.stderr[-2000:])
    *rows, last = map(json.loads, ran.stdout.splitlines())
    return rows, last["peak_bytes"]


def fault_of(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the way in which a command ended; None when nothing is."""
    if row["escaped"] is not None:
        return f"it escaped: {row['escaped']}"
    if row["status"] not in (0, 1, 2, 3):
        return f"exit status {row['status']}"
    error: str = row["error"]
    if row["command"].startswith("compat "):  # what is no finding about the image is one line all the same
        error = error if error.startswith("vdisk: ") else ""
    elif row["status"] and not row["command"].startswith(("check", "compare")) and not error.startswith("vdisk: "):
        return f"exit status {row['status']} with the error {error!r}"
    if error.count("\n") > 1:
        return f"more than one line: {error}"
    if "out of memory" in error:
        return error
    return f"it took {row['seconds']:.1f} s" if row["seconds"] >= MOST_SECONDS else None


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
    share = int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        for number, image in enumerate(sys.argv[3:]):
            kept = Kept(image)
            turn = [MORE[(number * share + step) % len(MORE)] for step in range(share)]
            for command in [*COMMANDS, *turn]:
                print(json.dumps({"image": image} | hold_out(image, command, folder)), flush=True)
                kept.put_back()
    # Not ru_maxrss, which a child takes over from its parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_bytes": int(status["VmHWM"].split()[0]) << 10}))


if __name__ == "__main__":
    main()
