"""A program for UEFI in one sector, assembled here: it greets on the console and waits."""

from __future__ import annotations

import struct

GREETING = "Hello from UEFI!"
_ALIGN = 0x20
_HEADERS_BYTES = 0x160
_LARGE_ADDRESSES, _EXECUTABLE = 0x20, 0x2
_CODE = bytes.fromhex(
    "4883ec28"  # sub rsp, 40
    "488b4a40"  # mov rcx, [rdx + 64]: ConOut of the system table (UEFI 2.10, 4.3.1)
    "488d1505000000"  # lea rdx, [text]
    "ff5108"  # call [rcx + 8]: OutputString (12.4.1)
    "ebfe"  # jmp on the spot
)


def uefi_program() -> bytes:
    """512 bytes: a PE32+ application whose one section is its code and the text."""
    body = (_CODE + f"\r\n{GREETING}\r\n\0".encode("utf-16-le")).ljust(512 - _HEADERS_BYTES, b"\0")
    dos = struct.pack("<2s58xI", b"MZ", 0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 112, _LARGE_ADDRESSES | _EXECUTABLE)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(body), 0, 0, _HEADERS_BYTES, _HEADERS_BYTES)
    optional += struct.pack("<QIIHHHHHHIIIIHHQQQQII", 0, _ALIGN, _ALIGN, 0, 0, 0, 0, 0, 0, 0, 512, _HEADERS_BYTES, 0,
                            10, 0, 0, 0, 0, 0, 0, 0)  # fmt: skip
    section = struct.pack("<8sIIII12xI", b".text", len(body), _HEADERS_BYTES, len(body), _HEADERS_BYTES, 0x60000020)
    headers = dos + coff + optional + section
    assert len(optional) == 112
    return headers.ljust(_HEADERS_BYTES, b"\0") + body
