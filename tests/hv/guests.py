"""Small guests for tests: boot sectors assembled from a few lines, and the machine to run them on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import peers
from tests.hv.devices.device_rig import RamDisk
from vdisk.hv.firmware.assembler import assemble

needs_kvm = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm here, or it may not be opened"
)
SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
VGA_BIOS = Path("/usr/share/seabios/vgabios-isavga.bin")
GRUB_ISO = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
IPXE_ISO = Path("/usr/lib/ipxe/ipxe.iso")
IPXE_KERNEL = Path("/usr/lib/ipxe/ipxe.lkrn")
MEMDISK = Path("/usr/lib/syslinux/memdisk")
SYSLINUX_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")

SET_UP = """
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 7C00h
    sti
"""
PRINT = """
print:                          ; the zero-terminated text at SI, on the serial port
    lodsb
    test al, al
    jz printed
    mov dx, 3F8h
    out dx, al
    jmp short print
printed:
    ret
stop:
    hlt
    jmp short stop
"""


def boot_sector(source: str) -> bytes:
    """512 bytes that run `source` at 7C00h, with a stack, flat segments and the routines `print` and `stop`."""
    code, _ = assemble(SET_UP + source + PRINT, origin=0x7C00)
    assert len(code) <= 510
    return code.ljust(510, b"\0") + b"\x55\xaa"


def disk_of(content: bytes, size: int = 1 << 20, *, writable: bool = True) -> RamDisk:
    """A disk of `size` bytes that begins with `content`."""
    disk = RamDisk(size, writable=writable)
    disk.data[: len(content)] = content
    return disk


def guest(source: str) -> RamDisk:
    """A disk whose boot sector runs `source`."""
    return disk_of(boot_sector(source))


def syslinux_disk(folder: Path, says: str) -> Path:
    """A disk with one FAT partition, on which syslinux is installed; it says `says` and prompts."""
    disk, settings = folder / "syslinux.raw", folder / "syslinux.cfg"
    first_byte, sectors = 1 << 20, 30720
    disk.write_bytes(b"")
    os.truncate(disk, first_byte + sectors * 512)
    peers.run("sfdisk", "-q", disk, stdin=b"2048,,0e,*\n")
    partition = f"{disk}@@{first_byte}"
    peers.run("mformat", "-i", partition, "-T", sectors, "-h", 16, "-s", 63, "::")
    settings.write_text(f"SAY {says}\nDEFAULT nothing\nPROMPT 1\n")
    peers.run("mcopy", "-i", partition, settings, "::")
    peers.run("syslinux", "--install", "--offset", first_byte, disk)
    with disk.open("r+b") as file:
        file.write(peers.require_file(SYSLINUX_MBR, "syslinux-common").read_bytes())
    return disk
