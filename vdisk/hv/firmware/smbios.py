"""SMBIOS 2.8: who made the machine (DMTF DSP0134). A pure function from names to bytes."""

from __future__ import annotations

import struct
from uuid import UUID

from vdisk.hv import layout

_HANDLE_BIOS, _HANDLE_SYSTEM, _HANDLE_BOARD, _HANDLE_CHASSIS = 0x0000, 0x0100, 0x0200, 0x0300
_HANDLE_CPU, _HANDLE_MEMORY, _HANDLE_MODULE, _HANDLE_MAP, _HANDLE_BOOT, _HANDLE_END = (
    0x0400,
    0x1000,
    0x1100,
    0x1300,
    0x2000,
    0x7F00,
)
_UNKNOWN = 2
ANCHOR_BYTES = 31


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    text = b"".join(string.encode("ascii", "replace") + b"\0" for string in strings) or b"\0"
    return struct.pack("<BBH", kind, len(body) + 4, handle) + body + text + b"\0"


def _structures(
    manufacturer: str, product: str, version: str, bios: tuple[str, str], uuid: UUID, cpus: int, memory_bytes: int
) -> list[bytes]:
    mib = memory_bytes >> 20
    module_mib = mib if mib < 0x7FFF else 0x7FFF
    rows = [
        # BIOS: at F000h, 64 KiB; PCI, boot selection, EDD; ACPI, and "this is a virtual machine".
        _structure(
            0,
            _HANDLE_BIOS,
            struct.pack("<BBHBBQBBBBBB", 1, 2, 0xF000, 3, 0, 1 << 7 | 1 << 16 | 1 << 19, 1, 0x10, 1, 0, 0xFF, 0xFF),
            *bios,
            "01/01/2026",
        ),
        _structure(
            1,
            _HANDLE_SYSTEM,
            struct.pack("<BBBB16sBBB", 1, 2, 3, 0, uuid.bytes_le, 6, 0, 0),
            manufacturer,
            product,
            version or "None",
        ),
        _structure(2, _HANDLE_BOARD, struct.pack("<BBBB", 1, 2, 0, 0), manufacturer, product),
        _structure(
            3,
            _HANDLE_CHASSIS,
            struct.pack("<BBBBBBBBBIBBBB", 1, 1, 0, 0, 0, 3, 3, 3, _UNKNOWN, 0, 0, 0, 0, 0),
            manufacturer,
        ),
    ]
    for index in range(cpus):
        rows.append(
            _structure(
                4,
                _HANDLE_CPU + index,
                struct.pack(
                    "<BBBBQBBHHHBBHHHBBBBBBH",
                    *(1, 3, 1, 2, 0, 0, 0, 0, 2000, 2000, 0x41, 1, 0xFFFF, 0xFFFF, 0xFFFF, 0, 0, 0, 1, 1, 1, 0x0004),
                ),
                f"CPU {index}",
                manufacturer,
            )
        )
    rows += [
        _structure(16, _HANDLE_MEMORY, struct.pack("<BBBIHH", 1, 3, 6, memory_bytes >> 10, 0xFFFE, 1)),
        _structure(
            17,
            _HANDLE_MODULE,
            struct.pack(
                "<HHHHHBBBBBHHBBBBBI",
                *(_HANDLE_MEMORY, 0xFFFE, 64, 64, module_mib, 9, 0, 1, 0, 7, 2, 0, 2, 0, 0, 0, 0, mib),
            ),
            "DIMM 0",
            manufacturer,
        ),
        _structure(19, _HANDLE_MAP, struct.pack("<IIHB", 0, (memory_bytes >> 10) - 1, _HANDLE_MEMORY, 1)),
        _structure(32, _HANDLE_BOOT, bytes(6) + b"\0"),
        _structure(127, _HANDLE_END, b""),
    ]
    return rows


def build_smbios(
    address: int,
    *,
    manufacturer: str,
    product: str,
    version: str,
    bios: tuple[str, str],
    uuid: UUID,
    cpus: int,
    memory_bytes: int,
) -> bytes:
    """The anchor, to lie at `address` (a multiple of 16 in F0000-FFFFF), and the table behind it."""
    assert address % 16 == 0
    assert layout.FIRMWARE <= address < layout.EXTENDED_RAM
    rows = _structures(manufacturer, product, version, bios, uuid, cpus, memory_bytes)
    table = b"".join(rows)
    table_at = address + 32
    largest = max(len(row) for row in rows)
    middle = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(table), table_at, len(rows), 0x28))
    middle[5] = -sum(middle) & 0xFF
    anchor = bytearray(struct.pack("<4sBBBBHB5x", b"_SM_", 0, ANCHOR_BYTES, 2, 8, largest, 0) + middle)
    anchor[4] = -sum(anchor) & 0xFF
    return bytes(anchor).ljust(32, b"\0") + table
