"""The Linux boot protocol (boot.rst in the kernel): kernel, initrd and command line into memory, and the entry.

From version 2.12 on a kernel is entered in protected mode, without a call of the firmware. What says an older version
is entered in real mode, as the protocol has it for all of them: iPXE and memdisk have no other entry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.errors import Unsupported
from vdisk.hv import kvm, layout
from vdisk.hv.config import Kernel
from vdisk.hv.firmware.e820 import acpi_tables_at, memory_map
from vdisk.hv.memory import GuestMemory

_GDT, _BOOT_PARAMS, _COMMAND_LINE = 0x6000, 0x7000, 0x20000
_HEADER, _HEADER_END = 0x1F1, 0x280
_LOADED_HIGH = 1
_CAN_USE_HEAP = 0x80
_OLDEST_VERSION = 0x0202
_PROTECTED_MODE_VERSION = 0x020C
_REAL_MODE, _REAL_MODE_MOST, _HEAP_END = 0x10000, 0x8000, 0xE000
"""The real-mode part's place, its longest, and where its stack ends and the command line begins, in its segment."""
_UNKNOWN_LOADER = 0xFF
_CODE_SELECTOR, _DATA_SELECTOR = 0x10, 0x18
_E820_MOST = 128
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of the kernel's setup header that matter here."""

    setup_bytes: int
    """Bytes of real-mode code before the protected-mode kernel."""
    version: int
    initrd_highest: int
    command_line_most: int
    header: bytes
    """Bytes 1F1h up to the header's end, as they go into the boot parameters."""


def parse_header(image: bytes) -> SetupHeader:
    """Read a bzImage's header. Raises `Unsupported` for what is none, or is older than version 2.02 of the protocol."""
    if len(image) < 1024 or image[0x202:0x206] != b"HdrS":
        raise Unsupported("kernel", "bzImage", "a file without a Linux setup header")
    version = struct.unpack_from("<H", image, 0x206)[0]
    if version < _OLDEST_VERSION or not image[0x211] & _LOADED_HIGH:
        raise Unsupported("kernel", "bzImage", f"boot protocol {version >> 8}.{version & 0xFF:02}")
    setup_bytes = ((image[_HEADER] or 4) + 1) * 512
    if setup_bytes >= len(image):
        raise Unsupported("kernel", "bzImage", "a file that ends within its real-mode part")
    end = min(0x202 + image[0x201], _HEADER_END)
    highest = struct.unpack_from("<I", image, 0x22C)[0] if version >= 0x0203 else 0x37FFFFFF
    most = struct.unpack_from("<I", image, 0x238)[0] if version >= 0x0206 else 255
    return SetupHeader(setup_bytes, version, highest, most, image[_HEADER:end])


def _fill_in(setup: bytearray, initrd_at: int, initrd_bytes: int, command_line_at: int) -> None:
    """The fields of a header that a loader writes."""
    setup[0x210] = _UNKNOWN_LOADER
    struct.pack_into("<II", setup, 0x218, initrd_at, initrd_bytes)
    struct.pack_into("<I", setup, 0x228, command_line_at)


def _boot_params(memory: GuestMemory, header: SetupHeader, initrd_at: int, initrd_bytes: int) -> bytes:
    params = bytearray(_PAGE)
    # screen_info: cursor at the top, mode 3, 80 by 25, a VGA, 16 lines a character.
    struct.pack_into("<BBHHBB", params, 0, 0, 0, 0, 0, 3, 80)
    struct.pack_into("<BBH", params, 0x0E, 25, 1, 16)
    params[_HEADER : _HEADER + len(header.header)] = header.header
    _fill_in(params, initrd_at, initrd_bytes, _COMMAND_LINE)
    entries = memory_map(memory)[:_E820_MOST]
    params[0x1E8] = len(entries)
    for index, entry in enumerate(entries):
        at = 0x2D0 + 20 * index
        params[at : at + 20] = entry.pack()
    return bytes(params)


def start_kernel(vcpu: kvm.Vcpu, memory: GuestMemory, kernel: Kernel) -> None:
    """Put everything in its place, and the processor at the entry. What does not fit raises `Unsupported`."""
    header = parse_header(kernel.image)
    code = memoryview(kernel.image)[header.setup_bytes :]
    room_end = acpi_tables_at(memory) - layout.ACPI_NVS_BYTES
    initrd_end = min(room_end, header.initrd_highest + 1)
    initrd_at = (initrd_end - len(kernel.initrd)) // _PAGE * _PAGE if kernel.initrd else 0
    kernel_end = layout.EXTENDED_RAM + len(code)
    if kernel_end > room_end or (kernel.initrd and initrd_at < kernel_end):
        raise Unsupported("kernel", "bzImage", "a kernel and an initrd larger than the guest's memory")
    command_line = kernel.append.encode()
    if len(command_line) > header.command_line_most:
        raise Unsupported("kernel", "bzImage", f"a command line of {len(command_line)} bytes")
    memory.write(layout.EXTENDED_RAM, code)
    if kernel.initrd:
        memory.write(initrd_at, kernel.initrd)
    if header.version < _PROTECTED_MODE_VERSION:
        if header.setup_bytes > _REAL_MODE_MOST:
            raise Unsupported("kernel", "bzImage", f"a real-mode part of {header.setup_bytes} bytes")
        memory.write(_REAL_MODE + _HEAP_END, command_line + b"\0")
        setup = bytearray(kernel.image[: header.setup_bytes])
        _fill_in(setup, initrd_at, len(kernel.initrd), _REAL_MODE + _HEAP_END)
        setup[0x211] |= _CAN_USE_HEAP
        struct.pack_into("<H", setup, 0x224, _HEAP_END - 0x200)
        memory.write(_REAL_MODE, setup)
        _enter_real_mode(vcpu)
        return
    memory.write(_COMMAND_LINE, command_line + b"\0")
    memory.write(_BOOT_PARAMS, _boot_params(memory, header, initrd_at, len(kernel.initrd)))
    # Flat 4 GiB segments: code at selector 10h, data at 18h.
    memory.write(_GDT, struct.pack("<QQQQ", 0, 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF))
    _enter_protected_mode(vcpu)


def _enter_real_mode(vcpu: kvm.Vcpu) -> None:
    """All data segments at the real-mode part, the stack at the heap's end, the code segment 20h further."""
    sregs = vcpu.get_sregs()
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.load_real(_REAL_MODE >> 4)
    sregs.cs.load_real((_REAL_MODE >> 4) + 0x20)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm.Regs(rip=0, rsp=_HEAP_END, rflags=2))


def _enter_protected_mode(vcpu: kvm.Vcpu) -> None:
    """Flat protected mode, interrupts off, ESI at the parameters."""
    sregs = vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = _GDT, 31
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cs.load_flat(_CODE_SELECTOR, is_code=True)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.load_flat(_DATA_SELECTOR, is_code=False)
    sregs.cr0 |= 1
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm.Regs(rip=layout.EXTENDED_RAM, rsi=_BOOT_PARAMS, rflags=2))
