"""The US keyboard: characters and key names to scan codes (set 1), and back for the firmware.

`parse_keys` reads what a user writes after `--keys`: text with the escapes of C (`\\n`, `\\t`, `\\e`, `\\xHH`), and
names in angle brackets: `<up>`, `<f12>`, `<ctrl-alt-del>`, `<wait 2>` (seconds), `<expect login:>` (wait for a text).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vdisk.errors import OptionError

_PLAIN_ROWS = (
    (0x02, "1234567890-="),
    (0x10, "qwertyuiop[]"),
    (0x1E, "asdfghjkl;'`"),
    (0x2B, "\\zxcvbnm,./"),
)
_SHIFT_ROWS = (
    (0x02, "!@#$%^&*()_+"),
    (0x10, "QWERTYUIOP{}"),
    (0x1E, 'ASDFGHJKL:"~'),
    (0x2B, "|ZXCVBNM<>?"),
)
SHIFT, CTRL, ALT = 0x2A, 0x1D, 0x38
NAMED = {
    "esc": (0x01,),
    "backspace": (0x0E,),
    "tab": (0x0F,),
    "enter": (0x1C,),
    "space": (0x39,),
    "ctrl": (CTRL,),
    "shift": (SHIFT,),
    "alt": (ALT,),
    "home": (0xE0, 0x47),
    "up": (0xE0, 0x48),
    "pgup": (0xE0, 0x49),
    "left": (0xE0, 0x4B),
    "right": (0xE0, 0x4D),
    "end": (0xE0, 0x4F),
    "down": (0xE0, 0x50),
    "pgdn": (0xE0, 0x51),
    "ins": (0xE0, 0x52),
    "del": (0xE0, 0x53),
    **{f"f{n}": (0x3A + n,) for n in range(1, 11)},
    "f11": (0x57,),
    "f12": (0x58,),
}
ASCII: dict[str, tuple[int, bool]] = {" ": (0x39, False), "\n": (0x1C, False), "\r": (0x1C, False)}
"""A character's scan code, and whether Shift is held."""
ASCII |= {"\t": (0x0F, False), "\b": (0x0E, False), "\x7f": (0x0E, False), "\x1b": (0x01, False)}
for _rows, _shifted in ((_PLAIN_ROWS, False), (_SHIFT_ROWS, True)):
    for _first, _row in _rows:
        ASCII |= {character: (_first + index, _shifted) for index, character in enumerate(_row)}

BIOS_CODES: dict[int, tuple[int, int]] = {}
"""Scan code: its ASCII codes without and with Shift, as int 16h gives them."""
for _character, (_scan, _is_shifted) in ASCII.items():
    if _character not in "\n\x7f":
        _plain, _with_shift = BIOS_CODES.get(_scan, (ord(_character), ord(_character)))
        BIOS_CODES[_scan] = (_plain, ord(_character)) if _is_shifted else (ord(_character), ord(_character))
for _first, _row in _SHIFT_ROWS:
    for _index, _character in enumerate(_row):
        BIOS_CODES[_first + _index] = (BIOS_CODES[_first + _index][0], ord(_character))

_ESCAPES = {"n": "\n", "r": "\n", "t": "\t", "e": "\x1b", "b": "\b", "\\": "\\", "<": "<"}
_TOKEN = re.compile(r"\\x([0-9a-fA-F]{2})|\\(.)|<((?:expect [^<>]+)|[a-z0-9. -]+)>|(.)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stroke:
    """One key with its modifiers, or a wait: `scan` is what the keyboard sends, `text` what a terminal would."""

    scan: bytes
    text: bytes
    wait_seconds: float = 0.0
    wait_text: str = ""
    """Not before this is on the console, below what was there at the stroke before."""


_TERMINAL = {
    "enter": b"\r",
    "tab": b"\t",
    "esc": b"\x1b",
    "backspace": b"\x7f",
    "space": b" ",
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "right": b"\x1b[C",
    "left": b"\x1b[D",
    "home": b"\x1b[H",
    "end": b"\x1b[F",
    "del": b"\x1b[3~",
    "pgup": b"\x1b[5~",
    "pgdn": b"\x1b[6~",
}


def _press(keys: list[tuple[int, ...]]) -> bytes:
    """Press the keys in order, let go in the other order."""
    down = b"".join(bytes(key) for key in keys)
    up = b"".join(bytes((*key[:-1], key[-1] | 0x80)) for key in reversed(keys))
    return down + up


def stroke_of(character: str) -> Stroke:
    """The stroke that types one character."""
    known = ASCII.get(character)
    if known is None:
        if "\x01" <= character <= "\x1a":
            letter = chr(ord(character) + 0x60)
            return Stroke(_press([(CTRL,), (ASCII[letter][0],)]), character.encode())
        raise OptionError(f"keys: there is no key for {character!r} on a US keyboard")
    scan, is_shifted = known
    text = {"\n": b"\r", "\b": b"\x7f"}.get(character, character.encode())
    return Stroke(_press([(SHIFT,), (scan,)] if is_shifted else [(scan,)]), text)


def _named_stroke(name: str) -> Stroke:
    if name[:7].lower() == "expect " and name[7:].strip():
        return Stroke(b"", b"", wait_text=name[7:].strip())
    name = name.strip().lower()
    if name.startswith("wait "):
        try:
            return Stroke(b"", b"", min(max(float(name[5:]), 0.0), 3600.0))
        except ValueError:
            raise OptionError(f"keys: <{name}>: expected a number of seconds") from None
    if name in NAMED:
        return Stroke(_press([NAMED[name]]), _TERMINAL.get(name, b""))
    *modifiers, key = name.split("-")
    codes = [NAMED[part] for part in modifiers if part in ("ctrl", "shift", "alt")]
    if len(codes) != len(modifiers) or not modifiers:
        raise OptionError(f"keys: there is no key <{name}>; known are {', '.join(sorted(NAMED))}")
    if key in NAMED:
        return Stroke(_press([*codes, NAMED[key]]), b"")
    if len(key) == 1 and key in ASCII:
        text = bytes((ord(key) & 0x1F,)) if modifiers == ["ctrl"] and key.isalpha() else b""
        return Stroke(_press([*codes, (ASCII[key][0],)]), text)
    raise OptionError(f"keys: there is no key <{name}>")


def parse_keys(text: str) -> list[Stroke]:
    """What `--keys` means, one stroke after the other. Raises `OptionError` for a key that there is not."""
    strokes = []
    for match in _TOKEN.finditer(text):
        code, escape, name, plain = match.groups()
        if name:
            strokes.append(_named_stroke(name))
        elif code:
            strokes.append(stroke_of(chr(int(code, 16))))
        elif escape:
            strokes.append(stroke_of(_ESCAPES.get(escape, escape)))
        else:
            strokes.append(stroke_of(plain))
    return strokes
