"""An IDE driver of a few dozen lines: programmed I/O, packets and bus-master DMA."""

from __future__ import annotations

import struct
from typing import Any

from tests.hv.devices.device_rig import FakeMemory, Line, PciRig
from vdisk.hv.devices.ata import AtaDevice
from vdisk.hv.devices.ide import IdeChannel
from vdisk.hv.devices.piix_ide import PiixIde

BSY, DRDY, DRQ, ERR = 0x80, 0x40, 0x08, 0x01
PRD_TABLE, BUFFER = 0x2000, 0x10000


class IdeDriver:
    """The primary channel behind a PIIX in slot 1."""

    def __init__(self, *drives: AtaDevice | None) -> None:
        self.irq = Line()
        self.memory = FakeMemory()
        self.channel = IdeChannel(self.irq, drives)
        self.rig = PciRig()
        self.piix = PiixIde(self.memory, [self.channel, IdeChannel(Line(), [])])
        self.rig.plug(self.piix, 1)
        self.bus_master: Any = self.rig.region(self.piix, 4)
        self.unit = 0

    @property
    def status(self) -> int:
        return self.channel.control_block.read(0, 1)

    @property
    def error(self) -> int:
        return self.channel.read(1, 1)

    def acknowledge(self) -> int:
        """Read the status, which takes the interrupt back; there must have been one."""
        assert self.irq.level
        status = self.channel.read(7, 1)
        assert not self.irq.level
        return status

    def set(self, register: int, value: int) -> None:
        self.channel.write(register, 1, value)

    def get(self, register: int) -> int:
        return self.channel.read(register, 1)

    def command(self, command: int, lba: int = 0, count: int = 0, *, features: int = 0, ext: bool = False) -> None:
        """Issue an LBA28 or an LBA48 command."""
        self.set(6, 0xE0 | self.unit << 4 | (0 if ext else lba >> 24 & 15))
        if ext:
            self.set(1, features >> 8)
            self.set(2, count >> 8)
            for register in range(3):
                self.set(3 + register, lba >> 24 + 8 * register & 0xFF)
        self.set(1, features & 0xFF)
        self.set(2, count & 0xFF)
        for register in range(3):
            self.set(3 + register, lba >> 8 * register & 0xFF)
        self.set(7, command)

    def read_data(self, length: int) -> bytes:
        """REP INSW."""
        return self.channel.read_block(0, 2, length // 2)

    def write_data(self, data: bytes) -> None:
        """REP OUTSW."""
        self.channel.write_block(0, 2, data)

    def pio_in(self, blocks: int, block_bytes: int = 512) -> bytes:
        """The data of a read command, with an interrupt before each block."""
        data = b""
        for _ in range(blocks):
            assert self.acknowledge() & (DRQ | ERR) == DRQ
            data += self.read_data(block_bytes)
        assert self.status & (DRQ | ERR) == 0
        return data

    def pio_out(self, data: bytes, block_bytes: int = 512) -> int:
        """The data of a write command, with an interrupt after each block; returns the final status."""
        assert not self.irq.level
        status = self.status
        for at in range(0, len(data), block_bytes):
            assert status & DRQ
            self.write_data(data[at : at + block_bytes])
            status = self.acknowledge()
        return status

    def prepare_dma(self, pieces: list[tuple[int, int]]) -> None:
        table = b""
        for number, (address, length) in enumerate(pieces):
            table += struct.pack("<IHH", address, length & 0xFFFF, 0x8000 if number == len(pieces) - 1 else 0)
        self.memory.write(PRD_TABLE, table)
        self.bus_master.write(4, 4, PRD_TABLE)
        self.bus_master.write(2, 1, 6)

    def run_dma(self, *, to_memory: bool) -> int:
        """Start the bus master, as Linux does behind the command; returns its status."""
        direction = 8 if to_memory else 0
        self.bus_master.write(0, 1, direction)
        self.bus_master.write(0, 1, direction | 1)
        status: int = self.bus_master.read(2, 1)
        self.bus_master.write(0, 1, direction)
        return status

    def packet(self, cdb: bytes, *, byte_count: int = 0xFFFE, dma: bool = False) -> None:
        """Send PACKET and its twelve bytes."""
        self.set(6, 0xA0 | self.unit << 4)
        self.set(1, 1 if dma else 0)
        self.set(4, byte_count & 0xFF)
        self.set(5, byte_count >> 8)
        self.set(7, 0xA0)
        assert self.status & DRQ
        assert self.get(2) & 3 == 1
        self.write_data(cdb.ljust(12, b"\0"))

    def packet_in(self, cdb: bytes, *, byte_count: int = 0xFFFE) -> bytes:
        """A packet command that answers by programmed I/O."""
        self.packet(cdb, byte_count=byte_count)
        data = b""
        while (status := self.acknowledge()) & DRQ:
            assert self.get(2) & 3 == 2
            length = self.get(4) | self.get(5) << 8
            assert 0 < length <= byte_count
            data += self.read_data(length + (length & 1))[:length]
        assert self.get(2) & 3 == 3
        assert not status & ERR
        return data
