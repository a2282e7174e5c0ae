"""Small Linux systems made here: a tree of files, an initramfs, and disks of ext, XFS and LVM with the tree on them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import zstandard

from tests import peers
from vdisk.inspect.tree import Entry

START = 1 << 20
VERSION = "6.1.0-9-amd64"

Files = Mapping[str, bytes | str]
"""A path to a file's bytes, or to where a link points."""


def cpio(names: Iterable[str], content: bytes = b"x" * 5) -> bytes:
    """An archive of the kind "newc"."""
    archive = bytearray()
    for number, name in enumerate([*names, "TRAILER!!!"]):
        data = b"" if name == "TRAILER!!!" else content
        values = (number, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % value for value in values) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive) + bytes(-len(archive) % 512)


def lz4_legacy(data: bytes) -> bytes:
    """The frame that the kernel unpacks."""
    import lz4.block

    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


COMPRESSIONS = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4_legacy,
}


def initramfs(*modules: str, compression: str = "zstd", version: str = VERSION) -> bytes:
    """Microcode in front, plain, then modules as Debian and Fedora lay them out."""
    early = cpio(["kernel", "kernel/x86", "kernel/x86/microcode/GenuineIntel.bin"], b"microcode" * 100)
    names = [f"usr/lib/modules/{version}/kernel/drivers/{module}.ko.xz" for module in modules]
    return early + COMPRESSIONS[compression](cpio(["init", "bin", *names]))


def elf(machine: int = 62) -> bytes:
    """How a little-endian program begins."""
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, machine) + bytes(44)


def debian(*modules: str, shipped: Iterable[str] = (), **changes: bytes | str) -> dict[str, bytes | str]:
    """A Debian of a few files that starts with `modules`; `changes` are by path, "/" written "__"."""
    folder = f"usr/lib/modules/{VERSION}"
    files: dict[str, bytes | str] = {
        "etc/os-release": "../usr/lib/os-release",
        "usr/lib/os-release": b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian"\nID=debian\n',
        "etc/fstab": b"# made by hand\nUUID=1234 / ext4 errors=remount-ro 0 1\n/dev/sda5\tnone\tswap\tsw 0 0\n",
        "lib": "usr/lib",
        "usr/sbin/update-initramfs": b"#!/bin/sh\n",
        "usr/sbin/update-grub": b"#!/bin/sh\n",
        "usr/lib/systemd/systemd": elf(),
        "sbin/init": "/lib/systemd/systemd",
        f"boot/vmlinuz-{VERSION}": b"kernel",
        f"boot/initrd.img-{VERSION}": initramfs(*modules),
        "boot/grub/grub.cfg": b"terminal_output gfxterm\nmenuentry 'Debian' {\n"
        b"\tlinux\t/boot/vmlinuz root=UUID=1234 ro console=tty0 console=ttyS0,115200\n}\n",
        f"{folder}/modules.builtin": b"kernel/drivers/scsi/sd_mod.ko\nkernel/fs/ext4/ext4.ko\n",
        f"{folder}/modules.dep": "".join(f"kernel/drivers/{one}.ko: kernel/x.ko\n" for one in shipped).encode(),
    }
    return {**files, **{path.replace("__", "/"): value for path, value in changes.items()}}


class MemoryFiles:
    """A tree as a `vdisk.inspect.tree.FileSystem`."""

    def __init__(self, files: Files) -> None:
        self._files = dict(files)

    def root(self) -> Entry:
        return Entry("folder", 0, "", "")

    def _below(self, folder: Entry) -> str:
        assert isinstance(folder.handle, str)
        return f"{folder.handle}/" if folder.handle else ""

    def child(self, folder: Entry, name: str) -> Entry | None:
        path = self._below(folder) + name
        value = self._files.get(path)
        if isinstance(value, str):
            return Entry("link", 0, value, path)
        if value is not None:
            return Entry("file", len(value), "", path)
        return Entry("folder", 0, "", path) if any(one.startswith(f"{path}/") for one in self._files) else None

    def names(self, folder: Entry) -> Iterator[str]:
        below = self._below(folder)
        yield from {path.removeprefix(below).split("/")[0] for path in self._files if path.startswith(below)}

    def read(self, file: Entry, offset: int, length: int) -> bytes:
        assert isinstance(file.handle, str)
        value = self._files[file.handle]
        assert isinstance(value, bytes)
        return value[offset : offset + length]


def lay_out(files: Files, folder: Path) -> Path:
    """The tree as files of this machine."""
    for path, value in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, str):
            place.symlink_to(value)
        else:
            place.write_bytes(value)
    return folder


def disk_of(path: Path, size: int, kind: int = 0x83) -> Path:
    """An MBR with one partition from 1 MiB on to the end."""
    entry = struct.pack("<B3xB3xII", 0x80, kind, START // 512, (size - START) // 512)
    with path.open("wb") as file:
        file.truncate(size)
        file.write(b"\xeb\x63\x90GRUB \0".ljust(446, b"\0") + entry)
        file.seek(510)
        file.write(b"\x55\xaa")
    return path


def ext_disk(path: Path, files: Files, *, kind: str = "ext4", size: int = 9 << 20) -> Path:
    """A disk with the tree in one ext partition."""
    folder = lay_out(files, path.with_name(path.name + "-tree"))
    disk_of(path, size)
    length = f"{(size - START) >> 10}k"
    peers.run(f"mkfs.{kind}", "-q", "-F", "-d", folder, "-E", f"offset={START}", path, length)
    return path


def xfs_disk(path: Path, files: Files, *options: str, size: int = 321 << 20) -> Path:
    """A disk with the tree in one XFS partition; a file system of XFS has 300 MiB at least."""
    folder = lay_out(files, path.with_name(path.name + "-tree"))
    prototype = path.with_name(path.name + "-proto")
    prototype.write_text("\n".join(["/", "0 0", "d--755 0 0", *_prototype(folder), "$"]) + "\n")
    volume = path.with_name(path.name + "-xfs")
    with volume.open("wb") as file:
        file.truncate(size - START)
    peers.run("mkfs.xfs", "-q", *options, "-p", prototype, volume)
    disk_of(path, size)
    put(volume, path, START)
    return path


def _prototype(folder: Path) -> Iterator[str]:
    """Lines of a prototype file (mkfs.xfs(8))."""
    for place in sorted(folder.iterdir()):
        if place.is_symlink():
            yield f"{place.name} l--777 0 0 {place.readlink()}"
        elif place.is_dir():
            yield from (f"{place.name} d--755 0 0", *_prototype(place), "$")
        else:
            yield f"{place.name} ---644 0 0 {place}"


def put(source: Path, disk: Path, offset: int) -> None:
    """Copy a volume into a disk, its zeros left out."""
    with source.open("rb") as reading, disk.open("r+b") as writing:
        while chunk := reading.read(1 << 16):
            if chunk.strip(b"\0"):
                writing.seek(offset + reading.tell() - len(chunk))
                writing.write(chunk)
