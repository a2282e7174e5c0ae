"""commit and rebase keep what the disk reads, across formats."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vdisk import formats
from vdisk.errors import OptionError
from vdisk.formats.image import Backing
from vdisk.maintain.chain import commit, rebase

SIZE = (2 << 20) + 512


def scribble(path: Path, seed: int, *, allow_zeros: bool = True) -> None:
    """Write here and there, and zero here and there."""
    maker = random.Random(seed)
    with formats.open(path, writable=True) as disk:
        for _ in range(12):
            offset = maker.randrange(disk.size - 1)
            length = min(maker.choice([512, 5000, 150_000]), disk.size - offset)
            if allow_zeros and maker.random() < 0.3:
                disk.write_zeroes(offset, length)
            else:
                disk.write(offset, maker.randbytes(length))


def content(path: Path) -> bytes:
    with formats.open(path) as disk:
        return disk.read(0, disk.size)


def overlay_on(base: Path, name: str, size: int = SIZE) -> Path:
    path = base.with_name(name)
    with formats.open(base) as device:
        formats.create(path, size, backing=Backing(base.name, device.format_name, device))
    return path


@pytest.fixture(params=["base.raw", "base.qcow2", "base.vdi", "base.vmdk", "base.vhd", "base.vhdx", "base.hds"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    formats.create(path, SIZE)
    scribble(path, 1)
    return path


def test_commit_carries_the_overlay_into_its_base(base: Path) -> None:
    overlay = overlay_on(base, "top.qcow2")
    scribble(overlay, 2)
    wanted = content(overlay)
    assert commit(overlay) > 0
    assert content(base) == wanted
    assert content(overlay) == wanted


def test_commit_grows_a_shorter_base(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    formats.create(base, "1M")
    scribble(base, 1)
    overlay = overlay_on(base, "top.qcow2", 2 << 20)
    scribble(overlay, 2)
    wanted = content(overlay)
    commit(overlay)
    assert content(base) == wanted


def test_commit_without_a_base_is_refused(base: Path) -> None:
    with pytest.raises(OptionError, match="has no backing file"):
        commit(base)


def test_the_middle_of_a_chain_of_three_is_committed_and_the_rest_left(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    formats.create(base, SIZE)
    scribble(base, 1)
    middle = overlay_on(base, "middle.qcow2")
    scribble(middle, 2)
    top = overlay_on(middle, "top.qcow2")
    scribble(top, 3)
    wanted_base, wanted_middle = content(base), content(middle)
    wanted = content(top)
    commit(top)
    assert (content(base), content(middle), content(top)) == (wanted_base, wanted, wanted)
    assert wanted != wanted_middle


@pytest.mark.parametrize("new_size", [SIZE, SIZE // 2, SIZE * 2])
def test_rebase_to_another_base_keeps_what_is_read(base: Path, new_size: int) -> None:
    overlay = overlay_on(base, "top.qcow2")
    scribble(overlay, 2)
    wanted = content(overlay)
    other = base.with_name("other.raw")
    formats.create(other, new_size)
    scribble(other, 5)
    assert rebase(overlay, "other.raw", "raw") > 0
    base.unlink()
    assert content(overlay) == wanted
    with formats.open(overlay) as disk:
        assert disk.backing is not None
        assert disk.backing.name.endswith("other.raw")


def test_rebase_to_a_copy_copies_nothing(base: Path) -> None:
    overlay = overlay_on(base, "top.qcow2")
    scribble(overlay, 2)
    wanted = content(overlay)
    twin = base.with_name("twin" + base.suffix)
    twin.write_bytes(base.read_bytes())
    with formats.open(base) as device:
        assert rebase(overlay, twin.name, device.format_name) == 0
    base.unlink()
    assert content(overlay) == wanted


def test_rebase_to_nothing_makes_the_overlay_stand_alone(base: Path) -> None:
    overlay = overlay_on(base, "top.qcow2")
    scribble(overlay, 2)
    wanted = content(overlay)
    rebase(overlay, None, None)
    base.unlink()
    assert content(overlay) == wanted
    with formats.open(overlay) as disk:
        assert disk.backing is None


def test_unsafe_rebase_only_follows_a_moved_base(base: Path) -> None:
    overlay = overlay_on(base, "top.qcow2")
    scribble(overlay, 2)
    wanted = content(overlay)
    with formats.open(base) as device:
        name = device.format_name
    (base.parent / "moved").mkdir()
    base.rename(base.parent / "moved" / base.name)
    assert rebase(overlay, f"moved/{base.name}", name, unsafe=True) == 0
    assert content(overlay) == wanted


def test_a_new_backing_format_is_not_guessed(base: Path) -> None:
    overlay = overlay_on(base, "top.qcow2")
    with pytest.raises(OptionError, match="not guessed"):
        rebase(overlay, base.name, None)
