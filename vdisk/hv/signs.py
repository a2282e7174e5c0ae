"""What a console says about how far a system has come, as data: stages, and failures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """The rungs of the ladder. Each is reached by evidence of its own; a higher one implies the lower ones."""

    NOTHING = 0
    FIRMWARE = 1
    BOOT_SECTOR = 2
    LOADER = 3
    PROTECTED_MODE = 4
    KERNEL = 5
    DRIVER = 6
    ROOT = 7
    USER_SPACE = 8
    LOGIN = 9

    @property
    def title(self) -> str:
        """In words."""
        return _TITLES[self]


_TITLES = {
    Stage.NOTHING: "nothing ran",
    Stage.FIRMWARE: "the firmware ran",
    Stage.BOOT_SECTOR: "the boot sector ran",
    Stage.LOADER: "a boot loader ran",
    Stage.PROTECTED_MODE: "protected mode",
    Stage.KERNEL: "a kernel ran",
    Stage.DRIVER: "a driver runs the disk",
    Stage.ROOT: "the root file system is mounted",
    Stage.USER_SPACE: "user space",
    Stage.LOGIN: "a login prompt",
}


@dataclass(frozen=True, slots=True)
class Sign:
    """A text on the console, and the stage that it proves."""

    stage: Stage
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class FailureSign:
    """A text on the console after which nothing good comes, and what kind of failure it is."""

    kind: str
    pattern: re.Pattern[str]


def _sign(stage: Stage, pattern: str) -> Sign:
    return Sign(stage, re.compile(pattern, re.MULTILINE))


def _failure(kind: str, pattern: str) -> FailureSign:
    return FailureSign(kind, re.compile(pattern, re.MULTILINE))


SIGNS = (
    _sign(Stage.BOOT_SECTOR, r"Booting from (?:Hard Disk|DVD/CD|Floppy|0000:7c00)[^\n]*"),
    _sign(Stage.LOADER, r"GNU GRUB +version|Welcome to GRUB!|GRUB loading|^GRUB "),
    _sign(Stage.LOADER, r"(?:ISO|SYS|PXE|EXT)LINUX [\d.]+|^LILO [\d.]|^iPXE [\d.]|^Limine |systemd-boot|rEFInd"),
    _sign(Stage.LOADER, r"^FreeBSD/x86 boot|BTX loader|>> NetBSD/x86|>> OpenBSD/amd64 BOOT|^Loading FreeDOS"),
    _sign(Stage.LOADER, r"BdsDxe: starting [^\n]*"),
    _sign(Stage.LOADER, r"Windows Boot Manager|Loading Linux |Loading initial ramdisk"),
    _sign(Stage.KERNEL, r"Linux version \d[^\n]*"),
    _sign(Stage.KERNEL, r"^\[ *\d+\.\d{6}\] \S[^\n]*"),
    _sign(Stage.KERNEL, r"The FreeBSD Project\.|^NetBSD [\d.]+|^OpenBSD [\d.]+|Starting Windows|^FreeDOS kernel"),
    _sign(Stage.KERNEL, r"Memtest86\+[^\n]*"),
    _sign(Stage.ROOT, r"EXT[234]-fs \(\S+\): mounted[^\n]*|XFS \(\S+\): (?:Ending|Starting)[^\n]*"),
    _sign(Stage.ROOT, r"VFS: Mounted root[^\n]*|BTRFS info[^\n]*|Trying to mount root from \S+"),
    _sign(
        Stage.USER_SPACE, r"Welcome to (?!GRUB)[^\n]*!\s*$|systemd\[1\]: [^\n]*|INIT: version[^\n]*|OpenRC [\d.]+[^\n]*"
    ),
    _sign(Stage.USER_SPACE, r"^\[ *(?:\x1b\[[\d;]*m)?  OK  [^\n]*|^Starting (?:background|system) [^\n]*"),
    _sign(Stage.LOGIN, r"^\S* ?login: ?$|^\S+ login: "),
)

FAILURES = (
    _failure("kernel panic", r"Kernel panic - not syncing[^\n]*"),
    _failure("no root disk", r"ALERT! +\S+ does not exist[^\n]*|Gave up waiting for (?:root|suspend)[^\n]*"),
    _failure("no root disk", r"VFS: (?:Unable to mount|Cannot open) root[^\n]*|INACCESSIBLE_BOOT_DEVICE"),
    _failure("no root disk", r"dracut-initqueue[^\n]*timeout[^\n]*|Could not boot\.|mountroot>"),
    _failure(
        "rescue shell", r"^\(initramfs\)|^dracut:/#|Entering emergency mode[^\n]*|You are in emergency mode[^\n]*"
    ),
    _failure(
        "boot loader error", r"^grub rescue>|^grub>\s*$|^error: [^\n]*(?:not found|no such|unknown|invalid)[^\n]*"
    ),
    _failure(
        "boot loader error", r"BOOTMGR is missing|NTLDR is missing|BOOTMGR is compressed|Could not find kernel image"
    ),
    _failure(
        "boot loader error", r"A disk read error occurred|^L (?:99 ?)+|Failed to load ldlinux\.c32|No DEFAULT or UI"
    ),
    _failure("nothing to boot", r"Missing operating system|Operating [Ss]ystem not found|Invalid partition table"),
    _failure("nothing to boot", r"Error loading operating system|No bootable (?:device|medium|disk)[^\n]*"),
    _failure(
        "nothing to boot", r"This is not a bootable disk|Non-System disk|DISK BOOT FAILURE|Boot failed: not a[^\n]*"
    ),
)

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78cM])|[\x00-\x08\x0e-\x1a]")


def plain_text(text: str) -> str:
    """A terminal's text without its control sequences, lines ended by newlines alone."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."


def find_stages(text: str) -> dict[Stage, str]:
    """The stages that a console's plain text proves, with the line that does."""
    found: dict[Stage, str] = {}
    for sign in SIGNS:
        if sign.stage not in found and (match := sign.pattern.search(text)):
            found[sign.stage] = _shorten(match[0])
    return found


def find_failure(text: str) -> tuple[str, str] | None:
    """The kind of failure that a console's plain text tells of, and the line."""
    for sign in FAILURES:
        if match := sign.pattern.search(text):
            return sign.kind, _shorten(match[0])
    return None
