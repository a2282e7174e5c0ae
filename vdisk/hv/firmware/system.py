"""int 11h, 12h, 14h, 15h, 17h and 1Ah: what the machine has, its memory, its clock, its PCI bus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vdisk.hv import layout
from vdisk.hv.devices.base import Region
from vdisk.hv.firmware.e820 import ENTRY_BYTES, memory_map
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.memory import GuestMemory, GuestMemoryError

_DATA = layout.BIOS_DATA
EQUIPMENT, MEMORY_KIB, TICKS, MIDNIGHT = (_DATA + at for at in (0x10, 0x13, 0x6C, 0x70))
CONFIG_TABLE = 0xE6F5
"""Where an AT has its table of features, in the firmware's segment."""
CONFIG_TABLE_DATA = bytes((8, 0, 0xFC, 0, 0, 0x74, 0x40, 0, 0, 0))
_SMAP = 0x534D4150
_UNSUPPORTED = 0x86
_KIB_64 = 64 << 10
_MIB = 1 << 20


class PciAccess(Protocol):
    """PCI configuration as int 1Ah AH=B1h reaches it."""

    def read_config(self, bus_device_function: int, offset: int, size: int) -> int:
        """All ones where there is no function."""
        ...

    def write_config(self, bus_device_function: int, offset: int, size: int, value: int) -> None:
        """Ignored where there is no function."""
        ...

    def functions(self) -> list[int]:
        """Every function there is, as bus << 8 | device << 3 | function."""
        ...


class Clock(Protocol):
    """The CMOS clock."""

    def now_bcd(self) -> tuple[int, int, int, int, int, int, int]:
        """Century, year, month, day, hour, minute, second."""
        ...


class SystemServices:
    """The handlers: True when done, False when the guest is to wait for an interrupt and ask again."""

    def __init__(
        self, memory: GuestMemory, pci: PciAccess, clock: Clock, serial_ports: list[Region], now: Callable[[], float]
    ) -> None:
        self._memory = memory
        self._map = memory_map(memory)
        self._pci = pci
        self._clock = clock
        self._serial = serial_ports
        self._now = now
        self._wait_until: float | None = None

    def handle_equipment(self, frame: Frame) -> bool:
        """int 11h."""
        frame.ax = self._memory.read_u16(EQUIPMENT)
        return True

    def handle_memory_size(self, frame: Frame) -> bool:
        """int 12h."""
        frame.ax = self._memory.read_u16(MEMORY_KIB)
        return True

    def handle_printer(self, frame: Frame) -> bool:
        """int 17h: there is no printer; it times out."""
        frame.ah = 0x01
        return True

    def handle_serial(self, frame: Frame) -> bool:
        """int 14h: initialise, send, receive, status of the serial ports."""
        if frame.dx >= len(self._serial):
            return True
        port = self._serial[frame.dx]
        function = frame.ah
        if function == 0x00:
            port.write(3, 1, frame.al & 0x1F)
        elif function == 0x01:
            port.write(0, 1, frame.al)
            frame.ah = port.read(5, 1)
            return True
        elif function == 0x02:
            status = port.read(5, 1)
            if not status & 1:
                frame.ah = 0x80
                return True
            frame.al = port.read(0, 1)
            frame.ah = status & 0x1E
            return True
        frame.ah, frame.al = port.read(5, 1), port.read(6, 1)
        return True

    # int 15h ---------------------------------------------------------------------------------------------------

    def handle_system(self, frame: Frame) -> bool:
        """int 15h."""
        handler = _SYSTEM_BY_AX.get(frame.ax) or _SYSTEM_BY_AH.get(frame.ah)
        if handler is None:
            frame.ah = _UNSUPPORTED
            frame.carry = True
            return True
        return handler(self, frame)

    def _gate_a20(self, frame: Frame) -> bool:
        function = frame.al
        if function > 3:
            frame.ah = _UNSUPPORTED
            frame.carry = True
            return True
        if function == 2:
            frame.al = 1
        elif function == 3:
            frame.bx = 0x0003  # by the keyboard controller and by port 92h
        frame.ah = 0
        frame.carry = False
        return True

    def _keyboard_intercept(self, frame: Frame) -> bool:
        frame.carry = True  # the scan code in AL stands
        return True

    def _device_hook(self, frame: Frame) -> bool:
        frame.ah = 0
        frame.carry = False
        return True

    def _wait(self, frame: Frame) -> bool:
        """AH=86h: wait CX:DX microseconds."""
        if self._wait_until is None:
            self._wait_until = self._now() + (frame.cx << 16 | frame.dx) / 1e6
        if self._now() < self._wait_until:
            return False
        self._wait_until = None
        frame.carry = False
        return True

    def _move_block(self, frame: Frame) -> bool:
        """AH=87h: CX words between two places that a descriptor table at ES:SI names."""
        table = self._memory.read(frame.es + frame.si, 48)

        def base(at: int) -> int:
            return int.from_bytes(table[at + 2 : at + 5], "little") | table[at + 7] << 24

        length = (frame.cx & 0x7FFF or 0x8000) * 2
        try:
            self._memory.write(base(24), self._memory.read(base(16), length))
        except GuestMemoryError:
            frame.ah = 0x02
            frame.carry = True
            return True
        frame.ah = 0
        frame.carry = False
        return True

    def _extended_kib(self, frame: Frame) -> bool:
        frame.ax = min((self._map[4].base - _MIB) >> 10, 0xFC00)
        frame.carry = False
        return True

    def _configuration(self, frame: Frame) -> bool:
        frame.set_es(layout.FIRMWARE >> 4)
        frame.bx = CONFIG_TABLE
        frame.ah = 0
        frame.carry = False
        return True

    def _ebda_segment(self, frame: Frame) -> bool:
        frame.set_es(layout.EBDA >> 4)
        frame.carry = False
        return True

    def _memory_e801(self, frame: Frame) -> bool:
        end = self._map[4].base
        frame.ax = frame.cx = min(end - _MIB, 15 * _MIB) >> 10
        frame.bx = frame.dx = max(0, end - 16 * _MIB) // _KIB_64
        frame.carry = False
        return True

    def _memory_map(self, frame: Frame) -> bool:
        index = frame.ebx
        if frame.edx != _SMAP or frame.ecx < ENTRY_BYTES or index >= len(self._map):
            frame.ah = _UNSUPPORTED
            frame.carry = True
            return True
        self._memory.write(frame.es + frame.di, self._map[index].pack())
        frame.ebx = index + 1 if index + 1 < len(self._map) else 0
        frame.eax, frame.ecx = _SMAP, ENTRY_BYTES
        frame.carry = False
        return True

    def _target_mode(self, frame: Frame) -> bool:
        frame.ah = 0  # AMD: the system says that it will go to long mode
        frame.carry = False
        return True

    # int 1Ah ---------------------------------------------------------------------------------------------------

    def handle_time(self, frame: Frame) -> bool:
        """int 1Ah: ticks, the clock, PCI."""
        function = frame.ah
        memory = self._memory
        if function == 0x00:
            frame.al = memory.read_u8(MIDNIGHT)
            memory.write_u8(MIDNIGHT, 0)
            ticks = memory.read_u32(TICKS)
            frame.cx, frame.dx = ticks >> 16, ticks & 0xFFFF
            frame.carry = False
        elif function == 0x01:
            memory.write_u32(TICKS, frame.cx << 16 | frame.dx)
            memory.write_u8(MIDNIGHT, 0)
            frame.carry = False
        elif function == 0x02:
            *_, hour, minute, second = self._clock.now_bcd()
            frame.ch, frame.cl, frame.dh, frame.dl = hour, minute, second, 0
            frame.carry = False
        elif function == 0x04:
            century, year, month, day, *_ = self._clock.now_bcd()
            frame.ch, frame.cl, frame.dh, frame.dl = century, year, month, day
            frame.carry = False
        elif function == 0xB1:
            self._pci_bios(frame)
        else:
            frame.carry = True
            if function == 0xBB:
                frame.eax = 0x00000023  # TCG_PC_UNSUPPORTED: there is no TPM
        return True

    def _pci_bios(self, frame: Frame) -> None:
        function = frame.al
        status = 0x00
        where = frame.bx
        if function == 0x01:
            frame.ax, frame.bx, frame.cl = 0x0001, 0x0210, 0
            frame.edx = 0x20494350  # "PCI "
            frame.edi = 0
        elif function in (0x02, 0x03):
            status = self._find_function(frame, by_class=function == 0x03)
        elif 0x08 <= function <= 0x0A:
            size = 1 << function - 0x08
            value = self._pci.read_config(where, frame.di & 0xFF, size)
            if size == 1:
                frame.cl = value
            elif size == 2:
                frame.cx = value
            else:
                frame.ecx = value
        elif 0x0B <= function <= 0x0D:
            size = 1 << function - 0x0B
            self._pci.write_config(where, frame.di & 0xFF, size, frame.ecx & (1 << 8 * size) - 1)
        else:
            status = 0x81
        frame.ah = status
        frame.carry = status != 0

    def _find_function(self, frame: Frame, *, by_class: bool) -> int:
        left = frame.si
        for where in self._pci.functions():
            if by_class:
                matches = self._pci.read_config(where, 8, 4) >> 8 == frame.ecx & 0xFFFFFF
            else:
                matches = self._pci.read_config(where, 0, 4) == frame.cx << 16 | frame.dx
            if matches:
                if left == 0:
                    frame.bx = where
                    return 0x00
                left -= 1
        return 0x86


_Handler = Callable[[SystemServices, Frame], bool]
_SYSTEM_BY_AX: dict[int, _Handler] = {
    0xE820: SystemServices._memory_map,
    0xE801: SystemServices._memory_e801,
    0xEC00: SystemServices._target_mode,
}
_SYSTEM_BY_AH: dict[int, _Handler] = {
    0x24: SystemServices._gate_a20,
    0x4F: SystemServices._keyboard_intercept,
    0x86: SystemServices._wait,
    0x87: SystemServices._move_block,
    0x88: SystemServices._extended_kib,
    0x90: SystemServices._device_hook,
    0x91: SystemServices._device_hook,
    0xC0: SystemServices._configuration,
    0xC1: SystemServices._ebda_segment,
}
