"""int 10h: text on a VGA. Graphics modes are accepted and show nothing; VBE says that it is not there."""

from __future__ import annotations

from collections.abc import Callable

from vdisk.hv import layout
from vdisk.hv.devices.vga import Vga
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.memory import GuestMemory

_DATA = layout.BIOS_DATA
MODE, COLUMNS, PAGE_BYTES, PAGE_START, CURSORS, CURSOR_SHAPE, PAGE, CRTC = (
    _DATA + offset for offset in (0x49, 0x4A, 0x4C, 0x4E, 0x50, 0x60, 0x62, 0x63)
)
ROWS, CHARACTER_HEIGHT, VIDEO_CONTROL, VIDEO_SWITCHES, VIDEO_FLAGS = (
    _DATA + offset for offset in (0x84, 0x85, 0x87, 0x88, 0x89)
)
_TEXT_MODES = {0: 40, 1: 40, 2: 80, 3: 80, 7: 80}
_BLANK = 0x20
_NORMAL = 0x07
_BELL, _BACKSPACE, _LINE_FEED, _RETURN = 7, 8, 10, 13


class VideoServices:
    """The handlers of int 10h. `teletype` is called with every character that is written as on a terminal."""

    def __init__(self, memory: GuestMemory, vga: Vga, teletype: Callable[[int], None]) -> None:
        self._memory = memory
        self._vga = vga
        self._teletype = teletype

    def handle(self, frame: Frame) -> None:
        """int 10h: unknown functions leave everything as it is."""
        handler = _FUNCTIONS.get(frame.ah)
        if handler is not None:
            handler(self, frame)

    # State in the BIOS data area -------------------------------------------------------------------------------

    def set_mode(self, mode: int, *, keep: bool = False) -> None:
        """Set a mode and clear the screen, unless `keep`."""
        memory = self._memory
        columns = _TEXT_MODES.get(mode, 80 if mode in (6, 14, 16, 17, 18) else 40)
        is_text = mode in _TEXT_MODES
        vga = self._vga
        vga.reset()
        vga.crtc[1] = columns - 1
        vga.graphics[6] = 0x0E if is_text else 0x05
        memory.write_u8(MODE, mode)
        memory.write_u16(COLUMNS, columns)
        memory.write_u16(PAGE_BYTES, 0x1000 if columns == 80 else 0x800)
        memory.write_u16(PAGE_START, 0)
        memory.write(CURSORS, bytes(16))
        memory.write_u16(CURSOR_SHAPE, 0x0607)
        memory.write_u8(PAGE, 0)
        memory.write_u16(CRTC, 0x3B4 if mode == 7 else 0x3D4)
        memory.write_u8(ROWS, 24)
        memory.write_u16(CHARACTER_HEIGHT, 16)
        memory.write_u8(VIDEO_CONTROL, 0x60 | (0x80 if keep else 0))
        memory.write_u8(VIDEO_SWITCHES, 0xF9)
        memory.write_u8(VIDEO_FLAGS, 0x51)
        if not keep:
            if is_text:
                memory.write(layout.VGA_TEXT, bytes((_BLANK, _NORMAL)) * 0x4000)
            else:
                memory.write(layout.VGA_MEMORY, bytes(0x10000))
        vga.set_cursor(0)

    def _cell(self, page: int, row: int, column: int) -> int:
        memory = self._memory
        columns = memory.read_u16(COLUMNS) or 80
        offset = memory.read_u16(PAGE_BYTES) * (page & 7) + (row * columns + column) * 2
        return layout.VGA_TEXT + offset % 0x8000

    def _cursor(self, page: int) -> tuple[int, int]:
        where = self._memory.read_u16(CURSORS + 2 * (page & 7))
        return where >> 8, where & 0xFF

    def _move(self, page: int, row: int, column: int) -> None:
        memory = self._memory
        memory.write_u16(CURSORS + 2 * (page & 7), (row & 0xFF) << 8 | column & 0xFF)
        if page & 7 == memory.read_u8(PAGE):
            start = memory.read_u16(PAGE_START) // 2
            self._vga.set_cursor(start + row * (memory.read_u16(COLUMNS) or 80) + column)

    def _scroll(self, page: int, top: int, left: int, bottom: int, right: int, lines: int, attribute: int) -> None:
        """Move a window up by `lines` (down if negative; 0 clears it)."""
        memory = self._memory
        right = min(right, (memory.read_u16(COLUMNS) or 80) - 1)
        bottom = min(bottom, memory.read_u8(ROWS))
        if left > right or top > bottom:
            return
        width = (right - left + 1) * 2
        height = bottom - top + 1
        blank = bytes((_BLANK, attribute)) * (width // 2)
        rows = [memory.read(self._cell(page, row, left), width) for row in range(top, bottom + 1)]
        shift = height if lines == 0 else max(-height, min(height, lines))
        moved = rows[shift:] + [blank] * shift if shift > 0 else [blank] * -shift + rows[:shift]
        for row, cells in zip(range(top, bottom + 1), moved, strict=True):
            memory.write(self._cell(page, row, left), cells)

    def write_teletype(self, character: int, page: int = 0, attribute: int | None = None) -> None:
        """Write a character at the cursor and move on, scrolling at the end of the screen."""
        memory = self._memory
        self._teletype(character)
        if memory.read_u8(MODE) not in _TEXT_MODES:
            return
        row, column = self._cursor(page)
        columns = memory.read_u16(COLUMNS) or 80
        if character == _BACKSPACE:
            column = max(0, column - 1)
        elif character == _RETURN:
            column = 0
        elif character == _LINE_FEED:
            row += 1
        elif character != _BELL:
            cell = self._cell(page, row, column)
            memory.write_u8(cell, character)
            if attribute is not None:
                memory.write_u8(cell + 1, attribute)
            column += 1
            if column >= columns:
                column, row = 0, row + 1
        last = memory.read_u8(ROWS)
        if row > last:
            fill = memory.read_u8(self._cell(page, last, 0) + 1)
            self._scroll(page, 0, 0, last, columns - 1, row - last, fill)
            row = last
        self._move(page, row, column)

    # Functions -------------------------------------------------------------------------------------------------

    def _set_mode(self, frame: Frame) -> None:
        self.set_mode(frame.al & 0x7F, keep=bool(frame.al & 0x80))
        frame.al = 0x30

    def _set_shape(self, frame: Frame) -> None:
        self._memory.write_u16(CURSOR_SHAPE, frame.cx)
        self._vga.crtc[0x0A], self._vga.crtc[0x0B] = frame.ch, frame.cl

    def _set_cursor(self, frame: Frame) -> None:
        self._move(frame.bh, frame.dh, frame.dl)

    def _get_cursor(self, frame: Frame) -> None:
        row, column = self._cursor(frame.bh)
        frame.dx = row << 8 | column
        frame.cx = self._memory.read_u16(CURSOR_SHAPE)

    def _set_page(self, frame: Frame) -> None:
        memory, page = self._memory, frame.al & 7
        memory.write_u8(PAGE, page)
        start = memory.read_u16(PAGE_BYTES) * page
        memory.write_u16(PAGE_START, start)
        self._vga.crtc[0x0C], self._vga.crtc[0x0D] = start // 2 >> 8 & 0xFF, start // 2 & 0xFF
        self._move(page, *self._cursor(page))

    def _scroll_window(self, frame: Frame) -> None:
        lines = frame.al if frame.ah == 0x06 else -frame.al
        page = self._memory.read_u8(PAGE)
        self._scroll(page, frame.ch, frame.cl, frame.dh, frame.dl, lines, frame.bh)

    def _read_character(self, frame: Frame) -> None:
        frame.ax = self._memory.read_u16(self._cell(frame.bh, *self._cursor(frame.bh)))

    def _write_characters(self, frame: Frame) -> None:
        if self._memory.read_u8(MODE) not in _TEXT_MODES:
            return
        row, column = self._cursor(frame.bh)
        columns = self._memory.read_u16(COLUMNS) or 80
        for index in range(min(frame.cx, 0x4000)):
            cell = self._cell(frame.bh, row, column + index)
            if row * columns + column + index >= columns * (self._memory.read_u8(ROWS) + 1):
                break
            self._memory.write_u8(cell, frame.al)
            if frame.ah == 0x09:
                self._memory.write_u8(cell + 1, frame.bl)

    def _teletype_output(self, frame: Frame) -> None:
        self.write_teletype(frame.al, self._memory.read_u8(PAGE))

    def _get_mode(self, frame: Frame) -> None:
        frame.al = self._memory.read_u8(MODE) | self._memory.read_u8(VIDEO_CONTROL) & 0x80
        frame.ah = self._memory.read_u16(COLUMNS) & 0xFF
        frame.bh = self._memory.read_u8(PAGE)

    def _font(self, frame: Frame) -> None:
        function = frame.al
        if function == 0x30:
            # There is no font in this ROM; the pointer leads to zeros that nobody needs in text mode.
            frame.set_es(layout.FIRMWARE >> 4)
            frame.bp = 0xE800
            frame.cx = self._memory.read_u16(CHARACTER_HEIGHT)
            frame.dl = self._memory.read_u8(ROWS)
            return
        height = {0x10: frame.bh, 0x11: 14, 0x12: 8, 0x14: 16}.get(function, 0)
        if 1 <= height <= 32:
            rows = 400 // height
            self._memory.write_u8(ROWS, rows - 1)
            self._memory.write_u16(CHARACTER_HEIGHT, height)
            self._vga.set_rows(height)

    def _select(self, frame: Frame) -> None:
        if frame.bl == 0x10:
            frame.bx = 0x0003  # colour, 256 KiB
            frame.cx = 0x0009
        elif frame.bl in (0x30, 0x31, 0x32, 0x33, 0x34, 0x36):
            frame.al = 0x12

    def _write_string(self, frame: Frame) -> None:
        page, with_attributes, moves = frame.bh, frame.al & 2, frame.al & 1
        start = self._cursor(page)
        self._move(page, frame.dh, frame.dl)
        step = 2 if with_attributes else 1
        text = self._memory.read(frame.es + frame.bp, min(frame.cx, 0x4000) * step)
        for index in range(0, len(text), step):
            self.write_teletype(text[index], page, text[index + 1] if with_attributes else frame.bl)
        if not moves:
            self._move(page, *start)

    def _display_combination(self, frame: Frame) -> None:
        if frame.al == 0:
            frame.bx = 0x0008  # VGA, colour
        frame.al = 0x1A

    def _vbe(self, frame: Frame) -> None:
        frame.ax = 0x0100  # AL is not 4Fh: the function is not supported


_FUNCTIONS: dict[int, Callable[[VideoServices, Frame], None]] = {
    0x00: VideoServices._set_mode,
    0x01: VideoServices._set_shape,
    0x02: VideoServices._set_cursor,
    0x03: VideoServices._get_cursor,
    0x05: VideoServices._set_page,
    0x06: VideoServices._scroll_window,
    0x07: VideoServices._scroll_window,
    0x08: VideoServices._read_character,
    0x09: VideoServices._write_characters,
    0x0A: VideoServices._write_characters,
    0x0E: VideoServices._teletype_output,
    0x0F: VideoServices._get_mode,
    0x11: VideoServices._font,
    0x12: VideoServices._select,
    0x13: VideoServices._write_string,
    0x1A: VideoServices._display_combination,
    0x4F: VideoServices._vbe,
}
