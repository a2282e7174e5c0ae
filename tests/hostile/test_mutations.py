"""Mutated images: thousands of valid ones with something wrong in each, and nothing but a `VdiskError` comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.hostile.bases import bases
from tests.hostile.fields import fields_of
from tests.hostile.making import qcow2
from tests.hostile.mutate import attempt, fuzz, structured
from vdisk.formats.vhd import structs


def test_the_bases_are_valid_and_read(tmp_path: Path) -> None:
    """Else the mutations would be refused for a reason that is not theirs."""
    every = list(bases(tmp_path))
    assert {base.format for base in every} == {"qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels"}
    for base in every:
        assert attempt(base, bytearray(base.data)) == "read", base.name
        sealed = bytearray(base.data)
        if base.seal is not None:
            base.seal(sealed)
        assert sealed == base.data, f"{base.name}: sealing changes what was whole"


def test_fields_lie_where_construct_builds_them() -> None:
    found = {field.name: field for field in fields_of(structs.DynamicHeader)}
    assert found["parent_locators[7].data_offset"].offset == 576 + 7 * 24 + 16
    assert found["block_bytes"].offset == 32
    assert found["block_bytes"].byteorder == "big"


@pytest.mark.parametrize("part", range(4))
def test_only_errors_of_ours_come_out(part: int, tmp_path: Path) -> None:
    tally = fuzz(tmp_path, seed=100 + part, most=2500, seconds=None, share=0.03)
    assert tally.count == 2500
    assert not tally.escapes, tally.escapes[0]
    for outcome in ("read", "refused", "refused later"):
        assert tally.outcomes[outcome] > 50, tally.report()


def test_there_are_many_structured_mutations(tmp_path: Path) -> None:
    counts = {base.name: sum(1 for _ in structured(base)) for base in bases(tmp_path) if len(base.data) < 1 << 20}
    assert sum(counts.values()) > 10_000, counts
    assert all(count > 100 for name, count in counts.items() if name != "vmdk-descriptor"), counts


def test_what_was_found_before_stays_mended(tmp_path: Path) -> None:
    """Each of these escaped once."""
    found = {"vhdx": "header.sequence_number = 0xffffffffffffffff", "vmdk-sparse": "grain directory[0] = 0x0"}
    every = {base.name: base for base in bases(tmp_path)}
    for name, wanted in found.items():
        tried = [data for what, data in structured(every[name]) if what == wanted]
        assert tried
        for data in tried:
            seal = every[name].seal
            if seal is not None:
                seal(data)
            attempt(every[name], data, repair=True)


def test_names_in_images_do_not_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2(backing=b"\x1b]0;owned\x07\x1b[2J\xff"))
    ran = run("info", path)
    assert ran.status == 0
    assert "\x1b" not in ran.out
    assert "\\x1b]0;owned\\x07" in ran.out
