"""What a machine is made of, before it exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vdisk.block.device import BlockDevice
from vdisk.errors import OptionError
from vdisk.hv import layout
from vdisk.hv.profiles import CONTROLLERS, Controller, Profile

DiskKind = Literal["disk", "cdrom", "floppy"]
CPUS_MOST = 16
_BOOT_RECORD_AT = 17 * 2048
_BOOT_RECORD = b"\x00CD001\x01EL TORITO SPECIFICATION"
_FLOPPY_SIZES = frozenset((368640, 737280, 1228800, 1474560, 2949120))


def guess_kind(device: BlockDevice) -> DiskKind:
    """A disc if there is an El Torito boot record, a floppy by its size, otherwise a disk."""
    if device.size >= _BOOT_RECORD_AT + 2048 and device.read(_BOOT_RECORD_AT, len(_BOOT_RECORD)) == _BOOT_RECORD:
        return "cdrom"
    return "floppy" if device.size in _FLOPPY_SIZES else "disk"


@dataclass(frozen=True, slots=True)
class Disk:
    """A device to attach, and as what. `controller` None means the profile's."""

    device: BlockDevice
    kind: DiskKind = "disk"
    controller: Controller | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Linux kernel, or what says that it is one (iPXE, memdisk, memtest86+), to start without a boot loader."""

    image: bytes
    initrd: bytes = b""
    append: str = ""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The machine as asked for; checked when made."""

    profile: Profile
    disks: tuple[Disk, ...]
    memory_bytes: int = 512 * layout.MIB
    cpus: int = 1
    firmware: bytes | None = None
    """A firmware file's content (SeaBIOS); None for our own."""
    option_rom: bytes | None = None
    """A VGA BIOS for it; without one, its text goes to the serial port."""
    kernel: Kernel | None = None
    serial_number: str = field(default="vdisk0")

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= CPUS_MOST:
            raise OptionError(f"cpus: expected 1 to {CPUS_MOST}, found {self.cpus}")
        if self.memory_bytes < layout.LEAST_RAM:
            raise OptionError(f"memory: expected at least {layout.LEAST_RAM} bytes, found {self.memory_bytes}")
        if self.firmware is not None and not 0 < len(self.firmware) <= 8 * layout.MIB:
            raise OptionError(f"firmware: expected a file of up to 8 MiB, found {len(self.firmware)} bytes")
        for disk in self.disks:
            if disk.controller is not None and disk.controller not in CONTROLLERS:
                raise OptionError(f"controller: there is no {disk.controller!r}; known are {', '.join(CONTROLLERS)}")
