"""Hostile images made by hand: each is refused or read, in one line, in five seconds and 256 MiB, by every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import CORPUS
from tests.hostile.stand import COMMANDS, MOST_BYTES, MOST_SECONDS

_BATCHES = 6
_NAMES = sorted(CORPUS)
_REFUSED_SOMEWHERE = 0.8
"""So large a share of the corpus is told to be wrong by some command; the rest is odd, and reads."""


def test_there_are_enough() -> None:
    assert len(CORPUS) >= 60
    for format_name in ("qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels", "ov"):
        assert sum(name.startswith(format_name) for name in CORPUS) >= 3


@pytest.mark.parametrize("batch", range(_BATCHES))
def test_each_is_refused_or_read_within_bounds(batch: int, tmp_path: Path) -> None:
    images: dict[str, str] = {}
    for name in _NAMES[batch::_BATCHES]:
        folder = tmp_path / name
        folder.mkdir()
        images[str(CORPUS[name](folder))] = name
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile.stand", str(scratch), *images],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    *rows, last = map(json.loads, ran.stdout.splitlines())
    assert len(rows) == len(images) * len(COMMANDS)
    told: set[str] = set()
    for row in rows:
        what = f"{images[row['image']]}: {row['command']}"
        assert row["escaped"] is None, f"{what}: {row['escaped']}"
        assert row["status"] in (0, 1, 2, 3), what
        assert row["error"].count("\n") <= 1, f"{what}: {row['error']}"
        assert "out of memory" not in row["error"], what
        assert row["seconds"] < MOST_SECONDS, what
        if row["status"] != 0:
            told.add(row["image"])
            if row["command"] != "check":
                assert row["error"].startswith("vdisk: "), what
    assert len(told) >= _REFUSED_SOMEWHERE * len(images), sorted(set(images.values()) - {images[i] for i in told})
    assert last["peak_bytes"] < MOST_BYTES
