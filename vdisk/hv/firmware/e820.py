"""The map of memory that int 15h AX=E820h and the Linux boot protocol give to a system."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.hv import layout
from vdisk.hv.memory import GuestMemory

RAM, RESERVED, ACPI, NVS = 1, 2, 3, 4
ENTRY_BYTES = 20


@dataclass(frozen=True, slots=True)
class MapEntry:
    """`length` bytes from `base` on are of `kind`: RAM, RESERVED, ACPI or NVS."""

    base: int
    length: int
    kind: int

    def pack(self) -> bytes:
        """As E820 returns it: 20 bytes."""
        return struct.pack("<QQI", self.base, self.length, self.kind)


def acpi_tables_at(memory: GuestMemory) -> int:
    """Where the ACPI tables lie: the last pages of low RAM."""
    return memory.low_bytes - layout.ACPI_TABLES_BYTES


def memory_map(memory: GuestMemory) -> list[MapEntry]:
    """The entries, ascending."""
    tables = acpi_tables_at(memory)
    nvs = tables - layout.ACPI_NVS_BYTES
    entries = [
        MapEntry(0, layout.EBDA, RAM),
        MapEntry(layout.EBDA, layout.VGA_MEMORY - layout.EBDA, RESERVED),
        MapEntry(layout.FIRMWARE, layout.FIRMWARE_BYTES, RESERVED),
        MapEntry(layout.EXTENDED_RAM, nvs - layout.EXTENDED_RAM, RAM),
        MapEntry(nvs, layout.ACPI_NVS_BYTES, NVS),
        MapEntry(tables, layout.ACPI_TABLES_BYTES, ACPI),
        MapEntry(layout.KVM_IDENTITY_MAP, layout.FLASH_END - layout.KVM_IDENTITY_MAP, RESERVED),
    ]
    if memory.high_bytes:
        entries.append(MapEntry(layout.HIGH_RAM_BASE, memory.high_bytes, RAM))
    return entries
