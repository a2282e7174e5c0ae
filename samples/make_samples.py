"""Make the sample images: a small bootable disk that greets on the screen and on the serial port, and then halts.

    python samples/make_samples.py [FOLDER]     make hello.* in every format, and SHA256SUMS
    python samples/make_samples.py --check      see that the samples here have their checksums and hold the disk

The disk is the same on every run. The images are not: identifiers and times in them are new, as in all images.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

import vdisk
from vdisk.hv.firmware.assembler import assemble

SECTOR_BYTES = 512
DISK_BYTES = 1 << 20
MESSAGE = "Hello from vdisk!"
DISK_SIGNATURE = 0x6B736476
PARTITION_START_SECTOR = 64
_PARTITION_KIND = 0xDA  # data, no file system
_HEADS, _SECTORS_A_TRACK = 16, 63

BOOT_SECTOR = f"""
start:
    jmp 0:begin
begin:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 7C00h
    sti
    cld
    mov dx, 3FBh                ; the serial port: 115200 baud, 8 bits, no parity
    mov al, 80h
    out dx, al
    mov dx, 3F8h
    mov al, 1
    out dx, al
    mov dx, 3F9h
    mov al, 0
    out dx, al
    mov dx, 3FBh
    mov al, 3
    out dx, al
    mov si, message
next:
    lodsb
    test al, al
    jz done
    mov cl, al
    mov ah, 0Eh                 ; on the screen
    mov bx, 7
    int 10h
    mov dx, 3FDh
wait_sent:
    in al, dx
    test al, 20h
    jz wait_sent
    mov al, cl                  ; and on the serial port
    mov dx, 3F8h
    out dx, al
    jmp short next
done:
    sti
    hlt
    jmp short done
message:
    db "{MESSAGE}", 13, 10
    db "The boot sector of a virtual disk is running.", 13, 10, 0
"""


def boot_sector() -> bytes:
    """The 440 bytes of code of the master boot record."""
    code, _ = assemble(BOOT_SECTOR, origin=0x7C00)
    if len(code) > 440:
        raise ValueError(f"the boot code takes {len(code)} bytes, there is room for 440")
    return code.ljust(440, b"\0")


def _chs(sector: int) -> bytes:
    cylinder, rest = divmod(sector, _HEADS * _SECTORS_A_TRACK)
    head, index = divmod(rest, _SECTORS_A_TRACK)
    return bytes((head, index + 1 | cylinder >> 2 & 0xC0, cylinder & 0xFF))


def hello_disk() -> bytes:
    """A disk of 1 MiB: an MBR that boots, with one partition; its first sector holds the message again."""
    count = DISK_BYTES // SECTOR_BYTES - PARTITION_START_SECTOR
    last = PARTITION_START_SECTOR + count - 1
    entry = bytes((0x80,)) + _chs(PARTITION_START_SECTOR) + bytes((_PARTITION_KIND,)) + _chs(last)
    entry += struct.pack("<II", PARTITION_START_SECTOR, count)
    disk = bytearray(DISK_BYTES)
    disk[:SECTOR_BYTES] = boot_sector() + struct.pack("<IH", DISK_SIGNATURE, 0) + entry + bytes(48) + b"\x55\xaa"
    at = PARTITION_START_SECTOR * SECTOR_BYTES
    text = f"{MESSAGE} This is the first sector of its partition.\n".encode()
    disk[at : at + len(text)] = text
    return bytes(disk)


# Small blocks where that keeps a file small and others read it; what is left out is sparse or compresses well.
SAMPLES: dict[str, tuple[str, dict[str, str], bool]] = {
    "hello.raw": ("raw", {}, False),
    "hello.qcow2": ("qcow2", {"cluster_size": "4K"}, False),
    "hello-compressed.qcow2": ("qcow2", {"cluster_size": "4K"}, True),
    "hello.vmdk": ("vmdk", {}, False),
    "hello-stream.vmdk": ("vmdk", {"subformat": "streamOptimized"}, False),
    "hello.vdi": ("vdi", {}, False),
    "hello.vhd": ("vhd", {"block_size": "512K"}, False),
    "hello.vhdx": ("vhdx", {}, False),
    "hello.hds": ("parallels", {}, False),
}
SUMS = "SHA256SUMS"


def make(folder: Path) -> None:
    """Write hello.* in every format, and their checksums, into a folder."""
    (folder / "hello.raw").write_bytes(hello_disk())
    for name, (format_name, options, compress) in SAMPLES.items():
        if format_name != "raw":
            vdisk.convert(
                folder / "hello.raw", folder / name, target_format=format_name, options=options, compress=compress
            )
    (folder / SUMS).write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in SAMPLES), encoding="ascii")


def check(folder: Path) -> list[str]:
    """What is wrong with the samples in a folder: a wrong checksum, another disk."""
    wrong = []
    for line in (folder / SUMS).read_text(encoding="ascii").splitlines():
        wanted, name = line.split()
        if _sum(folder / name) != wanted:
            wrong.append(f"{name}: not the checksum of {SUMS}")
        with vdisk.open(folder / name) as disk:
            if disk.read(0, disk.size) != hello_disk():
                wrong.append(f"{name}: holds another disk")
    return wrong


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Make the samples, or check them."""
    here = Path(__file__).parent
    if sys.argv[1:] == ["--check"]:
        wrong = check(here)
        print("\n".join(wrong) or "all samples are as they should be")
        sys.exit(bool(wrong))
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else here)


if __name__ == "__main__":
    main()
