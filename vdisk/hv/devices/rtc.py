"""The CMOS clock, a Motorola MC146818: the host's time (UTC), 128 bytes of memory, its interrupts."""

from __future__ import annotations

import time
from collections.abc import Callable

from vdisk.hv.devices.base import IrqLine

_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
CENTURY = 0x32
_B_SET, _B_PERIODIC, _B_ALARM, _B_UPDATE, _B_BINARY, _B_24_HOURS = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_C_IRQ, _C_PERIODIC, _C_ALARM, _C_UPDATE = 0x80, 0x40, 0x20, 0x10
_TIME_REGISTERS = frozenset((0, 2, 4, 6, 7, 8, 9, CENTURY))
_DONT_CARE = 0xC0


def to_bcd(value: int) -> int:
    """Two decimal digits in one byte."""
    return value // 10 << 4 | value % 10


def from_bcd(value: int) -> int:
    """And back."""
    return (value >> 4) * 10 + (value & 0xF)


class Rtc:
    """Register 0 is the index port, 1 the data port. `tick` is to be called now and then, for the interrupts.

    Periodic interrupts come no faster than `tick` is called.
    """

    def __init__(self, irq: IrqLine, now: Callable[[], float] = time.time) -> None:
        self._irq = irq
        self._now = now
        self._offset = 0.0
        self._index = 0
        self._last_second = int(now())
        self.cmos = bytearray(128)
        self.cmos[_A] = 0x26
        self.cmos[_B] = _B_24_HOURS
        self.cmos[_D] = 0x80

    def _fields(self) -> dict[int, int]:
        when = time.gmtime(self._now() + self._offset)
        return {
            0: when.tm_sec,
            2: when.tm_min,
            4: when.tm_hour,
            6: (when.tm_wday + 1) % 7 + 1,
            7: when.tm_mday,
            8: when.tm_mon,
            9: when.tm_year % 100,
            CENTURY: when.tm_year // 100,
        }

    def now_bcd(self) -> tuple[int, int, int, int, int, int, int]:
        """Century, year, month, day, hour, minute, second, each in BCD."""
        fields = self._fields()
        century, year, month, day, hour, minute, second = (to_bcd(fields[at]) for at in (CENTURY, 9, 8, 7, 4, 2, 0))
        return century, year, month, day, hour, minute, second

    def _shown(self, register: int, value: int) -> int:
        control = self.cmos[_B]
        pm = 0
        if register == 4 and not control & _B_24_HOURS:
            pm = 0x80 if value >= 12 else 0
            value = value % 12 or 12
        return (value if control & _B_BINARY else to_bcd(value)) | pm

    def tick(self) -> None:
        """Let time pass: raise the interrupts that are due."""
        control = self.cmos[_B]
        causes = 0
        second = int(self._now() + self._offset)
        if second != self._last_second:
            self._last_second = second
            causes |= _C_UPDATE
            fields = self._fields()
            alarm = (self.cmos[1], self.cmos[3], self.cmos[5])
            shown = (self._shown(0, fields[0]), self._shown(2, fields[2]), self._shown(4, fields[4]))
            if all(want >= _DONT_CARE or want == is_now for want, is_now in zip(alarm, shown, strict=True)):
                causes |= _C_ALARM
        if self.cmos[_A] & 0x0F:
            causes |= _C_PERIODIC
        self.cmos[_C] |= causes
        if causes & control & (_B_PERIODIC | _B_ALARM | _B_UPDATE):
            self.cmos[_C] |= _C_IRQ
            self._irq(True)

    def read(self, offset: int, size: int) -> int:
        """The index reads as all ones; the data is the chosen register's. Register C's causes go when it is read."""
        if offset == 0:
            return 0xFF
        register = self._index
        if register in _TIME_REGISTERS and not self.cmos[_B] & _B_SET:
            return self._shown(register, self._fields()[register])
        value = self.cmos[register]
        if register == _C:
            self.cmos[_C] = 0
            self._irq(False)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, or write it. A time that is set is kept as a difference from the host's."""
        if offset == 0:
            self._index = value & 0x7F
            return
        register = self._index
        value &= 0xFF
        if register in (_C, _D):
            return
        if register == _B and value & _B_SET and not self.cmos[_B] & _B_SET:
            for field, now in self._fields().items():
                self.cmos[field] = self._shown(field, now)
        was_setting = bool(self.cmos[_B] & _B_SET)
        self.cmos[register] = value & 0x7F if register == _A else value
        if register == _B and was_setting and not value & _B_SET:
            self._set_time()

    def _set_time(self) -> None:
        import calendar

        def field(register: int) -> int:
            value = self.cmos[register]
            return value if self.cmos[_B] & _B_BINARY else from_bcd(value)

        hour = field(4)
        if not self.cmos[_B] & _B_24_HOURS:
            raw = self.cmos[4]
            hour = (raw & 0x7F if self.cmos[_B] & _B_BINARY else from_bcd(raw & 0x7F)) % 12 + (12 if raw & 0x80 else 0)
        parts = (field(CENTURY) * 100 + field(9), field(8), field(7), hour, field(2), field(0))
        year, month, day = parts[:3]
        if 1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31:
            self._offset = calendar.timegm((*parts, 0, 0, 0)) - self._now()
