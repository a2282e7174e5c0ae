"""The samples are whole, and others read them too."""

from __future__ import annotations

from pathlib import Path

import pytest

from samples import make_samples
from tests.peers import qemu_compare

FOLDER = Path(make_samples.__file__).parent


def test_the_samples_have_their_checksums_and_hold_the_disk() -> None:
    assert make_samples.check(FOLDER) == []


def test_every_format_has_a_sample() -> None:
    from vdisk.formats import FORMATS

    assert {name for name, _, _ in make_samples.SAMPLES.values()} == {row.name for row in FORMATS}


def test_made_again_they_hold_the_same_disk(tmp_path: Path) -> None:
    make_samples.make(tmp_path)
    assert make_samples.check(tmp_path) == []


@pytest.mark.peer
@pytest.mark.parametrize("name", make_samples.SAMPLES)
def test_qemu_reads_the_same_disk(name: str) -> None:
    format_name = make_samples.SAMPLES[name][0]
    qemu_name = {"vhd": "vpc"}.get(format_name, format_name)
    qemu_compare(FOLDER / name, FOLDER / "hello.raw", formats=(qemu_name, "raw"))
