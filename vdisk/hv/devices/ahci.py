"""AHCI 1.3.1: a SATA controller with native command queuing, for hard disks and CD drives.

Commands are done while the guest writes PxCI. Each port keeps its received-FIS area as a real one does, because
drivers read the outcome of a command there rather than in registers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdisk.errors import HypervisorError, VdiskError
from vdisk.hv.devices import dma
from vdisk.hv.devices.ata import (
    ABORTED,
    ERROR,
    ID_NOT_FOUND,
    READY,
    SEEK_DONE,
    UNCORRECTABLE,
    AtaDevice,
    AtaDisk,
    AtaError,
    Protocol,
    TaskFile,
)
from vdisk.hv.devices.base import DmaMemory, all_ones
from vdisk.hv.devices.pci import Bar, PciFunction
from vdisk.hv.devices.scsi import ScsiError
from vdisk.hv.devices.transfer import Direction, Transfer

ICH9_AHCI = (0x8086, 0x2922)
ICH8M_AHCI = (0x8086, 0x2829)
VMWARE_AHCI = (0x15AD, 0x07E0)
PARALLELS_AHCI = (0x8086, 0x2821)

PORTS, PORT_BYTES = 0x100, 0x80
_GHC_RESET, _GHC_INTERRUPTS, _GHC_AHCI = 1 << 0, 1 << 1, 1 << 31
_CAP = 1 << 31 | 1 << 30 | 1 << 24 | 2 << 20 | 1 << 18 | 31 << 8  # 64 bit, NCQ, CLO, 3 Gbit/s, AHCI only, 32 slots
_VERSION = 0x00010300
_ST, _SUD, _POD, _CLO, _FRE, _FR, _CR, _ATAPI = (1 << n for n in (0, 1, 2, 3, 4, 14, 15, 24))
_CMD_WRITABLE = _ST | _FRE | _ATAPI | 1 << 25
_DHRS, _PSS, _SDBS, _PCS, _OFS, _IFS, _HBFS, _TFES = (1 << n for n in (0, 1, 3, 6, 24, 27, 29, 30))
_IS_CLEARABLE = 0xFDC000AF
_LINK_UP, _LINK_OFF = 0x123, 0x004
_EXCHANGED = 1 << 26
_IDLE = READY | SEEK_DONE
_NO_DEVICE = 0x7F

_HEADER = struct.Struct("<HHIQ")
_PRD = struct.Struct("<Q4xI")
_TABLE_BYTES, _PRD_BYTES, _PACKET_OFFSET = 0x80, 16, 0x40
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _PIO_SETUP, _SET_DEVICE_BITS = 0x27, 0x34, 0x5F, 0xA1
_PIO_SETUP_AT, _DEVICE_TO_HOST_AT, _SET_DEVICE_BITS_AT = 0x20, 0x40, 0x58
_HEADER_PACKET = 1 << 5
_FIS_COMMAND, _FIS_INTERRUPT = 0x80, 0x40
_CONTROL_RESET = 0x04


class HostRegister:
    """Registers of the controller (3.1)."""

    CAP, GHC, IS, PI, VS = 0x00, 0x04, 0x08, 0x0C, 0x10


class PortRegister:
    """Registers of a port, from its own start (3.3)."""

    CLB, CLBU, FB, FBU, IS, IE, CMD = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18
    TFD, SIG, SSTS, SCTL, SERR, SACT, CI = 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38


class _Fault(Exception):
    """A fatal error of a port: the bits of PxIS that say which."""

    def __init__(self, bits: int) -> None:
        self.bits = bits


class AhciPort:
    """One port and the drive behind it."""

    def __init__(self, memory: DmaMemory, drive: AtaDevice | None) -> None:
        self.drive = drive
        self._memory = memory
        self.interrupt_enable = 0
        self.reset()

    def reset(self) -> None:
        """The state after a reset of the controller."""
        self._list = self._fis = 0
        self.interrupts = self.interrupt_enable = 0
        self.command = 0
        self._control = 0
        self._active = self.issued = 0
        self._current_slot = 0
        self._is_halted = False
        self._is_soft_reset = False
        self._reset_link()

    def _reset_link(self) -> None:
        """What COMRESET does: the drive, if any, answers with its signature."""
        self._errors = 0
        self._owes_signature = False
        if self.drive is None:
            self._link, self._status, self._error, self.signature = 0, _NO_DEVICE, 0, 0xFFFFFFFF
            return
        self.drive.reset()
        self._link = _LINK_UP
        self._errors = _EXCHANGED
        self.signature = self.drive.signature << 8 | 1
        self._post_signature()

    def _post_signature(self) -> None:
        assert self.drive is not None
        self._status, self._error = (0 if self.drive.is_packet else _IDLE), 1
        self._owes_signature = True
        self._pay_signature()

    def _pay_signature(self) -> None:
        """The signature's FIS goes out as soon as the guest receives any."""
        if self._owes_signature and self.command & _FRE and self.drive is not None:
            self._owes_signature = False
            self._post_device_to_host(TaskFile(0, count=1, lba=self.drive.signature), is_interrupting=False)

    @property
    def is_pending(self) -> bool:
        """Whether an enabled interrupt is pending."""
        return bool(self._shown_interrupts() & self.interrupt_enable)

    @property
    def is_running(self) -> bool:
        """Whether the guest has started the command engine."""
        return bool(self.command & _ST)

    def _shown_interrupts(self) -> int:
        return self.interrupts | (_PCS if self._errors & _EXCHANGED else 0)

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """A register of the port."""
        match offset:
            case PortRegister.CLB:
                return self._list & 0xFFFFFFFF
            case PortRegister.CLBU:
                return self._list >> 32
            case PortRegister.FB:
                return self._fis & 0xFFFFFFFF
            case PortRegister.FBU:
                return self._fis >> 32
            case PortRegister.IS:
                return self._shown_interrupts()
            case PortRegister.IE:
                return self.interrupt_enable
            case PortRegister.CMD:
                running = (_FR if self.command & _FRE else 0) | (_CR if self.command & _ST else 0)
                return self.command | running | _SUD | _POD | self._current_slot << 8
            case PortRegister.TFD:
                return self._status | self._error << 8
            case PortRegister.SIG:
                return self.signature
            case PortRegister.SSTS:
                return self._link
            case PortRegister.SCTL:
                return self._control
            case PortRegister.SERR:
                return self._errors
            case PortRegister.SACT:
                return self._active
            case PortRegister.CI:
                return self.issued
        return 0

    def write(self, offset: int, value: int) -> None:
        """Write a register of the port."""
        match offset:
            case PortRegister.CLB:
                self._list = self._list & ~0xFFFFFFFF | value & 0xFFFFFC00
            case PortRegister.CLBU:
                self._list = self._list & 0xFFFFFFFF | value << 32
            case PortRegister.FB:
                self._fis = self._fis & ~0xFFFFFFFF | value & 0xFFFFFF00
            case PortRegister.FBU:
                self._fis = self._fis & 0xFFFFFFFF | value << 32
            case PortRegister.IS:
                self.interrupts &= ~(value & _IS_CLEARABLE)
            case PortRegister.IE:
                self.interrupt_enable = value
            case PortRegister.CMD:
                self._write_command(value)
            case PortRegister.SCTL:
                self._write_control(value)
            case PortRegister.SERR:
                self._errors &= ~value
            case PortRegister.SACT:
                if self.is_running:
                    self._active |= value
            case PortRegister.CI:
                if self.is_running:
                    self.issued |= value
                    self._run()

    def _write_command(self, value: int) -> None:
        had = self.command
        self.command = value & _CMD_WRITABLE
        if value & _CLO and not value & _ST:
            self._status &= ~0x88
        self._pay_signature()
        if had & _ST and not value & _ST:
            self.issued = self._active = self._current_slot = 0
            self._is_halted = False
        elif value & _ST:
            self._run()

    def _write_control(self, value: int) -> None:
        was, self._control = self._control & 15, value & 0xFFF
        now = value & 15
        if now == 1:
            self._link, self._status = 0, _NO_DEVICE
        elif now == 4:
            self._link = _LINK_OFF
        elif was in (1, 4):
            self._reset_link()

    # Commands --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Do what is issued, lowest slot first, until a command fails: the guest restarts the port behind that."""
        while self.issued and not self._is_halted and self.drive is not None:
            slot = (self.issued & -self.issued).bit_length() - 1
            self._current_slot = slot
            try:
                self._execute(slot)
            except _Fault as fault:
                self.interrupts |= fault.bits
                self._is_halted = True
            except HypervisorError:  # an address that is not RAM
                self.interrupts |= _HBFS
                self._is_halted = True

    def _execute(self, slot: int) -> None:
        header = self._memory.view(self._list + 32 * slot, 32)
        flags, entries, _moved, table_address = _HEADER.unpack_from(header)
        table = self._memory.view(table_address & ~0x7F, _TABLE_BYTES)
        if table[0] != _HOST_TO_DEVICE:
            raise _Fault(_IFS)
        if not table[1] & _FIS_COMMAND:
            self._control_fis(table[15])
            self.issued &= ~(1 << slot)
            return
        task = TaskFile(
            table[2],
            table[11] << 8 | table[3],
            table[13] << 8 | table[12],
            int.from_bytes(table[4:7], "little") | int.from_bytes(table[8:11], "little") << 24,
            table[7],
        )
        assert self.drive is not None
        try:
            action = self.drive.begin(task)
            if action.protocol is Protocol.PACKET:
                if not flags & _HEADER_PACKET:
                    raise AtaError
                self._packet(task, bytes(table[_PACKET_OFFSET : _PACKET_OFFSET + 16]), header, entries, table_address)
            else:
                moved = self._move(action.transfer, header, entries, table_address)
                if action.protocol is Protocol.QUEUED:
                    self._queued_done(slot)
                    return
                if action.protocol is Protocol.PIO and action.transfer.direction is Direction.IN:
                    self._status, self._error = _IDLE, 0
                    self._post_pio_setup(task, moved)
                else:
                    self._done(task)
        except AtaError as error:
            self._failed(slot, task, error.bits)
            return
        self.issued &= ~(1 << slot)

    def _pieces(self, table_address: int, entries: int, length: int) -> list[memoryview]:
        """The guest's memory for `length` bytes."""
        table = self._memory.view((table_address & ~0x7F) + _TABLE_BYTES, _PRD_BYTES * entries)
        ranges: list[dma.Range] = []
        for address, control in _PRD.iter_unpack(table):
            count = (control & 0x3FFFFF) + 1
            ranges.append((address & ~1, min(count, length)))
            length -= ranges[-1][1]
            if not length:
                break
        return dma.views(self._memory, ranges)

    def _move(self, transfer: Transfer, header: memoryview, entries: int, table_address: int) -> int:
        """The data phase; returns the bytes moved, and notes them in the command header."""
        moved = 0
        if transfer.length:
            pieces = self._pieces(table_address, entries, transfer.length)
            if dma.total_bytes(pieces) < transfer.length:
                raise _Fault(_OFS)
            try:
                moved = transfer.run(pieces)
            except VdiskError:
                raise AtaError(UNCORRECTABLE if transfer.direction is Direction.IN else ID_NOT_FOUND) from None
        header[4:8] = moved.to_bytes(4, "little")
        return moved

    def _packet(self, task: TaskFile, cdb: bytes, header: memoryview, entries: int, table_address: int) -> None:
        assert self.drive is not None
        task.count = 3  # interrupt reason: the status phase
        transfer = Transfer.nothing()
        try:
            transfer = self.drive.packet(cdb[:12])
            if transfer.direction is Direction.OUT:
                raise AtaError
            pieces = self._pieces(table_address, entries, transfer.length) if transfer.length else []
            moved = transfer.run(pieces)
            header[4:8] = moved.to_bytes(4, "little")
        except ScsiError as error:
            raise AtaError(error.key << 4 | ABORTED) from None
        except HypervisorError:
            raise
        except VdiskError:
            raise AtaError(self.drive.medium_failed(transfer.direction).key << 4 | ABORTED) from None
        self._done(task)

    def _control_fis(self, control: int) -> None:
        """A software reset is two of these, with the bit set and cleared."""
        if control & _CONTROL_RESET:
            self._is_soft_reset = True
        elif self._is_soft_reset:
            self._is_soft_reset = False
            assert self.drive is not None
            self.drive.reset()
            self._post_signature()

    # Outcomes --------------------------------------------------------------------------------------------------

    def _done(self, task: TaskFile) -> None:
        self._status, self._error = _IDLE, 0
        self._post_device_to_host(task, is_interrupting=True)

    def _queued_done(self, slot: int) -> None:
        self._status, self._error = _IDLE, 0
        self.issued &= ~(1 << slot)
        self._active &= ~(1 << slot)
        self._post_set_device_bits(1 << slot)

    def _failed(self, slot: int, task: TaskFile, bits: int) -> None:
        self._status, self._error = _IDLE | ERROR, bits
        self.interrupts |= _TFES
        self._is_halted = True
        if self._active >> slot & 1 and isinstance(self.drive, AtaDisk):
            self.drive.note_queue_error(slot, self._status, bits, task)
            self.issued &= ~(1 << slot)
            self._post_set_device_bits(0)
        else:
            self._post_device_to_host(task, is_interrupting=True)

    def _post(self, offset: int, fis: bytes, interrupt: int) -> None:
        """Write a FIS where the guest receives them, and note its interrupt."""
        if self.command & _FRE:
            self._memory.view(self._fis + offset, len(fis))[:] = fis
        self.interrupts |= interrupt

    def _task_bytes(self, task: TaskFile) -> bytes:
        lba = task.lba.to_bytes(6, "little")
        return lba[:3] + bytes((task.device,)) + lba[3:] + bytes((0, task.count & 0xFF, task.count >> 8 & 0xFF))

    def _post_device_to_host(self, task: TaskFile, *, is_interrupting: bool) -> None:
        flags = _FIS_INTERRUPT if is_interrupting else 0
        head = bytes((_DEVICE_TO_HOST, flags, self._status, self._error))
        fis = head + self._task_bytes(task) + bytes(6)
        try:
            self._post(_DEVICE_TO_HOST_AT, fis, _DHRS if is_interrupting else 0)
        except HypervisorError:
            self.interrupts |= _HBFS

    def _post_pio_setup(self, task: TaskFile, moved: int) -> None:
        flags = _FIS_INTERRUPT | 0x20  # towards the host
        head = bytes((_PIO_SETUP, flags, self._status | 0x08, self._error)) + self._task_bytes(task)
        fis = head + bytes((0, self._status)) + (moved & 0xFFFF).to_bytes(2, "little") + bytes(2)
        self._post(_PIO_SETUP_AT, fis, _PSS)

    def _post_set_device_bits(self, finished: int) -> None:
        fis = struct.pack("<BBBBI", _SET_DEVICE_BITS, _FIS_INTERRUPT, self._status & 0x77, self._error, finished)
        try:
            self._post(_SET_DEVICE_BITS_AT, fis, _SDBS)
        except HypervisorError:
            self.interrupts |= _HBFS


class AhciController(PciFunction):
    """The PCI function, with its registers in BAR 5. `drives` are those of ports 0, 1, ...; None is an empty port."""

    def __init__(
        self,
        memory: DmaMemory,
        drives: Sequence[AtaDevice | None],
        *,
        ids: tuple[int, int] = ICH9_AHCI,
        subsystem: tuple[int, int] = (0x1AF4, 0x1100),
    ) -> None:
        if not 0 < len(drives) <= 32:
            raise ValueError(f"AHCI has 1 to 32 ports, not {len(drives)}")
        self.ports = [AhciPort(memory, drive) for drive in drives]
        self._control = _GHC_AHCI
        self._pending = 0
        size = max(4096, 1 << (PORTS + PORT_BYTES * len(drives) - 1).bit_length())
        super().__init__(
            *ids, 0x010601, revision=2, subsystem=subsystem, bars={5: Bar("mem", size, self)}, interrupt_pin=1
        )
        self.add_msi()

    @property
    def is_live(self) -> bool:
        """Whether a driver has started a port."""
        return any(port.is_running for port in self.ports)

    def reset(self) -> None:
        """A machine reset."""
        self._reset_controller()
        super().reset()

    def _reset_controller(self) -> None:
        self._control = _GHC_AHCI
        self._pending = 0
        for port in self.ports:
            port.reset()
        self.set_irq(False)

    def read(self, offset: int, size: int) -> int:
        """Read a register. They have 4 bytes; narrower and 8-byte reads are cut out of them or put together."""
        if size == 8:
            return self._read_word(offset & ~3) | self._read_word((offset & ~3) + 4) << 32
        return self._read_word(offset & ~3) >> 8 * (offset & 3) & all_ones(size)

    def _read_word(self, offset: int) -> int:
        if offset >= PORTS:
            index, register = divmod(offset - PORTS, PORT_BYTES)
            return self.ports[index].read(register) if index < len(self.ports) else 0
        match offset:
            case HostRegister.CAP:
                return _CAP | len(self.ports) - 1
            case HostRegister.GHC:
                return self._control
            case HostRegister.IS:
                return self._pending
            case HostRegister.PI:
                return (1 << len(self.ports)) - 1
            case HostRegister.VS:
                return _VERSION
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register: 4 bytes at once, or 8 for a pair."""
        if size == 8:
            self.write(offset, 4, value & 0xFFFFFFFF)
            self.write(offset + 4, 4, value >> 32)
            return
        if size != 4 or offset & 3:
            return
        if offset >= PORTS:
            index, register = divmod(offset - PORTS, PORT_BYTES)
            if index < len(self.ports):
                self.ports[index].write(register, value)
        elif offset == HostRegister.GHC:
            if value & _GHC_RESET:
                self._reset_controller()
                return
            self._control = _GHC_AHCI | value & _GHC_INTERRUPTS
        elif offset == HostRegister.IS:
            self._pending &= ~value
            # With a message instead of a line, what is still pending needs another message.
            self.set_irq(False)
        self._update_irq()

    def _update_irq(self) -> None:
        for index, port in enumerate(self.ports):
            if port.is_pending:
                self._pending |= 1 << index
        self.set_irq(bool(self._pending and self._control & _GHC_INTERRUPTS))
