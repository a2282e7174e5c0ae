"""What is measured: one row a conversion, with the bar that it must meet."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A conversion of a disk from one variant to another."""

    disk: str
    source: str
    target: str
    bar: float | None
    """The ratio of wall times, ours / qemu-img's, that it must not exceed."""
    bar_seconds: float | None = None
    """Or the seconds that ours may take longer."""
    limit_seconds: float | None = None
    """And the seconds that ours may take at all."""


def _uncompressed(disk: str, bar: float | None, bar_seconds: float | None = None) -> list[Row]:
    pairs = (
        ("raw", "qcow2"), ("qcow2", "raw"), ("vmdk", "qcow2"), ("qcow2", "vdi"), ("vhd", "qcow2"),
        ("vdi", "vmdk"), ("raw", "vhd"),
    )  # fmt: skip
    return [Row(disk, source, target, bar, bar_seconds) for source, target in pairs]


_COMPRESSED = [
    Row("debian", "raw", "qcow2-zlib", 0.12),
    Row("debian", "raw", "qcow2-zstd", 0.6),
    Row("debian", "raw", "vmdk-stream", 0.12),
    Row("debian", "vmdk-stream", "qcow2", 0.45),
    Row("debian", "qcow2-zlib", "raw", 0.45),
    Row("debian", "qcow2-zlib", "qcow2-zlib", 0.15),
    Row("debian", "vmdk-stream", "vmdk-stream", 0.15),
    Row("debian", "qcow2-zlib", "vmdk-stream", 0.15),
]

ALL = [
    *_uncompressed("large", 1.0),
    *_uncompressed("debian", None, 0.15),
    *_COMPRESSED,
    Row("large", "vhdx", "qcow2", 0.9),
    Row("large", "qcow2", "vhdx", 0.9),
    Row("empty", "raw", "qcow2", None, 0.15),
    Row("empty", "qcow2", "vmdk", None, 0.15),
    Row("random", "raw", "qcow2", 1.0),
    Row("random", "qcow2", "vhd", 1.0),
    Row("huge", "raw", "qcow2", 1.0, limit_seconds=3.0),
    Row("huge", "qcow2", "vmdk", 1.0, limit_seconds=3.0),
    Row("huge", "qcow2", "raw", 1.0, limit_seconds=3.0),
]

QUICK = [
    Row("debian", "raw", "qcow2", None, 0.15),
    Row("debian", "vmdk", "qcow2", None, 0.15),
    Row("debian", "qcow2", "vdi", None, 0.15),
    Row("debian", "vmdk-stream", "qcow2", 0.45),
    Row("debian", "raw", "qcow2-zstd", 0.6),
    Row("debian", "qcow2-zlib", "qcow2-zlib", 0.15),
]
