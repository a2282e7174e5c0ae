"""One power cycle of a machine: the virtual machine in the kernel, its memory, bus, devices and processors.

`Machine` makes a board when it is switched on and a new one after a reset; the disks outlive it.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vdisk.hv import kvm, layout
from vdisk.hv.bus import Bus, ByteWide
from vdisk.hv.config import MachineConfig
from vdisk.hv.controllers import Attached, attach_disks
from vdisk.hv.cpu import Cpu, read_code, take_sample
from vdisk.hv.cpuid import cpuid_for
from vdisk.hv.devices.acpi_pm import AcpiPm
from vdisk.hv.devices.chipset import (
    I440BX,
    I440BX_NO_AGP,
    I440FX,
    PIIX3_ISA,
    PIIX4_ISA,
    AgpBridge,
    HostBridge,
    IsaBridge,
    PowerManagement,
)
from vdisk.hv.devices.debugport import DebugPort, Latch
from vdisk.hv.devices.i8042 import I8042, SystemControlA
from vdisk.hv.devices.pci import PciHost
from vdisk.hv.devices.rtc import Rtc
from vdisk.hv.devices.serial import Serial
from vdisk.hv.devices.vga import Vga
from vdisk.hv.memory import GuestMemory, host_address

_MSR_MISC_ENABLE, _MSR_MTRR_DEFAULT = 0x1A0, 0x2FF
_FAST_STRINGS = 1
_MTRR_WRITE_BACK = 0x800 | 6
_LVT_LINT0, _LVT_LINT1 = 0x350, 0x360
_DELIVER_EXTINT, _DELIVER_NMI = 0x700, 0x400
_BRIDGE_SLOT = 1
_JUMP_ON_THE_SPOT = b"\xeb\xfe"
_PM_DEVICE_ACTIVITY_B = 0x58


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a machine stands still for good.

    `reason` is one of "power off", "reset", "triple fault", "emulation failure", "error"; `detail` says more.
    """

    reason: str
    detail: object = None


class PciConfigAccess:
    """PCI configuration as the BIOS' int 1Ah reaches it."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read_config(self, bus_device_function: int, offset: int, size: int) -> int:
        """All ones where there is no function."""
        function = self._host.functions.get((bus_device_function >> 3 & 31, bus_device_function & 7))
        if function is None or bus_device_function >> 8 or offset + size > 256:
            return (1 << 8 * size) - 1
        return function.config_read(offset, size)

    def write_config(self, bus_device_function: int, offset: int, size: int, value: int) -> None:
        """Ignored where there is no function."""
        function = self._host.functions.get((bus_device_function >> 3 & 31, bus_device_function & 7))
        if function is not None and not bus_device_function >> 8 and offset + size <= 256:
            function.config_write(offset, size, value)

    def functions(self) -> list[int]:
        """Every function there is."""
        return sorted(slot << 3 | number for slot, number in self._host.functions)


class Board:
    """The parts, wired. `lock` is held whenever a device is called; take it before touching one from outside."""

    def __init__(
        self, config: MachineConfig, on_serial: Callable[[int], None], on_debug: Callable[[int], None]
    ) -> None:
        self.config = config
        self.on_debug = on_debug
        self.lock = threading.RLock()
        self.stopped: Stop | None = None
        self.has_stopped = threading.Event()
        self.cpus: list[Cpu] = []
        self.rom: mmap.mmap | None = None
        self.memory = GuestMemory(config.memory_bytes)
        self.bus = Bus()
        device = kvm.Kvm()
        try:
            self.vm = device.create_vm()
            try:
                self._set_up_vm()
                self._add_devices(on_serial)
                self._add_pci()
                self._add_cpus(device)
            except BaseException:
                self.close()
                raise
        finally:
            device.close()

    # The virtual machine ---------------------------------------------------------------------------------------

    def _set_up_vm(self) -> None:
        vm, memory = self.vm, self.memory
        vm.set_identity_map_address(layout.KVM_IDENTITY_MAP)
        vm.set_tss_address(layout.KVM_TSS)
        vm.create_irqchip()
        vm.create_pit()
        pic = vm.get_pic(1)
        for irq in {*layout.PCI_IRQS, layout.SCI_IRQ}:  # level-triggered, as a BIOS sets the ELCR
            pic.pic.elcr |= 1 << irq - 8
        vm.set_pic(pic)
        base = memory.host_base
        if self.config.firmware is None:
            # Our ROM is read-only to the guest, as a ROM is; the rest of low memory is RAM.
            vm.add_memory(0, base, layout.FIRMWARE)
            vm.add_memory(layout.FIRMWARE, base + layout.FIRMWARE, layout.FIRMWARE_BYTES, readonly=True)
            start = layout.EXTENDED_RAM
            vm.add_memory(start, base + start, memory.low_bytes - start)
        else:
            vm.add_memory(0, base, memory.low_bytes)
        if memory.high_bytes:
            vm.add_memory(layout.HIGH_RAM_BASE, base + memory.low_bytes, memory.high_bytes)

    def add_flash(self, image: bytes) -> None:
        """Show a firmware file below 4 GiB, read-only."""
        length = -(-len(image) // 4096) * 4096
        self.rom = mmap.mmap(-1, length)
        self.rom[length - len(image) :] = image
        self.vm.add_memory(layout.FLASH_END - length, host_address(self.rom), length, readonly=True)

    def _add_cpus(self, device: kvm.Kvm) -> None:
        supported = device.supported_cpuid()
        deadline = bool(device.capability(kvm.CAP_TSC_DEADLINE_TIMER))
        count = self.config.cpus
        for number in range(count):
            vcpu = self.vm.create_vcpu(number)
            vcpu.set_cpuid(cpuid_for(supported, number, count, tsc_deadline=deadline))
            vcpu.set_msrs({_MSR_MISC_ENABLE: _FAST_STRINGS, _MSR_MTRR_DEFAULT: _MTRR_WRITE_BACK})
            lapic = vcpu.get_lapic()
            lapic[_LVT_LINT0 : _LVT_LINT0 + 4] = _DELIVER_EXTINT.to_bytes(4, "little")
            lapic[_LVT_LINT1 : _LVT_LINT1 + 4] = _DELIVER_NMI.to_bytes(4, "little")
            vcpu.set_lapic(lapic)
            self.cpus.append(Cpu(vcpu, self.bus, self.memory, self.lock, self.stop))

    # Devices ---------------------------------------------------------------------------------------------------

    def irq_line(self, number: int) -> Callable[[bool], None]:
        """The interrupt controllers' input `number`, as a device drives it."""
        vm = self.vm
        return lambda level: vm.irq_line(number, level)

    def _add_devices(self, on_serial: Callable[[int], None]) -> None:
        bus = self.bus
        self.serial = Serial(self.irq_line(layout.COM1_IRQ), on_serial)
        bus.add_ports(layout.COM1, 8, ByteWide(self.serial))
        # A console's text would be an exit a character; gathered, it is taken at the status read that follows.
        self.vm.coalesce_ports(layout.COM1)
        self.rtc = Rtc(self.irq_line(layout.RTC_IRQ))
        bus.add_ports(layout.RTC_PORTS.start, 2, ByteWide(self.rtc))
        self.keyboard = I8042(self.irq_line(layout.KEYBOARD_IRQ), self.reset)
        bus.add_ports(layout.I8042_DATA, 1, self.keyboard)
        bus.add_ports(layout.I8042_STATUS, 1, self.keyboard, offset=4)
        bus.add_ports(layout.SYSTEM_CONTROL_A, 1, SystemControlA(self.reset))
        self.vga = Vga(self.memory, layout.VGA_TEXT)
        bus.add_ports(layout.VGA_PORTS.start, len(layout.VGA_PORTS), ByteWide(self.vga))
        self.vm.coalesce_ports(layout.CRTC, 2)
        self.pm = AcpiPm(self.irq_line(layout.SCI_IRQ), self.power_off)
        bus.add_ports(layout.DEBUG_CONSOLE, 1, DebugPort(0xE9, self.on_debug))
        for ports in (layout.DMA1_PORTS, layout.DMA_PAGE_PORTS, layout.DMA2_PORTS):
            bus.add_ports(ports.start, len(ports), Latch(len(ports)))
        bus.add_ports(layout.POST_CODE, 1, Latch(1))
        bus.add_ports(layout.POWER_COMMAND, 2, Latch(2))

    def _add_pci(self) -> None:
        profile, bus = self.config.profile, self.bus
        self.pci = PciHost(bus.map_region, bus.unmap_region, self.vm.irq_line, self.vm.signal_msi, on_reset=self.reset)
        bus.add_ports(layout.PCI_CONFIG, 8, self.pci)
        is_bx = profile.chipset != "i440fx"
        host = {"i440fx": I440FX, "440bx": I440BX, "440bx-no-agp": I440BX_NO_AGP}[profile.chipset]
        subsystem = profile.subsystem
        self.pci.plug(0, HostBridge(host, subsystem=subsystem if self.config.firmware is None else (0x1AF4, 0x1100)))
        slot = 7 if is_bx else _BRIDGE_SLOT  # where these boards have their ISA bridge
        if profile.chipset == "440bx":
            self.pci.plug(1, AgpBridge())
        self.pci.plug(slot, IsaBridge(PIIX4_ISA if is_bx else PIIX3_ISA, subsystem=subsystem))
        power = PowerManagement(self.pm, subsystem=subsystem)
        # "APMC enabled": a firmware takes system management mode, which this machine lacks, for set up already.
        power.set_config(_PM_DEVICE_ACTIVITY_B + 3, 1, 0x02)
        self.pci.plug(slot, power, 3)
        self.attached: Attached = attach_disks(self, slot)

    # Ends ------------------------------------------------------------------------------------------------------

    def stop(self, reason: str, detail: object = None) -> None:
        """Stand still for good; the first reason counts. May be called on any thread."""
        with self.lock:
            if self.stopped is None:
                self.stopped = Stop(reason, detail)
            for cpu in self.cpus:
                cpu.finish_soon()
        self.has_stopped.set()

    def reset(self) -> None:
        """A device's reset output."""
        self.stop("reset")

    def power_off(self) -> None:
        """The guest has switched itself off."""
        self.stop("power off")

    # Running ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let every processor run; those after the first wait for the first one's call."""
        for cpu in self.cpus:
            cpu.start()

    def pause(self) -> None:
        """Make every processor stand still."""
        for cpu in self.cpus:
            cpu.request_pause()
        for cpu in self.cpus:
            cpu.wait_paused()

    def resume(self) -> None:
        """Let them go on."""
        for cpu in self.cpus:
            cpu.resume()

    def is_idle(self) -> bool:
        """Whether no processor does anything. Only while they are paused."""
        for cpu in self.cpus:
            if cpu.vcpu.get_mp_state() == kvm.MP_RUNNABLE:
                regs, sregs = cpu.state()
                if read_code(self.memory, take_sample(regs, sregs), 2) != _JUMP_ON_THE_SPOT:
                    return False
        return True

    def tick(self) -> None:
        """What wants to be done some fifty times a second: the clock's interrupts, a sample of the first processor."""
        with self.lock:
            self.rtc.tick()
        self.cpus[0].kick()

    def now(self) -> float:
        """Seconds, for waits."""
        return time.monotonic()

    def close(self) -> None:
        """End the processors' threads and give everything back to the kernel."""
        for cpu in self.cpus:
            cpu.end()
        for cpu in self.cpus:
            cpu.vcpu.close()
        self.cpus = []
        self.vm.close()
        self.memory.close()
        if self.rom is not None:
            self.rom.close()
