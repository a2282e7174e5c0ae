"""The variants of each format that can be written, and what they hold."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdisk import formats
from vdisk.cli import main
from vdisk.errors import Unsupported
from vdisk.formats.image import Backing


class Shape(NamedTuple):
    """A variant of a format that can be written."""

    name: str
    format: str
    suffix: str
    options: Mapping[str, str]
    size: int = (200 << 10) + 512
    backs_itself: bool = False
    """Overlays of this format stand on bases of this format only."""
    can_resize: bool = True
    is_base_only: bool = False
    """It cannot have a backing file: overlays on it are qcow2."""

    @property
    def overlay(self) -> Shape:
        """The shape of overlays on a base of this one."""
        return SHAPES["qcow2"] if self.is_base_only else self


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qcow2", "qcow2", ".qcow2", {"cluster_size": "4K"}),
        Shape("qcow2-v2", "qcow2", ".qcow2", {"cluster_size": "1K", "compat": "0.10"}),
        Shape("qcow2-subclusters", "qcow2", ".qcow2", {"cluster_size": "16K", "extended_l2": "on"}),
        Shape("vmdk", "vmdk", ".vmdk", {}, size=(600 << 10) + 512, backs_itself=True),
        Shape("vmdk-split", "vmdk", ".vmdk", {"subformat": "twoGbMaxExtentSparse"}, (600 << 10) + 512, True),
        Shape("vmdk-flat", "vmdk", ".vmdk", {"subformat": "monolithicFlat"}, is_base_only=True),
        Shape("vmdk-cowd", "vmdk", ".vmdk", {"subformat": "vmfsSparse"}, backs_itself=True),
        Shape("vdi", "vdi", ".vdi", {"block_size": "16K"}, backs_itself=True),
        Shape("vdi-static", "vdi", ".vdi", {"block_size": "16K", "static": "on"}, is_base_only=True),
        Shape("vhd", "vhd", ".vhd", {"block_size": "16K"}, backs_itself=True),
        Shape("vhd-fixed", "vhd", ".vhd", {"subformat": "fixed"}, is_base_only=True),
        Shape("vhdx", "vhdx", ".vhdx", {}, size=(2 << 20) + 512, backs_itself=True),
        Shape("parallels", "parallels", ".hds", {"cluster_size": "16K"}, is_base_only=True),
        Shape("parallels-1", "parallels", ".hds", {"cluster_size": "16K", "version": "1"}, is_base_only=True),
        Shape("raw", "raw", ".raw", {}, can_resize=False, is_base_only=True),
    )
}

FORMATS = ("qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels", "raw")


def content_of(seed: int, size: int) -> bytes:
    """A disk's bytes: data, zeros and repetition."""
    maker = random.Random(seed)
    content = bytearray()
    while len(content) < size:
        length = maker.choice([512, 5000, 20_000])
        content += maker.choice([bytes(length), maker.randbytes(length), (b"vdisk %d " % seed * length)[:length]])
    return bytes(content[:size])


def read_all(path: Path, **how: Any) -> bytes:
    """The whole disk in an image."""
    with formats.open(path, **how) as disk:
        return disk.read(0, disk.size)


def corruptions(path: Path, format: str) -> int:
    """How many our check finds; 0 for a format that has nothing to check."""
    with formats.open(path, format=format, backing=False) as disk:
        try:
            report = disk.check()
        except Unsupported:
            return 0
        return report.corruptions


def make_overlay(path: Path, base: Path, base_format: str, shape: Shape, size: int) -> None:
    """An empty image over `base`."""
    with formats.open(base, format=base_format) as device:
        # Children take the base's block size in some formats.
        options = {} if shape.format in ("vhd", "vdi") else shape.options
        formats.create(
            path, size, format=shape.format, options=options, backing=Backing(base.name, base_format, device)
        )


def call(*arguments: object) -> None:
    """The command line, in this process; returns when it ends with status 0."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        if left.code not in (0, None):
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


def scribble(path: Path, format: str, content: bytes, seed: int) -> bytes:
    """Write here and there in an image; returns what its disk reads as."""
    maker = random.Random(seed)
    now = bytearray(content)
    with formats.open(path, format=format, writable=True) as disk:
        for _ in range(10):
            offset = maker.randrange(len(now) - 1)
            data = maker.randbytes(min(maker.choice([512, 5000, 40_000]), len(now) - offset))
            if maker.random() < 0.3:
                disk.write_zeroes(offset, len(data))
                data = bytes(len(data))
            else:
                disk.write(offset, data)
            now[offset : offset + len(data)] = data
    return bytes(now)
