"""A guest drives an NVMe controller: admin queues, I/O queues, PRP lists, MSI-X, errors."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.hv.devices.device_rig import FakeMemory, PciRig, RamDisk
from vdisk.hv.devices.nvme import VMWARE_NVME, NvmeController

ASQ, ACQ, IOSQ, IOCQ, PAGE, LIST, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000, 0x100000
FLUSH, WRITE, READ, WRITE_ZEROES, DSM = 0, 1, 2, 8, 9


class Nvme:
    """A driver with an admin queue and one I/O queue pair."""

    def __init__(self, disk: RamDisk, *, depth: int = 8, msix: bool = True, **options: Any) -> None:
        self.memory = FakeMemory(8 << 20)
        self.rig = PciRig()
        self.function = NvmeController(self.memory, disk, **options)
        self.rig.plug(self.function)
        self.registers: Any = self.rig.region(self.function, 0)
        self.depth = depth
        self.tails = [0, 0]
        self.heads = [0, 0]
        self.phases = [1, 1]
        self.next_id = 100
        if msix:
            at = next(at for kind, at in self.rig.capabilities(3) if kind == 0x11)
            table = self.rig.region(self.function, 4)
            for vector in (0, 1):
                table.write(16 * vector, 4, 0xFEE00000)
                table.write(16 * vector + 8, 4, 0x30 + vector)
                table.write(16 * vector + 12, 4, 0)
            self.rig.config(3, at + 2, 2, value=0x8000)

    def reg(self, offset: int, value: int | None = None, size: int = 4) -> int:
        if value is None:
            found: int = self.registers.read(offset, size)
            return found
        self.registers.write(offset, size, value)
        return value

    def enable(self) -> Nvme:
        self.reg(0x24, (self.depth - 1) << 16 | self.depth - 1)
        self.reg(0x28, ASQ, 8)
        self.reg(0x30, ACQ)
        self.reg(0x34, 0)
        self.reg(0x14, 0x00460001)
        assert self.reg(0x1C) == 1
        return self

    def start(self) -> Nvme:
        self.enable()
        assert self.admin(5, prp1=IOCQ, cdw10=(self.depth - 1) << 16 | 1, cdw11=1 << 16 | 3) == (0, 0)
        assert self.admin(1, prp1=IOSQ, cdw10=(self.depth - 1) << 16 | 1, cdw11=1 << 16 | 1) == (0, 0)
        return self

    def submit(
        self, queue: int, opcode: int, *, nsid: int = 1, prp1: int = 0, prp2: int = 0, flags: int = 0, **cdw: int
    ) -> int:
        """Put a command into a queue without ringing; returns its identifier."""
        self.next_id += 1
        words = [cdw.get(f"cdw{number}", 0) for number in range(10, 16)]
        entry = struct.pack("<BBHI16xQQ6I", opcode, flags, self.next_id, nsid, prp1, prp2, *words)
        self.memory.write((ASQ, IOSQ)[queue] + 64 * self.tails[queue], entry)
        self.tails[queue] = (self.tails[queue] + 1) % self.depth
        return self.next_id

    def ring(self, queue: int) -> None:
        self.reg(0x1000 + 8 * queue, self.tails[queue])

    def completions(self, queue: int, *, acknowledge: bool = True) -> list[tuple[int, int, int]]:
        """(identifier, result, status) of what has come since the last call."""
        found = []
        while True:
            at = (ACQ, IOCQ)[queue] + 16 * self.heads[queue]
            result, _, _, number, cid, status = struct.unpack("<IIHHHH", self.memory.read(at, 16))
            if status & 1 != self.phases[queue]:
                break
            assert number == queue
            found.append((cid, result, status >> 1 & 0x7FF))
            self.heads[queue] += 1
            if self.heads[queue] == self.depth:
                self.heads[queue], self.phases[queue] = 0, self.phases[queue] ^ 1
        if acknowledge:
            self.reg(0x1004 + 8 * queue, self.heads[queue])
        return found

    def run(self, queue: int, opcode: int, **fields: int) -> tuple[int, int]:
        """One command: (result, status)."""
        cid = self.submit(queue, opcode, **fields)
        self.ring(queue)
        [(done, result, status)] = self.completions(queue)
        assert done == cid
        return result, status

    def admin(self, opcode: int, **fields: int) -> tuple[int, int]:
        return self.run(0, opcode, **fields)

    def io(self, opcode: int, first: int = 0, blocks: int = 1, **fields: int) -> int:
        fields = {"prp1": DATA, "cdw10": first & 0xFFFFFFFF, "cdw11": first >> 32, "cdw12": blocks - 1} | fields
        return self.run(1, opcode, **fields)[1]


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk(4 << 20).fill()


@pytest.fixture
def nvme(disk: RamDisk) -> Nvme:
    return Nvme(disk, serial="S42", model="A disk").start()


def test_the_capabilities_and_ids(disk: RamDisk) -> None:
    nvme = Nvme(disk, ids=VMWARE_NVME)
    assert nvme.rig.config(3, 0) == 0x07F015AD
    assert nvme.rig.config(3, 8) >> 8 == 0x010802
    capabilities = nvme.reg(0, size=8)
    assert capabilities & 0xFFFF == 1023
    assert capabilities >> 37 & 1
    assert capabilities >> 32 & 15 == 0
    assert nvme.reg(8) == 0x10300
    assert nvme.reg(0x1C) == 0


def test_identify(nvme: Nvme, disk: RamDisk) -> None:
    assert nvme.function.is_live
    assert nvme.admin(6, prp1=PAGE, cdw10=1) == (0, 0)
    controller = nvme.memory.read(PAGE, 4096)
    assert controller[4:24].rstrip() == b"S42"
    assert controller[24:64].rstrip() == b"A disk"
    assert (controller[77], controller[512], controller[513], controller[525]) == (8, 0x66, 0x44, 1)
    assert nvme.admin(6, prp1=PAGE, cdw10=0) == (0, 0)
    namespace = nvme.memory.read(PAGE, 4096)
    assert struct.unpack_from("<QQQ", namespace) == (8192,) * 3
    assert namespace[130] == 9
    assert nvme.admin(6, nsid=0, prp1=PAGE, cdw10=2) == (0, 0)
    assert nvme.memory.read(PAGE, 8) == b"\x01\0\0\0\0\0\0\0"
    assert nvme.admin(6, prp1=PAGE, cdw10=3) == (0, 0)
    assert nvme.memory.read(PAGE, 2) == b"\x03\x10"
    assert nvme.admin(6, nsid=2, prp1=PAGE, cdw10=0)[1] == 0x0B
    assert nvme.admin(6, prp1=PAGE, cdw10=0x55)[1] == 0x02


def test_one_and_two_pages_need_no_list(nvme: Nvme, disk: RamDisk) -> None:
    assert nvme.io(READ, 5, 1) == 0
    assert nvme.memory.read(DATA, 512) == disk.sectors(5, 1)
    assert nvme.io(READ, 8, 8, prp1=DATA + 0x800, prp2=DATA + 0x3000) == 0
    assert nvme.memory.read(DATA + 0x800, 2048) + nvme.memory.read(DATA + 0x3000, 2048) == disk.sectors(8, 8)


def test_lists_of_pages_may_be_chained(nvme: Nvme, disk: RamDisk) -> None:
    pages = [DATA + 0x1000 * n for n in (9, 3, 200, 4, 5, 6)]
    near_the_end = LIST + 0x1000 - 24
    nvme.memory.write(near_the_end, struct.pack("<3Q", pages[0], pages[1], LIST + 0x2000))
    nvme.memory.write(LIST + 0x2000, struct.pack("<4Q", *pages[2:]))
    assert nvme.io(READ, 100, 56, prp1=DATA, prp2=near_the_end) == 0
    read = b"".join(nvme.memory.read(page, 4096) for page in (DATA, *pages))
    assert read == disk.sectors(100, 56)


def test_a_transfer_of_the_largest_size(nvme: Nvme, disk: RamDisk) -> None:
    pages = [0x200000 + 0x1000 * n for n in range(256)]
    nvme.memory.write(LIST, struct.pack("<255Q", *pages[1:]))
    assert nvme.io(READ, 0, 2048, prp1=pages[0], prp2=LIST) == 0
    assert nvme.memory.read(0x200000, 1 << 20) == disk.sectors(0, 2048)
    assert nvme.io(READ, 0, 2049, prp1=pages[0], prp2=LIST) == 2


def test_writes_flushes_and_fua(nvme: Nvme, disk: RamDisk) -> None:
    nvme.memory.write(DATA, b"n" * 1024)
    assert nvme.io(WRITE, 30, 2) == 0
    assert disk.sectors(30, 2) == b"n" * 1024
    assert disk.flushes == 0
    assert nvme.io(WRITE, 30, 2, cdw12=1 << 30 | 1) == 0
    assert disk.flushes == 1
    assert nvme.io(FLUSH) == 0
    assert nvme.io(FLUSH, nsid=0xFFFFFFFF) == 0
    assert disk.flushes == 3
    assert nvme.admin(9, cdw10=6, cdw11=0) == (0, 0)
    assert nvme.io(WRITE, 30, 2) == 0
    assert disk.flushes == 4


def test_write_zeroes_and_deallocate(nvme: Nvme, disk: RamDisk) -> None:
    assert nvme.io(WRITE_ZEROES, 8, 8, cdw12=1 << 25 | 7) == 0
    assert disk.zeroed == [(4096, 4096, True)]
    nvme.memory.write(DATA, struct.pack("<IIQIIQ", 0, 8, 64, 0, 16, 128))
    assert nvme.run(1, DSM, prp1=DATA, cdw10=1, cdw11=4) == (0, 0)
    assert disk.discards == [(64 * 512, 4096), (128 * 512, 8192)]
    assert nvme.run(1, DSM, prp1=DATA, cdw10=1, cdw11=1) == (0, 0)
    nvme.memory.write(DATA, struct.pack("<IIQ", 0, 8, 8190))
    assert nvme.run(1, DSM, prp1=DATA, cdw10=0, cdw11=4)[1] == 0x80
    assert len(disk.discards) == 2


def test_each_queue_has_its_vector_and_a_batch_interrupts_once(nvme: Nvme) -> None:
    assert nvme.rig.messages == [(0xFEE00000, 0x30)] * 2
    nvme.rig.messages.clear()
    for number in range(5):
        nvme.submit(1, READ, prp1=DATA, cdw10=number)
    nvme.ring(1)
    assert nvme.rig.messages == [(0xFEE00000, 0x31)]
    assert [status for _, _, status in nvme.completions(1)] == [0] * 5


def test_without_messages_the_line_follows_the_completion_queues(disk: RamDisk) -> None:
    nvme = Nvme(disk, msix=False).start()
    assert not nvme.rig.irq[11]
    nvme.submit(1, READ, prp1=DATA)
    nvme.ring(1)
    assert nvme.rig.irq[11]
    nvme.reg(0x0C, 2)
    assert not nvme.rig.irq[11]
    nvme.reg(0x10, 2)
    assert nvme.rig.irq[11]
    nvme.completions(1)
    assert not nvme.rig.irq[11]


def test_queues_wrap_and_a_full_completion_queue_waits(disk: RamDisk) -> None:
    nvme = Nvme(disk, depth=4).start()
    for number in range(20):
        assert nvme.io(READ, number) == 0
        assert nvme.memory.read(DATA, 512) == disk.sectors(number, 1)
    for _ in range(3):
        nvme.submit(1, READ, prp1=DATA)
    nvme.ring(1)
    assert len(nvme.completions(1, acknowledge=False)) == 3
    for _ in range(2):
        nvme.submit(1, READ, prp1=DATA)
    nvme.ring(1)
    assert nvme.completions(1, acknowledge=False) == []
    nvme.reg(0x100C, nvme.heads[1])
    assert len(nvme.completions(1)) == 2


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 8192}, 0x80),
        ({"cdw11": 0xFFFFFFFF, "cdw10": 0xFFFFFFFF}, 0x80),
        ({"nsid": 2}, 0x0B),
        ({"prp1": DATA + 1}, 0x13),
        ({"prp1": 1 << 40}, 0x04),
        ({"cdw12": 31, "prp2": 1 << 60}, 0x04),
        ({"cdw12": 31, "prp2": LIST + 4}, 0x13),
        ({"flags": 0x40}, 0x01),
    ],
)
def test_what_is_wrong_with_a_command_is_its_status(nvme: Nvme, fields: dict[str, int], status: int) -> None:
    assert nvme.io(READ, 0, 1, **fields) == status
    assert nvme.io(READ, 0, 1) == 0


def test_a_list_that_points_to_itself_ends(nvme: Nvme) -> None:
    last_entry = LIST + 0x1000 - 8
    nvme.memory.write(last_entry, struct.pack("<Q", last_entry))
    assert nvme.io(READ, 0, 2048, prp1=DATA, prp2=last_entry) == 0x13


def test_unknown_commands_features_and_logs(nvme: Nvme) -> None:
    assert nvme.io(0x05) == 1
    assert nvme.admin(0x80)[1] == 1
    assert nvme.admin(0x0A, cdw10=0x99)[1] == 2
    assert nvme.admin(0x09, cdw10=0x99)[1] == 2
    assert nvme.admin(0x02, prp1=PAGE, cdw10=0x77)[1] == 0x109
    assert nvme.admin(0x02, prp1=PAGE, cdw10=127 << 16 | 2) == (0, 0)
    assert nvme.memory.read(PAGE + 1, 2) == struct.pack("<H", 303)
    assert nvme.admin(0x09, cdw10=7, cdw11=3 << 16 | 3) == (15 << 16 | 15, 0)
    assert nvme.admin(0x09, cdw10=0x0B, cdw11=0x55) == (0, 0)
    assert nvme.admin(0x0A, cdw10=0x0B) == (0x55, 0)
    assert nvme.admin(0x08, cdw10=5) == (1, 0)


def test_async_event_requests_stay_open(nvme: Nvme) -> None:
    for _ in range(4):
        nvme.submit(0, 0x0C)
    nvme.ring(0)
    assert nvme.completions(0) == []
    assert nvme.admin(0x0C)[1] == 0x105


def test_queues_are_made_and_deleted_in_order(nvme: Nvme) -> None:
    new = {"prp1": 0x9000, "cdw10": 7 << 16 | 2}
    assert nvme.admin(5, **new, cdw11=99 << 16 | 3)[1] == 0x108
    assert nvme.admin(5, prp1=0x9000, cdw10=7 << 16 | 1, cdw11=3)[1] == 0x101
    assert nvme.admin(5, prp1=0x9000, cdw10=0xFFFF << 16 | 2, cdw11=3)[1] == 0x102
    assert nvme.admin(5, prp1=0x9000, cdw10=7 << 16 | 2, cdw11=2)[1] == 0x02
    assert nvme.admin(5, prp1=1 << 50, cdw10=7 << 16 | 2, cdw11=3)[1] == 0x04
    assert nvme.admin(1, **new, cdw11=2 << 16 | 1)[1] == 0x100
    assert nvme.admin(5, **new, cdw11=3) == (0, 0)
    assert nvme.admin(1, prp1=0xA000, cdw10=7 << 16 | 2, cdw11=2 << 16 | 1) == (0, 0)
    assert nvme.admin(4, cdw10=2)[1] == 0x10C
    assert nvme.admin(0, cdw10=2) == (0, 0)
    assert nvme.admin(4, cdw10=2) == (0, 0)
    assert nvme.admin(4, cdw10=2)[1] == 0x101
    assert nvme.admin(0, cdw10=0)[1] == 0x101


def test_a_failing_disk_and_a_read_only_disk(disk: RamDisk) -> None:
    nvme = Nvme(disk).start()
    disk.fails = True
    assert nvme.io(READ) == 0x281
    assert nvme.io(WRITE) == 0x280
    locked = Nvme(RamDisk(writable=False)).start()
    for opcode in (WRITE, WRITE_ZEROES, DSM):
        assert locked.io(opcode) == 0x182
    assert locked.io(READ) == 0
    assert locked.io(FLUSH) == 0


def test_shutdown_flushes_and_a_reset_stops(nvme: Nvme, disk: RamDisk) -> None:
    nvme.io(WRITE)
    nvme.reg(0x14, 0x00464001)
    assert nvme.reg(0x1C) >> 2 & 3 == 2
    assert disk.flushes == 1
    nvme.reg(0x14, 0x00460000)
    assert nvme.reg(0x1C) == 0
    assert not nvme.function.is_live
    nvme.ring(1)
    nvme.tails, nvme.heads, nvme.phases = [0, 0], [0, 0], [1, 1]
    nvme.memory.write(ACQ, bytes(4096))
    nvme.memory.write(IOCQ, bytes(4096))
    nvme.start()
    assert nvme.io(READ) == 0


def test_admin_queues_outside_ram_are_fatal(disk: RamDisk) -> None:
    nvme = Nvme(disk)
    nvme.reg(0x24, 0x70007)
    nvme.reg(0x28, 0xFFFFF000)
    nvme.reg(0x14, 0x460001)
    assert nvme.reg(0x1C) == 2
    nvme.reg(0x1000, 1)


def test_every_register_can_be_read_and_written_in_any_width(nvme: Nvme) -> None:
    for value in (0, 0xFFFFFFFFFFFFFFFF, 0x12345678):
        for offset in range(0x0, 0x2000, 2):
            for size in (1, 2, 4, 8):
                if offset + size <= 0x2000:
                    nvme.reg(offset, value & ((1 << 8 * size) - 1), size)
                    assert 0 <= nvme.reg(offset, size=size) < 1 << 8 * size
