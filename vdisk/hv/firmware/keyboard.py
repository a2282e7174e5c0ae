"""int 09h and int 16h: scan codes into the ring in the BIOS data area, and out of it."""

from __future__ import annotations

from vdisk.hv import keys, layout
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.memory import GuestMemory

_DATA = layout.BIOS_DATA
FLAGS, EXTENDED_FLAGS, HEAD, TAIL, RING, RING_END = (_DATA + at for at in (0x17, 0x18, 0x1A, 0x1C, 0x1E, 0x3E))
RING_START_WORD, RING_END_WORD, MODE_FLAGS = (_DATA + at for at in (0x80, 0x82, 0x96))
_RIGHT_SHIFT, _LEFT_SHIFT, _CTRL, _ALT = 1, 2, 4, 8
_MODIFIERS = {0x36: _RIGHT_SHIFT, 0x2A: _LEFT_SHIFT, 0x1D: _CTRL, 0x38: _ALT}
_LOCKS = {0x46: 0x10, 0x45: 0x20, 0x3A: 0x40}
_CAPS, _NUM = 0x40, 0x20
_SHIFTED_KEYPAD = {0x47: "7", 0x48: "8", 0x49: "9", 0x4A: "-", 0x4B: "4", 0x4C: "5", 0x4D: "6", 0x4E: "+"}
_SHIFTED_KEYPAD |= {0x4F: "1", 0x50: "2", 0x51: "3", 0x52: "0", 0x53: ".", 0x37: "*"}
_CTRL_SPECIAL = {0x4B: 0x73, 0x4D: 0x74, 0x4F: 0x75, 0x51: 0x76, 0x47: 0x77, 0x49: 0x84}


class KeyboardServices:
    """The ring of 15 keys and the state of the modifiers."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._extended = False

    def initialize(self) -> None:
        """Set up the ring, empty."""
        memory = self._memory
        memory.write_u16(FLAGS, 0)
        for address in (HEAD, TAIL, RING_START_WORD):
            memory.write_u16(address, RING - _DATA)
        memory.write_u16(RING_END_WORD, RING_END - _DATA)
        memory.write_u8(MODE_FLAGS, 0x10)  # an enhanced keyboard

    # Filling ---------------------------------------------------------------------------------------------------

    def push(self, word: int) -> bool:
        """Append a key, scan code and ASCII; False if the ring is full."""
        memory = self._memory
        tail = memory.read_u16(TAIL)
        following = tail + 2 if tail + 2 < RING_END - _DATA else RING - _DATA
        if following == memory.read_u16(HEAD):
            return False
        memory.write_u16(_DATA + tail % 0x100, word)
        memory.write_u16(TAIL, following)
        return True

    def take_scan_code(self, code: int) -> None:
        """int 09h's work for one byte from the keyboard."""
        memory = self._memory
        if code in (0xE0, 0xE1):
            self._extended = True
            return
        extended, self._extended = self._extended, False
        released, key = bool(code & 0x80), code & 0x7F
        flags = memory.read_u8(FLAGS)
        modifier = _MODIFIERS.get(key)
        if modifier is not None:
            if not (extended and key in (0x2A, 0x36)):
                memory.write_u8(FLAGS, flags & ~modifier if released else flags | modifier)
            return
        if released:
            return
        if key in _LOCKS and not flags & _CTRL:
            memory.write_u8(FLAGS, flags ^ _LOCKS[key])
            return
        word = self._translate(key, flags, extended)
        if word is not None:
            self.push(word)

    @staticmethod
    def _translate(key: int, flags: int, extended: bool) -> int | None:
        shift, ctrl, alt = bool(flags & 3), bool(flags & _CTRL), bool(flags & _ALT)
        if extended:
            if key in (0x1C, 0x35):
                return (0xE0 << 8) | keys.BIOS_CODES[key][0]
            if ctrl and key in _CTRL_SPECIAL:
                return _CTRL_SPECIAL[key] << 8 | 0xE0
            return key << 8 | 0xE0
        if 0x3B <= key <= 0x44:
            base = 0x68 if alt else 0x5E if ctrl else 0x54 if shift else 0x3B
            return (key - 0x3B + base) << 8
        if key in (0x57, 0x58):
            return (key - 0x57 + (0x8B if alt else 0x89 if ctrl else 0x87 if shift else 0x85)) << 8
        if key in _SHIFTED_KEYPAD:
            if bool(flags & _NUM) != shift or key in (0x37, 0x4A, 0x4E):
                return key << 8 | ord(_SHIFTED_KEYPAD[key])
            return key << 8
        known = keys.BIOS_CODES.get(key)
        if known is None:
            return None
        plain, shifted = known
        if alt:
            return ((key + 0x76) if 0x02 <= key <= 0x0D else key) << 8
        if ctrl:
            letter = shifted & 0x5F
            return key << 8 | letter & 0x1F if 0x41 <= letter <= 0x5F else {0x1C: 0x1C0A, 0x0E: 0x0E7F}.get(key)
        if key == 0x0F and shift:
            return 0x0F00
        is_letter = chr(plain).isalpha()
        return key << 8 | (shifted if shift != (is_letter and bool(flags & _CAPS)) else plain)

    # Reading ---------------------------------------------------------------------------------------------------

    def _next(self) -> int | None:
        head = self._memory.read_u16(HEAD)
        if head == self._memory.read_u16(TAIL):
            return None
        return self._memory.read_u16(_DATA + head % 0x100)

    def _remove(self) -> None:
        head = self._memory.read_u16(HEAD) + 2
        self._memory.write_u16(HEAD, head if head < RING_END - _DATA else RING - _DATA)

    @staticmethod
    def _as_old(word: int) -> int:
        """How the services of the 84-key keyboard show a key of the 101-key one."""
        if word >> 8 == 0xE0:
            return (0x1C00 if word & 0xFF in (0x0D, 0x0A) else 0x3500) | word & 0xFF
        return word & 0xFF00 if word & 0xFF == 0xE0 and word >> 8 else word

    def handle(self, frame: Frame) -> bool:
        """int 16h; False if the guest is to wait for a key and ask again."""
        function = frame.ah
        if function in (0x00, 0x10):
            word = self._next()
            if word is None:
                return False
            self._remove()
            frame.ax = word if function == 0x10 else self._as_old(word)
        elif function in (0x01, 0x11):
            word = self._next()
            frame.set_zero(word is None)
            if word is not None:
                frame.ax = word if function == 0x11 else self._as_old(word)
        elif function == 0x02:
            frame.al = self._memory.read_u8(FLAGS)
        elif function == 0x12:
            frame.al = self._memory.read_u8(FLAGS)
            frame.ah = self._memory.read_u8(EXTENDED_FLAGS)
        elif function == 0x05:
            frame.al = 0 if self.push(frame.cx) else 1
        elif function == 0x09:
            frame.al = 0x20  # what is there: the functions for 101 keys
        elif function == 0x92:
            frame.ah = 0x80
        return True
