"""A VGA adapter as far as text needs one: its registers, and the text screen read out of guest memory.

The memory at A0000-BFFFF is plain RAM to the guest, so drawing costs no exit. The registers keep what is written; those
that say where the screen begins, where the cursor is and whether this is a text mode are believed. Graphics modes are
not shown. There is no VBE.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.hv.devices.base import DmaMemory

CRTC_COLUMNS, CRTC_MAX_SCAN = 0x01, 0x09
CRTC_CURSOR_START, CRTC_START_HIGH, CRTC_START_LOW, CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW = 0x0A, 0x0C, 0x0D, 0x0E, 0x0F
_MODE_3_CRTC = bytes.fromhex("5f4f50825581bf1f004f0d0e00000000 9c8e8f281f96b9a3ff")
_MODE_3_ATTRIBUTE = bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800")
_MODE_3_GRAPHICS = bytes.fromhex("0000000000100e00ff")
_MODE_3_SEQUENCER = bytes.fromhex("0300030002")
_DAC_BASIC = ((0, 0, 0), (0, 0, 42), (0, 42, 0), (0, 42, 42), (42, 0, 0), (42, 0, 42), (42, 42, 0), (42, 42, 42))
_TEXT_ROWS_MOST = 100
_TEXT_WINDOW_BYTES = 0x8000
_STATUS_RETRACE = 0x09


@dataclass(frozen=True, slots=True)
class TextScreen:
    """A text screen: `cells` has `columns * rows` pairs of a code page 437 character and an attribute."""

    columns: int
    rows: int
    cells: bytes
    cursor: tuple[int, int] | None
    """Row and column; None when it is hidden or elsewhere."""

    def lines(self) -> list[str]:
        """Each row as text, without the blanks at its end."""
        width = self.columns * 2
        return [decode_cells(self.cells[row * width : (row + 1) * width : 2]).rstrip() for row in range(self.rows)]

    def text(self) -> str:
        """All rows, without the empty ones at the end."""
        return "\n".join(self.lines()).rstrip()


_CONTROL = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"


def decode_cells(codes: bytes) -> str:
    """Code page 437 as a screen shows it: control codes are pictures too, zero and FFh are blank."""
    text = codes.replace(b"\xff", b" ").decode("cp437")
    return "".join(_CONTROL[ord(c)] if ord(c) < 32 else c for c in text).replace("\x7f", "⌂")


class Vga:
    """Ports 3B0 to 3DF; `offset` counts from 3B0. `memory` shows the text at `text_address`, B8000 on a PC."""

    def __init__(self, memory: DmaMemory, text_address: int) -> None:
        self._memory = memory
        self._text_address = text_address
        self.reset()

    def reset(self) -> None:
        """Mode 3: 80 columns, 25 rows, colour."""
        self.crtc = bytearray(256)
        self.crtc[: len(_MODE_3_CRTC)] = _MODE_3_CRTC
        self._attribute = bytearray(_MODE_3_ATTRIBUTE.ljust(32, b"\0"))
        self.graphics = bytearray(_MODE_3_GRAPHICS.ljust(256, b"\0"))
        self._sequencer = bytearray(_MODE_3_SEQUENCER.ljust(256, b"\0"))
        self._crtc_index = self._graphics_index = self._sequencer_index = self._attribute_index = 0
        self._attribute_wants_data = False
        self._misc = 0x67
        self._feature = 0
        self._status = 0
        self._pel_mask = 0xFF
        self.dac = bytearray(768)
        for index in range(64):
            bright = 21 if index & 0x38 == 0x38 else 0
            level = _DAC_BASIC[index & 7] if index != 0x14 else (42, 21, 0)
            self.dac[3 * index : 3 * index + 3] = bytes(min(63, part + bright) for part in level)
        self._dac_read = self._dac_write = 0
        self._dac_is_reading = False

    # The screen ------------------------------------------------------------------------------------------------

    @property
    def is_text(self) -> bool:
        """Whether the adapter is in a text mode."""
        return not self.graphics[6] & 1

    @property
    def columns(self) -> int:
        """Characters in a row."""
        return min(self.crtc[CRTC_COLUMNS] + 1, 132)

    @property
    def rows(self) -> int:
        """Rows on the screen: visible scan lines by the height of a character."""
        overflow = self.crtc[7]
        lines = (self.crtc[0x12] | (overflow & 2) << 7 | (overflow & 0x40) << 3) + 1
        height = (self.crtc[CRTC_MAX_SCAN] & 0x1F) + 1
        if self.crtc[CRTC_MAX_SCAN] & 0x80:
            height *= 2
        return max(1, min(lines // height, _TEXT_ROWS_MOST))

    def set_rows(self, character_height: int) -> None:
        """Set the height of a character, and by it the rows: 16 for 25, 8 for 50."""
        self.crtc[CRTC_MAX_SCAN] = self.crtc[CRTC_MAX_SCAN] & 0xE0 | (character_height - 1)

    def set_cursor(self, position: int) -> None:
        """Put the cursor at a character position counted from the start of text memory."""
        self.crtc[CRTC_CURSOR_HIGH] = position >> 8 & 0xFF
        self.crtc[CRTC_CURSOR_LOW] = position & 0xFF

    def screen(self) -> TextScreen | None:
        """The text screen as it is now; None in a graphics mode."""
        if not self.is_text:
            return None
        columns, rows = self.columns, self.rows
        start = (self.crtc[CRTC_START_HIGH] << 8 | self.crtc[CRTC_START_LOW]) * 2
        length = columns * rows * 2
        window = self._memory.read(self._text_address, _TEXT_WINDOW_BYTES)
        start %= _TEXT_WINDOW_BYTES
        cells = (window + window)[start : start + length].ljust(length, b"\0")
        at = (self.crtc[CRTC_CURSOR_HIGH] << 8 | self.crtc[CRTC_CURSOR_LOW]) - start // 2
        is_on = not self.crtc[CRTC_CURSOR_START] & 0x20 and 0 <= at < columns * rows
        return TextScreen(columns, rows, cells, divmod(at, columns) if is_on else None)

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register, as the ports from 3B0 on have them."""
        port = 0x3B0 + offset
        if port in (0x3B5, 0x3D5):
            return self.crtc[self._crtc_index]
        if port in (0x3BA, 0x3DA):
            # Retrace comes and goes between two reads: a guest that waits for either finds it.
            self._attribute_wants_data = False
            self._status ^= _STATUS_RETRACE
            return self._status
        if port in (0x3B4, 0x3D4):
            return self._crtc_index
        if port == 0x3C0:
            return self._attribute_index
        if port == 0x3C1:
            return self._attribute[self._attribute_index & 0x1F]
        if port == 0x3C2:
            return 0x10
        if port == 0x3C4:
            return self._sequencer_index
        if port == 0x3C5:
            return self._sequencer[self._sequencer_index]
        if port == 0x3C6:
            return self._pel_mask
        if port == 0x3C7:
            return 3 if self._dac_is_reading else 0
        if port == 0x3C8:
            return self._dac_write // 3
        if port == 0x3C9:
            value = self.dac[self._dac_read]
            self._dac_read = (self._dac_read + 1) % len(self.dac)
            return value
        if port == 0x3CA:
            return self._feature
        if port == 0x3CC:
            return self._misc
        if port == 0x3CE:
            return self._graphics_index
        if port == 0x3CF:
            return self.graphics[self._graphics_index]
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A register."""
        port = 0x3B0 + offset
        if port in (0x3B4, 0x3D4):
            self._crtc_index = value
        elif port in (0x3B5, 0x3D5):
            if self._crtc_index > 7 or not self.crtc[0x11] & 0x80:
                self.crtc[self._crtc_index] = value
            elif self._crtc_index == 7:  # write-protected but for one bit of the line comparison
                self.crtc[7] = self.crtc[7] & ~0x10 | value & 0x10
        elif port == 0x3C0:
            if self._attribute_wants_data:
                self._attribute[self._attribute_index & 0x1F] = value
            else:
                self._attribute_index = value
            self._attribute_wants_data = not self._attribute_wants_data
        elif port == 0x3C2:
            self._misc = value
        elif port == 0x3C4:
            self._sequencer_index = value
        elif port == 0x3C5:
            self._sequencer[self._sequencer_index] = value
        elif port == 0x3C6:
            self._pel_mask = value
        elif port == 0x3C7:
            self._dac_read = value * 3
            self._dac_is_reading = True
        elif port == 0x3C8:
            self._dac_write = value * 3
            self._dac_is_reading = False
        elif port == 0x3C9:
            self.dac[self._dac_write] = value & 0x3F
            self._dac_write = (self._dac_write + 1) % len(self.dac)
        elif port == 0x3CE:
            self._graphics_index = value
        elif port == 0x3CF:
            self.graphics[self._graphics_index] = value
        elif port in (0x3BA, 0x3DA):
            self._feature = value
