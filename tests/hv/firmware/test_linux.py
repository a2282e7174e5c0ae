"""What `--kernel` starts: Linux by its protected-mode entry, older protocols by the real-mode one."""

from __future__ import annotations

import struct

import pytest

from tests.hv.guests import PRINT, needs_kvm
from vdisk.errors import Unsupported
from vdisk.hv.boot import boot
from vdisk.hv.config import Kernel
from vdisk.hv.firmware.assembler import assemble
from vdisk.hv.firmware.linux import parse_header

ENTRY = 0x280


def kernel_image(version: int, source: str = "", *, load_flags: int = 1, setup_sectors: int = 1) -> bytes:
    """A bzImage whose real-mode entry runs `source` and which has two bytes of protected-mode code: `jmp $`."""
    code, _ = assemble(source + PRINT, origin=ENTRY)  # its data segments begin with the file
    image = bytearray((1 + setup_sectors) * 512)
    image[0x1F1] = setup_sectors
    image[0x200:0x202] = bytes((0xEB, ENTRY - 0x202))
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = load_flags
    struct.pack_into("<I", image, 0x22C, 0x37FFFFFF)  # the highest byte for an initrd
    struct.pack_into("<I", image, 0x238, 255)
    image[ENTRY : ENTRY + len(code)] = code
    return bytes(image) + b"\xeb\xfe"


@needs_kvm
@pytest.mark.kvm
@pytest.mark.parametrize("version", [0x0202, 0x0203, 0x0207, 0x020B])
def test_an_older_protocol_is_entered_in_real_mode_with_its_command_line_and_initrd(version: int) -> None:
    source = """
    cld
    mov si, 0E000h              ; the command line, in the segment of the real-mode part
    call print
    mov ax, 0E21h               ; the firmware's calls work: an exclamation mark
    int 10h
    mov si, 225h                ; the heap's end, its high byte
    lodsb
    cmp al, 0DEh
    jnz bad
    mov si, 21Ch                ; the initrd's size
    lodsb
    cmp al, 9
    jnz bad
    lodsb
    cmp al, 3
    jnz bad
    mov si, good
    jmp short told
bad:
    mov si, wrong
told:
    call print
    call stop
good:
    db " as asked", 0
wrong:
    db " amiss", 0
"""
    kernel = Kernel(kernel_image(version, source), b"i" * 0x309, "one two")
    result = boot([], kernel=kernel, memory_bytes=16 << 20, expect="as asked", timeout=30)
    assert result.ok, result.reason
    assert result.serial == "one two as asked"
    assert result.screen.startswith("!")


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (b"\x7fELF".ljust(4096, b"\0"), "a file without a Linux setup header"),
        (kernel_image(0x0201), "boot protocol 2.01"),
        (kernel_image(0x0207, load_flags=0), "boot protocol 2.07"),
        (kernel_image(0x0207, setup_sectors=9)[:4096], "a file that ends within its real-mode part"),
    ],
)
def test_what_is_no_kernel_is_named(image: bytes, found: str) -> None:
    with pytest.raises(Unsupported, match=found):
        parse_header(image)


@needs_kvm
@pytest.mark.kvm
def test_a_real_mode_part_that_does_not_fit_is_named() -> None:
    kernel = Kernel(kernel_image(0x0207, setup_sectors=64))
    with pytest.raises(Unsupported, match="a real-mode part of 33280 bytes"):
        boot([], kernel=kernel, memory_bytes=16 << 20, timeout=10)
