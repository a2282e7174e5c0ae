"""The SCSI command core: what every logical unit answers (SPC-4), whichever controller carries the command.

`begin` decodes a command into a `Transfer`; `execute` also moves the data and gives the status and the sense.
"""

from __future__ import annotations

import abc
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vdisk.errors import VdiskError
from vdisk.hv.devices.transfer import Direction, Transfer

GOOD, CHECK_CONDITION = 0x00, 0x02
SENSE_BYTES = 18
NO_SENSE, NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, DATA_PROTECT = 0, 2, 3, 5, 7
TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, MODE_SENSE_6, START_STOP_UNIT, PREVENT_REMOVAL = (
    0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E,
)  # fmt: skip
MODE_SENSE_10, REPORT_LUNS = 0x5A, 0xA0

_CDB_BYTES = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}


class ScsiError(Exception):
    """A CHECK CONDITION: sense key, additional sense code and qualifier."""

    def __init__(self, key: int, code: int, qualifier: int = 0) -> None:
        super().__init__(f"sense {key:x}/{code:02x}/{qualifier:02x}")
        self.key, self.code, self.qualifier = key, code, qualifier

    def sense(self) -> bytes:
        """Fixed-format sense data."""
        return fixed_sense(self.key, self.code, self.qualifier)


def fixed_sense(key: int, code: int, qualifier: int) -> bytes:
    """18 bytes of fixed-format sense data (SPC-4, 4.5.3)."""
    return struct.pack(">BBBIBIBBB3x", 0x70, 0, key, 0, SENSE_BYTES - 8, 0, code, qualifier, 0)


def invalid_opcode() -> ScsiError:
    """INVALID COMMAND OPERATION CODE."""
    return ScsiError(ILLEGAL_REQUEST, 0x20)


def invalid_field() -> ScsiError:
    """INVALID FIELD IN CDB."""
    return ScsiError(ILLEGAL_REQUEST, 0x24)


def invalid_parameter() -> ScsiError:
    """INVALID FIELD IN PARAMETER LIST."""
    return ScsiError(ILLEGAL_REQUEST, 0x26)


def out_of_range() -> ScsiError:
    """LOGICAL BLOCK ADDRESS OUT OF RANGE."""
    return ScsiError(ILLEGAL_REQUEST, 0x21)


def write_protected() -> ScsiError:
    """WRITE PROTECTED."""
    return ScsiError(DATA_PROTECT, 0x27)


@dataclass(slots=True)
class ScsiResult:
    """What a controller reports: status, bytes moved, sense data (empty when GOOD)."""

    status: int
    transferred: int
    sense: bytes = b""


class ScsiTarget(abc.ABC):
    """Logical unit 0 of a target; other units do not exist."""

    device_type: ClassVar[int]
    """Peripheral device type: 0 disk, 5 CD."""
    is_removable: ClassVar[bool] = False

    def __init__(self, *, vendor: str, product: str, revision: str, serial: str) -> None:
        self.vendor = vendor.encode("ascii", "replace")[:8].ljust(8)
        self.product = product.encode("ascii", "replace")[:16].ljust(16)
        self.revision = revision.encode("ascii", "replace")[:4].ljust(4)
        self.serial = serial.encode("ascii", "replace")[:20]
        self._sense = fixed_sense(NO_SENSE, 0, 0)
        self._handlers: dict[int, Callable[[bytes], Transfer]] = {
            TEST_UNIT_READY: self._test_unit_ready,
            REQUEST_SENSE: self._request_sense,
            INQUIRY: self._inquiry,
            MODE_SENSE_6: self._mode_sense,
            MODE_SENSE_10: self._mode_sense,
            START_STOP_UNIT: self._accept,
            PREVENT_REMOVAL: self._accept,
            REPORT_LUNS: self._report_luns,
        }

    def reset(self) -> None:
        """Forget pending sense."""
        self._sense = fixed_sense(NO_SENSE, 0, 0)

    # Commands --------------------------------------------------------------------------------------------------

    def begin(self, cdb: bytes, lun: int = 0) -> Transfer:
        """Decode a command. Raises `ScsiError`, whose sense REQUEST SENSE gives from then on, too."""
        try:
            opcode = cdb[0] if cdb else 0xFF
            if len(cdb) < _CDB_BYTES.get(opcode >> 5, 1):
                cdb = cdb.ljust(16, b"\0")
            if lun and opcode not in (INQUIRY, REQUEST_SENSE, REPORT_LUNS):
                raise ScsiError(ILLEGAL_REQUEST, 0x25)
            if lun and opcode == INQUIRY:
                return self.allocated(b"\x7f\x00\x05\x02\x1f".ljust(36, b"\0"), cdb[3] << 8 | cdb[4])
            if opcode == REQUEST_SENSE:
                return self._request_sense(cdb)
            handler = self._handlers.get(opcode)
            if handler is None:
                raise invalid_opcode()
            transfer = handler(cdb)
        except ScsiError as error:
            self._sense = error.sense()
            raise
        self._sense = fixed_sense(NO_SENSE, 0, 0)
        return transfer

    def failed(self, direction: Direction) -> ScsiError:
        """The error for a disk that failed under a transfer; noted for REQUEST SENSE."""
        error = ScsiError(MEDIUM_ERROR, 0x11 if direction is Direction.IN else 0x0C)
        self._sense = error.sense()
        return error

    def execute(self, cdb: bytes, lun: int, pieces: Sequence[memoryview]) -> ScsiResult:
        """Decode a command and move its data between the device and the pieces of guest memory."""
        try:
            transfer = self.begin(cdb, lun)
            try:
                return ScsiResult(GOOD, transfer.run(pieces))
            except ScsiError as error:
                self._sense = error.sense()
                raise
            except VdiskError:
                raise self.failed(transfer.direction) from None
        except ScsiError as error:
            return ScsiResult(CHECK_CONDITION, 0, error.sense())

    @staticmethod
    def allocated(payload: bytes, allocation_length: int) -> Transfer:
        """An answer cut to the allocation length."""
        return Transfer.answer(payload[:allocation_length])

    # Answers that all units share ------------------------------------------------------------------------------

    def _accept(self, cdb: bytes) -> Transfer:
        return Transfer.nothing()

    def _test_unit_ready(self, cdb: bytes) -> Transfer:
        return Transfer.nothing()

    def _request_sense(self, cdb: bytes) -> Transfer:
        sense, self._sense = self._sense, fixed_sense(NO_SENSE, 0, 0)
        return self.allocated(sense, cdb[4])

    def _report_luns(self, cdb: bytes) -> Transfer:
        return self.allocated(struct.pack(">IIQ", 8, 0, 0), int.from_bytes(cdb[6:10], "big"))

    def _inquiry(self, cdb: bytes) -> Transfer:
        length = cdb[3] << 8 | cdb[4]
        if cdb[1] & 1:
            page = self.vital_page(cdb[2])
            if page is None:
                raise invalid_field()
            header = struct.pack(">BBH", self.device_type, cdb[2], len(page))
            return self.allocated(header + page, length)
        if cdb[2]:
            raise invalid_field()
        head = bytes((self.device_type, 0x80 if self.is_removable else 0, 0x05, 0x02, 31, 0, 0, 0x02))
        return self.allocated(head + self.vendor + self.product + self.revision, length)

    def vital_page(self, page: int) -> bytes | None:
        """A page of vital product data without its header, or None where there is no such page."""
        match page:
            case 0x00:
                return bytes(self.vital_pages())
            case 0x80:
                return self.serial
            case 0x83:
                identifier = self.vendor + self.serial
                return bytes((0x02, 0x01, 0, len(identifier))) + identifier
        return None

    def vital_pages(self) -> tuple[int, ...]:
        """The numbers of the pages of vital product data, ascending."""
        return (0x00, 0x80, 0x83)

    # Mode pages ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def mode_pages(self) -> dict[int, bytes]:
        """The mode pages: number to content, its two bytes of header included."""

    def mode_parameter(self) -> int:
        """The device-specific parameter of the mode header: write protection, DPO and FUA."""
        return 0

    def block_descriptor(self) -> bytes:
        """The block descriptor of MODE SENSE, 8 bytes, or none."""
        return b""

    def _mode_sense(self, cdb: bytes) -> Transfer:
        control, page, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
        if control == 3:
            raise ScsiError(ILLEGAL_REQUEST, 0x39)  # no saved values
        pages = self.mode_pages()
        if (page != 0x3F and page not in pages) or subpage not in (0, 0xFF):
            raise invalid_field()
        chosen = [pages[page]] if page != 0x3F else [pages[number] for number in sorted(pages)]
        if control == 1:  # which bits can be changed: none
            chosen = [content[:2] + bytes(len(content) - 2) for content in chosen]
        blocks = b"" if cdb[1] & 0x08 else self.block_descriptor()
        body = blocks + b"".join(chosen)
        if cdb[0] == MODE_SENSE_6:
            head = bytes((len(body) + 3, 0, self.mode_parameter(), len(blocks)))
            return self.allocated(head + body, cdb[4])
        head = struct.pack(">HBBHH", len(body) + 6, 0, self.mode_parameter(), 0, len(blocks))
        return self.allocated(head + body, cdb[7] << 8 | cdb[8])
