"""Reads a Windows guest's registry: which system, which disk drivers start with it, in which state it was left."""

from __future__ import annotations

import re

from vdisk.inspect.guest import WINDOWS_AGENTS, WINDOWS_DRIVERS, Guest
from vdisk.inspect.registry import Hive
from vdisk.inspect.tree import Tree, Unreadable

SYSTEM = "/Windows/System32/config/SYSTEM"
_SOFTWARE = "/Windows/System32/config/SOFTWARE"
_HIBERNATION = "/hiberfil.sys"
_HIBERNATED = (b"hibr", b"HIBR", b"RSTR", b"rstr")
"""What its first bytes are while a system is to be woken from it."""
_VERSION = r"Microsoft\Windows NT\CurrentVersion"
_FIRST_BUILD_OF_11 = 22000
"""Windows 11 calls itself 10 in its registry."""
_MACHINES = {"AMD64": "x86_64", "x86": "i386", "ARM64": "aarch64"}
_BOOT_START = 0


def look_at_version(tree: Tree, guest: Guest) -> None:
    """Its name and its build."""
    hive = _hive(tree, _SOFTWARE)
    name = hive.text(_VERSION, "ProductName") or "Windows"
    guest.build = hive.text(_VERSION, "CurrentBuildNumber") or hive.text(_VERSION, "CurrentBuild")
    if guest.build.isdecimal() and int(guest.build) >= _FIRST_BUILD_OF_11:
        name = re.sub(r"^Windows 10\b", "Windows 11", name)
    guest.os, guest.os_id = name, "windows"


def look_at_services(tree: Tree, guest: Guest) -> None:
    """Its drivers and agents, and whether its registry is as it was shut down."""
    hive = _hive(tree, SYSTEM)
    guest.is_unwritten = hive.is_unwritten
    number = hive.number("Select", "Current")
    if number is None:
        raise Unreadable("it does not say which control set is current")
    control_set = f"ControlSet{number:03}"
    machine = hive.text(rf"{control_set}\Control\Session Manager\Environment", "PROCESSOR_ARCHITECTURE")
    guest.architecture = _MACHINES.get(machine, machine)
    services = {name.lower() for name in hive.names(rf"{control_set}\Services")}
    guest.agents = [agent for service, agent in WINDOWS_AGENTS.items() if service.lower() in services]
    for driver in sorted(WINDOWS_DRIVERS):
        key = rf"{control_set}\Services\{driver}"
        if driver.lower() not in services or not tree.exists(_file_of(hive, key, driver)):
            continue
        # Windows 8 and later put what setup found no use for out of service by the second of the two.
        starts = hive.number(key, "Start"), hive.number(rf"{key}\StartOverride", "0")
        at_boot = starts[0] == _BOOT_START and starts[1] in (None, _BOOT_START)
        (guest.boot_drivers if at_boot else guest.other_drivers).append(driver)


def look_at_hibernation(tree: Tree, guest: Guest) -> None:
    """Whether it was put to sleep, as a "fast startup" does at each shutdown."""
    guest.is_hibernated = tree.read(_HIBERNATION, 4) in _HIBERNATED


def _hive(tree: Tree, path: str) -> Hive:
    file = tree.open(path)
    if file is None:
        raise Unreadable("there is none")
    return Hive(file)


def _file_of(hive: Hive, key: str, driver: str) -> str:
    """A driver's file: `ImagePath` as "\\SystemRoot\\x", "x" below it, or "System32\\drivers\\NAME.sys" without one."""
    path = hive.text(key, "ImagePath").replace("\\", "/") or f"System32/drivers/{driver}.sys"
    path = re.sub(r"^(/SystemRoot/|%SystemRoot%/|/\?\?/[A-Za-z]:/Windows/|[A-Za-z]:/Windows/)", "", path, flags=re.I)
    return f"/Windows/{path.lstrip('/')}"
