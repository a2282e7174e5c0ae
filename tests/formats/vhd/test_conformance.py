"""VHD images of every kind pass the suite."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.image import ImageConformance
from vdisk import formats
from vdisk.formats.image import Backing


class TestDynamic(ImageConformance):
    format = "vhd"


class TestFixed(ImageConformance):
    format = "vhd"
    options = {"subformat": "fixed"}


class TestSmallBlocks(ImageConformance):
    format = "vhd"
    options = {"block_size": "16K"}


class TestSmallestBlocks(ImageConformance):
    """A bitmap is one byte."""

    format = "vhd"
    options = {"block_size": "4K"}


class TestDifferencing(ImageConformance):
    """A child of an empty disk: all that it holds is its own, and partly there."""

    format = "vhd"

    def make(self, folder: Path, content: bytes | None = None, *, size: int | None = None) -> Path:
        folder.mkdir(exist_ok=True, parents=True)
        size = self.size if size is None else size
        formats.create(folder / "base.vhd", size)
        path = folder / "disk.vhd"
        with formats.open(folder / "base.vhd") as base:
            formats.create(path, size, backing=Backing("base.vhd", "vhd", base))
        if content is not None:
            with formats.open(path, writable=True) as disk:
                disk.write(0, content)
        return path
