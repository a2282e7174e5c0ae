"""The user's terminal as the guest's console: what is typed goes to the guest, what it prints comes back.

While the guest has sent nothing by its serial port, its text screen is drawn and keys go to its keyboard; from the
first serial byte on, the terminal is the serial port. Ctrl-A x leaves, Ctrl-A c switches between the two, Ctrl-A a
sends Ctrl-A.
"""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Callable

from vdisk.errors import OptionError
from vdisk.hv.devices.vga import TextScreen
from vdisk.hv.keys import Stroke, parse_keys, stroke_of
from vdisk.hv.machine import Machine

_ESCAPE = 0x01
_ANSI_COLOURS = (0, 4, 2, 6, 1, 5, 3, 7)
_SEQUENCES = {
    b"\x1b[A": "<up>",
    b"\x1b[B": "<down>",
    b"\x1b[C": "<right>",
    b"\x1b[D": "<left>",
    b"\x1b[H": "<home>",
    b"\x1b[F": "<end>",
    b"\x1b[2~": "<ins>",
    b"\x1b[3~": "<del>",
    b"\x1b[5~": "<pgup>",
    b"\x1b[6~": "<pgdn>",
    **{b"\x1bO" + bytes((0x50 + n,)): f"<f{n + 1}>" for n in range(4)},
}


def strokes_of_terminal(data: bytes) -> list[Stroke]:
    """What a terminal sent, as key strokes; bytes that no key makes are dropped."""
    strokes: list[Stroke] = []
    at = 0
    while at < len(data):
        for sequence, name in _SEQUENCES.items():
            if data.startswith(sequence, at):
                strokes += parse_keys(name)
                at += len(sequence)
                break
        else:
            try:
                strokes.append(stroke_of(chr(data[at])))
            except OptionError:
                pass
            at += 1
    return strokes


def draw(screen: TextScreen) -> bytes:
    """The text screen as ANSI: home, each row with its colours, the cursor."""
    out = ["\x1b[H"]
    for row, text in enumerate(_rows(screen)):
        out.append(f"\x1b[{row + 1}H{text}\x1b[0m\x1b[K")
    if screen.cursor is not None:
        row, column = screen.cursor
        out.append(f"\x1b[{row + 1};{column + 1}H")
    return "".join(out).encode()


def _rows(screen: TextScreen) -> list[str]:
    from vdisk.hv.devices.vga import decode_cells

    rows = []
    for row in range(screen.rows):
        start = row * screen.columns * 2
        cells = screen.cells[start : start + screen.columns * 2]
        text, last = [], -1
        for at in range(0, len(cells), 2):
            attribute = cells[at + 1]
            if attribute != last:
                ink = _ANSI_COLOURS[attribute & 7] + (90 if attribute & 8 else 30)
                text.append(f"\x1b[0;{ink};{_ANSI_COLOURS[attribute >> 4 & 7] + 40}m")
                last = attribute
            text.append(decode_cells(cells[at : at + 1]))
        rows.append("".join(text))
    return rows


class Terminal:
    """Connects a machine with two file descriptors of a terminal. Give `on_serial` to the machine."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._shows_serial = False
        self._has_chosen = False
        self._escaped = False
        self._last_drawn = b""

    def on_serial(self, data: bytes) -> None:
        """What the guest sends by its serial port."""
        if not self._has_chosen and not self._shows_serial:
            self._shows_serial = True
            self._write(b"\x1b[0m\x1b[2J\x1b[H")
        if self._shows_serial:
            self._write(data)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._stdout, data) :]

    def run(self, machine: Machine, until: Callable[[Machine], bool] | None = None) -> None:
        """Run the machine until it stops, `until` says so, or the user leaves. The terminal is put back as it was."""
        if not os.isatty(self._stdin):
            raise OptionError("interactive: standard input is not a terminal")
        before = termios.tcgetattr(self._stdin)
        try:
            tty.setraw(self._stdin)
            while machine.step():
                if not self._take_input(machine) or (until is not None and until(machine)):
                    return
                self._show_screen(machine)
        finally:
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, before)
            self._write(b"\x1b[0m\r\n")

    def _show_screen(self, machine: Machine) -> None:
        if self._shows_serial:
            return
        screen = machine.screen()
        if screen is not None and (drawn := draw(screen)) != self._last_drawn:
            self._last_drawn = drawn
            self._write(drawn)

    def _take_input(self, machine: Machine) -> bool:
        """False if the user leaves."""
        if not select.select([self._stdin], [], [], 0)[0]:
            return True
        data = os.read(self._stdin, 1024)
        if not data:
            return False
        passed = bytearray()
        for value in data:
            if self._escaped:
                self._escaped = False
                if value in b"xX":
                    return False
                if value in b"cC":
                    self._has_chosen = True
                    self._shows_serial = not self._shows_serial
                    self._last_drawn = b""
                elif value in b"aA":
                    passed.append(_ESCAPE)
            elif value == _ESCAPE:
                self._escaped = True
            else:
                passed.append(value)
        if passed and self._shows_serial:
            machine.send_serial(bytes(passed))
        elif passed:
            machine.type_keys(strokes_of_terminal(bytes(passed)))
        return True
