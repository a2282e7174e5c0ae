"""From a wired board to its first instruction: our own firmware, a firmware file, or a Linux kernel."""

from __future__ import annotations

from collections.abc import Callable
from uuid import NAMESPACE_DNS, uuid5

from vdisk.errors import OptionError
from vdisk.hv import layout
from vdisk.hv.board import Board, PciConfigAccess
from vdisk.hv.bus import ByteWide
from vdisk.hv.devices.debugport import DebugPort, Zeros
from vdisk.hv.devices.fw_cfg import FwCfg
from vdisk.hv.firmware import acpi, rom
from vdisk.hv.firmware.bios import Bios
from vdisk.hv.firmware.e820 import RAM, MapEntry, acpi_tables_at
from vdisk.hv.firmware.linux import start_kernel
from vdisk.hv.firmware.mptable import build_mptable
from vdisk.hv.firmware.smbios import build_smbios

_SHADOW_MOST_BYTES = 256 * layout.KIB
_CMOS_ABOVE_16M, _CMOS_ABOVE_4G, _CMOS_CPUS, _CMOS_BOOT_ORDER, _CMOS_BOOT_THIRD = 0x34, 0x5B, 0x5F, 0x3D, 0x38
_PIRQ_REGISTERS = 0x60
_PM_BASE, _PM_ENABLE = 0x40, 0x80


def power_up(board: Board, on_boot: Callable[[], None]) -> Bios | None:
    """Make the board ready to run; answers our firmware, if it is the one."""
    if board.config.firmware is None:
        return _power_up_own(board, on_boot)
    if board.config.kernel is not None:
        raise OptionError("kernel: it is started by our own firmware; leave the firmware file away")
    _power_up_file(board, board.config.firmware)
    return None


def _power_up_file(board: Board, image: bytes) -> None:
    """A firmware file in flash, its copy below 1 MiB, and what SeaBIOS asks for: fw_cfg, CMOS, a debug port.

    The copy is plain RAM, as after a BIOS has shadowed itself, and stays so whatever the PAM registers say.
    """
    config, memory, cmos = board.config, board.memory, board.rtc.cmos
    board.add_flash(image)
    shadow = image[-_SHADOW_MOST_BYTES:]
    memory.write(layout.EXTENDED_RAM - len(shadow), shadow)
    files = {
        "etc/e820": b"".join(
            entry.pack()
            for entry in (
                MapEntry(0, memory.low_bytes, RAM),
                MapEntry(layout.HIGH_RAM_BASE, memory.high_bytes, RAM),
            )
            if entry.length
        )
    }
    if config.option_rom is not None:
        files["vgaroms/vga.rom"] = config.option_rom
    else:
        files["etc/sercon-port"] = layout.COM1.to_bytes(8, "little")
    fw_cfg = FwCfg(config.cpus, files)
    board.bus.add_ports(layout.FW_CFG, 2, fw_cfg)
    board.bus.add_ports(layout.FIRMWARE_DEBUG, 1, DebugPort(0xE9, board.on_debug))
    # All ones there would tell Linux that every slot's device has gone.
    for ports in (layout.HOTPLUG, layout.GPE):
        board.bus.add_ports(ports.start, len(ports), Zeros())
    blocks = (memory.low_bytes - 16 * layout.MIB) // (64 * layout.KIB)
    cmos[_CMOS_ABOVE_16M : _CMOS_ABOVE_16M + 2] = max(0, blocks).to_bytes(2, "little")
    cmos[_CMOS_ABOVE_4G : _CMOS_ABOVE_4G + 3] = (memory.high_bytes >> 16).to_bytes(3, "little")
    cmos[_CMOS_CPUS] = config.cpus - 1
    kinds = [disk.kind for disk in config.disks]
    order = [{"floppy": 1, "disk": 2, "cdrom": 3}[kind] for kind in dict.fromkeys(kinds)]
    order = [*order, *(number for number in (2, 3, 1) if number not in order)]
    cmos[_CMOS_BOOT_ORDER] = order[1] << 4 | order[0]
    cmos[_CMOS_BOOT_THIRD] = order[2] << 4 | 1


def _set_up_bridges(board: Board) -> None:
    """What a BIOS does to the chipset: interrupt routing, the ACPI block, addresses for every BAR."""
    for (slot, number), function in board.pci.functions.items():
        if function.config_read(0x0A, 2) == 0x0601:  # the ISA bridge
            for line, irq in enumerate(layout.PCI_IRQS):
                function.config_write(_PIRQ_REGISTERS + line, 1, irq)
            power = board.pci.functions.get((slot, 3))
            if power is not None and number == 0:
                power.config_write(_PM_BASE, 4, layout.ACPI_PM)
                power.config_write(_PM_ENABLE, 1, 1)
    board.pci.assign(layout.PCI_IO_WINDOW, layout.PCI_WINDOW)


def _write_tables(board: Board) -> dict[int, bytes]:
    """ACPI tables into RAM; what belongs into the ROM comes back by its address."""
    memory, config = board.memory, board.config
    profile = config.profile

    def pci_input(slot: int, pin: int) -> int:
        return layout.PCI_IRQS[board.pci.line_of(slot, pin + 1)]

    tables_at = acpi_tables_at(memory)
    facs_at = tables_at - layout.ACPI_NVS_BYTES
    machine = acpi.AcpiMachine(
        config.cpus, pci_input, tuple(sorted(set(layout.PCI_IRQS))), ((layout.COM1, layout.COM1_IRQ),)
    )
    tables = acpi.build_tables(tables_at, facs_at, machine)
    memory.write(tables_at, tables.tables)
    memory.write(facs_at, tables.facs)
    at = layout.FIRMWARE + rom.TABLES
    static: dict[int, bytes] = {}
    slots = {slot: tuple(pci_input(slot, pin) for pin in range(4)) for slot, _ in board.pci.functions if slot}
    smbios = build_smbios(
        at,
        manufacturer=profile.manufacturer,
        product=profile.product,
        version=profile.version,
        bios=(profile.bios_vendor, profile.bios_version),
        uuid=uuid5(NAMESPACE_DNS, f"{profile.name}.vdisk.invalid"),
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
    )
    static[at] = smbios
    at += -(-len(smbios) // 16) * 16
    static[at] = acpi.build_rsdp(tables.rsdt_at, tables.xsdt_at)
    at += 48
    static[at] = mptable = build_mptable(at, config.cpus, slots)
    assert at + len(mptable) <= layout.FIRMWARE + rom.TABLES_END
    return static


def _power_up_own(board: Board, on_boot: Callable[[], None]) -> Bios:
    _set_up_bridges(board)
    bios = Bios(
        board.memory,
        board.attached.drives,
        board.vga,
        PciConfigAccess(board.pci),
        board.rtc,
        [ByteWide(board.serial)],
        board.now,
        on_boot,
    )
    bios.install(_write_tables(board))
    for cpu in board.cpus:
        cpu.trap = bios.trap
    first = board.cpus[0].vcpu
    kernel = board.config.kernel
    if kernel is None:
        bios.start(first)
    else:
        bios.power_on()
        start_kernel(first, board.memory, kernel)
    return bios
