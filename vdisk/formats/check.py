"""`CheckReport`: what checking an image found, and what a repair did or would do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Severity(enum.StrEnum):
    """What a finding means for the data."""

    LEAK = "leak"
    """Space is held that nothing refers to: nothing is at risk."""
    CORRUPTION = "corruption"
    """Metadata that is wrong: data is lost or will be when the image is written."""


class Repair(enum.StrEnum):
    """What a check may change."""

    NONE = "none"
    LEAKS = "leaks"
    ALL = "all"


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: Severity
    where: str
    """The structure and place: "L2 entry 12 of guest offset 65536"."""
    message: str
    """What was expected and what was found."""
    fix: str | None = None
    """What a repair does about it; None when nothing can be done."""
    is_fixed: bool = False


class Fault(NamedTuple):
    """Something wrong, and what would mend it: what a format's check yields."""

    severity: Severity
    where: str
    message: str
    fix: str | None = None
    mend: Callable[[], object] | None = None


@dataclass(slots=True)
class CheckReport:
    """The findings of one check. Exit codes follow `qemu-img check`: 0 clean, 2 corrupt, 3 leaks only."""

    findings: list[Finding] = field(default_factory=list)
    count_limit: int = 1000
    """So many findings are kept; the counters go on."""
    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int | None = None
    allocated_clusters: int | None = None
    compressed_clusters: int | None = None
    fragmented_clusters: int | None = None
    image_end_offset: int | None = None
    """Offset behind the last byte in use, in the file."""

    def add(self, finding: Finding, count: int = 1) -> None:
        """Count `finding`, which stands for `count` like it, and keep it while there is room."""
        if finding.severity is Severity.LEAK:
            self.leaks += count
            self.leaks_fixed += count if finding.is_fixed else 0
        else:
            self.corruptions += count
            self.corruptions_fixed += count if finding.is_fixed else 0
        if len(self.findings) < self.count_limit:
            self.findings.append(finding)

    @property
    def exit_status(self) -> int:
        """0 clean (or all mended), 2 corrupt, 3 leaks only."""
        if self.corruptions > self.corruptions_fixed:
            return 2
        return 3 if self.leaks > self.leaks_fixed else 0


def mend_faults(
    report: CheckReport,
    steps: Iterable[Iterable[Fault]],
    repair: Repair,
    *,
    begin: Callable[[], object],
    settle: Callable[[], object],
    prefix: str = "",
) -> None:
    """Report every fault of the `steps`, in their order, and mend those that `repair` allows as they are found.

    `begin` is called before the first is mended, `settle` behind each step once any was: it brings what was mended to
    the file, so that the next step sees it. `prefix` goes before the place of each finding.
    """
    has_begun = False
    for faults in steps:
        for fault in faults:
            is_allowed = repair is Repair.ALL or (repair is Repair.LEAKS and fault.severity is Severity.LEAK)
            mends = fault.mend is not None and is_allowed
            if fault.mend is not None and mends:
                if not has_begun:
                    begin()
                    has_begun = True
                fault.mend()
            report.add(Finding(fault.severity, prefix + fault.where, fault.message, fault.fix, mends))
        if has_begun:
            settle()
