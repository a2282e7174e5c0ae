"""Which hypervisor or cloud takes an image: the facts as data, the checks, the verdict.

`model` is the shape of the facts, `hypervisors`, `clouds` and `catalogue` hold them, `rules` holds an image against
them, `fit` makes one that fits.
"""

from __future__ import annotations

from vdisk.compat.clouds import CLOUDS
from vdisk.compat.hypervisors import HYPERVISORS
from vdisk.compat.model import Target
from vdisk.errors import OptionError

TARGETS: tuple[Target, ...] = (*HYPERVISORS, *CLOUDS)
"""Every target of `--for`, in the order in which they are shown."""


def find_target(name: str) -> Target:
    """The target called `name`, in any case; an `OptionError` names those there are."""
    target = next((row for row in TARGETS if row.name == name.lower()), None)
    if target is None:
        raise OptionError(f"there is no target {name!r}; known are {', '.join(row.name for row in TARGETS)}")
    return target


__all__ = ["TARGETS", "find_target"]
