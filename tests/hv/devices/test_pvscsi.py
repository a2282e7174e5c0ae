"""A guest drives SCSI disks through VMware's paravirtual controller, the way Linux's vmw_pvscsi does."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.hv.devices.device_rig import FakeMemory, PciRig, RamDisk
from vdisk.hv.devices.pvscsi import Pvscsi
from vdisk.hv.devices.scsi_disk import ScsiDisk

STATE, REQUESTS, DONE, DATA, SENSE, SGL = 0x1000, 0x2000, 0x4000, 0x10000, 0x8000, 0x9000
TO_HOST, TO_DEVICE, WITH_LIST = 8, 16, 1


class Adapter:
    """The driver: two pages of requests, one of completions."""

    def __init__(self, *targets: ScsiDisk | None) -> None:
        self.memory = FakeMemory()
        self.rig = PciRig()
        self.function = Pvscsi(self.memory, targets)
        self.rig.plug(self.function)
        self.registers: Any = self.rig.region(self.function, 0)
        self.produced = self.consumed = 0

    def reg(self, offset: int, value: int | None = None) -> int:
        if value is None:
            found: int = self.registers.read(offset, 4)
            return found
        self.registers.write(offset, 4, value)
        return value

    def command(self, number: int, data: bytes = b"") -> None:
        self.reg(0, number)
        for (word,) in struct.iter_unpack("<I", data):
            self.reg(4, word)

    def setup(self, *, requests: int = REQUESTS, pages: tuple[int, int] = (2, 1)) -> None:
        requested = [requests >> 12, (requests >> 12) + 1] + [0] * 30
        done = [DONE >> 12] + [0] * 31
        self.command(3, struct.pack("<IIQ64Q", *pages, STATE >> 12, *requested, *done))

    def start(self) -> Adapter:
        self.command(1)
        self.setup()
        assert self.state(2) == 6
        assert self.state(5) == 7
        self.reg(0x2010, 3)
        return self

    def state(self, word: int, value: int | None = None) -> int:
        if value is not None:
            self.memory.write(STATE + 4 * word, struct.pack("<I", value))
        return int.from_bytes(self.memory.read(STATE + 4 * word, 4), "little")

    def queue(
        self,
        cdb: bytes,
        *,
        address: int = DATA,
        length: int = 0,
        flags: int = TO_HOST,
        target: int = 0,
        lun: int = 0,
        context: int = 7,
    ) -> None:
        request = struct.pack(
            "<QQQQII16sB8sBBBB59x",
            context,
            address,
            length,
            SENSE,
            96,
            flags,
            cdb,
            len(cdb),
            bytes((0, lun)),
            0x20,
            0,
            target,
            0,
        )
        assert len(request) == 128
        self.memory.write(REQUESTS + 128 * (self.produced % 64), request)
        self.produced += 1
        self.state(0, self.produced & 0xFFFFFFFF)

    def completions(self) -> list[tuple[int, int, int, int, int]]:
        """(context, bytes, sense length, host status, SCSI status)."""
        found = []
        while self.consumed != self.state(3):
            at = DONE + 32 * (self.consumed % 128)
            found.append(struct.unpack("<QQIHH", self.memory.read(at, 24)))
            self.consumed += 1
            self.state(4, self.consumed)
        return found

    def run(self, cdb: bytes, **options: Any) -> tuple[int, int, int, int]:
        """One request: (bytes, sense length, host status, SCSI status)."""
        self.queue(cdb, **options)
        self.reg(0x4018, 0)
        [(context, *rest)] = self.completions()
        assert context == 7
        return rest[0], rest[1], rest[2], rest[3]


def read_10(first: int, count: int, opcode: int = 0x28) -> bytes:
    return struct.pack(">BxIxHx", opcode, first, count)


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk().fill()


@pytest.fixture
def adapter(disk: RamDisk) -> Adapter:
    return Adapter(ScsiDisk(disk, vendor="VMware"), None, ScsiDisk(RamDisk(512 << 10))).start()


def test_the_ids_and_what_is_not_supported(disk: RamDisk) -> None:
    adapter = Adapter(ScsiDisk(disk))
    assert adapter.rig.config(3, 0) == 0x07C015AD
    assert not adapter.function.is_live
    for command in (8, 10, 2, 99):
        adapter.reg(0, command)
        assert adapter.reg(8) == 0xFFFFFFFF
        adapter.reg(4, 1)


def test_a_driver_finds_the_targets(adapter: Adapter) -> None:
    assert adapter.function.is_live
    assert adapter.run(bytes([0x12, 0, 0, 0, 36, 0]), length=36) == (36, 0, 0, 0)
    assert adapter.memory.read(DATA + 8, 8) == b"VMware  "
    assert adapter.run(bytes([0x12, 0, 0, 0, 255, 0]), length=255, target=2)[0] == 36
    for target in (1, 3, 200):
        assert adapter.run(bytes([0x12, 0, 0, 0, 36, 0]), length=36, target=target)[2] == 0x11
    assert adapter.run(bytes([0x12, 0, 0, 0, 36, 0]), length=36, lun=3) == (36, 0, 0, 0)
    assert adapter.memory.read(DATA, 1) == b"\x7f"


def test_sectors_come_and_go(adapter: Adapter, disk: RamDisk) -> None:
    assert adapter.run(read_10(5, 8), length=4096) == (4096, 0, 0, 0)
    assert adapter.memory.read(DATA, 4096) == disk.sectors(5, 8)
    adapter.memory.write(DATA, b"p" * 1024)
    assert adapter.run(read_10(9, 2, 0x2A), length=1024, flags=TO_DEVICE) == (1024, 0, 0, 0)
    assert disk.sectors(9, 2) == b"p" * 1024


def test_lists_may_be_chained(adapter: Adapter, disk: RamDisk) -> None:
    adapter.memory.write(SGL, struct.pack("<QIIQII", DATA, 1000, 0, SGL + 0x800, 0, 1))
    adapter.memory.write(SGL + 0x800, struct.pack("<QIIQII", DATA + 0x5000, 24, 0, DATA + 0x9000, 9999, 0))
    assert adapter.run(read_10(0, 4), address=SGL, length=2048, flags=TO_HOST | WITH_LIST)[0] == 2048
    pieces = ((DATA, 1000), (DATA + 0x5000, 24), (DATA + 0x9000, 1024))
    assert b"".join(adapter.memory.read(*piece) for piece in pieces) == disk.sectors(0, 4)


def test_errors_bring_sense(adapter: Adapter, disk: RamDisk) -> None:
    assert adapter.run(read_10(99999, 1), length=512) == (0, 18, 0, 2)
    assert adapter.memory.read(SENSE + 2, 1) == b"\x05"
    disk.fails = True
    assert adapter.run(read_10(0, 1), length=512) == (0, 18, 0, 2)
    assert adapter.memory.read(SENSE + 2, 1) == b"\x03"


def test_bad_addresses_are_bad_parameters(adapter: Adapter) -> None:
    assert adapter.run(read_10(0, 1), address=1 << 40, length=512)[2] == 0x1A
    assert adapter.run(read_10(0, 1), length=1 << 60)[2] == 0x1A
    adapter.memory.write(SGL, struct.pack("<QII", SGL, 0, 1))
    assert adapter.run(read_10(0, 1), address=SGL, length=512, flags=TO_HOST | WITH_LIST)[2] == 0x1A
    adapter.memory.write(SGL, struct.pack("<QII", DATA, 0, 0) * 100)
    assert adapter.run(read_10(0, 1), address=SGL, length=512, flags=TO_HOST | WITH_LIST)[2] == 0x1A


def test_a_batch_interrupts_once_by_line(adapter: Adapter) -> None:
    for number in range(10):
        adapter.queue(read_10(number, 1), length=512)
    adapter.reg(0x3014, 0)
    assert len(adapter.completions()) == 10
    assert adapter.rig.irq[11]
    assert adapter.reg(0x100C) == 1
    adapter.reg(0x100C, 1)
    assert not adapter.rig.irq[11]
    adapter.reg(0x2010, 0)
    adapter.run(read_10(0, 1), length=512)
    assert not adapter.rig.irq[11]


def test_every_batch_is_a_message_though_the_status_stays(adapter: Adapter) -> None:
    [(_, at)] = adapter.rig.capabilities(3)
    adapter.rig.config(3, at + 4, value=0xFEE00000)
    adapter.rig.config(3, at + 2, 2, value=1)
    for expected in (1, 2, 3):
        adapter.run(read_10(0, 1), length=512)
        assert len(adapter.rig.messages) == expected


def test_rings_wrap(adapter: Adapter, disk: RamDisk) -> None:
    for number in range(300):
        assert adapter.run(read_10(number, 1), length=512)[3] == 0
        assert adapter.memory.read(DATA, 512) == disk.sectors(number, 1)


def test_impossible_rings_are_refused(adapter: Adapter) -> None:
    for options in ({"pages": (0, 1)}, {"pages": (3, 1)}, {"pages": (64, 1)}, {"requests": 1 << 40}):
        adapter.setup(**options)  # type: ignore[arg-type]
        assert adapter.reg(8) == 0xFFFFFFFF
        adapter.reg(0x4018, 0)
    adapter.start()
    adapter.state(0, 5000)
    adapter.reg(0x4018, 0)
    assert adapter.state(1) == 0


def test_the_controllers_page_tells_how_many_targets_to_look_for(adapter: Adapter) -> None:
    adapter.memory.write(DATA, struct.pack("<IHHH", 0, 0, 0x1A, 2))
    adapter.command(7, struct.pack("<QQI4x", DATA, 0x2121 << 32, 0x1958))
    assert adapter.memory.read(DATA + 6, 4) == struct.pack("<HH", 0x1A, 2)
    adapter.command(7, struct.pack("<QQI4x", DATA, 0x2120 << 32, 0x1958))
    page = adapter.memory.read(DATA, 480)
    assert struct.unpack_from("<IHHH", page) == (0x1958, 120, 0, 0)
    assert struct.unpack_from("<I", page, 472) == (16,)
    adapter.command(7, struct.pack("<QQI4x", 1 << 40, 0x2120 << 32, 0x1958))
    assert adapter.reg(8) == 0xFFFFFFFF


def test_resets(adapter: Adapter) -> None:
    adapter.command(4)
    adapter.command(5, struct.pack("<I8x", 0))
    adapter.command(6, bytes(16))
    adapter.command(1)
    assert not adapter.function.is_live
    adapter.produced = adapter.consumed = 0
    adapter.start()
    assert adapter.run(bytes(6)) == (0, 0, 0, 0)


def test_every_register_can_be_read_and_written_in_any_width(adapter: Adapter) -> None:
    for value in (0, 0xFFFFFFFFFFFFFFFF, 3):
        for offset in range(0, 0x8000, 4):
            for size in (1, 2, 4, 8):
                adapter.registers.write(offset, size, value & ((1 << 8 * size) - 1))
                assert 0 <= adapter.registers.read(offset, size) < 1 << 8 * size
