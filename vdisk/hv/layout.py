"""Every address, port and interrupt number of the machine, on one page.

Devices know none of these: `Machine` reads them here and wires the devices up. The picture is that of a PC with an
i440FX and a PIIX, because that is what firmware and operating systems from 1996 on expect to find::

    00000000  interrupt vectors, BIOS data area (400h), boot sector (7C00h)
    0009FC00  extended BIOS data area, up to 640 KiB; holds the MP floating pointer
    000A0000  VGA memory, plain RAM here: the text screen at B8000 is read without an exit
    000C0000  RAM over which an option ROM may be copied (SeaBIOS with a VGA BIOS)
    000F0000  firmware, read-only: interrupt stubs, SMBIOS, RSDP
    00100000  RAM; its last pages hold the ACPI tables (E820 types 3 and 4)
    C0000000  PCI memory windows (BARs)
    FEC00000  IOAPIC (kernel)          FEE00000  local APICs (kernel)
    FFFBC000  identity map page and TSS pages that KVM needs on Intel
    FFFC0000  firmware file's ROM, if one is given; reset vector FFFFFFF0
    100000000 the rest of RAM
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Memory ------------------------------------------------------------------------------------------------------------

LEAST_RAM: Final = 4 * MIB
LOW_RAM_LIMIT: Final = 3 * GIB
HIGH_RAM_BASE: Final = 4 * GIB

BIOS_DATA: Final = 0x400
BOOT_SECTOR: Final = 0x7C00
EBDA: Final = 0x9FC00
EBDA_BYTES: Final = 0x400
CONVENTIONAL_KIB: Final = EBDA // KIB
VGA_MEMORY: Final = 0xA0000
VGA_TEXT: Final = 0xB8000
VGA_MEMORY_BYTES: Final = 0x20000
OPTION_ROM: Final = 0xC0000
OPTION_ROM_BYTES: Final = 0x30000
FIRMWARE: Final = 0xF0000
FIRMWARE_BYTES: Final = 0x10000
EXTENDED_RAM: Final = 0x100000
ACPI_TABLES_BYTES: Final = 0x10000
"""At the end of low RAM: ACPI tables, type 3 in the E820 map."""
ACPI_NVS_BYTES: Final = 0x1000
"""Right before the tables: the FACS, type 4."""

PCI_WINDOW: Final = 0xC0000000
PCI_WINDOW_END: Final = 0xFEBFFFFF
IOAPIC: Final = 0xFEC00000
LOCAL_APIC: Final = 0xFEE00000
KVM_IDENTITY_MAP: Final = 0xFFFBC000
KVM_TSS: Final = 0xFFFBD000
KVM_RESERVED_BYTES: Final = 0x4000
FLASH_END: Final = 4 * GIB

# Ports -------------------------------------------------------------------------------------------------------------

DMA1_PORTS: Final = range(0x10)
I8042_DATA: Final = 0x60
SYSTEM_CONTROL_B: Final = 0x61
"""The kernel's PIT answers this one (speaker and channel 2's gate), unless it runs without a PIT."""
I8042_STATUS: Final = 0x64
RTC_PORTS: Final = range(0x70, 0x72)
POST_CODE: Final = 0x80
DMA_PAGE_PORTS: Final = range(0x81, 0x90)
SYSTEM_CONTROL_A: Final = 0x92
POWER_COMMAND: Final = 0xB2
"""SMI command and status: ACPI is enabled from the start, so a write changes nothing."""
DMA2_PORTS: Final = range(0xC0, 0xE0)
DEBUG_CONSOLE: Final = 0xE9
FIRMWARE_TRAP: Final = 0xEC
"""OUT to this port from a stub of our own ROM calls the host."""
SECONDARY_IDE: Final = 0x170
SECONDARY_IDE_CONTROL: Final = 0x376
PRIMARY_IDE: Final = 0x1F0
PRIMARY_IDE_CONTROL: Final = 0x3F6
COM2: Final = 0x2F8
VGA_PORTS: Final = range(0x3B0, 0x3E0)
CRTC: Final = 0x3D4
"""Of the VGA: index and data of the registers that hold the cursor, which a text console moves all the time."""
COM1: Final = 0x3F8
FIRMWARE_DEBUG: Final = 0x402
"""Where SeaBIOS sends its log."""
FW_CFG: Final = 0x510
ACPI_PM: Final = 0x600
ACPI_PM_BYTES: Final = 0x40
HOTPLUG: Final = range(0xAE00, 0xAE20)
GPE: Final = range(0xAFE0, 0xAFE4)
"""Where the ACPI tables inside SeaBIOS look for PCI hot plugging and general-purpose events."""
PCI_CONFIG: Final = 0xCF8
PCI_IO_WINDOW: Final = 0xC000
PCI_IO_WINDOW_END: Final = 0xFFFF
RESET_CONTROL: Final = 0xCF9

# Interrupts: ISA numbers, which are the IOAPIC's inputs too ----------------------------------------------------------

TIMER_IRQ: Final = 0
KEYBOARD_IRQ: Final = 1
COM2_IRQ: Final = 3
COM1_IRQ: Final = 4
RTC_IRQ: Final = 8
SCI_IRQ: Final = 9
PCI_IRQS: Final = (10, 11, 10, 11)
"""What PIRQA to PIRQD lead to. Level-triggered."""
MOUSE_IRQ: Final = 12
PRIMARY_IDE_IRQ: Final = 14
SECONDARY_IDE_IRQ: Final = 15
IOAPIC_INPUTS: Final = 24
