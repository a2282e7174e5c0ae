"""ACPI Machine Language, as far as a small DSDT needs it (ACPI 6.4, chapter 20). Each function gives bytes."""

from __future__ import annotations

import struct

_ZERO, _ONE, _BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x00, 0x01, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_NAME, _SCOPE, _BUFFER, _PACKAGE = 0x08, 0x10, 0x11, 0x12
_DEVICE = b"\x5b\x82"
_END_TAG = b"\x79\x00"


def integer(value: int) -> bytes:
    """An integer constant, in its shortest form."""
    if value in (0, 1):
        return bytes((_ONE if value else _ZERO,))
    for opcode, form, limit in ((_BYTE, "<BB", 1 << 8), (_WORD, "<BH", 1 << 16), (_DWORD, "<BI", 1 << 32)):
        if value < limit:
            return struct.pack(form, opcode, value)
    return struct.pack("<BQ", _QWORD, value)


def path(name: str) -> bytes:
    """A name: `_SB_`, `\\_SB_`, `PCI0.ISA_`; segments are filled up to four characters."""
    root = b"\\" if name.startswith("\\") else b""
    segments = [part.ljust(4, "_").encode() for part in name.lstrip("\\").split(".")]
    if len(segments) == 1:
        return root + segments[0]
    if len(segments) == 2:
        return root + b"\x2e" + b"".join(segments)
    return root + b"\x2f" + bytes((len(segments),)) + b"".join(segments)


def _with_length(body: bytes) -> bytes:
    """`body` behind its PkgLength, which counts its own bytes."""
    for width in range(1, 5):
        total = len(body) + width
        if width == 1 and total < 64:
            return bytes((total,)) + body
        if width > 1 and total < 1 << 4 + 8 * (width - 1):
            head = bytes((width - 1 << 6 | total & 0xF,))
            return head + (total >> 4).to_bytes(width - 1, "little") + body
    raise ValueError("an AML package of more than 256 MiB")


def name(where: str, value: bytes) -> bytes:
    """Name(where, value)."""
    return bytes((_NAME,)) + path(where) + value


def scope(where: str, *body: bytes) -> bytes:
    """Scope(where) { body }."""
    return bytes((_SCOPE,)) + _with_length(path(where) + b"".join(body))


def device(where: str, *body: bytes) -> bytes:
    """Device(where) { body }."""
    return _DEVICE + _with_length(path(where) + b"".join(body))


def package(*items: bytes) -> bytes:
    """Package { items }."""
    return bytes((_PACKAGE,)) + _with_length(bytes((len(items),)) + b"".join(items))


def string(text: str) -> bytes:
    """A string constant."""
    return bytes((_STRING,)) + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """EISAID("PNP0A03"): three letters of five bits, four hexadecimal digits, big-endian."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return struct.pack("<BI", _DWORD, int.from_bytes(value.to_bytes(4, "big"), "little"))


# Resources (chapter 6.4) ---------------------------------------------------------------------------------------------


def resources(*items: bytes) -> bytes:
    """ResourceTemplate() { items }: a buffer."""
    body = b"".join(items) + _END_TAG
    return bytes((_BUFFER,)) + _with_length(integer(len(body)) + body)


def io_ports(base: int, count: int) -> bytes:
    """IO(Decode16, base, base, 1, count)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq_edge(number: int) -> bytes:
    """IRQNoFlags() { number }: edge-triggered, active high."""
    return struct.pack("<BH", 0x22, 1 << number)


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber: the buses behind this bridge."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def io_window(first: int, last: int) -> bytes:
    """WordIO: ports that this bridge passes on."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 1, 0x0C, 3, 0, first, last, 0, last - first + 1)


def memory_window(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """DWordMemory: addresses that this bridge passes on."""
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 3 if cacheable else 1, 0, first, last, 0, last - first + 1)
