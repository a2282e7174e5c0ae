"""The disks that are converted: built once, in a cache, by qemu-img, which has no interest in our winning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("VDISK_CACHE", "~/.cache/vdisk")).expanduser() / "bench"
_SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "debian_disk.py"

# Formats by our names: (qemu-img's arguments, suffix).
VARIANTS = {
    "raw": (["-O", "raw"], ".raw"),
    "qcow2": (["-O", "qcow2"], ".qcow2"),
    "qcow2-zlib": (["-c", "-O", "qcow2"], "-zlib.qcow2"),
    "qcow2-zstd": (["-c", "-O", "qcow2", "-o", "compression_type=zstd"], "-zstd.qcow2"),
    "vmdk": (["-O", "vmdk"], ".vmdk"),
    "vmdk-stream": (["-O", "vmdk", "-o", "subformat=streamOptimized"], "-stream.vmdk"),
    "vdi": (["-O", "vdi"], ".vdi"),
    "vhd": (["-O", "vpc", "-o", "force_size=on"], ".vhd"),
    "vhdx": (["-O", "vhdx"], ".vhdx"),
}

_PARTITION_OFFSET = 1 << 20


def debian() -> Path:
    """The raw Debian disk: 4 GiB with about 670 MB of data."""
    done = subprocess.run([sys.executable, _SCRIPT, "generic"], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def disk(name: str) -> Path:
    """A raw disk by its name: debian, large (about 3 GiB such data), empty (16 GiB), random (2 GiB), huge (8 TiB)."""
    if name == "debian":
        return debian()
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}.raw"
    if path.exists():
        return path
    partial = path.with_suffix(".part")
    {"large": _large, "empty": _empty, "random": _random, "huge": _huge}[name](partial)
    partial.rename(path)
    return path


def image(name: str, variant: str) -> Path:
    """A disk in a format, made by qemu-img."""
    raw = disk(name)
    if variant == "raw":
        return raw
    arguments, suffix = VARIANTS[variant]
    path = CACHE / f"{name}{suffix}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        fast = ["-m", "16", "-W"] if "-c" in arguments or variant == "vmdk-stream" else []
        subprocess.run(["qemu-img", "convert", *fast, "-f", "raw", *arguments, raw, partial], check=True)
        partial.rename(path)
    return path


def forget_others(kept: Path) -> None:
    """Let the page cache go of every image but `kept`: the corpus is about as large as the memory."""
    for path in [*CACHE.glob("*"), debian()]:
        if path.is_file() and path != kept:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _copy_data(source: Path, target: Path, at: int, change: int) -> None:
    """Copy the data of `source` to offset `at` of `target`, holes left out; `change` makes each copy another."""
    size = source.stat().st_size
    with source.open("rb") as given, target.open("r+b") as made:
        position = 0
        while position < size:
            try:
                start = os.lseek(given.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(given.fileno(), start, os.SEEK_HOLE)
            while start < end:
                given.seek(start)
                piece = bytearray(given.read(min(1 << 20, end - start)))
                for index in range(0, len(piece), 4096):
                    if any(piece[index : index + 64]):
                        piece[index] ^= change
                made.seek(at + start)
                made.write(piece)
                start += len(piece)
            position = end


def _large(path: Path) -> None:
    one = debian()
    size = one.stat().st_size
    with path.open("wb") as made:
        made.truncate(size * 5)
    for number in range(5):
        _copy_data(one, path, number * size, number)


def _empty(path: Path) -> None:
    with path.open("wb") as made:
        made.truncate(16 << 30)
        for number in range(16):
            made.seek((number << 30) + (5 << 20))
            made.write(os.urandom(1 << 20))


def _random(path: Path) -> None:
    with path.open("wb") as made:
        for _ in range(2048):
            made.write(os.urandom(1 << 20))


def _huge(path: Path) -> None:
    with path.open("wb") as made:
        made.truncate((8 << 40) - (2 << 30))  # qcow2 and its peers map no more with their usual clusters
        for number in range(64):
            made.seek(number * (120 << 30))
            made.write(os.urandom(16 << 20))
