"""An IDE channel: the task file, programmed I/O and packets (ATA/ATAPI-6, chapters 8 and 9).

The bus master that does DMA for two channels is in piix_ide.py. A command runs to its end, or to the point where it
needs the guest to move data, while its register is being written; the guest never sees the busy bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vdisk.errors import VdiskError
from vdisk.hv.devices.ata import (
    ABORTED,
    BUSY,
    DATA_REQUEST,
    ERROR,
    ID_NOT_FOUND,
    READY,
    SEEK_DONE,
    UNCORRECTABLE,
    Action,
    AtaDevice,
    AtaError,
    Command,
    Protocol,
    TaskFile,
)
from vdisk.hv.devices.atapi import PACKET_BYTES
from vdisk.hv.devices.base import IrqLine, all_ones
from vdisk.hv.devices.scsi import ScsiError
from vdisk.hv.devices.transfer import Direction, Transfer

DATA, FEATURES, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, COMMAND = range(8)
CONTROL_NO_IRQ, CONTROL_RESET, CONTROL_PREVIOUS = 0x02, 0x04, 0x80
_SECOND_DRIVE = 0x10
_IDLE = READY | SEEK_DONE
_REASON_COMMAND, _REASON_TO_HOST = 1, 2
_AHEAD_BYTES = 128 << 10


class _Unit:
    """One drive position on the cable: the task file as the guest sees it, and the data phase under way."""

    def __init__(self, device: AtaDevice | None) -> None:
        self.device = device
        self.registers = bytearray(8)
        self.previous = bytearray(8)
        self.status = self.error = 0
        self.action = Action(Protocol.NONE)
        self.reset()

    def reset(self) -> None:
        """The state after a reset: the signature in the registers."""
        self.end_data()
        self.awaits_packet = self.awaits_dma = False
        self.previous[:] = bytes(8)
        if self.device is None:
            return
        self.device.reset()
        self.show_signature()
        self.error = 1  # diagnostics passed
        self.status = 0 if self.device.is_packet else _IDLE

    def show_signature(self) -> None:
        """Put the drive's signature into the task file."""
        assert self.device is not None
        self.registers[COUNT] = 1
        self.registers[LBA_LOW : LBA_HIGH + 1] = self.device.signature.to_bytes(3, "little")
        self.registers[DEVICE] &= _SECOND_DRIVE

    def end_data(self) -> None:
        """No data phase is under way."""
        self.buffer = b""
        self.incoming = bytearray()
        self.at = self.block_end = self.moved = 0
        self.transfer: Transfer | None = None

    def task(self) -> TaskFile:
        """The command in the registers, as the core takes it."""
        r, p = self.registers, self.previous
        return TaskFile(
            r[COMMAND],
            p[FEATURES] << 8 | r[FEATURES],
            p[COUNT] << 8 | r[COUNT],
            int.from_bytes(r[LBA_LOW : LBA_HIGH + 1], "little")
            | int.from_bytes(p[LBA_LOW : LBA_HIGH + 1], "little") << 24,
            r[DEVICE],
        )

    def store(self, task: TaskFile) -> None:
        """Show the guest what a command has left in the task file."""
        low = task.lba.to_bytes(6, "little")
        self.registers[LBA_LOW : LBA_HIGH + 1] = low[:3]
        self.previous[LBA_LOW : LBA_HIGH + 1] = low[3:]
        self.registers[COUNT], self.previous[COUNT] = task.count & 0xFF, task.count >> 8 & 0xFF
        self.registers[DEVICE] = task.device


class IdeChannel:
    """Two drives on a cable. `command_block` goes to 1F0h or 170h (8 ports), `control_block` to 3F6h or 376h."""

    def __init__(self, irq: IrqLine, drives: Sequence[AtaDevice | None]) -> None:
        self._irq = irq
        self._units = [_Unit(drive) for drive in (*drives, None, None)[:2]]
        self._selected = self._units[0]
        self._control = 0
        self._interrupts = False
        self.has_drive = any(unit.device is not None for unit in self._units)
        self.on_dma_ready: Callable[[], None] = _nothing
        """Called when a command waits for the bus master."""
        self.on_interrupt: Callable[[], None] = _nothing
        """Called when a drive interrupts, whether or not the guest lets it through."""
        self.command_block = self
        self.control_block = _ControlBlock(self)

    def reset(self) -> None:
        """A hardware reset, and what a software reset does to the drives."""
        self._selected = self._units[0]
        for unit in self._units:
            unit.registers[DEVICE] = 0
            unit.reset()
        self._lower()

    # Interrupts ------------------------------------------------------------------------------------------------

    def _raise(self) -> None:
        self._interrupts = True
        self.on_interrupt()
        if not self._control & CONTROL_NO_IRQ:
            self._irq(True)

    def _lower(self) -> None:
        if self._interrupts:
            self._interrupts = False
            self._irq(False)

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register of the command block; the data register in 2 or 4 bytes."""
        if offset == DATA:
            return int.from_bytes(self.read_block(DATA, size, 1), "little")
        if not self.has_drive:
            return all_ones(size)  # an open cable
        unit = self._selected
        if unit.device is None:
            return 0
        if offset == COMMAND:
            self._lower()
            return unit.status
        if offset == FEATURES:
            return unit.error
        if self._control & CONTROL_PREVIOUS and offset != DEVICE:
            return unit.previous[offset]
        return unit.registers[offset] | (0xA0 if offset == DEVICE else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register of the command block."""
        if offset == DATA:
            self.write_block(DATA, size, (value & all_ones(size)).to_bytes(size, "little"))
            return
        value &= 0xFF
        self._control &= ~CONTROL_PREVIOUS
        if offset == COMMAND:
            self._command(value)
            return
        for unit in self._units:
            unit.previous[offset] = unit.registers[offset]
            unit.registers[offset] = value
        if offset == DEVICE:
            self._selected = self._units[bool(value & _SECOND_DRIVE)]

    def read_alternate_status(self) -> int:
        """The status, without taking the interrupt back."""
        if not self.has_drive:
            return 0xFF
        return self._selected.status if self._selected.device is not None else 0

    def write_control(self, value: int) -> None:
        """The device control register."""
        was_reset, self._control = self._control & CONTROL_RESET, value
        if value & CONTROL_RESET:
            if not was_reset:
                self.reset()
            for unit in self._units:
                unit.status = BUSY
        elif was_reset:
            self.reset()
        elif self._interrupts:
            self._irq(not value & CONTROL_NO_IRQ)

    # Commands --------------------------------------------------------------------------------------------------

    def _command(self, command: int) -> None:
        if command == Command.DIAGNOSTIC:
            self._diagnose()
            return
        unit = self._selected
        device = unit.device
        if device is None or unit.status & BUSY:
            return
        if unit.status & DATA_REQUEST and command != Command.DEVICE_RESET:
            unit.end_data()  # a new command ends the one under way
        self._lower()
        unit.registers[COMMAND] = command
        unit.awaits_packet = unit.awaits_dma = False
        unit.error = 0
        unit.status = _IDLE
        if command == Command.DEVICE_RESET and device.is_packet:
            unit.reset()
            return
        task = unit.task()
        try:
            unit.action = device.begin(task)
        except AtaError as error:
            unit.store(task)
            self._fail(unit, error.bits)
            return
        unit.store(task)
        self._start(unit)

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC goes to both drives."""
        self.reset()
        self._raise()

    def _start(self, unit: _Unit) -> None:
        action = unit.action
        match action.protocol:
            case Protocol.PACKET:
                unit.awaits_packet = True
                self._request(unit, PACKET_BYTES, _REASON_COMMAND)
            case Protocol.DMA:
                self._await_dma(unit, action.transfer)
            case Protocol.PIO if action.transfer.direction is Direction.IN:
                unit.transfer = action.transfer
                self._next_block_in(unit)
            case Protocol.PIO:
                unit.transfer = action.transfer
                unit.block_end = min(action.block_bytes, action.transfer.length)
                unit.status = _IDLE | DATA_REQUEST
            case Protocol.NONE:
                self._finish(unit)
            case _:
                self._fail(unit, ABORTED)

    def _await_dma(self, unit: _Unit, transfer: Transfer) -> None:
        unit.transfer = transfer
        unit.awaits_dma = True
        unit.status = _IDLE | DATA_REQUEST
        self.on_dma_ready()

    def _request(self, unit: _Unit, length: int, reason: int) -> None:
        """Ask the guest for the bytes of a packet; there is no interrupt for these."""
        unit.incoming.clear()
        unit.block_end = length
        unit.registers[COUNT] = reason
        unit.status = _IDLE | DATA_REQUEST

    def _finish(self, unit: _Unit) -> None:
        unit.end_data()
        unit.status = _IDLE
        if unit.action.protocol is Protocol.PACKET:
            unit.registers[COUNT] = _REASON_COMMAND | _REASON_TO_HOST
        self._raise()

    def _fail(self, unit: _Unit, bits: int) -> None:
        unit.end_data()
        unit.awaits_packet = unit.awaits_dma = False
        unit.error = bits
        unit.status = READY | ERROR
        if unit.action.protocol is Protocol.PACKET:
            unit.registers[COUNT] = _REASON_COMMAND | _REASON_TO_HOST
        self._raise()

    def _fail_transfer(self, unit: _Unit, transfer: Transfer) -> None:
        """The disk has failed: a packet device says so by its sense, a disk by its error register."""
        if unit.action.protocol is Protocol.PACKET:
            assert unit.device is not None
            self._check_condition(unit, unit.device.medium_failed(transfer.direction))
        else:
            self._fail(unit, UNCORRECTABLE if transfer.direction is Direction.IN else ID_NOT_FOUND)

    def _check_condition(self, unit: _Unit, error: ScsiError) -> None:
        self._fail(unit, error.key << 4 | ABORTED)

    # Packets ---------------------------------------------------------------------------------------------------

    def _packet(self, unit: _Unit) -> None:
        """The twelve bytes have come."""
        assert unit.device is not None
        cdb = bytes(unit.incoming[:PACKET_BYTES])
        unit.awaits_packet = False
        unit.end_data()
        unit.status = _IDLE
        try:
            transfer = unit.device.packet(cdb)
        except ScsiError as error:
            self._check_condition(unit, error)
            return
        if transfer.direction is not Direction.IN or not transfer.length:
            self._finish(unit)
        elif unit.registers[FEATURES] & 1:
            self._await_dma(unit, transfer)
        else:
            limit = unit.registers[LBA_MID] | unit.registers[LBA_HIGH] << 8
            limit = (limit or 0xFFFE) & 0xFFFE or 2
            unit.action = Action(Protocol.PACKET, transfer, min(limit, 0xFFFE))
            unit.transfer = transfer
            self._next_block_in(unit)

    # Programmed I/O --------------------------------------------------------------------------------------------

    def _next_block_in(self, unit: _Unit) -> None:
        """Offer the next block of data, reading ahead so that a long command is a few reads of the disk."""
        transfer = unit.transfer
        assert transfer is not None
        block = min(unit.action.block_bytes, transfer.length - unit.moved)
        if unit.at + block > len(unit.buffer):
            ahead = max(_AHEAD_BYTES // block * block, block)
            try:
                unit.buffer = transfer.part(unit.moved, min(ahead, transfer.length - unit.moved))
            except VdiskError:
                self._fail_transfer(unit, transfer)
                return
            unit.at = 0
        unit.block_end = unit.at + block
        if unit.action.protocol is Protocol.PACKET:
            unit.registers[COUNT] = _REASON_TO_HOST
            unit.registers[LBA_MID], unit.registers[LBA_HIGH] = block & 0xFF, block >> 8
        unit.status = _IDLE | DATA_REQUEST
        self._raise()

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """REP INS from the data register. What exceeds the block on offer reads as all ones."""
        length = size * count
        if offset != DATA:
            return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))
        unit = self._selected
        pieces: list[bytes] = []
        while length > 0 and unit.status & DATA_REQUEST and unit.at < unit.block_end and unit.buffer:
            part = unit.buffer[unit.at : min(unit.at + length, unit.block_end)]
            pieces.append(part)
            length -= len(part)
            unit.at += len(part)
            unit.moved += len(part)
            if unit.at == unit.block_end:
                self._block_was_read(unit)
        if length > 0:
            pieces.append(b"\xff" * length)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block_was_read(self, unit: _Unit) -> None:
        transfer = unit.transfer
        assert transfer is not None
        if unit.moved < transfer.length:
            self._next_block_in(unit)
        elif unit.action.protocol is Protocol.PACKET:
            self._finish(unit)
        else:  # no interrupt behind the last block of a read
            unit.end_data()
            unit.status = _IDLE

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """REP OUTS to the data register."""
        if offset != DATA:
            for at in range(0, len(data), size):
                self.write(offset, size, int.from_bytes(data[at : at + size], "little"))
            return
        unit = self._selected
        at = 0
        while at < len(data) and unit.status & DATA_REQUEST and unit.block_end and not unit.buffer:
            part = data[at : at + unit.block_end - len(unit.incoming)]
            unit.incoming += part
            at += len(part)
            if len(unit.incoming) == unit.block_end:
                if unit.awaits_packet:
                    self._packet(unit)
                    return
                self._block_was_written(unit)

    def _block_was_written(self, unit: _Unit) -> None:
        transfer = unit.transfer
        assert transfer is not None
        try:
            if transfer.disk is not None:
                transfer.put(unit.moved, bytes(unit.incoming))
                unit.moved += len(unit.incoming)
                unit.incoming.clear()
            else:
                unit.moved = len(unit.incoming)
                unit.block_end += min(unit.action.block_bytes, transfer.length - unit.moved)
                if unit.moved == transfer.length:
                    transfer.put(0, bytes(unit.incoming))
        except AtaError as error:
            self._fail(unit, error.bits)
            return
        except VdiskError:
            self._fail_transfer(unit, transfer)
            return
        if unit.moved == transfer.length:
            self._finish(unit)
            return
        if transfer.disk is not None:
            unit.block_end = min(unit.action.block_bytes, transfer.length - unit.moved)
        self._raise()

    # DMA -------------------------------------------------------------------------------------------------------

    @property
    def dma_transfer(self) -> Transfer | None:
        """What the selected drive wants moved by the bus master."""
        return self._selected.transfer if self._selected.awaits_dma else None

    def run_dma(self, pieces: Sequence[memoryview], *, is_short: bool) -> bool:
        """Move the data of the waiting command; `is_short`: the guest's memory holds less than it needs.

        Returns False when the command ended with an error.
        """
        unit = self._selected
        transfer = unit.transfer
        assert transfer is not None
        unit.awaits_dma = False
        try:
            transfer.run(pieces)
        except AtaError as error:
            self._fail(unit, error.bits)
            return False
        except VdiskError:
            self._fail_transfer(unit, transfer)
            return False
        if is_short:
            self._fail(unit, ABORTED)
            return False
        self._finish(unit)
        return True


class _ControlBlock:
    """The alternate status and device control register; a drive address register never existed on later drives."""

    def __init__(self, channel: IdeChannel) -> None:
        self._channel = channel

    def read(self, offset: int, size: int) -> int:
        return self._channel.read_alternate_status() if offset == 0 else all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._channel.write_control(value & 0xFF)


def _nothing() -> None:
    """Nobody listens."""
