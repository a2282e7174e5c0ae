"""`--boot`: start the disk once under each profile that the targets have, and put what came of it into their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.compat.examine import Examination
from vdisk.compat.guest_rules import own_bus_notes
from vdisk.compat.model import Finding, Target
from vdisk.hv.boot import BootResult
from vdisk.hv.profiles import DRIVERS, find_profile
from vdisk.serve.engines import boot


def try_boots(
    disk: BlockDevice,
    examination: Examination,
    *,
    expect: str | None = None,
    timeout: float = 180.0,
    tell: Callable[[str], None] | None = None,
    **how: Any,
) -> None:
    """Boot `disk` once per profile among the examination's targets and write the results into its verdicts.

    A trial that fails is an error of its row; one that the host could not carry out is a note, and one that was not
    over in time a warning. `how` is that of
    `vdisk.serve.engines.boot`; `tell` is called with the profile's name before each boot.
    """
    results: dict[str, BootResult] = {}
    for verdict in examination.verdicts:
        target = verdict.target
        buses = own_bus_notes(examination.facts.guest, target)
        refused = _why_not(examination, target)
        if refused:
            verdict.boot = {"tried": False, "reason": refused, "notes": buses}
            verdict.findings.append(Finding("note", "it was not booted", refused))
            continue
        assert target.profile is not None
        result = results.get(target.profile)
        if result is None:
            if tell is not None:
                tell(target.profile)
            result = boot(disk, profile=target.profile, expect=expect, timeout=timeout, **how)
            results[target.profile] = result
        verdict.boot = {
            "tried": True,
            **result.as_dict(),
            "imitates": what_it_imitates(target.profile),
            "notes": [*result.notes, *buses],
        }
        if not result.ok:
            verdict.findings.append(_failure(result, target.profile))
        verdict.findings += [Finding("note", "the boot shows not everything", note) for note in buses]


def _why_not(examination: Examination, target: Target) -> str:
    """Why a boot would tell nothing of a target; "" where it does."""
    if target.profile is None:
        return f"no profile of the embedded hypervisor imitates {target.title}"
    facts = examination.facts
    if facts.unreadable:
        return facts.unreadable
    if facts.uefi and not facts.bios:
        return "the disk boots by UEFI only, and the embedded hypervisor starts by BIOS"
    return ""


def _failure(result: BootResult, profile: str) -> Finding:
    """What a boot that did not succeed says of the image: nothing, where the host or its slowness stopped it."""
    if result.kind == "timeout":
        return Finding("warning", f"the boot as {profile} was not over in time", f"{result.reason}; see --timeout")
    if not result.conclusive:
        return Finding("note", f"the boot as {profile} is inconclusive ({result.kind})", result.reason)
    return Finding("error", f"it does not boot as {profile} ({result.kind})", result.reason)


def what_it_imitates(name: str) -> dict[str, Any]:
    """What a profile shows a guest, and what it does not."""
    profile = find_profile(name)
    return {
        "title": profile.title,
        "chipset": profile.chipset,
        "controller": profile.controller,
        "driver": DRIVERS[profile.controller],
        "smbios": f"{profile.manufacturer} / {profile.product}",
        "not": ["CPUID: it stays KVM's", "the hypervisor's own firmware, timers and graphics", *profile.notes],
    }
