"""A guest brings LSI's 53C1030 up by its doorbell and sends SCSI commands, the way Linux's mptspi does."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.hv.devices.device_rig import FakeMemory, PciRig, RamDisk
from vdisk.hv.devices.lsi53c1030 import Lsi53c1030
from vdisk.hv.devices.scsi_disk import ScsiDisk

DOORBELL, SEQUENCE, DIAGNOSTIC, STATUS, MASK, REQUESTS, REPLIES = 0, 4, 8, 0x30, 0x34, 0x40, 0x44
FRAMES, REPLY_FRAMES, DATA, SENSE, CHAIN = 0x2000, 0x8000, 0x20000, 0x6000, 0x7000
READY, OPERATIONAL = 1, 2
READ, WRITE = 0x02000000, 0x01000000


class Mpt:
    """The driver."""

    def __init__(self, *targets: ScsiDisk, bar: int = 1) -> None:
        self.memory = FakeMemory()
        self.rig = PciRig()
        self.function = Lsi53c1030(self.memory, targets)
        self.rig.plug(self.function)
        self.registers: Any = self.rig.region(self.function, bar)

    def reg(self, offset: int, value: int | None = None) -> int:
        if value is None:
            found: int = self.registers.read(offset, 4)
            return found
        self.registers.write(offset, 4, value)
        return value

    @property
    def state(self) -> int:
        return self.reg(DOORBELL) >> 28

    def take_interrupt(self) -> None:
        assert self.reg(STATUS) & 1
        self.reg(STATUS, 0)

    def handshake(self, message: bytes) -> bytes:
        """Send a message through the doorbell; returns the reply."""
        self.reg(STATUS, 0)
        self.reg(DOORBELL, 0x42 << 24 | len(message) // 4 << 16)
        assert self.reg(STATUS) & 1
        assert self.reg(DOORBELL) & 0x08000000
        self.reg(STATUS, 0)
        assert not self.reg(STATUS) & 0x80000000
        for (word,) in struct.iter_unpack("<I", message):
            self.reg(DOORBELL, word)
        words: list[int] = []
        while len(words) < 2 or len(words) < 2 * (words[1] & 0xFF):
            assert self.reg(STATUS) & 1
            words.append(self.reg(DOORBELL) & 0xFFFF)
            self.reg(STATUS, 0)
        self.take_interrupt()
        assert not self.reg(DOORBELL) & 0x08000000
        assert not self.reg(STATUS) & 1
        return struct.pack(f"<{len(words)}H", *words)

    def start(self) -> Mpt:
        assert self.state == READY
        facts = self.handshake(bytes((0, 0, 0, 3)) + bytes(8))
        assert facts[3] == 3
        assert facts[2] * 4 == len(facts) == 0x3C
        port = self.handshake(bytes((0, 0, 0, 5)) + bytes(8))
        assert port[0x15] == 1
        assert struct.unpack_from("<HHH", port, 0x16) == (16, 7, 8)
        for number in range(8):
            self.reg(REPLIES, REPLY_FRAMES + 0x80 * number)
        init = bytes((4, 0, 0, 2, 0, 16, 1, 0)) + bytes(4) + struct.pack("<H2xII", 80, 0, 0) + bytes(20)
        assert self.handshake(init)[0x0E:0x10] == b"\0\0"
        assert self.handshake(bytes((0, 0, 0, 6)) + bytes(8))[0x0E:0x10] == b"\0\0"
        assert self.state == OPERATIONAL
        self.reg(MASK, 1)
        return self

    def post(self, request: bytes, slot: int = 0) -> None:
        self.memory.write(FRAMES + 128 * slot, request.ljust(128, b"\0"))
        self.reg(REQUESTS, FRAMES + 128 * slot)

    def replies(self) -> list[int | bytes]:
        """What came: contexts, and reply frames, whose memory is given back."""
        found: list[int | bytes] = []
        while (word := self.reg(REPLIES)) != 0xFFFFFFFF:
            if word & 0x80000000:
                address = word << 1 & 0xFFFFFFFF
                found.append(self.memory.read(address, 80))
                self.reg(REPLIES, address)
            else:
                found.append(word)
        return found

    def message(self, request: bytes) -> bytes:
        self.post(request)
        assert self.rig.irq[11]
        [reply] = self.replies()
        assert not self.rig.irq[11]
        assert isinstance(reply, bytes)
        assert reply[3] == request[3]
        return reply[: reply[2] * 4]

    def scsi(
        self,
        cdb: bytes,
        length: int = 0,
        *,
        target: int = 0,
        bus: int = 0,
        control: int = READ,
        sgl: bytes | None = None,
        chain_offset: int = 0,
        context: int = 0x1234,
    ) -> bytes:
        """A SCSI request frame; without a list of its own, one 32-bit element at DATA."""
        if sgl is None:
            sgl = struct.pack("<II", 0xD1000000 | length, DATA)
        head = bytes((target, bus, chain_offset, 0, len(cdb), 96, 0, 0)) + struct.pack("<I", context)
        return (
            head
            + bytes(8)
            + struct.pack("<I", control)
            + cdb.ljust(16, b"\0")
            + struct.pack("<II", length, SENSE)
            + sgl
        )

    def config(
        self, kind: int, number: int, address: int = 0, *, action: int = 1, length: int = 256
    ) -> tuple[int, bytes]:
        """(status, page read to DATA) of a configuration request."""
        request = bytes((action, 0, 0, 4)) + bytes(4) + struct.pack("<I", 0x77) + bytes(8)
        request += bytes((0, 0, number, kind)) + struct.pack("<III", address, 0xD1000000 | length, DATA)
        reply = self.message(request)
        status = int.from_bytes(reply[0x0E:0x10], "little")
        if status == 0:
            assert reply[0x16] == number
            assert reply[0x15]
        return status, self.memory.read(DATA, reply[0x15] * 4)


def read_10(first: int, count: int, opcode: int = 0x28) -> bytes:
    return struct.pack(">BxIxHx", opcode, first, count)


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk().fill()


@pytest.fixture
def mpt(disk: RamDisk) -> Mpt:
    return Mpt(ScsiDisk(disk, vendor="VMware"), ScsiDisk(RamDisk())).start()


@pytest.mark.parametrize("bar", [0, 1])
def test_a_driver_brings_it_up_through_ports_or_memory(disk: RamDisk, bar: int) -> None:
    mpt = Mpt(ScsiDisk(disk), bar=bar)
    assert mpt.rig.config(3, 0) == 0x00301000
    assert not mpt.function.is_live
    mpt.start()
    assert mpt.function.is_live


def test_sectors_come_with_a_context_for_an_answer(mpt: Mpt, disk: RamDisk) -> None:
    mpt.post(mpt.scsi(read_10(7, 4), 2048))
    assert mpt.reg(STATUS) & 8
    assert mpt.rig.irq[11]
    assert mpt.replies() == [0x1234]
    assert not mpt.rig.irq[11]
    assert mpt.memory.read(DATA, 2048) == disk.sectors(7, 4)


def test_sectors_go(mpt: Mpt, disk: RamDisk) -> None:
    mpt.memory.write(DATA, b"l" * 1024)
    mpt.post(mpt.scsi(read_10(3, 2, 0x2A), 1024, control=WRITE))
    assert mpt.replies() == [0x1234]
    assert disk.sectors(3, 2) == b"l" * 1024


def test_lists_of_both_widths_and_chains(mpt: Mpt, disk: RamDisk) -> None:
    wide = struct.pack("<IQIQ", 0x12000000 | 512, DATA + 0x1000, 0xD3000000 | 1536, DATA)
    mpt.post(mpt.scsi(read_10(0, 4), 2048, sgl=wide))
    assert mpt.replies() == [0x1234]
    assert mpt.memory.read(DATA + 0x1000, 512) + mpt.memory.read(DATA, 1536) == disk.sectors(0, 4)
    first = struct.pack("<IIHBBI", 0x90000000 | 512, DATA, 24, 4, 0x30, CHAIN)
    mpt.memory.write(
        CHAIN,
        struct.pack(
            "<IIIIHBBI", 0x10000000 | 512, DATA + 512, 0x90000000 | 512, DATA + 1024, 8, 0, 0x30, CHAIN + 0x100
        ),
    )
    mpt.memory.write(CHAIN + 0x100, struct.pack("<II", 0xD1000000 | 512, DATA + 1536))
    mpt.post(mpt.scsi(read_10(20, 4), 2048, sgl=first, chain_offset=14))
    assert mpt.replies() == [0x1234]
    assert mpt.memory.read(DATA, 2048) == disk.sectors(20, 4)


def test_errors_come_in_a_frame_with_sense(mpt: Mpt) -> None:
    mpt.post(mpt.scsi(read_10(99999, 1), 512))
    [reply] = mpt.replies()
    assert isinstance(reply, bytes)
    assert reply[0x0C:0x0E] == b"\x02\x01"
    assert struct.unpack_from("<II", reply, 0x14) == (0, 18)
    assert mpt.memory.read(SENSE + 2, 1) == b"\x05"


def test_less_data_than_asked_for_is_an_underrun(mpt: Mpt) -> None:
    mpt.post(mpt.scsi(bytes([0x12, 0, 0, 0, 255, 0]), 255))
    [reply] = mpt.replies()
    assert isinstance(reply, bytes)
    assert struct.unpack_from("<BBHII", reply, 0x0C) == (0, 0, 0x45, 0, 36)
    assert mpt.memory.read(DATA + 8, 6) == b"VMware"


@pytest.mark.parametrize(("target", "bus", "status"), [(2, 0, 0x43), (7, 0, 0x43), (0, 1, 0x41)])
def test_nobody_there(mpt: Mpt, target: int, bus: int, status: int) -> None:
    mpt.post(mpt.scsi(bytes(6), target=target, bus=bus))
    [reply] = mpt.replies()
    assert isinstance(reply, bytes)
    assert struct.unpack_from("<H", reply, 0x0E) == (status,)


@pytest.mark.parametrize(
    ("sgl", "chain_offset"),
    [
        (struct.pack("<II", 0xD1000000 | 512, 0xFFFFF000), 0),
        (struct.pack("<IQ", 0xD3000000 | 512, 1 << 60), 0),
        (struct.pack("<HBBI", 8, 0, 0x30, CHAIN), 0),
        (struct.pack("<HBBI", 0, 0, 0x30, CHAIN), 0),
        (struct.pack("<II", 0x10000000, DATA) * 10, 0),
        (struct.pack("<II", 0x90000000, DATA), 60),
        (struct.pack("<II", 0xC1000000, DATA), 0),
    ],
)
def test_a_bad_list_is_an_invalid_one(mpt: Mpt, sgl: bytes, chain_offset: int) -> None:
    mpt.memory.write(CHAIN, struct.pack("<HBBI", 8, 0, 0x30, CHAIN))  # a chain that leads to itself
    mpt.post(mpt.scsi(read_10(0, 1), 512, sgl=sgl, chain_offset=chain_offset))
    [reply] = mpt.replies()
    assert isinstance(reply, bytes)
    assert struct.unpack_from("<H", reply, 0x0E) == (3,)


def test_configuration_pages_have_the_lengths_they_say(mpt: Mpt) -> None:
    for kind, number, length in [
        (3, 0, 12),
        (3, 1, 16),
        (3, 2, 76),
        (4, 0, 12),
        (4, 1, 16),
        (1, 0, 28),
        (1, 1, 16),
        (1, 2, 12),
        (0, 2, 32),
        (9, 0, 76),
    ]:
        status, page = mpt.config(kind, number)
        assert (status, len(page)) == (0, length)
        assert page[2] == number
    assert mpt.config(3, 9)[0] == 0x22
    assert mpt.config(5, 0)[0] == 0x22
    assert mpt.config(4, 0, 99)[0] == 0x22
    assert mpt.config(3, 0, action=9)[0] == 0x20
    assert mpt.config(3, 0, action=2)[0] == 0x20


def test_what_is_requested_of_a_device_is_negotiated(mpt: Mpt) -> None:
    mpt.memory.write(DATA, bytes((0, 4, 1, 0x14)) + struct.pack("<III", 0x207F0A03, 0, 5))
    assert mpt.config(4, 1, 3, action=2, length=16)[0] == 0
    mpt.memory.write(DATA, bytes(64))
    assert mpt.config(4, 1, 3)[1][4:] == struct.pack("<III", 0x207F0A03, 0, 5)
    assert mpt.config(4, 0, 3)[1][4:8] == struct.pack("<I", 0x207F0A03)
    assert mpt.config(4, 0, 2)[1][4:8] == bytes(4)


def test_events_and_task_management_are_answered(mpt: Mpt) -> None:
    reply = mpt.message(bytes((1, 0, 0, 7)) + bytes(8))
    assert reply[7] == 0x80
    assert reply[0x14] == 0x0A
    assert reply[0x1C] == 1
    assert mpt.message(bytes((0, 0, 0, 1, 0, 3)) + bytes(46))[0x0E:0x10] == b"\0\0"
    assert mpt.message(bytes((0, 0, 0, 0x1A)) + bytes(8))[0x0E:0x10] == b"\x01\0"


def test_task_management_by_doorbell_is_answered_by_a_frame(mpt: Mpt) -> None:
    message = bytes((0, 0, 0, 1, 0, 4)) + bytes(2) + struct.pack("<I", 0x99) + bytes(40)
    mpt.reg(DOORBELL, 0x42 << 24 | len(message) // 4 << 16)
    mpt.take_interrupt()
    for (word,) in struct.iter_unpack("<I", message):
        mpt.reg(DOORBELL, word)
    mpt.take_interrupt()
    assert not mpt.reg(DOORBELL) & 0x08000000
    [reply] = mpt.replies()
    assert isinstance(reply, bytes)
    assert (reply[3], reply[5]) == (1, 4)
    assert reply[8:12] == struct.pack("<I", 0x99)


def test_resets_by_message_and_by_the_diagnostic_register(mpt: Mpt) -> None:
    mpt.reg(DOORBELL, 0x40 << 24)
    assert mpt.state == READY
    assert mpt.reg(REPLIES) == 0xFFFFFFFF
    mpt.start()
    mpt.reg(DIAGNOSTIC, 4)
    assert mpt.state == OPERATIONAL
    for key in (0x04, 0x0B, 0x02, 0x07, 0x0D):
        mpt.reg(SEQUENCE, key)
    assert mpt.reg(DIAGNOSTIC) & 0x80
    mpt.reg(DIAGNOSTIC, 0x84)
    assert mpt.state == READY
    assert mpt.reg(DIAGNOSTIC) & 0x24 == 0x20
    mpt.start()


def test_a_request_outside_ram_is_a_fault(mpt: Mpt) -> None:
    mpt.reg(REQUESTS, 0xFFFFFF00)
    assert mpt.state == 4
    mpt.reg(DOORBELL, 0x40 << 24)
    mpt.start()


def test_a_driver_without_reply_frames_is_at_fault(mpt: Mpt) -> None:
    for _ in range(9):
        mpt.post(mpt.scsi(bytes(6), target=9))
    assert mpt.state == 4


def test_nothing_is_done_before_it_is_initialised(disk: RamDisk) -> None:
    mpt = Mpt(ScsiDisk(disk))
    mpt.post(mpt.scsi(read_10(0, 1), 512))
    assert mpt.reg(REPLIES) == 0xFFFFFFFF


def test_every_register_can_be_read_and_written_in_any_width(mpt: Mpt) -> None:
    for value in (0, 0xFFFFFFFFFFFFFFFF, 0x42030000, 0x12345678):
        for offset in (*range(0x100), 0x1FFF8):
            for size in (1, 2, 4, 8):
                mpt.registers.write(offset, size, value & ((1 << 8 * size) - 1))
                assert 0 <= mpt.registers.read(offset, size) < 1 << 8 * size
