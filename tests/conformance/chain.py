"""What holds for chains of differencing images of any format: subclass `ChainConformance`, and use its helpers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.conformance.image import check_map
from vdisk import formats
from vdisk.formats.image import Backing, Image
from vdisk.maintain import chain

SIZE = (6 << 20) + 7 * 512


def make_child(path: Path, parent: Path, size: int = SIZE, **options: str) -> None:
    """An empty image over `parent`, of the format that their suffixes name."""
    with formats.open(parent) as device:
        formats.create(path, size, options=options, backing=Backing(parent.name, device.format_name, device))


def make_base(path: Path, seed: int = 1, **options: str) -> bytearray:
    """An image with random content; returns the content."""
    content = bytearray(SIZE)
    formats.create(path, SIZE, options=options)
    with formats.open(path, writable=True) as disk:
        scribble(disk, content, seed)
    return content


def scribble(disk: Image, model: bytearray, seed: int, count: int = 40) -> None:
    """Writes, zeros and flushes at random, in the image and in its model."""
    maker = random.Random(seed)
    for _ in range(count):
        offset = maker.randrange(len(model))
        length = min(maker.choice([1, 511, 512, 4096, 70_000, 1 << 20, 2_500_000]), len(model) - offset)
        what = maker.choice(["write", "write", "zero", "unmap", "flush"])
        if what == "write":
            data = maker.randbytes(length)
            disk.write(offset, data)
            model[offset : offset + length] = data
        elif what == "flush":
            disk.flush()
        else:
            disk.write_zeroes(offset, length, unmap=what == "unmap")
            model[offset : offset + length] = bytes(length)


def read_all(path: Path, **how: Any) -> bytes:
    """A disk's bytes, held against its map; `how` is for `formats.open`."""
    with formats.open(path, **how) as disk:
        content = disk.read(0, disk.size)
        check_map(disk, content)
        return content


def write_chain(
    paths: Sequence[Path],
    seed: int,
    base_options: Mapping[str, str],
    child_options: Mapping[str, str],
    size: int = SIZE,
) -> list[bytes]:
    """A chain, base first, each image written at random over those before it and held against a model.

    Returns what each disk has to read as. No parent is written once its child is made, for the child would not open.
    """
    model = bytearray(size)
    formats.create(paths[0], size, options=base_options)
    states = []
    for depth, path in enumerate(paths):
        if depth:
            make_child(path, paths[depth - 1], size, **child_options)
        with formats.open(path, writable=True) as disk:
            scribble(disk, model, seed * 10 + depth)
            assert disk.read(0, disk.size) == model
            check_map(disk, model)
        states.append(bytes(model))
    return states


class ChainConformance:
    """What holds for a chain of three of one format."""

    format: ClassVar[str]
    alone: ClassVar[Mapping[str, Any]] = {}
    """What `describe().specific` says, among other things, of an image that has lost its parent."""

    def test_commit_and_rebase(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{name}.{self.format}" for name in ("base", "middle", "top")]
        make_base(paths[0])
        for index in (1, 2):
            make_child(paths[index], paths[index - 1])
            with formats.open(paths[index], writable=True) as disk:
                scribble(disk, bytearray(SIZE), index)
        content = read_all(paths[2])

        chain.commit(paths[2])
        assert read_all(paths[2]) == content
        assert read_all(paths[1]) == content

        chain.rebase(paths[2], paths[0].name, self.format)
        assert read_all(paths[2]) == content
        with formats.open(paths[2]) as disk:
            assert disk.backing is not None
            assert Path(disk.backing.name).name == paths[0].name

        chain.rebase(paths[2], None, None)
        assert read_all(paths[2]) == content
        with formats.open(paths[2]) as disk:
            assert disk.backing is None
            specific = disk.describe().specific
            assert {name: specific[name] for name in self.alone} == self.alone
            assert disk.check().exit_status == 0
