"""An examination as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from vdisk.compat.examine import Examination
from vdisk.compat.facts import DiskFacts
from vdisk.compat.guest_rules import guest_rows
from vdisk.compat.model import Finding
from vdisk.compat.rules import Verdict
from vdisk.compat.table import MODES, columns, size_words

_WIDTH = 116


def examination_text(examination: Examination, in_full: bool) -> Iterator[str]:
    """What the image is, a line a target, then the findings; without `in_full` only the first against each."""
    yield from facts_text(examination.facts, examination.package)
    yield ""
    booted = any(verdict.boot is not None for verdict in examination.verdicts)
    rows: list[tuple[str, ...]] = [("TARGET", "FITS", "LISTED", "VERIFIED", *(("BOOT",) if booted else ()), "BECAUSE")]
    for verdict in examination.verdicts:
        boot = (boot_words(verdict.boot),) if booted else ()
        rows.append((verdict.target.name, fits_words(verdict), *claims(verdict), *boot, because(verdict)))
    yield from columns(rows)
    shared = [] if in_full else _shared(examination.verdicts)
    for finding in shared:
        yield from ("", *_finding(finding))
    for verdict in examination.verdicts:
        findings = [finding for finding in verdict.findings if finding not in shared]
        if in_full and findings:
            yield from ("", f"{verdict.target.title}:")
            for finding in findings:
                yield from _finding(finding, "  ")
    if not in_full:
        yield from ("", "vdisk compat IMAGE --for TARGET tells all about one.")


def fits_words(verdict: Verdict) -> str:
    """ "yes", "no", or "yes, but" where a warning stands."""
    if not verdict.fits:
        return "no"
    return "yes, but" if any(finding.level == "warning" for finding in verdict.findings) else "yes"


def boot_words(boot: dict[str, Any] | None) -> str:
    """A row's boot in a word or two."""
    if boot is None:
        return ""
    if not boot["tried"]:
        return "not tried"
    if boot["ok"]:
        return "boots"
    if boot["kind"] == "timeout":
        return "not over in time"
    return "inconclusive" if not boot["conclusive"] else f"no: {boot['kind']}"


def claims(verdict: Verdict) -> tuple[str, str]:
    """The listed claim and what is verified, in words."""
    listed = {True: "yes", False: "no", None: "-"}[verdict.listed]
    return listed, MODES[verdict.verified]


def because(verdict: Verdict) -> str:
    """The first thing that speaks against it, and the command that mends it; for want of any, the first doubt."""
    found = [[finding for finding in verdict.findings if finding.level == level] for level in ("error", "warning")]
    against = found[0] or found[1]
    if not against:
        return ""
    first = against[0]
    more = f" (and {len(against) - 1} more)" if len(against) > 1 else ""
    return f"{first.what}{more}{f': {fix_words(first)}' if first.fix and found[0] else ''}"


def fix_words(finding: Finding) -> str:
    """The command that mends it, and where to run it if that is in the guest."""
    return f"in the guest: {finding.fix}" if finding.in_guest else finding.fix


def facts_text(facts: DiskFacts, package: str) -> Iterator[str]:
    """What the image and its disk are."""
    kind = f"{facts.format} ({facts.variant})" if facts.variant else facts.format
    inside = f", in a package ({package})" if package else ""
    table = facts.table
    known = {"none": "none", "mbr": "MBR", "gpt": "GPT", "hybrid": "GPT with a hybrid MBR"}
    rows = [
        ("image:", facts.path),
        ("format:", kind + inside),
        ("size:", f"{size_words(facts.size_bytes)}"),
    ]
    if facts.unreadable:
        rows.append(("disk:", f"not looked at: {facts.unreadable}"))
    else:
        backup = f", backup {table.backup_gpt}" if table.backup_gpt != "none" else ""
        rows.append(("partitions:", known[table.kind] + backup))
        for partition, found in facts.file_systems:
            if partition is None:
                rows.append(("", f"the whole disk: {found.kind}" if found.kind else "nothing known on the disk"))
                continue
            active = ", active" if partition.is_active else ""
            rows.append(("", f"{partition.number}: {partition.type_name}{active}: {found.kind or 'not known'}"))
        rows.append(("boots by BIOS:", facts.bios or "no"))
        rows.append(("boots by UEFI:", facts.uefi or "no"))
        rows += guest_rows(facts.guest, facts.guest_hint)
    yield from columns(rows)


def _shared(verdicts: list[Verdict]) -> list[Finding]:
    """Findings, other than errors, that every target has."""
    first, *others = verdicts
    return [
        finding
        for finding in first.findings
        if finding.level != "error" and all(finding in verdict.findings for verdict in others)
    ]


def _finding(finding: Finding, indent: str = "") -> Iterator[str]:
    line = f"{finding.level}: {finding.what}: {finding.why}"
    yield from textwrap.wrap(line, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    if finding.fix:
        yield f"{indent}  {fix_words(finding)}"
