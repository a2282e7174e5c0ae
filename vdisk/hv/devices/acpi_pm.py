"""ACPI power management as the PIIX4 has it: PM1a event and control, and the timer (ACPI 6.4, section 4.8.3)."""

from __future__ import annotations

import time
from collections.abc import Callable

from vdisk.hv.devices.base import IrqLine

STATUS, ENABLE, CONTROL, TIMER = 0, 2, 4, 8
TIMER_HZ = 3579545
_SCI_ENABLED = 1
_SLEEP = 1 << 13
_POWER_BUTTON = 1 << 8
_SLEEP_SUSPEND = 1


class AcpiPm:
    """64 bytes of ports. ACPI is on from the start. `on_power_off` is called when the guest enters S5."""

    def __init__(self, irq: IrqLine, on_power_off: Callable[[], None]) -> None:
        self._irq = irq
        self._on_power_off = on_power_off
        self._start = time.monotonic_ns()
        self._status = 0
        self._enable = 0
        self._control = _SCI_ENABLED

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._status |= _POWER_BUTTON
        self._update()

    def _update(self) -> None:
        self._irq(bool(self._status & self._enable))

    def _timer(self) -> int:
        return (time.monotonic_ns() - self._start) * TIMER_HZ // 1_000_000_000 & 0xFFFFFF

    def read(self, offset: int, size: int) -> int:
        """The registers; zero between them."""
        if offset == TIMER and size == 4:
            return self._timer()
        registers = bytearray(16)
        registers[STATUS:ENABLE] = self._status.to_bytes(2, "little")
        registers[ENABLE:CONTROL] = self._enable.to_bytes(2, "little")
        registers[CONTROL : CONTROL + 2] = self._control.to_bytes(2, "little")
        registers[TIMER : TIMER + 4] = self._timer().to_bytes(4, "little")
        return int.from_bytes(registers[offset : offset + size], "little") if offset < 16 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Status bits are cleared by ones; SLP_EN in the control register puts the machine to sleep."""
        for at in range(offset, offset + size, 2):
            word = value >> 8 * (at - offset) & (0xFF if size == 1 else 0xFFFF)
            self._write_word(at, word, size)

    def _write_word(self, offset: int, value: int, size: int) -> None:
        if offset == STATUS:
            self._status &= ~value
        elif offset == STATUS + 1:
            self._status &= ~(value << 8)
        elif offset == ENABLE:
            self._enable = value if size > 1 else self._enable & 0xFF00 | value
        elif offset == ENABLE + 1:
            self._enable = self._enable & 0xFF | value << 8
        elif offset in (CONTROL, CONTROL + 1):
            if offset == CONTROL + 1:
                value = self._control & 0xFF | value << 8
            elif size == 1:
                value |= self._control & 0xFF00
            self._control = value & ~_SLEEP | _SCI_ENABLED
            if value & _SLEEP and value >> 10 & 7 != _SLEEP_SUSPEND:
                self._on_power_off()
        self._update()
