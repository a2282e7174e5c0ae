"""A 16550A serial port. What the guest sends goes to a callable; `receive` types into the guest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vdisk.hv.devices.base import IrqLine

_IER_RECEIVED = 1
_IER_EMPTY = 2
_IER_LINE = 4
_LCR_DIVISOR = 0x80
_MCR_LOOPBACK = 0x10
_MCR_OUT2 = 8
_LSR_READY = 1
_LSR_OVERRUN = 2
_LSR_IDLE = 0x60
_MSR_CONNECTED = 0xB0
_IIR_NONE = 1
_IIR_EMPTY = 2
_IIR_RECEIVED = 4
_IIR_LINE = 6
_IIR_FIFO = 0xC0
_FIFO_BYTES = 16


class Serial:
    """Eight byte registers (National Semiconductor PC16550D data sheet, section 8).

    Sending takes no time, so the transmitter is always empty. Received bytes wait in a queue of any length, from
    which the FIFO is filled.
    """

    def __init__(self, irq: IrqLine, send: Callable[[int], None]) -> None:
        self._irq = irq
        self._send = send
        self._waiting: deque[int] = deque()
        self._interrupts = 0
        self._line = 0
        self._modem = 0
        self._scratch = 0
        self._divisor = 12
        self._fifo = False
        self._has_told_empty = True
        self._overrun = False
        self._level = False

    def receive(self, data: bytes) -> None:
        """Bytes that arrive at the guest's end."""
        self._waiting.extend(data)
        self._update()

    @property
    def is_quiet(self) -> bool:
        """Whether the guest has taken every byte that was received."""
        return not self._waiting

    def _cause(self) -> int:
        if self._overrun and self._interrupts & _IER_LINE:
            return _IIR_LINE
        if self._waiting and self._interrupts & _IER_RECEIVED:
            return _IIR_RECEIVED
        if not self._has_told_empty and self._interrupts & _IER_EMPTY:
            return _IIR_EMPTY
        return _IIR_NONE

    def _update(self) -> None:
        # On a PC, OUT2 gates the line; in loopback it is cut off.
        gate = self._modem & (_MCR_OUT2 | _MCR_LOOPBACK) == _MCR_OUT2
        level = gate and self._cause() != _IIR_NONE
        if level != self._level:
            self._level = level
            self._irq(level)

    def read(self, offset: int, size: int) -> int:
        """A register. Reading the data and the cause changes them."""
        if offset == 5:
            value = _LSR_IDLE | (_LSR_READY if self._waiting else 0) | (_LSR_OVERRUN if self._overrun else 0)
            if self._overrun:
                self._overrun = False
                self._update()
            return value
        if offset == 0:
            if self._line & _LCR_DIVISOR:
                return self._divisor & 0xFF
            value = self._waiting.popleft() if self._waiting else 0
            self._update()
            return value
        if offset == 1:
            return self._divisor >> 8 if self._line & _LCR_DIVISOR else self._interrupts
        if offset == 2:
            cause = self._cause()
            if cause == _IIR_EMPTY:
                self._has_told_empty = True
                self._update()
            return cause | (_IIR_FIFO if self._fifo else 0)
        if offset == 3:
            return self._line
        if offset == 4:
            return self._modem
        if offset == 6:
            if self._modem & _MCR_LOOPBACK:
                modem = self._modem
                return (modem & 2) << 3 | (modem & 1) << 5 | (modem & 4) << 4 | (modem & 8) << 4
            return _MSR_CONNECTED
        return self._scratch

    def write(self, offset: int, size: int, value: int) -> None:
        """A register. Writing the data sends it."""
        value &= 0xFF
        if offset == 0:
            if self._line & _LCR_DIVISOR:
                self._divisor = self._divisor & 0xFF00 | value
                return
            if self._modem & _MCR_LOOPBACK:
                if len(self._waiting) < (_FIFO_BYTES if self._fifo else 1):
                    self._waiting.append(value)
                else:
                    self._overrun = True
            else:
                self._send(value)
            self._has_told_empty = False
            self._update()
        elif offset == 1:
            if self._line & _LCR_DIVISOR:
                self._divisor = self._divisor & 0xFF | value << 8
                return
            if value & _IER_EMPTY and not self._interrupts & _IER_EMPTY:
                self._has_told_empty = False
            self._interrupts = value & 0xF
            self._update()
        elif offset == 2:
            self._fifo = bool(value & 1)
            if value & 2 and self._modem & _MCR_LOOPBACK:
                self._waiting.clear()
            self._update()
        elif offset == 3:
            self._line = value
        elif offset == 4:
            self._modem = value & 0x1F
            self._update()
        elif offset == 7:
            self._scratch = value
