"""The host's side of the firmware: which service a trap asks for, and what memory holds when the system starts.

The ROM (rom.py) has a stub for each interrupt vector that ends up in `Bios.trap`. The services work on a `Frame`, the
guest's registers in the page shared with KVM, so that a service costs one exit and no system call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from vdisk.hv import kvm, layout
from vdisk.hv.cpu import Cpu
from vdisk.hv.devices.base import Region
from vdisk.hv.devices.vga import Vga
from vdisk.hv.firmware import boot, rom
from vdisk.hv.firmware.disks import DiskServices, Drive
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.firmware.keyboard import KeyboardServices
from vdisk.hv.firmware.system import CONFIG_TABLE, CONFIG_TABLE_DATA, Clock, PciAccess, SystemServices
from vdisk.hv.firmware.video import VideoServices
from vdisk.hv.memory import GuestMemory

_DISKETTE_TABLE = 0xEFC7
_DISKETTE_TABLE_DATA = bytes.fromhex("df022502121bff6cf60f08")
_FIXED_DISK_TABLE = 0xE401
_TELETYPE_KEPT = 1 << 16
_BOOT_STACK = 0x7C00
_TICKS_PER_DAY = 0x1800B0


@dataclass(slots=True)
class BiosLog:
    """What the firmware saw, for the verdict."""

    calls: dict[int, int] = field(default_factory=dict)
    """Interrupt vector: how often it was called."""
    teletype: bytearray = field(default_factory=bytearray)
    """What was written by int 10h as on a terminal: the last 64 KiB."""
    booted: str = ""
    """What was loaded and started; empty if nothing was."""
    refusals: list[str] = field(default_factory=list)
    """Why each drive did not boot."""
    boots: int = 0
    gave_up: bool = False
    """int 18h: nothing (more) to boot."""


class Bios:
    """The services, over guest memory and the devices that they need."""

    def __init__(
        self,
        memory: GuestMemory,
        drives: list[Drive],
        vga: Vga,
        pci: PciAccess,
        clock: Clock,
        serial_ports: list[Region],
        now: Callable[[], float],
        on_boot: Callable[[], None],
    ) -> None:
        self.log = BiosLog()
        self.disks = DiskServices(memory, drives)
        self._memory = memory
        self._clock = clock
        self._serial_ports = serial_ports
        self._on_boot = on_boot
        self._rom = rom.build_rom()
        self._video = VideoServices(memory, vga, self._keep_teletype)
        self._keyboard = KeyboardServices(memory)
        self._system = SystemServices(memory, pci, clock, serial_ports, now)
        self._floppies = [drive for drive in drives if drive.kind == "floppy"]
        self._hard_disks = [drive for drive in drives if drive.kind == "disk"]

    def install(self, static: dict[int, bytes]) -> None:
        """Write the ROM into memory, with `static` tables at their addresses in F0000-FFFFF."""
        memory = self._memory
        memory.write(layout.FIRMWARE, self._rom.image)
        memory.write(layout.FIRMWARE + CONFIG_TABLE, CONFIG_TABLE_DATA)
        memory.write(layout.FIRMWARE + _DISKETTE_TABLE, _DISKETTE_TABLE_DATA)
        for address, data in static.items():
            memory.write(address, data)

    def start(self, vcpu: kvm.Vcpu) -> None:
        """Put the processor where the ROM begins."""
        sregs = vcpu.get_sregs()
        sregs.cs.load_real(rom.SEGMENT)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(kvm.Regs(rip=0xFFF0, rflags=2))

    def _keep_teletype(self, character: int) -> None:
        text = self.log.teletype
        text.append(character)
        if len(text) > 2 * _TELETYPE_KEPT:
            del text[:-_TELETYPE_KEPT]

    # Power-on --------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Interrupt vectors, the BIOS data area, the screen."""
        memory = self._memory
        vectors = b"".join(struct.pack("<HH", vector * rom.STUB_BYTES, rom.SEGMENT) for vector in range(256))
        memory.write(0, vectors)
        for vector in range(0x60, 0x68):
            memory.write_u32(vector * 4, 0)  # for the system's own use
        for vector, offset in ((0x1D, 0xF0A4), (0x1E, _DISKETTE_TABLE), (0x41, _FIXED_DISK_TABLE), (0x46, 0xE411)):
            memory.write_u32(vector * 4, rom.SEGMENT << 16 | offset)
        data = bytearray(256)
        for index in range(len(self._serial_ports)):
            struct.pack_into("<H", data, 2 * index, (layout.COM1, layout.COM2)[index])
        struct.pack_into("<H", data, 0x0E, layout.EBDA >> 4)
        floppies = len(self._floppies)
        # A coprocessor, 80 columns in colour, the serial ports, the floppy drives.
        equipment = 0x0022 | len(self._serial_ports) << 9 | ((floppies - 1) << 6 | 1 if floppies else 0)
        struct.pack_into("<HBH", data, 0x10, equipment, 0, layout.CONVENTIONAL_KIB)
        data[0x75] = len(self._hard_disks)
        *_, hour, minute, second = (int(f"{part:x}") for part in self._clock.now_bcd())
        ticks = (hour * 3600 + minute * 60 + second) * _TICKS_PER_DAY // 86400
        struct.pack_into("<I", data, 0x6C, ticks)
        data[0x7C : 0x7C + len(self._serial_ports)] = b"\x0a" * len(self._serial_ports)
        memory.write(layout.BIOS_DATA, data)
        memory.write_u16(layout.EBDA, layout.EBDA_BYTES // layout.KIB)
        self._keyboard.initialize()
        self._video.set_mode(3)

    # Traps -----------------------------------------------------------------------------------------------------

    def trap(self, cpu: Cpu) -> None:
        """Serve one OUT of the ROM."""
        vcpu = cpu.vcpu
        regs, sregs = vcpu.regs, vcpu.sregs
        if sregs.cs.base != layout.FIRMWARE:
            return  # someone else's OUT to a port that is nobody's
        stub = regs.rip // rom.STUB_BYTES
        frame = Frame(regs, sregs, self._memory)
        if stub >= rom.CALLS // rom.STUB_BYTES:
            if stub - rom.CALLS // rom.STUB_BYTES == rom.CALL_POST:
                self.power_on()
            else:
                self._keyboard.take_scan_code(frame.al)
        else:
            self.log.calls[stub] = self.log.calls.get(stub, 0) + 1
            self._serve(stub, frame)
        vcpu.set_dirty(kvm.SYNC_REGS | (kvm.SYNC_SREGS if frame.segments_changed else 0))

    def _serve(self, vector: int, frame: Frame) -> None:
        if vector == 0x10:
            self._video.handle(frame)
        elif vector == 0x13:
            self.disks.handle(frame)
        elif vector == 0x16:
            if not self._keyboard.handle(frame):
                frame.jump(rom.SEGMENT, self._rom.labels["wait_key"])
        elif vector == 0x15:
            if not self._system.handle_system(frame):
                frame.jump(rom.SEGMENT, self._rom.labels["wait_time"])
        elif vector == 0x1A:
            self._system.handle_time(frame)
        elif vector == 0x11:
            self._system.handle_equipment(frame)
        elif vector == 0x12:
            self._system.handle_memory_size(frame)
        elif vector == 0x14:
            self._system.handle_serial(frame)
        elif vector == 0x17:
            self._system.handle_printer(frame)
        elif vector == 0x19:
            self._boot(frame)
        elif vector == 0x18:
            self._give_up(frame)

    def _say(self, text: str) -> None:
        for character in text.encode("ascii", "replace"):
            self._video.write_teletype(character)

    def _boot(self, frame: Frame) -> None:
        """int 19h: load and start what boots first."""
        target, refusals = boot.load(self._memory, self.disks)
        self.log.refusals = refusals
        if target is None:
            for refusal in refusals:
                self._say(f"{refusal}\r\n")
            self._give_up(frame)
            return
        self.log.booted = f"{target.note} of drive {target.drive.number:02X}h"
        self.log.boots += 1
        self._on_boot()
        frame.regs.rax = frame.regs.rbx = frame.regs.rcx = frame.regs.rsi = frame.regs.rdi = frame.regs.rbp = 0
        frame.regs.rdx = target.drive.number
        frame.regs.rsp = _BOOT_STACK
        frame.regs.rflags = 0x202
        for segment in (frame.sregs.ds, frame.sregs.es, frame.sregs.ss):
            segment.load_real(0)
        frame.jump(target.segment, target.offset)
        frame.segments_changed = True

    def _give_up(self, frame: Frame) -> None:
        """int 18h: say so and stand still."""
        self.log.gave_up = True
        self._say("No bootable device.\r\n")
        frame.jump(rom.SEGMENT, self._rom.labels["halt"])
