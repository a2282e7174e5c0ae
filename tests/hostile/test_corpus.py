"""Hostile images made by hand: each is refused or read, in one line, in five seconds and 256 MiB, by every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.corpus import CORPUS
from tests.hostile.stand import COMMANDS, MORE, MOST_BYTES, fault_of, run_apart
from vdisk.cli import _COMMANDS

_BATCHES = 6
_NAMES = sorted(CORPUS)
_SHARE = 3
"""So many of the further commands each image meets here; all of them in `make torture`."""
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
    rows, peak_bytes = run_apart(list(images), scratch, _SHARE)
    assert len(rows) == len(images) * (len(COMMANDS) + _SHARE)
    told: set[str] = set()
    for row in rows:
        fault = fault_of(row)
        assert fault is None, f"{images[row['image']]}: {row['command']}: {fault}"
        if row["status"] != 0 and row["command"] in COMMANDS:
            told.add(row["image"])
    assert len(told) >= _REFUSED_SOMEWHERE * len(images), sorted(set(images.values()) - {images[i] for i in told})
    assert peak_bytes < MOST_BYTES


def test_every_command_that_opens_images_is_held_out_to() -> None:
    tried = {command.split()[0] for command in (*COMMANDS, *MORE)}
    # boot reads through the same devices, and needs more memory than is allowed here; completion opens nothing.
    assert tried == {row.name for row in _COMMANDS} - {"boot", "completion"}
