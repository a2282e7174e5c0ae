"""`examine`: open an image, or the disk in a package, look at it once, and hold it against targets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vdisk import formats
from vdisk.compat import TARGETS, find_target
from vdisk.compat.facts import DiskFacts, collect
from vdisk.compat.model import Finding, Target
from vdisk.compat.packages import detect, unpack, work_folder
from vdisk.compat.rules import Verdict, judge
from vdisk.formats.image import Image


@dataclass(slots=True)
class Examination:
    """An image, and what each target says to it."""

    facts: DiskFacts
    package: str
    """The kind of package it was found in, or ""."""
    verdicts: list[Verdict]

    @property
    def fits_all(self) -> bool:
        """Whether every target takes it."""
        return all(verdict.fits for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "image": self.facts.as_dict(),
            "package": self.package or None,
            "targets": [verdict.as_dict() for verdict in self.verdicts],
        }


def examine(path: str | os.PathLike[str], targets: Sequence[str] = (), **how: Any) -> Examination:
    """Hold the image or package at `path` against targets, or all; `how` is that of `vdisk.formats.open`.

    Raises a `VdiskError` for an image that cannot be opened, and `OptionError` for a target that there is not.
    """
    with opened(path, targets, **how) as (_, examination):
        return examination


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str], targets: Sequence[str] = (), **how: Any
) -> Iterator[tuple[Image, Examination]]:
    """As `examine`, with the disk still open: to be booted, or to be drawn."""
    wanted: Iterable[Target] = [find_target(name) for name in targets] or TARGETS
    with open_anything(path, **how) as (image, package, problems):
        facts = collect(image, path)
        yield image, Examination(facts, package, [judge(facts, target, package, problems) for target in wanted])


@contextlib.contextmanager
def open_anything(path: str | os.PathLike[str], **how: Any) -> Iterator[tuple[Image, str, list[Finding]]]:
    """The disk of an image or of a package, the package's kind, and what is wrong with the package."""
    package = detect(path) if how.get("format") is None else ""
    if not package:
        with formats.open(path, **how) as image:
            yield image, "", []
        return
    if package == "ova":
        from vdisk.ova import open_disk

        allowed = {key: how[key] for key in ("allow", "references", "force_share") if key in how}
        with open_disk(path, **allowed) as image:
            yield image, "ova", []
        return
    with work_folder() as folder:
        unpacked = unpack(path, package, folder)
        # Nothing in a package may name a file of the host: references are off.
        with formats.open(unpacked.disk, format=unpacked.format or None, references=False) as image:
            yield image, package, [Finding("error", what, why) for what, why in unpacked.problems]
