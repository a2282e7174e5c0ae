"""int 19h: choose what to boot and load it: a boot sector, or the no-emulation image of an El Torito CD.

El Torito Bootable CD-ROM Format Specification 1.0; the floppy emulation of old CDs is served as a drive 00h that lies
within the CD, hard disk emulation is not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.errors import VdiskError
from vdisk.hv import layout
from vdisk.hv.firmware.disks import CD_SECTOR_BYTES, SECTOR_BYTES, DiskServices, Drive
from vdisk.hv.memory import GuestMemory

_BOOT_RECORD_SECTOR = 17
_BOOT_RECORD = b"\x00CD001\x01EL TORITO SPECIFICATION"
_FLOPPY_MEDIA = {1: 1228800, 2: 1474560, 3: 2949120}


@dataclass(frozen=True, slots=True)
class BootTarget:
    """What was loaded: jump to `segment`:`offset` with DL = `drive`."""

    segment: int
    offset: int
    drive: Drive
    note: str


class Window:
    """A floppy image inside a CD, as int 13h sees it."""

    writable = False

    def __init__(self, drive: Drive, offset: int, size: int) -> None:
        self._drive = drive
        self._offset = offset
        self.size = size

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` within the window; zeros where the CD has ended."""
        buffer[:] = self._drive.read_bytes(self._offset + offset, len(buffer))

    def write(self, offset: int, data: memoryview) -> None:
        """Never called: the window is not writable."""
        raise NotImplementedError


def is_bootable_cd(device_read: bytes) -> bool:
    """Whether these bytes, sector 17 of a disc, are an El Torito boot record."""
    return device_read.startswith(_BOOT_RECORD)


def _catalog_entry(drive: Drive) -> bytes | None:
    """The default entry of the boot catalog, if it is for a PC and bootable."""
    record = drive.read_bytes(_BOOT_RECORD_SECTOR * CD_SECTOR_BYTES, CD_SECTOR_BYTES)
    if not is_bootable_cd(record):
        return None
    catalog = drive.read_bytes(struct.unpack_from("<I", record, 0x47)[0] * CD_SECTOR_BYTES, CD_SECTOR_BYTES)
    if catalog[0] != 1 or catalog[1] != 0 or catalog[30:32] != b"\x55\xaa" or catalog[32] != 0x88:
        return None
    return catalog[32:64]


def _load_cd(memory: GuestMemory, disks: DiskServices, drive: Drive) -> BootTarget | str:
    entry = _catalog_entry(drive)
    if entry is None:
        return "no El Torito boot record for a PC"
    media, segment, count, block = entry[1] & 0xF, *struct.unpack_from("<HxxHI", entry, 2)
    segment = segment or layout.BOOT_SECTOR >> 4
    packet_media, number = media, drive.number
    boot_drive = drive
    if media in _FLOPPY_MEDIA:
        number = 0
        boot_drive = Drive(0, "floppy", Window(drive, block * CD_SECTOR_BYTES, _FLOPPY_MEDIA[media]))
        disks.drives[0] = boot_drive
        count = 1
    elif media:
        return "an El Torito hard disk emulation, which is not supported"
    length = max(count, 1) * SECTOR_BYTES
    memory.write(segment << 4, drive.read_bytes(block * CD_SECTOR_BYTES, length))
    disks.cd_boot_packet = struct.pack(
        "<BBBBIHHHHBBB", 0x13, packet_media, number, 0, block, 0, 0, segment, count, 0, 0, 0
    )
    return BootTarget(segment, 0, boot_drive, f"El Torito image of {length} bytes at block {block}")


def _load_sector(memory: GuestMemory, drive: Drive) -> BootTarget | str:
    sector = drive.read_bytes(0, SECTOR_BYTES)
    if sector[510:] != b"\x55\xaa":
        return "no boot signature (55 AA) in sector 0"
    if not any(sector[:2]):  # the protective record of a GPT
        return "no boot code in sector 0"
    memory.write(layout.BOOT_SECTOR, sector)
    return BootTarget(0, layout.BOOT_SECTOR, drive, "boot sector")


def load(memory: GuestMemory, disks: DiskServices) -> tuple[BootTarget | None, list[str]]:
    """Try each drive in order; answers the first that boots, and why each before it did not."""
    refusals: list[str] = []
    for drive in list(disks.drives.values()):
        try:
            found = _load_cd(memory, disks, drive) if drive.kind == "cdrom" else _load_sector(memory, drive)
        except VdiskError as error:
            found = str(error)
        if isinstance(found, BootTarget):
            disks.boot_drive = drive
            return found, refusals
        refusals.append(f"drive {drive.number:02X}h: {found}")
    return None, refusals
