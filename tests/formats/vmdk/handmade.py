"""VMDK files made byte by byte, for what no program at hand writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

GRAIN = 65536
SECTOR = 512


def descriptor(
    *extents: str, create_type: str = "custom", cid: int = 0x1234ABCD, parent: int = 0xFFFFFFFF, more: str = ""
) -> str:
    """A descriptor's text."""
    return (
        f"# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent:08x}\n"
        f'createType="{create_type}"\n{more}\n# Extent description\n'
        + "\n".join(extents)
        + '\n\n# The Disk Data Base\n#DDB\nddb.adapterType = "ide"\n'
    )


def header(
    *,
    version: int = 1,
    flags: int = 1,
    capacity: int,
    grain: int = 128,
    descriptor: tuple[int, int] = (0, 0),
    per_table: int = 512,
    redundant: int = 0,
    directory: int = 1,
    overhead: int = 128,
    newlines: bytes = b"\n \r\n",
    compression: int = 0,
) -> bytes:
    """A hosted header by the specification's field order; offsets and lengths in sectors."""
    raw = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, grain, *descriptor, per_table, redundant,
                      directory, overhead, 0, newlines, compression)  # fmt: skip
    return raw.ljust(SECTOR, b"\0")


def sparse(
    grains: Mapping[int, bytes | int], capacity: int, *, flags: int = 1, version: int = 1, per_table: int = 512
) -> bytes:
    """A sparse extent without descriptor: header, directory, tables, grains in reversed order.

    `grains` maps a grain's number to its bytes, or to the entry itself.
    """
    tables = -(-capacity // (128 * per_table))
    table_sectors = -(-per_table * 4 // SECTOR)
    directory_sectors = -(-tables * 4 // SECTOR)
    first_table = 1 + directory_sectors
    data = -(-(first_table + tables * table_sectors) // 128) * 128
    entries = [0] * (tables * per_table)
    body = bytearray()
    for number in sorted(grains, reverse=True):
        content = grains[number]
        if isinstance(content, int):
            entries[number] = content
            continue
        entries[number] = data + len(body) // SECTOR
        body += content.ljust(GRAIN, b"\0")
    raw = bytearray(header(capacity=capacity, flags=flags, version=version, per_table=per_table, overhead=data))
    directory = [first_table + i * table_sectors for i in range(tables)]
    raw += struct.pack(f"<{tables}I", *directory).ljust(directory_sectors * SECTOR, b"\0")
    for i in range(tables):
        part = entries[i * per_table : (i + 1) * per_table]
        raw += struct.pack(f"<{per_table}I", *part).ljust(table_sectors * SECTOR, b"\0")
    return bytes(raw.ljust(data * SECTOR, b"\0") + body)


def stream(
    grains: Mapping[int, bytes], capacity: int, *, text: str = "", markers: bool = True, footer: bool = True
) -> bytes:
    """A streamOptimized file; grains as they are given (the last may be short), out of order in the file."""
    text_sectors = -(-len(text) // SECTOR)
    flags = 1 | 1 << 16 | (1 << 17 if markers else 0)
    raw = bytearray(128 * SECTOR)
    tables = -(-capacity // (128 * 512))
    entries = [0] * (tables * 512)

    def pad() -> None:
        raw.extend(bytes(-len(raw) % SECTOR))

    def marker(value: int, kind: int) -> None:
        if markers:
            raw.extend(struct.pack("<QII", value, 0, kind).ljust(SECTOR, b"\0"))

    for number in sorted(grains, reverse=True):
        entries[number] = len(raw) // SECTOR
        packed = zlib.compress(grains[number])
        if markers:
            raw += struct.pack("<QI", number * 128, len(packed))
        raw += packed
        pad()
    directory = []
    for i in range(tables):
        marker(4, 1)
        directory.append(len(raw) // SECTOR)
        raw += struct.pack("<512I", *entries[i * 512 : (i + 1) * 512])
    marker(1, 2)
    place = len(raw) // SECTOR
    raw += struct.pack(f"<{tables}I", *directory)
    pad()

    def made(directory_sector: int) -> bytes:
        return header(version=3, flags=flags, capacity=capacity, descriptor=(1, text_sectors) if text else (0, 0),
                      directory=directory_sector, compression=1)  # fmt: skip

    raw[:SECTOR] = made(0xFFFFFFFFFFFFFFFF if footer else place)
    raw[SECTOR : SECTOR + len(text)] = text.encode()
    if footer:
        raw.extend(struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0") + made(place) + bytes(SECTOR))
    return bytes(raw)


def cowd(grains: Mapping[int, bytes], capacity: int, grain: int = 1) -> bytes:
    """A COWD extent; `grains` of `grain` sectors each."""
    tables = -(-capacity // (4096 * grain))
    directory_sectors = -(-tables * 4 // SECTOR)
    first = 4 + directory_sectors
    data = first + 32 * tables
    entries = [0] * (tables * 4096)
    body = bytearray()
    for number in sorted(grains, reverse=True):
        entries[number] = data + len(body) // SECTOR
        body += grains[number].ljust(grain * SECTOR, b"\0")
    end = data + len(body) // SECTOR
    raw = struct.pack("<4s7I", b"COWD", 1, 3, capacity, grain, 4, tables, end).ljust(4 * SECTOR, b"\0")
    raw += struct.pack(f"<{tables}I", *(first + 32 * i for i in range(tables))).ljust(directory_sectors * SECTOR, b"\0")
    return raw + struct.pack(f"<{len(entries)}I", *entries) + body


def write_descriptor(path: Path, *extents: str, **how: object) -> Path:
    """A descriptor file; its path."""
    path.write_text(descriptor(*extents, **how))  # type: ignore[arg-type]
    return path
