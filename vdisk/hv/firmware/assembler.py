"""A small assembler for 16-bit x86: enough for the firmware's ROM and the sample boot sector.

One instruction a line in the usual notation, `label:` before it or alone, `;` starts a comment. `db`, `dw`, `dd` take
numbers, strings and labels; `times N db X` repeats; `align N` and `org N` fill up with zeros. Numbers are decimal,
`0x...` or `...h`. Two passes: sizes never depend on where a label lies; a jump names its own width (`jmp short`,
conditional jumps are short, `jmp` and `call` are near).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_R8 = ("al", "cl", "dl", "bl", "ah", "ch", "dh", "bh")
_R16 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_SEGMENTS = ("es", "cs", "ss", "ds")

_PLAIN = {
    "cli": b"\xfa",
    "sti": b"\xfb",
    "cld": b"\xfc",
    "hlt": b"\xf4",
    "nop": b"\x90",
    "iret": b"\xcf",
    "ret": b"\xc3",
    "retf": b"\xcb",
    "pusha": b"\x60",
    "popa": b"\x61",
    "stc": b"\xf9",
    "clc": b"\xf8",
    "lodsb": b"\xac",
    "stosw": b"\xab",
    "rep movsw": b"\xf3\xa5",
    "rep stosw": b"\xf3\xab",
    "in al, dx": b"\xec",
    "out dx, ax": b"\xef",
    "out dx, al": b"\xee",
    "ud2": b"\x0f\x0b",
}
_JUMPS = {"jc": 0x72, "jb": 0x72, "jnc": 0x73, "jae": 0x73, "jz": 0x74, "je": 0x74, "jnz": 0x75, "jne": 0x75}
_JUMPS |= {"jmp short": 0xEB, "loop": 0xE2}

_NUMBER = re.compile(r"(?:0x[0-9a-f]+|[0-9][0-9a-f]*h|[0-9]+)\Z", re.IGNORECASE)
_ITEM = re.compile(r"""\s*("[^"]*"|[^,"]+)\s*(?:,|\Z)""")

Resolve = Callable[[str], int]


class AssemblyError(ValueError):
    """A line that this assembler does not know: a fault in our own source, so not a `VdiskError`."""


def _number(text: str) -> int:
    if text[-1] in "hH" and text[:2].lower() != "0x":
        return int(text[:-1], 16)
    return int(text, 0)


def _modrm_memory(register: int, address: int) -> bytes:
    return bytes((register << 3 | 6,)) + address.to_bytes(2, "little")


class _Line:
    """One instruction, whose bytes are asked for twice: with no label known, and with all of them."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number

    def encode(self, at: int, resolve: Resolve) -> bytes:
        text = " ".join(self.text.replace(",", ", ").split()) if '"' not in self.text else self.text
        lower = text.lower() if '"' not in text else text
        if lower in _PLAIN:
            return _PLAIN[lower]
        for encoder in (_encode_data, _encode_jump, _encode_unary, _encode_binary):
            found = encoder(lower, at, resolve)
            if found is not None:
                return found
        raise AssemblyError(f"line {self.number}: {self.text!r} is not known")


def _encode_data(text: str, at: int, resolve: Resolve) -> bytes | None:
    word, _, rest = text.partition(" ")
    if word == "times":
        count, _, inner = rest.strip().partition(" ")
        body = _encode_data(inner, at, resolve)
        return body * resolve(count) if body is not None else None
    if word == "align":
        return bytes(-at % resolve(rest))
    if word == "org":
        if resolve(rest) < at:
            raise AssemblyError(f"org {rest}: already at {at:#x}")
        return bytes(resolve(rest) - at)
    size = {"db": 1, "dw": 2, "dd": 4}.get(word)
    if size is None:
        return None
    data = bytearray()
    for match in _ITEM.finditer(rest):
        item = match[1].strip()
        if item.startswith('"'):
            data += item[1:-1].encode("ascii")
        else:
            data += (resolve(item) & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(data)


def _encode_jump(text: str, at: int, resolve: Resolve) -> bytes | None:
    word, _, target = text.rpartition(" ")
    if word in _JUMPS:
        distance = resolve(target) - (at + 2)
        if resolve("$known") and not -128 <= distance <= 127:
            raise AssemblyError(f"{text!r}: {distance} bytes are too far")
        return bytes((_JUMPS[word], distance & 0xFF))
    if word in ("jmp", "call") and ":" not in target:
        distance = resolve(target) - (at + 3)
        return bytes((0xE9 if word == "jmp" else 0xE8,)) + (distance & 0xFFFF).to_bytes(2, "little")
    if word == "jmp":
        segment, offset = target.split(":")
        return b"\xea" + resolve(offset).to_bytes(2, "little") + resolve(segment).to_bytes(2, "little")
    if word == "int":
        return bytes((0xCD, resolve(target)))
    return None


def _encode_unary(text: str, at: int, resolve: Resolve) -> bytes | None:
    word, _, operand = text.partition(" ")
    if word == "lidt":
        return b"\x0f\x01" + _modrm_memory(3, resolve(operand[1:-1]))
    if word in ("push", "pop"):
        if operand in _R16:
            return bytes(((0x50 if word == "push" else 0x58) + _R16.index(operand),))
        if operand in _SEGMENTS:
            return bytes((_SEGMENTS.index(operand) << 3 | (6 if word == "push" else 7),))
    if word in ("inc", "dec"):
        base = 0 if word == "inc" else 1
        if operand in _R16:
            return bytes((0x40 + 8 * base + _R16.index(operand),))
        for kind, prefix in (("byte", b"\xfe"), ("word", b"\xff"), ("dword", b"\x66\xff")):
            if operand.startswith(f"{kind} ["):
                return prefix + _modrm_memory(base, resolve(operand[len(kind) + 2 : -1]))
    return None


def _encode_binary(text: str, at: int, resolve: Resolve) -> bytes | None:
    word, _, rest = text.partition(" ")
    to, comma, value = (part.strip() for part in rest.partition(","))
    if not comma:
        return None
    if word == "mov":
        return _encode_mov(to, value, resolve)
    if word == "out" and value == "al":
        return bytes((0xE6, resolve(to)))
    if word == "in" and to == "al":
        return bytes((0xE4, resolve(value)))
    arithmetic = {"add": 0, "or": 1, "and": 4, "sub": 5, "xor": 6, "cmp": 7}.get(word)
    if arithmetic is not None:
        if to in _R16 and value in _R16:
            return bytes((arithmetic << 3 | 1, 0xC0 | _R16.index(value) << 3 | _R16.index(to)))
        if to in _R8 and value in _R8:
            return bytes((arithmetic << 3, 0xC0 | _R8.index(value) << 3 | _R8.index(to)))
        if to in _R8:
            return bytes((0x80, 0xC0 | arithmetic << 3 | _R8.index(to), resolve(value) & 0xFF))
        if to in _R16:
            return bytes((0x81, 0xC0 | arithmetic << 3 | _R16.index(to))) + (resolve(value) & 0xFFFF).to_bytes(
                2, "little"
            )
        if to.startswith("dword ["):
            return b"\x66\x81" + _modrm_memory(arithmetic, resolve(to[7:-1])) + resolve(value).to_bytes(4, "little")
    if word == "test" and to in _R8 and value in _R8:
        return bytes((0x84, 0xC0 | _R8.index(value) << 3 | _R8.index(to)))
    if word == "test" and to in _R8:
        return bytes((0xF6, 0xC0 | _R8.index(to), resolve(value) & 0xFF))
    return None


def _encode_mov(to: str, value: str, resolve: Resolve) -> bytes | None:
    if to in _SEGMENTS and value in _R16:
        return bytes((0x8E, 0xC0 | _SEGMENTS.index(to) << 3 | _R16.index(value)))
    if to in _R16 and value in _SEGMENTS:
        return bytes((0x8C, 0xC0 | _SEGMENTS.index(value) << 3 | _R16.index(to)))
    if to in _R16 and value in _R16:
        return bytes((0x89, 0xC0 | _R16.index(value) << 3 | _R16.index(to)))
    if to in _R8 and value in _R8:
        return bytes((0x88, 0xC0 | _R8.index(value) << 3 | _R8.index(to)))
    if to in _R8 and value.startswith("["):
        return b"\x8a" + _modrm_memory(_R8.index(to), resolve(value[1:-1]))
    if to.startswith("[") and value in _R8:
        return b"\x88" + _modrm_memory(_R8.index(value), resolve(to[1:-1]))
    if to.startswith("dword ["):
        return b"\x66\xc7" + _modrm_memory(0, resolve(to[7:-1])) + resolve(value).to_bytes(4, "little")
    if to in _R16:
        return bytes((0xB8 + _R16.index(to),)) + (resolve(value) & 0xFFFF).to_bytes(2, "little")
    if to in _R8:
        return bytes((0xB0 + _R8.index(to), resolve(value) & 0xFF))
    return None


def assemble(source: str, *, origin: int = 0, symbols: dict[str, int] | None = None) -> tuple[bytes, dict[str, int]]:
    """The bytes of `source` loaded at `origin`, and its labels with their addresses. `symbols` are known beforehand."""
    labels = dict(symbols or {})
    lines: list[_Line | str] = []
    for number, raw in enumerate(source.splitlines(), 1):
        text = raw.split(";", 1)[0].strip() if '"' not in raw else raw.strip()
        while match := re.match(r"([A-Za-z_]\w*):\s*", text):
            lines.append(match[1])
            text = text[match.end() :]
        if text:
            lines.append(_Line(text, number))

    def assemble_once(is_last: bool) -> bytes:
        def resolve(name: str) -> int:
            name = name.strip()
            if name == "$known":
                return int(is_last)
            if _NUMBER.match(name):
                return _number(name)
            if name not in labels and is_last:
                raise AssemblyError(f"the label {name!r} is nowhere")
            return labels.get(name, 0)

        out = bytearray()
        for line in lines:
            if isinstance(line, str):
                labels[line.lower()] = labels[line] = origin + len(out)
            else:
                out += line.encode(origin + len(out), resolve)
        return bytes(out)

    assemble_once(False)
    return assemble_once(True), labels
