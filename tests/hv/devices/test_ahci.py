"""A guest drives SATA disks and CD drives through an AHCI controller, the way Linux's ahci driver does."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.hv.devices.device_rig import FakeMemory, PciRig, RamDisk
from vdisk.hv.devices.ahci import VMWARE_AHCI, AhciController
from vdisk.hv.devices.ata import AtaDevice, AtaDisk
from vdisk.hv.devices.atapi import AtapiDrive, CdDrive

CLB, FB, IS, IE, CMD, TFD, SIG, SSTS, SCTL, SERR, SACT, CI = (
    0x00, 0x08, 0x10, 0x14, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38,
)  # fmt: skip
LIST, FIS, TABLES, BUFFER = 0x1000, 0x2000, 0x4000, 0x20000
ST, FRE = 1, 16
DHRS, PSS, SDBS, PCS, OFS, IFS, HBFS, TFES = (1 << n for n in (0, 1, 3, 6, 24, 27, 29, 30))
READ_DMA_EXT, WRITE_DMA_EXT, IDENTIFY, FLUSH_EXT = 0x25, 0x35, 0xEC, 0xEA
READ_FPDMA, WRITE_FPDMA, READ_LOG = 0x60, 0x61, 0x2F


class Hba:
    """An AHCI driver for one port at a time."""

    def __init__(self, *drives: AtaDevice | None, **options: Any) -> None:
        self.memory = FakeMemory()
        self.rig = PciRig()
        self.function = AhciController(self.memory, drives, **options)
        self.rig.plug(self.function)
        self.registers: Any = self.rig.region(self.function, 5)
        self.port = 0

    def reg(self, offset: int, value: int | None = None) -> int:
        if value is None:
            found: int = self.registers.read(offset, 4)
            return found
        self.registers.write(offset, 4, value)
        return value

    def preg(self, offset: int, value: int | None = None) -> int:
        return self.reg(0x100 + 0x80 * self.port + offset, value)

    def start(self) -> Hba:
        self.reg(4, 1)
        assert not self.reg(4) & 1
        self.preg(CLB, LIST)
        self.preg(FB, FIS)
        self.preg(CMD, FRE)
        self.preg(CMD, FRE | ST)
        assert self.preg(CMD) & 0xC000 == 0xC000
        self.preg(SERR, 0xFFFFFFFF)
        self.preg(IS, 0xFFFFFFFF)
        self.preg(IE, 0x7DC0007F)
        self.reg(4, 0x80000002)
        return self

    def restart(self) -> None:
        self.preg(CMD, FRE)
        assert self.preg(CI) == self.preg(SACT) == 0
        self.preg(CMD, FRE | ST)

    def prepare(
        self,
        slot: int,
        command: int,
        lba: int = 0,
        count: int = 0,
        *,
        features: int = 0,
        device: int = 0x40,
        pieces: list[tuple[int, int]] | None = None,
        cdb: bytes = b"",
        write: bool = False,
        control: int | None = None,
    ) -> None:
        table = TABLES + 0x400 * slot
        low = lba.to_bytes(6, "little")
        fis = bytes((0x27, 0x80 if control is None else 0, command, features & 0xFF)) + low[:3] + bytes((device,))
        fis += low[3:] + bytes((features >> 8, count & 0xFF, count >> 8, 0, control or 0)) + bytes(4)
        prdt = b"".join(struct.pack("<Q4xI", address, length - 1) for address, length in pieces or [])
        self.memory.write(table, fis.ljust(0x40, b"\0") + cdb.ljust(0x40, b"\0") + prdt)
        flags = 5 | (0x20 if cdb else 0) | (0x40 if write else 0)
        self.memory.write(LIST + 32 * slot, struct.pack("<HHIQ", flags, len(pieces or []), 0, table))

    def issue(self, slot: int = 0) -> int:
        """Issue a slot; returns PxIS, acknowledged, after checking the interrupt."""
        self.preg(CI, 1 << slot)
        return self.acknowledge()

    def acknowledge(self) -> int:
        assert self.rig.irq.get(11)
        assert self.reg(8) == 1 << self.port
        status = self.preg(IS)
        self.preg(IS, status)
        self.reg(8, 1 << self.port)
        assert not self.rig.irq[11]
        return status

    def moved(self, slot: int = 0) -> int:
        return int.from_bytes(self.memory.read(LIST + 32 * slot + 4, 4), "little")

    def read(self, first: int, count: int, slot: int = 0) -> bytes:
        self.prepare(slot, READ_DMA_EXT, first, count, pieces=[(BUFFER, count * 512)])
        assert self.issue(slot) == DHRS
        assert self.preg(CI) == 0
        assert self.moved(slot) == count * 512
        return self.memory.read(BUFFER, count * 512)


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk(4 << 20).fill()


@pytest.fixture
def hba(disk: RamDisk) -> Hba:
    return Hba(AtaDisk(disk, is_sata=True)).start()


def test_the_function_and_its_capabilities(disk: RamDisk) -> None:
    hba = Hba(AtaDisk(disk, is_sata=True), None, ids=VMWARE_AHCI)
    assert hba.rig.config(3, 0) == 0x07E015AD
    assert hba.rig.config(3, 8) >> 8 == 0x010601
    assert hba.reg(0x0C) == 0b11
    assert hba.reg(0) & 0x1F == 1
    assert hba.reg(0) >> 8 & 0x1F == 31
    assert hba.reg(0x10) == 0x10300
    assert [kind for kind, _ in hba.rig.capabilities(3)] == [5]
    assert not hba.function.is_live


def test_ports_tell_what_is_attached(disk: RamDisk) -> None:
    hba = Hba(AtaDisk(disk, is_sata=True), AtapiDrive(CdDrive(None), is_sata=True), None)
    assert [hba.reg(0x100 + 0x80 * port + SSTS) for port in range(3)] == [0x123, 0x123, 0]
    assert [hba.reg(0x100 + 0x80 * port + SIG) for port in range(3)] == [0x101, 0xEB140101, 0xFFFFFFFF]
    hba.port = 2
    assert hba.preg(TFD) & 0xFF == 0x7F


def test_a_link_reset_brings_the_signature_back(hba: Hba) -> None:
    hba.preg(SCTL, 0x301)
    assert hba.preg(SSTS) == 0
    assert hba.preg(TFD) & 0x80 == 0
    hba.preg(SCTL, 0x300)
    assert hba.preg(SSTS) == 0x123
    assert hba.preg(TFD) == 0x150
    assert hba.preg(SERR) == 1 << 26
    assert hba.preg(IS) & PCS
    assert hba.memory.read(FIS + 0x40, 7)[:1] == b"\x34"
    hba.preg(SERR, 1 << 26)
    assert not hba.preg(IS) & PCS


def test_a_soft_reset_by_two_control_frames(hba: Hba) -> None:
    hba.preg(IE, 0)
    hba.prepare(0, 0, control=4)
    hba.preg(CI, 1)
    assert hba.preg(CI) == 0
    hba.memory.write(FIS + 0x40, bytes(20))
    hba.prepare(0, 0, control=0)
    hba.preg(CI, 1)
    assert hba.preg(CI) == 0
    assert hba.memory.read(FIS + 0x40, 20)[12:14] == b"\x01\x00"


def test_identify_comes_with_a_pio_setup_frame(hba: Hba, disk: RamDisk) -> None:
    hba.prepare(0, IDENTIFY, pieces=[(BUFFER, 512)])
    assert hba.issue() == PSS
    words = struct.unpack("<256H", hba.memory.read(BUFFER, 512))
    assert words[75] == 31
    assert words[76] & 0x100
    assert words[93] == 0
    frame = hba.memory.read(FIS + 0x20, 20)
    assert (frame[0], frame[15], frame[16] | frame[17] << 8) == (0x5F, 0x50, 512)
    assert hba.moved() == 512


def test_sectors_come_and_go(hba: Hba, disk: RamDisk) -> None:
    assert hba.function.is_live
    assert hba.read(17, 64, slot=5) == disk.sectors(17, 64)
    hba.memory.write(BUFFER, b"w" * 1024)
    hba.prepare(31, WRITE_DMA_EXT, 99, 2, write=True, pieces=[(BUFFER, 100), (BUFFER + 100, 924)])
    assert hba.issue(31) == DHRS
    assert disk.sectors(99, 2) == b"w" * 1024
    hba.prepare(0, FLUSH_EXT)
    assert hba.issue() == DHRS
    assert disk.flushes == 1
    frame = hba.memory.read(FIS + 0x40, 20)
    assert frame[:4] == b"\x34\x40\x50\x00"


def test_queued_commands_finish_through_set_device_bits(hba: Hba, disk: RamDisk) -> None:
    for tag in (0, 3, 31):
        target = BUFFER + 4096 * (tag % 5)
        hba.prepare(tag, READ_FPDMA, 8 * tag, tag << 3, features=8, pieces=[(target, 4096)])
        hba.preg(SACT, 1 << tag)
    hba.preg(CI, 1 << 0 | 1 << 3 | 1 << 31)
    assert hba.acknowledge() == SDBS
    assert hba.preg(CI) == hba.preg(SACT) == 0
    for tag in (0, 3, 31):
        assert hba.memory.read(BUFFER + 4096 * (tag % 5), 4096) == disk.sectors(8 * tag, 8)
    hba.memory.write(BUFFER, b"q" * 512)
    hba.prepare(2, WRITE_FPDMA, 5, 2 << 3, features=1, device=0xC0, write=True, pieces=[(BUFFER, 512)])
    hba.preg(SACT, 4)
    assert hba.issue(2) == SDBS
    assert disk.sectors(5, 1) == b"q" * 512
    assert disk.flushes == 1  # FUA


def test_an_error_stops_the_port_until_it_is_restarted(hba: Hba, disk: RamDisk) -> None:
    hba.prepare(0, READ_DMA_EXT, 8191, 2, pieces=[(BUFFER, 1024)])
    hba.prepare(1, READ_DMA_EXT, 0, 1, pieces=[(BUFFER, 512)])
    hba.preg(CI, 3)
    assert hba.acknowledge() == TFES | DHRS
    assert hba.preg(TFD) == 0x1051
    assert hba.preg(CI) == 3
    assert hba.preg(CMD) >> 8 & 31 == 0
    hba.restart()
    assert hba.read(0, 1) == disk.sectors(0, 1)


def test_a_failed_queued_command_is_named_in_the_log(hba: Hba, disk: RamDisk) -> None:
    hba.prepare(4, READ_FPDMA, 8190, 4 << 3, features=8, pieces=[(BUFFER, 4096)])
    hba.prepare(6, READ_FPDMA, 0, 6 << 3, features=8, pieces=[(BUFFER, 4096)])
    hba.preg(SACT, 1 << 4 | 1 << 6)
    hba.preg(CI, 1 << 4 | 1 << 6)
    assert hba.acknowledge() == TFES | SDBS
    assert hba.preg(SACT) == 1 << 4 | 1 << 6
    assert hba.preg(TFD) & 1
    hba.restart()
    hba.prepare(0, READ_LOG, 0x10, 1, pieces=[(BUFFER, 512)])
    assert hba.issue() == PSS
    log = hba.memory.read(BUFFER, 512)
    assert sum(log) & 0xFF == 0
    assert (log[0], log[2] & 1, log[3]) == (4, 1, 0x10)
    assert int.from_bytes(log[4:7], "little") == 8190


def test_a_failing_disk_is_reported(hba: Hba, disk: RamDisk) -> None:
    disk.fails = True
    hba.prepare(0, READ_DMA_EXT, 0, 1, pieces=[(BUFFER, 512)])
    assert hba.issue() & TFES
    assert hba.preg(TFD) >> 8 == 0x40
    disk.fails = False
    hba.restart()
    assert hba.read(0, 1) == disk.sectors(0, 1)


def test_broken_structures_are_fatal_errors_of_the_port(hba: Hba, disk: RamDisk) -> None:
    before = bytes(disk.data)
    cases = [
        (OFS, {"pieces": [(BUFFER, 512)]}),
        (HBFS, {"pieces": [(1 << 40, 1024)]}),
        (OFS, {"pieces": []}),
    ]
    for expected, options in cases:
        hba.prepare(0, WRITE_DMA_EXT, 0, 2, write=True, **options)  # type: ignore[arg-type]
        assert hba.issue() == expected
        hba.restart()
    hba.memory.write(TABLES, b"\x99")
    assert hba.issue() == IFS
    hba.restart()
    hba.memory.write(LIST, struct.pack("<HHIQ", 5, 1, 0, 1 << 50))
    assert hba.issue() == HBFS
    hba.restart()
    hba.memory.write(LIST, struct.pack("<HHIQ", 5, 65535, 0, FakeMemory().size_bytes - 0x400))
    hba.preg(CI, 1)
    hba.restart()
    hba.preg(CLB, 0xFFFFFC00)
    assert hba.issue() & HBFS
    assert bytes(disk.data) == before


def test_received_frames_outside_ram_do_no_harm(hba: Hba, disk: RamDisk) -> None:
    hba.preg(FB, 0xFFFFFF00)
    hba.prepare(0, READ_DMA_EXT, 0, 1, pieces=[(BUFFER, 512)])
    assert hba.issue() & HBFS


def test_nothing_runs_while_the_port_is_stopped(hba: Hba) -> None:
    hba.preg(CMD, FRE)
    hba.prepare(0, READ_DMA_EXT, 0, 1, pieces=[(BUFFER, 512)])
    hba.preg(CI, 1)
    assert hba.preg(CI) == 0
    assert not hba.preg(IS)


def test_a_message_is_sent_again_for_what_is_still_pending(disk: RamDisk) -> None:
    hba = Hba(AtaDisk(disk, is_sata=True), AtaDisk(disk, is_sata=True))
    [(_, at)] = hba.rig.capabilities(3)
    hba.rig.config(3, at + 4, value=0xFEE00000)
    hba.rig.config(3, at + 12, 2, value=0x61)
    hba.rig.config(3, at + 2, 2, value=1)
    hba.start()
    hba.port = 1
    for register, value in ((CLB, LIST), (FB, FIS), (CMD, FRE | ST), (SERR, 0xFFFFFFFF), (IE, 0x7DC0007F)):
        hba.preg(register, value)
    hba.prepare(0, READ_DMA_EXT, 0, 1, pieces=[(BUFFER, 512)])
    for port in (0, 1):
        hba.port = port
        hba.preg(CI, 1)
    assert len(hba.rig.messages) == 1
    assert hba.reg(8) == 3
    hba.port = 0
    hba.preg(IS, 0xFFFFFFFF)
    hba.reg(8, 1)
    assert hba.reg(8) == 2
    assert len(hba.rig.messages) == 2


def test_a_cd_drive_takes_packets(disk: RamDisk) -> None:
    drive = AtapiDrive(CdDrive(disk), is_sata=True)
    hba = Hba(drive).start()
    hba.prepare(0, 0xA1, pieces=[(BUFFER, 512)])
    assert hba.issue() == PSS
    assert hba.memory.read(BUFFER, 2) == b"\xc0\x85"
    read = struct.pack(">BxIxHx", 0x28, 3, 2)
    hba.prepare(0, 0xA0, features=1, cdb=read, pieces=[(BUFFER, 4096)])
    assert hba.issue() == DHRS
    assert hba.memory.read(BUFFER, 4096) == disk.sectors(12, 8)
    assert hba.moved() == 4096
    hba.prepare(0, 0xA0, features=1, cdb=struct.pack(">BxIxHx", 0x28, 99999, 2), pieces=[(BUFFER, 4096)])
    assert hba.issue() & TFES
    assert hba.preg(TFD) == 0x5451
    hba.restart()
    hba.prepare(0, 0xA0, cdb=bytes([3, 0, 0, 0, 96]), pieces=[(BUFFER, 96)])
    assert hba.issue() == DHRS
    assert hba.moved() == 18
    assert hba.memory.read(BUFFER, 13)[2::10] == b"\x05\x21"
    hba.prepare(0, 0xEC, pieces=[(BUFFER, 512)])
    assert hba.issue() & TFES


def test_a_controller_reset_stops_everything(hba: Hba) -> None:
    hba.preg(CI, 0)
    hba.reg(4, 1)
    assert hba.preg(CMD) & (ST | FRE) == 0
    assert hba.preg(CLB) == 0
    assert hba.reg(4) == 0x80000000
    assert hba.preg(SSTS) == 0x123


def test_every_register_can_be_read_and_written_in_any_width(hba: Hba) -> None:
    for value in (0, 0xFFFFFFFFFFFFFFFF, 0x12345678):
        for offset in range(0, 4096, 1):
            for size in (1, 2, 4, 8):
                if offset + size <= 4096:
                    hba.registers.write(offset, size, value & ((1 << 8 * size) - 1))
                    assert 0 <= hba.registers.read(offset, size) < 1 << 8 * size
