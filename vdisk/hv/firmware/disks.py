"""int 13h: disks by cylinder, head and sector, by block number (EDD 3.0), and El Torito CDs.

A read goes from the `BlockDevice` straight into guest memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from vdisk.errors import VdiskError
from vdisk.hv import layout
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.memory import GuestMemory, GuestMemoryError

DriveKind = Literal["disk", "cdrom", "floppy"]

SECTOR_BYTES = 512
CD_SECTOR_BYTES = 2048
FIRST_DISK, FIRST_CD = 0x80, 0xE0
_OK, _BAD_COMMAND, _WRITE_PROTECTED, _NOT_FOUND, _RESET_FAILED, _BOUNDARY = 0x00, 0x01, 0x03, 0x04, 0x05, 0x09
_READ_ERROR, _NOT_REMOVABLE, _TIMEOUT = 0x10, 0xB2, 0x80
_MBR_SIGNATURE = 510
_FLOPPIES = {  # bytes: cylinders, heads, sectors, CMOS type
    368640: (40, 2, 9, 1),
    737280: (80, 2, 9, 3),
    1228800: (80, 2, 15, 2),
    1474560: (80, 2, 18, 4),
    2949120: (80, 2, 36, 5),
}


class DiskSource(Protocol):
    """What int 13h needs of a `BlockDevice`."""

    @property
    def size(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    def readinto(self, offset: int, buffer: memoryview, /) -> None: ...
    def write(self, offset: int, data: memoryview, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Geometry:
    """What int 13h AH=08h says of a drive."""

    cylinders: int
    heads: int
    sectors: int


def _geometry_of_partitions(sector: bytes) -> tuple[int, int] | None:
    """Heads and sectors a track that an MBR's partitions were made for: their ends lie at the end of a track."""
    if sector[_MBR_SIGNATURE:] != b"\x55\xaa":
        return None
    for entry in range(446, 510, 16):
        kind = sector[entry + 4]
        head, track = sector[entry + 5], sector[entry + 6]
        start, count = struct.unpack_from("<II", sector, entry + 8)
        cylinder, sectors, heads = track << 2 & 0x300 | sector[entry + 7], track & 0x3F, head + 1
        end = start + count - 1
        is_told = kind and count and sectors and heads >= 2 and cylinder < 1023
        if is_told and (cylinder * heads + head) * sectors + sectors - 1 == end:
            return heads, sectors
    return None


def guess_geometry(size_bytes: int, first_sector: bytes) -> Geometry:
    """A geometry for a disk that has none: that of its partition table, else LBA assist (the fewest heads that do)."""
    total = size_bytes // SECTOR_BYTES
    found = _geometry_of_partitions(first_sector)
    if found is not None:
        heads, sectors = found
    else:
        sectors = 63
        heads = next((n for n in (16, 32, 64, 128) if total <= n * sectors * 1024), 255)
    return Geometry(max(1, min(total // (heads * sectors), 1024)), heads, sectors)


class Drive:
    """One drive of int 13h: its number, its sector size and the device behind it."""

    def __init__(self, number: int, kind: DriveKind, device: DiskSource) -> None:
        self.number = number
        self.kind = kind
        self.device = device
        self.sector_bytes = CD_SECTOR_BYTES if kind == "cdrom" else SECTOR_BYTES
        self.floppy_type = 0
        if kind == "floppy":
            cylinders, heads, sectors, self.floppy_type = _FLOPPIES.get(device.size, _FLOPPIES[1474560])
            self.geometry = Geometry(cylinders, heads, sectors)
        elif kind == "disk":
            self.geometry = guess_geometry(device.size, self.read_bytes(0, SECTOR_BYTES))
        else:
            self.geometry = Geometry(1, 1, 1)

    @property
    def total_sectors(self) -> int:
        """Whole sectors of the device."""
        return self.device.size // self.sector_bytes

    def read_bytes(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; zeros past the end."""
        buffer = bytearray(length)
        there = max(0, min(length, self.device.size - offset))
        if there:
            self.device.readinto(offset, memoryview(buffer)[:there])
        return bytes(buffer)


@dataclass(slots=True)
class DiskActivity:
    """What was read through the firmware: for the verdict."""

    reads: int = 0
    writes: int = 0
    furthest: int = 0
    """Where the furthest read ended, in bytes from the start of the boot drive."""
    errors: int = 0


class DiskServices:
    """The handlers of int 13h. `last_status` is kept where a BIOS keeps it."""

    def __init__(self, memory: GuestMemory, drives: list[Drive]) -> None:
        self._memory = memory
        self.drives = {drive.number: drive for drive in drives}
        self.activity = DiskActivity()
        self.boot_drive: Drive | None = None
        self.cd_boot_packet = b""
        self._hard_disks = sum(1 for drive in drives if drive.kind == "disk")
        self._floppies = sum(1 for drive in drives if drive.kind == "floppy")

    def handle(self, frame: Frame) -> None:
        """int 13h."""
        number, function = frame.dl, frame.ah
        drive = self.drives.get(number)
        if drive is None:
            # AH=15h says "no such drive" without an error; a reset of anything succeeds.
            if function == 0x15:
                frame.ah = 0
                frame.carry = False
                return
            status = _OK if function in (0x00, 0x0D) and not self.drives else _BAD_COMMAND
        else:
            handler = _FUNCTIONS.get(function)
            if handler is None:
                status = _BAD_COMMAND
            else:
                try:
                    answer = handler(self, frame, drive)
                except GuestMemoryError:
                    status = _BOUNDARY
                except VdiskError:
                    self.activity.errors += 1
                    status = _READ_ERROR
                else:
                    if answer is None:
                        return
                    status = answer
        if function != 0x01:
            self._memory.write_u8(layout.BIOS_DATA + (0x41 if number < FIRST_DISK else 0x74), status)
        frame.ah = status
        frame.carry = status != _OK

    # Transfers -------------------------------------------------------------------------------------------------

    def transfer(self, drive: Drive, block: int, count: int, address: int, *, is_write: bool = False) -> int:
        """Move `count` sectors between `drive` and guest memory; answers int 13h's status."""
        length = count * drive.sector_bytes
        offset = block * drive.sector_bytes
        if offset + length > drive.device.size // SECTOR_BYTES * SECTOR_BYTES:
            return _NOT_FOUND
        view = self._memory.view(address, length)
        activity = self.activity
        if is_write:
            if not drive.device.writable or drive.kind == "cdrom":
                return _WRITE_PROTECTED
            drive.device.write(offset, view)
            activity.writes += 1
            return _OK
        drive.device.readinto(offset, view)
        activity.reads += 1
        if drive is self.boot_drive:
            activity.furthest = max(activity.furthest, offset + length)
        return _OK

    def _chs(self, frame: Frame, drive: Drive, *, is_write: bool = False, verify: bool = False) -> int:
        geometry = drive.geometry
        cylinder, sector, head = frame.ch | (frame.cl & 0xC0) << 2, frame.cl & 0x3F, frame.dh
        count = frame.al
        if not 1 <= sector <= geometry.sectors or head >= geometry.heads or not count or drive.kind == "cdrom":
            frame.al = 0
            return _BAD_COMMAND
        block = (cylinder * geometry.heads + head) * geometry.sectors + sector - 1
        if verify:
            return _OK if block + count <= drive.total_sectors else _NOT_FOUND
        status = self.transfer(drive, block, count, frame.es + frame.bx, is_write=is_write)
        if status != _OK:
            frame.al = 0
        return status

    def _read_chs(self, frame: Frame, drive: Drive) -> int:
        return self._chs(frame, drive)

    def _write_chs(self, frame: Frame, drive: Drive) -> int:
        return self._chs(frame, drive, is_write=True)

    def _verify_chs(self, frame: Frame, drive: Drive) -> int:
        return self._chs(frame, drive, verify=True)

    def _packet(self, frame: Frame, drive: Drive, *, is_write: bool = False, verify: bool = False) -> int:
        if drive.kind == "floppy":
            return _BAD_COMMAND
        address = frame.ds + frame.si
        size, _, count, offset, segment, block = struct.unpack("<BBHHHQ", self._memory.read(address, 16))
        if size < 16:
            return _BAD_COMMAND
        buffer = (segment << 4) + offset
        if segment == offset == 0xFFFF:
            if size < 24:
                return _BAD_COMMAND
            buffer = self._memory.read_u64(address + 16)
        if block + count > drive.total_sectors:
            self._memory.write_u16(address + 2, 0)
            return _NOT_FOUND
        if verify:
            return _OK
        status = self.transfer(drive, block, count, buffer, is_write=is_write)
        if status != _OK:
            self._memory.write_u16(address + 2, 0)
        return status

    def _read_packet(self, frame: Frame, drive: Drive) -> int:
        return self._packet(frame, drive)

    def _write_packet(self, frame: Frame, drive: Drive) -> int:
        return self._packet(frame, drive, is_write=True)

    def _verify_packet(self, frame: Frame, drive: Drive) -> int:
        return self._packet(frame, drive, verify=True)

    # Questions -------------------------------------------------------------------------------------------------

    def _succeed(self, frame: Frame, drive: Drive) -> int:
        return _OK

    def _last_status(self, frame: Frame, drive: Drive) -> int:
        return self._memory.read_u8(layout.BIOS_DATA + (0x41 if drive.number < FIRST_DISK else 0x74))

    def _parameters(self, frame: Frame, drive: Drive) -> int:
        if drive.kind == "cdrom":
            return _BAD_COMMAND
        geometry = drive.geometry
        last = geometry.cylinders - 1
        frame.ax = 0
        frame.ch = last & 0xFF
        frame.cl = geometry.sectors | last >> 2 & 0xC0
        frame.dh = geometry.heads - 1
        if drive.kind == "floppy":
            frame.bx = drive.floppy_type
            frame.dl = self._floppies
        else:
            frame.dl = self._hard_disks
        return _OK

    def _kind(self, frame: Frame, drive: Drive) -> int | None:
        if drive.kind == "cdrom":
            return _BAD_COMMAND
        frame.carry = False
        if drive.kind == "floppy":
            frame.ah = 1
            return None
        total = min(drive.total_sectors, drive.geometry.cylinders * drive.geometry.heads * drive.geometry.sectors)
        frame.ah = 3
        frame.cx, frame.dx = total >> 16 & 0xFFFF, total & 0xFFFF
        return None

    def _extensions(self, frame: Frame, drive: Drive) -> int | None:
        if frame.bx != 0x55AA or drive.kind == "floppy":
            return _BAD_COMMAND
        frame.bx = 0xAA55
        frame.ah = 0x30  # EDD 3.0
        frame.cx = 0x0005 if drive.kind == "disk" else 0x0007  # packets, EDD; ejecting
        frame.carry = False
        return None

    def _extended_parameters(self, frame: Frame, drive: Drive) -> int:
        if drive.kind == "floppy":
            return _BAD_COMMAND
        address = frame.ds + frame.si
        room = self._memory.read_u16(address)
        if room < 26:
            return _BAD_COMMAND
        geometry = drive.geometry
        flags = 0x0002 if drive.kind == "disk" and geometry.cylinders < 1024 else 0x0000
        if drive.kind == "cdrom":
            flags = 0x0074
        length = 30 if room >= 30 else 26
        cylinders = drive.total_sectors // (geometry.heads * geometry.sectors)
        answer = struct.pack(
            "<HHIIIQHI",
            length,
            flags,
            min(cylinders, 0xFFFFFFFF),
            geometry.heads,
            geometry.sectors,
            drive.total_sectors,
            drive.sector_bytes,
            0xFFFFFFFF,  # no device parameter table
        )
        self._memory.write(address, answer[:length])
        return _OK

    def _eject(self, frame: Frame, drive: Drive) -> int:
        return _NOT_REMOVABLE

    def _boot_catalog(self, frame: Frame, drive: Drive) -> int:
        if not self.cd_boot_packet or frame.al > 1:
            return _BAD_COMMAND
        self._memory.write(frame.ds + frame.si, self.cd_boot_packet)
        return _OK


_FUNCTIONS = {
    0x00: DiskServices._succeed,
    0x01: DiskServices._last_status,
    0x02: DiskServices._read_chs,
    0x03: DiskServices._write_chs,
    0x04: DiskServices._verify_chs,
    0x08: DiskServices._parameters,
    0x09: DiskServices._succeed,
    0x0C: DiskServices._succeed,
    0x0D: DiskServices._succeed,
    0x10: DiskServices._succeed,
    0x11: DiskServices._succeed,
    0x14: DiskServices._succeed,
    0x15: DiskServices._kind,
    0x16: DiskServices._succeed,
    0x41: DiskServices._extensions,
    0x42: DiskServices._read_packet,
    0x43: DiskServices._write_packet,
    0x44: DiskServices._verify_packet,
    0x45: DiskServices._succeed,
    0x46: DiskServices._eject,
    0x47: DiskServices._succeed,
    0x48: DiskServices._extended_parameters,
    0x49: DiskServices._succeed,
    0x4B: DiskServices._boot_catalog,
    0x4E: DiskServices._succeed,
}
