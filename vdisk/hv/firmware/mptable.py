"""The MP table (Intel MultiProcessor Specification 1.4): processors and interrupts for systems without ACPI."""

from __future__ import annotations

import struct

from vdisk.hv import layout

_INTERRUPT, _EXTERNAL, _NMI = 0, 3, 1
_PCI_BUS, _ISA_BUS = 0, 1
_LEVEL_HIGH = 0x000D
_CPU_FEATURES = 0x000387FB
_SPURIOUS_ALL = 0xFF


def build_mptable(address: int, cpus: int, pci_slots: dict[int, tuple[int, ...]]) -> bytes:
    """The floating pointer, to lie at `address` (a multiple of 16), and the table behind it.

    `pci_slots`: for each PCI slot, the IOAPIC inputs of its pins INTA to INTD.
    """
    ioapic = cpus
    entries = []
    for number in range(cpus):
        flags = 3 if number == 0 else 1  # usable; the first one boots
        entries.append(struct.pack("<BBBBIIQ", 0, number, 0x14, flags, 0x600, _CPU_FEATURES, 0))
    entries.append(struct.pack("<BB6s", 1, _PCI_BUS, b"PCI   "))
    entries.append(struct.pack("<BB6s", 1, _ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, ioapic, 0x11, 1, layout.IOAPIC))
    pci_inputs = {pin for pins in pci_slots.values() for pin in pins}
    for irq in range(16):
        if irq != 2 and irq not in pci_inputs:
            flags = _LEVEL_HIGH if irq == layout.SCI_IRQ else 0
            entries.append(struct.pack("<BBHBBBB", 3, _INTERRUPT, flags, _ISA_BUS, irq, ioapic, irq))
    for slot, pins in sorted(pci_slots.items()):
        for pin, irq in enumerate(pins):
            entries.append(struct.pack("<BBHBBBB", 3, _INTERRUPT, _LEVEL_HIGH, _PCI_BUS, slot << 2 | pin, ioapic, irq))
    entries.append(struct.pack("<BBHBBBB", 4, _EXTERNAL, 0, _ISA_BUS, 0, _SPURIOUS_ALL, 0))
    entries.append(struct.pack("<BBHBBBB", 4, _NMI, 0, _ISA_BUS, 0, _SPURIOUS_ALL, 1))
    body = b"".join(entries)
    header = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBB",
            *(
                b"PCMP",
                44 + len(body),
                4,
                0,
                b"VDISK   ",
                b"VIRTUAL PC  ",
                0,
                0,
                len(entries),
                layout.LOCAL_APIC,
                0,
                0,
                0,
            ),
        )
    )
    header[7] = -sum(header + body) & 0xFF
    pointer = bytearray(struct.pack("<4sIBBB5B", b"_MP_", address + 16, 1, 4, 0, 0, 0, 0, 0, 0))
    pointer[10] = -sum(pointer) & 0xFF
    return bytes(pointer) + bytes(header) + body
