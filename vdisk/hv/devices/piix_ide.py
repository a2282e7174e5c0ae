"""The PIIX's IDE function: two channels and the bus master that moves their data (Intel 82371AB, chapters 2 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdisk.errors import HypervisorError
from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.ide import IdeChannel
from vdisk.hv.devices.pci import Bar, PciFunction
from vdisk.hv.devices.transfer import Direction

PIIX3_IDE, PIIX4_IDE = 0x7010, 0x7111
_BUS_MASTER_BAR, _BUS_MASTER_BYTES = 4, 16
_START, _TO_MEMORY = 0x01, 0x08
_ACTIVE, _ERROR, _INTERRUPT, _CAPABLE = 0x01, 0x02, 0x04, 0x60
_PRD = struct.Struct("<II")
_LAST = 0x80000000
_MOST_ENTRIES = 8192
_TIMING = 0x40
_DECODE_ENABLE = 0x8000


class BusMaster:
    """One channel's half of the bus master's registers, 8 bytes."""

    def __init__(self, memory: DmaMemory, channel: IdeChannel) -> None:
        self._memory = memory
        self._channel = channel
        self.was_used = False
        channel.on_dma_ready = self._run
        channel.on_interrupt = self._note_interrupt
        self.reset()

    def reset(self) -> None:
        """Stop and forget the table."""
        self._command = 0
        self._status = 0
        self._table = 0

    def _note_interrupt(self) -> None:
        self._status |= _INTERRUPT

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes of the registers."""
        image = struct.pack("<BxBxI", self._command, self._status, self._table)
        return int.from_bytes(image[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register: command in byte 0, status in byte 2, the table's address in bytes 4 to 7."""
        if offset >= 4:
            shift, mask = 8 * (offset - 4), (1 << 8 * size) - 1
            self._table = (self._table & ~(mask << shift) | (value & mask) << shift) & 0xFFFFFFFC
            return
        for at in range(offset, min(offset + size, 4)):
            if at == 0:
                self._write_command(value & 0xFF)
            elif at == 2:
                self._status = self._status & ~(value & (_ERROR | _INTERRUPT) | _CAPABLE) | value & _CAPABLE
            value >>= 8

    def _write_command(self, value: int) -> None:
        starts = value & _START and not self._command & _START
        self._command = value & (_START | _TO_MEMORY)
        if starts:
            self._status |= _ACTIVE
            self._run()
        elif not value & _START:
            self._status &= ~_ACTIVE

    def _run(self) -> None:
        """Move the data once both sides are ready: the drive has a command, and the guest has started us."""
        transfer = self._channel.dma_transfer
        if transfer is None or not self._command & _START or not self._status & _ACTIVE:
            return
        self.was_used = True
        to_memory = transfer.direction is Direction.IN
        try:
            if to_memory != bool(self._command & _TO_MEMORY):
                raise HypervisorError("the bus master is set to the other direction")
            pieces, has_ended = self._pieces(transfer.length)
        except HypervisorError:
            # A real drive would be left waiting for a bus master that has stopped; here its command is aborted.
            self._status = self._status & ~_ACTIVE | _ERROR
            self._channel.run_dma([], is_short=True)
            return
        is_short = dma.total_bytes(pieces) < transfer.length
        if not self._channel.run_dma(pieces, is_short=is_short) or has_ended:
            self._status &= ~_ACTIVE

    def _pieces(self, length: int) -> tuple[list[memoryview], bool]:
        """The guest's memory for `length` bytes, and whether the table ends there."""
        ranges: list[dma.Range] = []
        found = 0
        for index in range(_MOST_ENTRIES):
            address, control = _PRD.unpack(self._memory.view(self._table + 8 * index, 8))
            count = control & 0xFFFE or 0x10000
            ranges.append((address & ~1, min(count, length - found)))
            found += count
            if control & _LAST:
                return dma.views(self._memory, ranges), True
            if found >= length:
                return dma.views(self._memory, ranges), False
        raise HypervisorError("a descriptor table without an end")


class PiixIde(PciFunction):
    """The PCI function. The machine maps its two channels at the ports that IDE has always had."""

    def __init__(
        self,
        memory: DmaMemory,
        channels: Sequence[IdeChannel],
        *,
        device_id: int = PIIX3_IDE,
        subsystem: tuple[int, int] = (0x1AF4, 0x1100),
    ) -> None:
        self.channels = list(channels)
        self.masters = [BusMaster(memory, channel) for channel in self.channels]
        bars = {_BUS_MASTER_BAR: Bar("io", _BUS_MASTER_BYTES, self)}
        super().__init__(0x8086, device_id, 0x010180, subsystem=subsystem, bars=bars)
        self.config[0x06:0x08] = b"\x80\x02"
        self.set_config(_TIMING, 4, 0, writable=0xFFFFFFFF)
        self.set_config(0x44, 1, 0, writable=0xFF)
        self.set_config(0x48, 4, 0, writable=0x33330F0F)
        self._enable_decoding()

    def _enable_decoding(self) -> None:
        # Both channels answer from the start: a firmware that does not know the chip need not turn them on.
        self.set_config(_TIMING, 4, _DECODE_ENABLE << 16 | _DECODE_ENABLE)

    def reset(self) -> None:
        """A machine reset reaches the drives, too."""
        super().reset()
        self._enable_decoding()
        for channel, master in zip(self.channels, self.masters, strict=True):
            master.reset()
            channel.reset()

    @property
    def is_live(self) -> bool:
        """Whether a driver has used the bus master."""
        return any(master.was_used for master in self.masters)

    def read(self, offset: int, size: int) -> int:
        """Read the bus master's registers: channel 0 in bytes 0 to 7, channel 1 in 8 to 15."""
        index = offset >> 3
        return self.masters[index].read(offset & 7, size) if index < len(self.masters) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the bus master's registers."""
        index = offset >> 3
        if index < len(self.masters):
            self.masters[index].write(offset & 7, size, value)
