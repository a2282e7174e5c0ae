"""The ACPI tables (ACPI 6.4, chapter 5): pure functions from a description of the machine to bytes.

There is no embedded controller, no SMI, no GPE: ACPI is on from the start, and the fixed registers of the PIIX4
(timer, S5, power button) are all a system needs besides the interrupt routing and the PCI root's windows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from vdisk.hv import layout
from vdisk.hv.firmware import aml

_OEM = b"VDISK "
_OEM_TABLE = b"VDISKPC "
_CREATOR = b"VDSK"
_HEADER_BYTES = 36
_LEVEL_HIGH = 0x000D
_S5_TYPE = 5
_PCI_SLOTS = 32


@dataclass(frozen=True, slots=True)
class AcpiMachine:
    """What the tables describe. `pci_input(slot, pin)` is the IOAPIC input of a slot's pin (0 = INTA)."""

    cpus: int
    pci_input: Callable[[int, int], int]
    pci_inputs: tuple[int, ...]
    """All the inputs that PCI uses: level-triggered."""
    serial_ports: tuple[tuple[int, int], ...]
    """Base port and interrupt of each."""


def checksum(table: bytes | bytearray) -> int:
    """The byte that makes the sum of a table zero."""
    return -sum(table) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    table = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            *(signature, _HEADER_BYTES + len(body), revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1),
        )
        + body
    )
    table[9] = checksum(table)
    return bytes(table)


def _address(space: int, bits: int, address: int, access: int = 0) -> bytes:
    """A generic address structure; `space` 0 is memory, 1 ports."""
    return struct.pack("<BBBBQ", space, bits, 0, access, address)


def build_dsdt(machine: AcpiMachine) -> bytes:
    """The PCI root with its windows and its interrupt routing, the ISA devices, and S5."""
    routing = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF),
            aml.integer(pin),
            aml.integer(0),
            aml.integer(machine.pci_input(slot, pin)),
        )
        for slot in range(1, _PCI_SLOTS)
        for pin in range(4)
    ]
    windows = aml.resources(
        aml.bus_numbers(0, 0xFF),
        aml.io_ports(layout.PCI_CONFIG, 8),
        aml.io_window(0, layout.PCI_CONFIG - 1),
        aml.io_window(layout.PCI_CONFIG + 8, 0xFFFF),
        aml.memory_window(layout.VGA_MEMORY, layout.VGA_MEMORY + layout.VGA_MEMORY_BYTES - 1, cacheable=True),
        aml.memory_window(layout.PCI_WINDOW, layout.PCI_WINDOW_END),
    )
    isa = [
        aml.device(
            "RTC_",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", aml.resources(aml.io_ports(layout.RTC_PORTS.start, 2), aml.irq_edge(layout.RTC_IRQ))),
        ),
        aml.device(
            "KBD_",
            aml.name("_HID", aml.eisa_id("PNP0303")),
            aml.name(
                "_CRS",
                aml.resources(
                    aml.io_ports(layout.I8042_DATA, 1),
                    aml.io_ports(layout.I8042_STATUS, 1),
                    aml.irq_edge(layout.KEYBOARD_IRQ),
                ),
            ),
        ),
    ]
    for index, (port, irq) in enumerate(machine.serial_ports, 1):
        isa.append(
            aml.device(
                f"COM{index}",
                aml.name("_HID", aml.eisa_id("PNP0501")),
                aml.name("_UID", aml.integer(index)),
                aml.name("_CRS", aml.resources(aml.io_ports(port, 8), aml.irq_edge(irq))),
            )
        )
    root = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_ADR", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", windows),
        aml.name("_PRT", aml.package(*routing)),
        aml.device("ISA_", aml.name("_ADR", aml.integer(1 << 16)), *isa),
    )
    s5 = aml.package(*(aml.integer(value) for value in (_S5_TYPE, _S5_TYPE, 0, 0)))
    return _table(b"DSDT", 2, aml.scope("\\_SB_", root) + aml.name("\\_S5_", s5))


def build_madt(machine: AcpiMachine) -> bytes:
    """Processors, the IOAPIC, and which ISA interrupts are level-triggered."""
    rows = [struct.pack("<BBBBI", 0, 8, number, number, 1) for number in range(machine.cpus)]
    rows.append(struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0))
    for irq in sorted({layout.SCI_IRQ, *machine.pci_inputs}):
        rows.append(struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _LEVEL_HIGH))
    rows.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI at LINT1 of every processor
    return _table(b"APIC", 3, struct.pack("<II", layout.LOCAL_APIC, 1) + b"".join(rows))


def build_fadt(dsdt_at: int, facs_at: int) -> bytes:
    """The fixed registers; ACPI 3.0's length, with the reset register."""
    pm = layout.ACPI_PM
    # WBINVD works, C1 on every processor, no sleep button, the reset register is there.
    flags = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 10
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI",
        *(facs_at, dsdt_at, 0, 0, layout.SCI_IRQ, 0, 0, 0, 0, 0),
        *(pm, 0, pm + 4, 0, 0, pm + 8, 0, 0),
        *(4, 2, 0, 4, 0, 0, 0, 0),
        *(0xFFFF, 0xFFFF, 0, 0, 0, 0, 0, 0, 0x32, 0x0003, 0, flags),
    )
    body += _address(1, 8, layout.RESET_CONTROL, 1) + struct.pack("<BHB", 0x06, 0, 0)
    body += struct.pack("<QQ", facs_at, dsdt_at)
    none = _address(0, 0, 0)
    body += _address(1, 32, pm, 2) + none + _address(1, 16, pm + 4, 2) + none + none + _address(1, 32, pm + 8, 3)
    body += none + none
    return _table(b"FACP", 3, body)


def build_facs() -> bytes:
    """The firmware control structure: only its size matters here."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """Everything but the RSDP, which is to point to `rsdt_at` and `xsdt_at`."""

    tables: bytes
    facs: bytes
    rsdt_at: int
    xsdt_at: int


def build_tables(tables_at: int, facs_at: int, machine: AcpiMachine) -> AcpiTables:
    """The tables to put at `tables_at`, and the FACS for `facs_at`."""
    placed = bytearray()

    def place(table: bytes) -> int:
        placed.extend(bytes(-len(placed) % 64))
        at = tables_at + len(placed)
        placed.extend(table)
        return at

    dsdt_at = place(build_dsdt(machine))
    roots = [place(build_fadt(dsdt_at, facs_at)), place(build_madt(machine))]
    rsdt_at = place(_table(b"RSDT", 1, struct.pack(f"<{len(roots)}I", *roots)))
    xsdt_at = place(_table(b"XSDT", 1, struct.pack(f"<{len(roots)}Q", *roots)))
    if len(placed) > layout.ACPI_TABLES_BYTES:
        raise ValueError("the ACPI tables are larger than their place")
    return AcpiTables(bytes(placed), build_facs(), rsdt_at, xsdt_at)


def build_rsdp(rsdt_at: int, xsdt_at: int) -> bytes:
    """The root pointer, version 2: to lie at a multiple of 16 in E0000-FFFFF."""
    first = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, rsdt_at))
    first[8] = checksum(first)
    whole = first + struct.pack("<IQB3x", 36, xsdt_at, 0)
    whole[32] = checksum(whole)
    return bytes(whole)
