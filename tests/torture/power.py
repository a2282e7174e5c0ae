"""Loss of power at length: `tests/crash.py` with one seed after another, for every variant that is one file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from tests.conformance.image import lay_out
from tests.crash import CrashRig
from tests.torture.shapes import SHAPES, Shape, content_of
from tests.torture.tally import Tally
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.storage.base import Storage

_CHANGES = 30
_STATES_A_RUN = 150
_OF_MANY_FILES = ("vmdk-split", "vmdk-flat", "vmdk-cowd")


def lose(format: str, count: int, seed: int, root: Path, *, only: str = "", sample: int | None = None) -> Tally:
    """Replay at least `count` (or `sample`) states of a format's variants."""
    tally = Tally()
    shapes = [shape for shape in SHAPES.values() if shape.format == format and shape.name not in _OF_MANY_FILES]
    for number in itertools.count(seed):
        for shape in shapes:
            if only not in shape.name:
                continue
            if tally.count >= (sample or count):
                return tally
            try:
                tally.runs[f"of {shape.name}"] += _lose_once(shape, number, root)
            except AssertionError as error:
                tally.runs[f"of {shape.name}"] += 1
                tally.failures.append(f"{shape.name}, seed {number}: {error}")
    raise AssertionError("unreachable")


def _lose_once(shape: Shape, seed: int, root: Path) -> int:
    path = root / f"power{shape.suffix}"
    lay_out(path, shape.format, shape.options, content_of(seed, shape.size))

    def open_it(files: Mapping[str, Storage], writable: bool) -> BlockDevice:
        return formats.open(files["disk"], format=shape.format, writable=writable)

    rig = CrashRig({"disk": path.read_bytes()}, open_it)
    rig.scribble(seed, _CHANGES, discards=shape.format != "vmdk")
    rig.disk.close()
    rig.safe()
    return rig.replay(seed, every=max(1, 3 * len(rig.events) // _STATES_A_RUN), mixtures=2)
