"""Short forms of `make torture`, each in a process of its own that forks."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.torture.scenarios import FORMATS, scenarios


def torture(*arguments: str) -> int:
    """Run a part of it; returns how many there were."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.torture", *arguments, "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    found = re.search(r"(\d+) .* in all, 0 failures$", ran.stdout)
    assert found, ran.stdout
    return int(found[1])


def test_killed_at_random_moments() -> None:
    assert torture("kills", "--sample", "6") == 6 * len(FORMATS)


def test_asked_to_end_at_random_moments() -> None:
    assert torture("signals", "--sample", "3") == 3 * len(FORMATS)


def test_calls_that_fail() -> None:
    assert torture("faults", "--sample", "8", "--count", "2") > 8 * len(FORMATS)


def test_a_file_system_that_is_full() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    assert torture("full", "--sample", "4", "--count", "1") == 4 * len(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_every_operation_of_a_format_is_there(format: str) -> None:
    names = " ".join(scenario.name for scenario in scenarios(format))
    wanted = ["write", "write standard input", "convert", "convert over an image", "commit", "rebase"]
    if format != "raw":
        wanted += ["grow", "shrink", "repair"]
    if format == "qcow2":
        wanted += ["snapshot create", "snapshot apply", "snapshot delete", "bitmap", "amend"]
    for name in wanted:
        assert f": {name}" in names
