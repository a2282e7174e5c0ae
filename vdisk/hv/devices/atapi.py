"""A CD drive: the multimedia commands (MMC-6) over an ISO image, and the ATA side that carries them as packets."""

from __future__ import annotations

import struct

from vdisk.block.device import BlockDevice
from vdisk.hv.devices.ata import (
    PACKET_SIGNATURE,
    Action,
    AtaDevice,
    AtaError,
    Command,
    Protocol,
    TaskFile,
)
from vdisk.hv.devices.scsi import NOT_READY, ScsiError, ScsiTarget, invalid_field, out_of_range
from vdisk.hv.devices.transfer import Direction, Transfer

FRAME_BYTES = 2048
PACKET_BYTES = 12
READ_CAPACITY, READ_10, READ_12, SEEK, READ_CD = 0x25, 0x28, 0xA8, 0x2B, 0xBE
READ_TOC, GET_CONFIGURATION, GET_EVENT_STATUS, READ_DISC_INFORMATION = 0x43, 0x46, 0x4A, 0x51
READ_TRACK_INFORMATION, MECHANISM_STATUS, SYNCHRONIZE_CACHE = 0x52, 0xBD, 0x35
_LONGEST_FRAMES = 0x4000
_LEAD_OUT = 0xAA
_NO_EVENT, _MEDIA_CLASS = 0x80, 4
_PROFILE_CD_ROM, _PROFILE_DVD_ROM = 0x08, 0x10
_LARGEST_CD_FRAMES = 80 * 60 * 75
_IDLE_COMMANDS = (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)


class CdDrive(ScsiTarget):
    """A CD or DVD drive with `disc` in it, read-only; None is an empty tray."""

    device_type = 5
    is_removable = True

    def __init__(
        self,
        disc: BlockDevice | None,
        *,
        vendor: str = "VDISK",
        product: str = "CD-ROM",
        revision: str = "1.0",
        serial: str = "0",
    ) -> None:
        super().__init__(vendor=vendor, product=product, revision=revision, serial=serial)
        self.disc = disc
        self._handlers |= {
            READ_CAPACITY: self._read_capacity,
            READ_10: self._read,
            READ_12: self._read,
            READ_CD: self._read_cd,
            SEEK: self._seek,
            READ_TOC: self._read_toc,
            GET_CONFIGURATION: self._get_configuration,
            GET_EVENT_STATUS: self._get_event_status,
            READ_DISC_INFORMATION: self._read_disc_information,
            READ_TRACK_INFORMATION: self._read_track_information,
            MECHANISM_STATUS: self._mechanism_status,
            SYNCHRONIZE_CACHE: self._accept,
        }

    @property
    def frames(self) -> int:
        """The disc's length in frames of 2048 bytes."""
        return self._loaded().size // FRAME_BYTES

    def _loaded(self) -> BlockDevice:
        if self.disc is None:
            raise ScsiError(NOT_READY, 0x3A)  # medium not present
        return self.disc

    def _test_unit_ready(self, cdb: bytes) -> Transfer:
        self._loaded()
        return Transfer.nothing()

    def _read_capacity(self, cdb: bytes) -> Transfer:
        return Transfer.answer(struct.pack(">II", max(self.frames - 1, 0), FRAME_BYTES))

    def _frames_of(self, first: int, count: int) -> Transfer:
        disc = self._loaded()
        if first + count > self.frames:
            raise out_of_range()
        if count > _LONGEST_FRAMES:
            raise invalid_field()
        return Transfer.read_disk(disc, first * FRAME_BYTES, count * FRAME_BYTES)

    def _read(self, cdb: bytes) -> Transfer:
        first = int.from_bytes(cdb[2:6], "big")
        count = cdb[7] << 8 | cdb[8] if cdb[0] == READ_10 else int.from_bytes(cdb[6:10], "big")
        return self._frames_of(first, count)

    def _read_cd(self, cdb: bytes) -> Transfer:
        """Only user data of 2048 bytes a frame: an ISO image holds nothing else."""
        sector_type, wanted = cdb[1] >> 2 & 7, cdb[9] & 0xF8
        first, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:9], "big")
        if not wanted or not count:
            self._loaded()
            return Transfer.nothing()
        if sector_type not in (0, 2, 4) or wanted != 0x10 or cdb[10] & 7:
            raise ScsiError(5, 0x64)  # illegal mode for this track
        return self._frames_of(first, count)

    def _seek(self, cdb: bytes) -> Transfer:
        if int.from_bytes(cdb[2:6], "big") >= self.frames:
            raise out_of_range()
        return Transfer.nothing()

    # What is on the disc ---------------------------------------------------------------------------------------

    @staticmethod
    def _address(frame: int, in_minutes: bool) -> bytes:
        if not in_minutes:
            return frame.to_bytes(4, "big")
        minute, rest = divmod(frame + 150, 60 * 75)
        return bytes((0, min(minute, 255), *divmod(rest, 75)))

    def _read_toc(self, cdb: bytes) -> Transfer:
        """One data track, then the lead-out. Formats 0 (tracks), 1 (sessions) and 2 (raw)."""
        frames, in_minutes = self.frames, bool(cdb[1] & 2)
        toc_format = cdb[2] & 15 or cdb[9] >> 6
        start, end = self._address(0, in_minutes), self._address(frames, in_minutes)
        if toc_format == 0:
            if cdb[6] > 1 and cdb[6] != _LEAD_OUT:
                raise invalid_field()
            body = bytes((0, 0x14, _LEAD_OUT, 0)) + end
            if cdb[6] <= 1:
                body = bytes((0, 0x14, 1, 0)) + start + body
        elif toc_format == 1:
            body = bytes((0, 0x14, 1, 0)) + start
        elif toc_format == 2:
            out = self._address(frames, True)[1:]
            rows = [(0xA0, b"\x01\0\0"), (0xA1, b"\x01\0\0"), (0xA2, out), (1, self._address(0, True)[1:])]
            body = b"".join(bytes((1, 0x14, 0, point, 0, 0, 0, 0)) + place for point, place in rows)
        else:
            raise invalid_field()
        return self.allocated(struct.pack(">HBB", len(body) + 2, 1, 1) + body, cdb[7] << 8 | cdb[8])

    def _profile(self) -> int:
        if self.disc is None:
            return 0
        return _PROFILE_CD_ROM if self.frames <= _LARGEST_CD_FRAMES else _PROFILE_DVD_ROM

    def _get_configuration(self, cdb: bytes) -> Transfer:
        """The profiles, and the core, removable medium and random access features."""
        kind, first = cdb[1] & 3, cdb[2] << 8 | cdb[3]
        current = self._profile()
        profiles = b"".join(struct.pack(">HBx", p, p == current) for p in (_PROFILE_DVD_ROM, _PROFILE_CD_ROM))
        has_disc = 1 if current else 0
        features = [
            (0x0000, 0x03, profiles),
            (0x0001, 0x0B, struct.pack(">IB3x", 2, 0)),
            (0x0003, 0x03, bytes((0x29, 0, 0, 0))),
            (0x0010, has_disc, struct.pack(">IHBx", FRAME_BYTES, 1, 0)),
            (0x001E, has_disc, bytes(4)),
        ]
        body = b"".join(
            struct.pack(">HBB", code, flags, len(data)) + data
            for code, flags, data in features
            if (code == first if kind == 2 else code >= first) and (kind != 1 or flags & 1)
        )
        return self.allocated(struct.pack(">IHH", len(body) + 4, 0, current) + body, cdb[7] << 8 | cdb[8])

    def _get_event_status(self, cdb: bytes) -> Transfer:
        if not cdb[1] & 1:
            raise invalid_field()  # only polling
        length = cdb[7] << 8 | cdb[8]
        if not cdb[4] & 1 << _MEDIA_CLASS:
            return self.allocated(bytes((0, 2, _NO_EVENT, 1 << _MEDIA_CLASS)), length)
        present = 0 if self.disc is None else 2
        return self.allocated(bytes((0, 6, _MEDIA_CLASS, 1 << _MEDIA_CLASS, 0, present, 0, 0)), length)

    def _read_disc_information(self, cdb: bytes) -> Transfer:
        self._loaded()
        answer = struct.pack(">HBBBBBBB3xIIIQBB", 32, 0x0E, 1, 1, 1, 1, 0x20, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 0)
        return self.allocated(answer, cdb[7] << 8 | cdb[8])

    def _read_track_information(self, cdb: bytes) -> Transfer:
        frames = self.frames
        answer = struct.pack(">HBBBBBBIIIIII4x", 34, 1, 1, 0, 4, 1, 0, 0, 0, 0, 0, frames, 0)
        return self.allocated(answer, cdb[7] << 8 | cdb[8])

    def _mechanism_status(self, cdb: bytes) -> Transfer:
        return self.allocated(bytes((0, 0, 0, 0, 0, 1, 0, 0)), cdb[8] << 8 | cdb[9])

    def mode_pages(self) -> dict[int, bytes]:
        """Error recovery, CD parameters, and the capabilities page that drivers read the speed from."""
        capabilities = struct.pack(">BBBBBBBBHHHHBB4x", 0x2A, 20, 0x3B, 0, 0x71, 0x60, 0x29, 0, 706, 2, 0, 706, 0, 0)
        return {
            0x01: b"\x01\x06\x00\x05" + bytes(4),
            0x0D: b"\x0d\x06\x00\x00\x00\x3c\x00\x4b",
            0x2A: capabilities,
        }


class AtapiDrive(AtaDevice):
    """A `CdDrive` on an ATA cable."""

    is_packet = True
    signature = PACKET_SIGNATURE

    def __init__(
        self,
        drive: CdDrive,
        *,
        model: str = "vdisk DVD-ROM",
        serial: str = "VD00000002",
        firmware: str = "1.0",
        is_sata: bool = False,
    ) -> None:
        self.drive = drive
        super().__init__(model=model, serial=serial, firmware=firmware, is_sata=is_sata)

    def reset(self) -> None:
        """Also the drive's sense."""
        super().reset()
        self.drive.reset()

    def begin(self, task: TaskFile) -> Action:
        """The few commands of the packet feature set."""
        command = task.command
        if command == Command.PACKET:
            return Action(Protocol.PACKET)
        if command == Command.IDENTIFY_PACKET_DEVICE:
            return Action(Protocol.PIO, Transfer.answer(self.identify()))
        if command in (Command.DEVICE_RESET, Command.DIAGNOSTIC, Command.IDENTIFY_DEVICE):
            # The signature is how a guest that asks for a disk learns that this is none.
            task.count, task.lba, task.device = 1, self.signature, task.device & 0x10
            if command == Command.IDENTIFY_DEVICE:
                raise AtaError
            return Action(Protocol.NONE)
        if command == Command.SET_FEATURES:
            return self._set_features(task)
        if command == Command.CHECK_POWER:
            task.count = 0xFF
            return Action(Protocol.NONE)
        if command in _IDLE_COMMANDS:
            return Action(Protocol.NONE)
        raise AtaError

    def packet(self, cdb: bytes) -> Transfer:
        """The command in the packet."""
        return self.drive.begin(cdb)

    def medium_failed(self, direction: Direction) -> ScsiError:
        """Noted by the drive for REQUEST SENSE."""
        return self.drive.failed(direction)

    def identify(self) -> bytes:
        """The 512 bytes of IDENTIFY PACKET DEVICE."""
        words = self._identify_common()
        words[0] = 0x85C0  # packet device, CD, removable, 50 us to DRQ, 12-byte packets
        words[82] = words[85] = 0x4210  # NOP, DEVICE RESET, PACKET
        words[83] = 0x4000
        words[84] = words[87] = 0x4000
        return self._identify_data(words)
