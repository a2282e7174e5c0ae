"""Holds the Windows inside a disk against a target: drivers that start with it, the state it was left in, agents.

A driver finds the system's disk only if its service starts with the boot loader (`Start` 0, and no `StartOverride` that
says otherwise: Microsoft's article 922976, and Windows 8 and later); else Windows stops with INACCESSIBLE_BOOT_DEVICE.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.compat.clouds import CLOUD_AGENTS
from vdisk.compat.drivers import DRIVERS, services_text
from vdisk.compat.model import Finding, Target
from vdisk.inspect.guest import SYSTEM_HIVE, Guest

_STOP = "Windows stops with INACCESSIBLE_BOOT_DEVICE (0x7B)"
_SERVICES = r"HKLM\SYSTEM\CurrentControlSet\Services"
_INSTALLERS = {
    "viostor": r"E:\virtio-win-guest-tools.exe /install /passive /norestart",
    "vioscsi": r"E:\virtio-win-guest-tools.exe /install /passive /norestart",
}
"""Programs that bring drivers; E: is the disc of virtio-win."""
_TOOLS_OF = {
    "VMware Tools": ("vmware", "workstation", "esxi", "ova"),
    "VirtualBox Guest Additions": ("virtualbox", "vagrant-virtualbox"),
    "Xen guest agent": ("xen", "xenserver", "xcp-ng"),
}
"""Agents that serve a hypervisor, and its targets."""


def has(guest: Guest, name: str) -> bool:
    """Whether Windows starts with what does the work of a Linux driver."""
    return any(set(services) <= set(guest.boot_drivers) for services in DRIVERS[name].windows)


def _drivers(guest: Guest, target: Target) -> Iterator[Finding]:
    if any(problem.startswith(SYSTEM_HIVE) for problem in guest.problems):
        return
    usable = [name for name in target.controllers if has(guest, name)]
    default = target.controllers[0]
    if default in usable:
        return
    what = f"Windows does not start with a driver for {DRIVERS[default].controller} ({services_text(DRIVERS[default])})"
    if not usable:
        known = ", ".join(f"{services_text(DRIVERS[name])} ({DRIVERS[name].controller})" for name in target.controllers)
        what = f"Windows starts with no driver for the disk there: {known}"
        # What it has and does not use is called back at once; only then is another to be installed.
        best = next((name for name in target.controllers if _lacking(guest, name) is not None), default)
        fix, then = _fix(guest, best)
        if best != default:
            then = f"; choose {DRIVERS[best].controller} there, whose driver it has"
        yield Finding("error", what, f"{_STOP} at {target.title}{then}", fix)
        return
    fix, then = _fix(guest, default)
    if DRIVERS[default].bus:
        why = f"at {target.title} it finds the emulated {DRIVERS[usable[0]].controller} disk, which is slow"
        yield Finding("note", what, why, fix)
    else:
        others = " or ".join(DRIVERS[name].controller for name in usable)
        why = f"that is the usual controller at {target.title}: choose {others} there, or give Windows the driver{then}"
        yield Finding("warning", what, why, fix)


def _lacking(guest: Guest, name: str) -> list[str] | None:
    """Of a set of services that Windows has whole, those that do not start with it; None where it has no set whole."""
    there = {*guest.boot_drivers, *guest.other_drivers}
    whole = [services for services in DRIVERS[name].windows if set(services) <= there]
    return [one for one in whole[0] if one not in guest.boot_drivers] if whole else None


def _fix(guest: Guest, name: str) -> tuple[str, str]:
    """The command that lets a driver start with Windows or installs it, and what is to be done after it."""
    lacking = _lacking(guest, name)
    if lacking is not None:
        commands = [rf"reg add {_SERVICES}\{one} /v Start /t REG_DWORD /d 0 /f" for one in lacking]
        commands += [rf"reg delete {_SERVICES}\{one}\StartOverride /f" for one in lacking]
        return " & ".join(commands), ""
    for service in (one for services in DRIVERS[name].windows for one in services):
        if service in _INSTALLERS:
            then = f"; after the installation, start it once with a second disk on {DRIVERS[name].controller}"
            return _INSTALLERS[service], then
    return "", ""


def _state(guest: Guest, target: Target) -> Iterator[Finding]:
    if guest.is_hibernated:
        why = f"it is to go on with another machine's devices (a shutdown with fast startup leaves it so, too): {_STOP}"
        yield Finding("error", "Windows is hibernated", why, "powercfg /h off & shutdown /s /t 0")
    if guest.is_unwritten:
        why = "Windows was running, or lost its power: newer changes are in a log, and what is told here may be older"
        yield Finding("note", "a part of the registry is not written out", why, "shutdown /s /t 0")


def _agents(guest: Guest, target: Target) -> Iterator[Finding]:
    own = CLOUD_AGENTS.get(target.name, "cloudbase-init")
    if target.kind == "cloud" and not {own, "cloudbase-init"} & set(guest.agents):
        why = f"passwords, names and networks that are given at {target.title} do not reach the system"
        yield Finding("warning", f"{own} is not on it", why)
    for agent, targets in _TOOLS_OF.items():
        if agent in guest.agents and target.name not in targets:
            why = (
                f"{target.title} has no use for it, and its uninstaller may not run there: uninstall it before the move"
            )
            yield Finding("note", f"it has {agent}", why)


def rows(guest: Guest) -> Iterator[tuple[str, str]]:
    """(what, in words) of a Windows, for people."""
    others = f"; has {' '.join(guest.other_drivers)}" if guest.other_drivers else ""
    yield "drivers:", f"starts with {' '.join(guest.boot_drivers) or 'no known driver of disks'}{others}"
    if guest.agents:
        yield "agents:", ", ".join(guest.agents)
    if guest.is_hibernated:
        yield "state:", "hibernated"


RULES = (_drivers, _state, _agents)
"""What guest_rules runs for a Windows."""
