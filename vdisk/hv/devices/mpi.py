"""The messages of LSI's Fusion-MPT interface (MPI 1.2) that a parallel SCSI controller exchanges with its driver.

Messages are little-endian. A reply begins as its request does, with its own length in 32-bit words in byte 2; the
status stands at 0Eh.
"""

from __future__ import annotations

import struct

SCSI_IO, TASK_MANAGEMENT, IOC_INIT, IOC_FACTS, CONFIG, PORT_FACTS, PORT_ENABLE, EVENT_NOTIFICATION, EVENT_ACK = range(9)
MESSAGE_UNIT_RESET, IO_UNIT_RESET, HANDSHAKE = 0x40, 0x41, 0x42

SUCCESS, INVALID_FUNCTION, INVALID_SGL, INVALID_FIELD, INVALID_STATE = 0x00, 0x01, 0x03, 0x07, 0x08
CONFIG_INVALID_ACTION, CONFIG_INVALID_PAGE = 0x20, 0x22
SCSI_INVALID_BUS, SCSI_NOT_THERE, SCSI_UNDERRUN = 0x41, 0x43, 0x45

VERSION = 0x0102
PRODUCT_ID_1030 = 0x0004
FIRMWARE_VERSION = 0x01032920
REQUEST_FRAME_WORDS, REPLY_FRAME_BYTES, QUEUE_DEPTH, CHAIN_DEPTH = 32, 128, 128, 34
BUS_IDS, OWN_ID = 16, 7
_PORT_TYPE_SCSI, _INITIATOR = 0x01, 0x08
_EVENT_CHANGE, _CONTINUATION = 0x0A, 0x80


def header(request: bytes) -> tuple[int, int]:
    """(function, message context)."""
    return request[3], int.from_bytes(request[8:12], "little")


def finished(reply: bytearray, request: bytes, status: int) -> bytes:
    """Fill in what all replies have: length, function, context, status."""
    reply[2] = len(reply) // 4
    reply[3] = request[3]
    reply[8:12] = request[8:12]
    struct.pack_into("<H", reply, 0x0E, status)
    return bytes(reply)


def default_reply(request: bytes, status: int = SUCCESS) -> bytes:
    """The reply to a message that asks for nothing: its own first bytes and a status."""
    reply = bytearray(20)
    reply[0:8] = request[0:8]
    return finished(reply, request, status)


def ioc_facts(request: bytes, *, who_init: int, reply_frame_bytes: int, has_events: bool) -> bytes:
    """What the controller can do."""
    reply = bytearray(0x3C)
    struct.pack_into("<H", reply, 0x00, VERSION)
    reply[0x14:0x18] = bytes((CHAIN_DEPTH, who_init, 8, 0))
    struct.pack_into("<HHHH", reply, 0x18, QUEUE_DEPTH, REQUEST_FRAME_WORDS, 0, PRODUCT_ID_1030)
    struct.pack_into("<HBB", reply, 0x24, QUEUE_DEPTH, 1, has_events)
    struct.pack_into("<HBB", reply, 0x2C, reply_frame_bytes, BUS_IDS, 1)
    struct.pack_into("<I", reply, 0x38, FIRMWARE_VERSION)
    return finished(reply, request, SUCCESS)


def port_facts(request: bytes) -> bytes:
    """What its one port is."""
    reply = bytearray(0x28)
    reply[6] = request[6]
    if request[6]:
        return finished(reply, request, INVALID_FIELD)
    struct.pack_into("<BHHH", reply, 0x15, _PORT_TYPE_SCSI, BUS_IDS, OWN_ID, _INITIATOR)
    return finished(reply, request, SUCCESS)


def event_notification(request: bytes) -> bytes:
    """The switch is acknowledged by an event of its own."""
    reply = bytearray(0x20)
    struct.pack_into("<H", reply, 0, 1)
    reply[7] = _CONTINUATION
    struct.pack_into("<I", reply, 0x14, _EVENT_CHANGE)
    reply[0x1C] = 1 if request[0] else 0
    return finished(reply, request, SUCCESS)


def task_management(request: bytes, *, terminated: int = 0) -> bytes:
    """The outcome of an abort or a reset."""
    reply = bytearray(0x18)
    reply[0:2] = request[0:2]
    reply[5] = request[5]
    struct.pack_into("<I", reply, 0x14, terminated)
    return finished(reply, request, SUCCESS)


def scsi_io(request: bytes, status: int, *, scsi_status: int = 0, transferred: int = 0, sense_bytes: int = 0) -> bytes:
    """The outcome of a SCSI command that did not simply succeed."""
    reply = bytearray(0x24)
    reply[0:2] = request[0:2]
    reply[4:6] = request[4:6]
    reply[0x0C] = scsi_status
    reply[0x0D] = (0x01 if sense_bytes else 0) | (0 if status in (SUCCESS, SCSI_UNDERRUN) else 0x04)
    struct.pack_into("<II", reply, 0x14, transferred, sense_bytes)
    struct.pack_into("<H", reply, 0x20, 0xFFFF)
    return finished(reply, request, status)


def config(request: bytes, page: bytes, status: int = SUCCESS) -> bytes:
    """The reply to a configuration request; `page` is the page with its header, or the request's header."""
    reply = bytearray(0x18)
    reply[0] = request[0]
    reply[0x14:0x18] = page[:4]
    return finished(reply, request, status)


class ConfigPages:
    """The configuration pages of a parallel SCSI controller; the negotiation pages of the devices can be written."""

    IO_UNIT, IOC, BIOS, SCSI_PORT, SCSI_DEVICE, MANUFACTURING = 0, 1, 2, 3, 4, 9
    _CHANGEABLE = 0x10

    def __init__(self) -> None:
        self._pages: dict[tuple[int, int], bytes] = {}
        self._add(self.IO_UNIT, 0, bytes(8))
        self._add(self.IO_UNIT, 1, bytes(4))
        self._add(self.IO_UNIT, 2, bytes(28))
        self._add(self.IOC, 0, struct.pack("<8xHHB3xIHH", 0x1000, 0x0030, 8, 0x010000, 0, 0))
        self._add(self.IOC, 1, bytes(12))
        self._add(self.IOC, 2, bytes(8))
        self._add(self.IOC, 3, bytes(4))
        self._add(self.IOC, 4, bytes(4))
        # Ultra320, wide, offset 127, low voltage differential.
        self._add(self.SCSI_PORT, 0, struct.pack("<II", 0x207F0803, 3))
        self._add(self.SCSI_PORT, 1, struct.pack("<IIBxH", OWN_ID, 0, 0, 0))
        settings = struct.pack("<BBH", 10, 8, 0x0005) * BUS_IDS
        self._add(self.SCSI_PORT, 2, struct.pack("<II", 0, OWN_ID) + settings)
        names = (b"LSI53C1030", 16), (b"C0", 8), (b"VDISK-SCSI", 16), (b"VDISK-SCSI-A", 16), (b"1", 16)
        self._add(self.MANUFACTURING, 0, b"".join(name.ljust(length, b"\0") for name, length in names))
        self._lengths = {0: 8, 1: 12, 2: 12, 3: 8}
        self._requested: dict[tuple[int, int], bytes] = {}

    def _add(self, kind: int, number: int, body: bytes) -> None:
        self._pages[kind, number] = bytes((0, len(body) // 4 + 1, number, kind)) + body

    def find(self, kind: int, number: int, address: int) -> bytes | None:
        """A page with its header, or None. `address` names the target of a device page."""
        kind &= 0x0F
        if kind != self.SCSI_DEVICE:
            return self._pages.get((kind, number))
        if number not in self._lengths or address & 0xFF >= BUS_IDS or address >> 8 & 0xFF:
            return None
        body = self._requested.get((number, address & 0xFF), bytes(self._lengths[number]))
        attributes = self._CHANGEABLE if number in (1, 2) else 0
        return bytes((0, len(body) // 4 + 1, number, attributes | kind)) + body

    def store(self, number: int, address: int, page: bytes) -> bool:
        """Write a device page; False where it cannot be written. What is asked for is what was negotiated."""
        length = self._lengths.get(number, 0)
        if number not in (1, 2) or address & 0xFF >= BUS_IDS or len(page) < 4 + length:
            return False
        self._requested[number, address & 0xFF] = page[4 : 4 + length]
        if number == 1:
            self._requested[0, address & 0xFF] = page[4:8] + bytes(4)
        return True
