"""The keyboard controller and its keyboard. There is no mouse.

The keyboard sends scan codes of set 1, as the controller's translation makes them: what every PC system asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vdisk.hv.devices.base import IrqLine

DATA, COMMAND = 0, 4
"""Offsets of the two ports (60h and 64h on a PC)."""
_STATUS_FULL, _STATUS_SYSTEM, _STATUS_COMMAND, _STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
_CONFIG_IRQ, _CONFIG_SYSTEM, _CONFIG_DISABLED, _CONFIG_TRANSLATE = 0x01, 0x04, 0x10, 0x40
_CONFIG_NO_MOUSE = 0x20
_ACK, _RESEND = 0xFA, 0xFE
_OUTPUT_PORT = 0x03
"""Not in reset, A20 on; the buffer-full bits come on top."""
_QUEUE_MOST = 256


class I8042:
    """`on_reset` is called when the guest pulses the processor's reset line."""

    def __init__(self, irq: IrqLine, on_reset: Callable[[], None]) -> None:
        self._irq = irq
        self._on_reset = on_reset
        self._answers: deque[int] = deque()
        self._keys: deque[int] = deque()
        self._config = _CONFIG_IRQ | _CONFIG_SYSTEM | _CONFIG_NO_MOUSE | _CONFIG_TRANSLATE
        self._last = 0
        self._status_command = 0
        self._pending_command = 0
        self._pending_keyboard = 0
        self._is_scanning = True
        self._level = False

    # The keyboard ----------------------------------------------------------------------------------------------

    def press(self, scan_codes: bytes) -> None:
        """Keys go down and up: bytes of set 1. What the guest does not fetch in time is lost, as on a keyboard."""
        if len(self._keys) + len(scan_codes) <= _QUEUE_MOST:
            self._keys.extend(scan_codes)
        self._update()

    @property
    def is_quiet(self) -> bool:
        """Whether the guest has fetched every key."""
        return not self._keys

    def _is_full(self) -> bool:
        keys_flow = self._is_scanning and not self._config & _CONFIG_DISABLED
        return bool(self._answers or (self._keys and keys_flow))

    def _update(self) -> None:
        level = self._is_full() and bool(self._config & _CONFIG_IRQ)
        if level != self._level:
            self._level = level
            self._irq(level)

    def _keyboard_command(self, value: int) -> None:
        pending, self._pending_keyboard = self._pending_keyboard, 0
        if pending:
            self._answers.append(_ACK)
            if pending == 0xF0 and value == 0:
                self._answers.append(0x41 if self._config & _CONFIG_TRANSLATE else 0x02)
        elif value in (0xED, 0xF0, 0xF3):
            self._pending_keyboard = value
            self._answers.append(_ACK)
        elif value == 0xEE:
            self._answers.append(0xEE)
        elif value == 0xF2:
            self._answers.extend((_ACK, 0xAB, 0x41 if self._config & _CONFIG_TRANSLATE else 0x83))
        elif value == 0xFF:
            self._keys.clear()
            self._is_scanning = True
            self._answers.extend((_ACK, 0xAA))
        elif 0xF4 <= value <= 0xFD:
            self._is_scanning = value != 0xF5
            self._answers.append(_ACK)
        else:
            self._answers.append(_RESEND)

    # The controller --------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Status, or the next byte; without one, the last again."""
        if offset == COMMAND:
            status = _STATUS_UNLOCKED | self._status_command | (self._config & _STATUS_SYSTEM)
            return status | (_STATUS_FULL if self._is_full() else 0)
        if self._answers:
            self._last = self._answers.popleft()
        elif self._is_full():
            self._last = self._keys.popleft()
        # The line falls with every byte taken: the next one is a new edge.
        if self._level:
            self._level = False
            self._irq(False)
        self._update()
        return self._last

    def write(self, offset: int, size: int, value: int) -> None:
        """A command for the controller, or a byte for it or the keyboard."""
        value &= 0xFF
        if offset == COMMAND:
            self._status_command = _STATUS_COMMAND
            self._controller_command(value)
        else:
            self._status_command = 0
            pending, self._pending_command = self._pending_command, 0
            if pending == 0x60:
                self._config = value | _CONFIG_NO_MOUSE
            elif pending == 0xD1:
                if not value & 1:
                    self._on_reset()
            elif pending == 0xD2:
                self._answers.append(value)
            elif not pending:
                self._keyboard_command(value)
                self._config &= ~_CONFIG_DISABLED
        self._update()

    def _controller_command(self, value: int) -> None:
        answers = self._answers
        if value == 0x20:
            answers.append(self._config)
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            self._pending_command = value
        elif value == 0xA9:
            answers.append(0x01)  # the second port's clock is stuck: nothing there
        elif value == 0xAA:
            answers.clear()
            self._config |= _CONFIG_SYSTEM
            answers.append(0x55)
        elif value == 0xAB:
            answers.append(0x00)
        elif value == 0xAD:
            self._config |= _CONFIG_DISABLED
        elif value == 0xAE:
            self._config &= ~_CONFIG_DISABLED
        elif value == 0xC0:
            answers.append(0x80)
        elif value == 0xD0:
            answers.append(_OUTPUT_PORT | (0x10 if self._is_full() else 0))
        elif value >= 0xF0 and not value & 1:
            self._on_reset()


class SystemControlA:
    """Port 92h: A20, which is always on, and the fast reset."""

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._value = 0x02

    def read(self, offset: int, size: int) -> int:
        """A20 is on."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 0 resets."""
        if value & 1:
            self._on_reset()
        self._value = value & 0xFE | 0x02
