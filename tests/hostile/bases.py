"""Valid small images, and where their structures lie: what the mutation fuzzer starts from."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance.image import lay_out
from tests.formats.vmdk import handmade
from tests.hostile.fields import Field, fields_of
from tests.hostile.making import qcow2
from vdisk import formats
from vdisk.formats.parallels import structs as parallels
from vdisk.formats.qcow2 import structs as qcow2_structs
from vdisk.formats.vdi import structs as vdi
from vdisk.formats.vhd import structs as vhd
from vdisk.formats.vhd.footer import sealed
from vdisk.formats.vhdx import structs as vhdx
from vdisk.formats.vhdx.crc32c import crc32c
from vdisk.formats.vmdk import structs as vmdk


@dataclass
class Table:
    """A run of equal integers in the file: an L1 table, a BAT."""

    name: str
    offset: int
    count: int
    width: int
    byteorder: str


@dataclass
class Base:
    """A valid image and the places in it that matter."""

    name: str
    format: str
    data: bytes
    fields: list[tuple[int, Field]] = field(default_factory=list)
    """(where the structure begins, the field in it)."""
    tables: list[Table] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) of what is metadata; bytes are flipped there."""
    seal: Callable[[bytearray], None] | None = None
    """Puts right the checksums, so that what lies behind them is reached."""
    is_text: bool = False

    def declare(self, declaration: Any, offset: int, name: str) -> None:
        """A construct declaration lies at `offset`."""
        self.fields += [(offset, found._replace(name=f"{name}.{found.name}")) for found in fields_of(declaration)]
        self.spans.append((offset, declaration.sizeof()))

    def tabulate(self, name: str, offset: int, count: int, width: int, byteorder: str = "little") -> None:
        """A table lies at `offset`."""
        self.tables.append(Table(name, offset, count, width, byteorder))
        self.spans.append((offset, min(count * width, 4096)))


def content(size: int) -> bytes:
    """Data, zeros, and data that compresses."""
    made = bytearray(size)
    third = size // 3
    made[: third // 2] = random.Random(8).randbytes(third // 2)
    made[2 * third :] = (b"vdisk " * (size // 6 + 1))[: size - 2 * third]
    return bytes(made)


def bases(folder: Path) -> Iterator[Base]:
    """Every base image. `folder` is for scratch files."""
    yield from _qcow2(folder)
    yield from _vmdk(folder)
    yield _vdi(folder)
    yield from _vhd(folder)
    yield _vhdx(folder)
    yield from _parallels(folder)


def _laid(folder: Path, format_name: str, options: dict[str, str], size: int, *, compress: bool = False) -> bytes:
    path = folder / "base"
    lay_out(path, format_name, options, content(size), compress=compress)
    return path.read_bytes()


def _qcow2(folder: Path) -> Iterator[Base]:
    shapes: list[tuple[str, dict[str, str], bool]] = [
        ("v3", {"cluster_size": "4K"}, False),
        ("v2", {"cluster_size": "4K", "compat": "0.10"}, False),
        ("zlib", {"cluster_size": "4K"}, True),
        ("zstd", {"cluster_size": "4K", "compression_type": "zstd", "refcount_bits": "1"}, True),
        ("subclusters", {"cluster_size": "16K", "extended_l2": "on"}, False),
    ]
    for name, options, compress in shapes:
        data = _laid(folder, "qcow2", options, 96 << 10, compress=compress)
        if name == "v3":
            data = _with_snapshot(folder)
        yield _qcow2_base(f"qcow2-{name}", data)
    made = qcow2(l2={0: 1 << 63 | 5 * 4096, 3: 1}, body=b"data", extensions=[(0x6803F857, bytes(96))])
    yield _qcow2_base("qcow2-hand", made)


def _with_snapshot(folder: Path) -> bytes:
    from vdisk.formats.qcow2.bitmaps import add_bitmap
    from vdisk.formats.qcow2.image import Qcow2Image
    from vdisk.formats.qcow2.snapshots import create_snapshot

    path = folder / "base"
    with formats.open(path, writable=True) as disk:
        assert isinstance(disk, Qcow2Image)
        create_snapshot(disk, "first")
        add_bitmap(disk, "bits", granularity_bytes=4096)
        disk.write(0, b"later")
    return path.read_bytes()


def _qcow2_base(name: str, data: bytes) -> Base:
    base = Base(name, "qcow2", data)
    base.declare(qcow2_structs.HeaderV2, 0, "header")
    version, bits = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(">I", data, 20)[0]
    l1_entries, l1, refcounts = struct.unpack_from(">IQQ", data, 36)
    count, snapshots = struct.unpack_from(">IQ", data, 60)
    if version >= 3:
        base.declare(qcow2_structs.HeaderV3, 72, "header")
        at = struct.unpack_from(">I", data, 100)[0]
        base.spans.append((104, 8))
    else:
        at = 72
    while at < 1 << bits:
        kind, length = struct.unpack_from(">II", data, at)
        base.declare(qcow2_structs.ExtensionHead, at, f"extension {kind:#x}")
        if kind == 0:
            break
        if kind == 0x23852875:
            base.declare(qcow2_structs.BitmapExtension, at + 8, "bitmaps")
            directory = struct.unpack_from(">Q", data, at + 24)[0]
            base.declare(qcow2_structs.BitmapHead, directory, "bitmap")
            base.tabulate("bitmap table", struct.unpack_from(">Q", data, directory)[0], 1, 8, "big")
        at += 8 + -(-length // 8) * 8
    if count:
        base.declare(qcow2_structs.SnapshotHead, snapshots, "snapshot")
        base.declare(qcow2_structs.SnapshotExtra, snapshots + 40, "snapshot extra")
    base.tabulate("L1", l1, l1_entries, 8, "big")
    base.tabulate("refcount table", refcounts, 2, 8, "big")
    base.tabulate("refcount block", struct.unpack_from(">Q", data, refcounts)[0] & ~511, 8, 2, "big")
    l2 = struct.unpack_from(">Q", data, l1)[0] & ((1 << 56) - 512)
    base.tabulate("L2", l2, 24, 8, "big")
    return base


def _vmdk(folder: Path) -> Iterator[Base]:
    grain = content(handmade.GRAIN)
    sparse = handmade.sparse({0: grain, 2: grain, 3: 1}, 128 * 5, flags=5, version=2)
    stream = handmade.stream({0: grain, 2: grain}, 128 * 5)
    cowd = handmade.cowd({0: grain[:512], 9: grain[:512]}, 64)
    for name, data in (
        ("sparse", sparse),
        ("monolithic", _laid(folder, "vmdk", {}, 300 << 10)),
        ("stream", stream),
        ("stream-laid", _laid(folder, "vmdk", {"subformat": "streamOptimized"}, 300 << 10)),
    ):
        base = Base(f"vmdk-{name}", "vmdk", data)
        base.declare(vmdk.HostedHeader, 0, "header")
        header = vmdk.HostedHeader.parse(data[:512])
        directory = header.directory_sector
        if directory == vmdk.GD_AT_END:
            at = len(data) - 1024
            base.declare(vmdk.HostedHeader, at, "footer")
            base.declare(vmdk.Marker, at - 512, "footer marker")
            base.declare(vmdk.Marker, len(data) - 512, "end marker")
            base.declare(vmdk.Marker, header.overhead_sectors * 512, "grain marker")
            directory = vmdk.HostedHeader.parse(data[at : at + 512]).directory_sector
        base.tabulate("grain directory", directory * 512, 2, 4)
        table = struct.unpack_from("<I", data, directory * 512)[0] * 512
        base.tabulate("grain table", table, 8, 4)
        if header.descriptor_sector:
            base.spans.append((header.descriptor_sector * 512, 600))
        yield base
    base = Base("vmdk-cowd", "vmdk", cowd)
    base.declare(vmdk.CowdHeader, 0, "header")
    base.tabulate("grain directory", 2048, 2, 4)
    base.tabulate("grain table", struct.unpack_from("<I", cowd, 2048)[0] * 512, 12, 4)
    yield base
    text = handmade.descriptor("RW 128 ZERO", "RW 64 ZERO", more='ddb.uuid = "60 00"').encode()
    yield Base("vmdk-descriptor", "vmdk", text, spans=[(0, len(text))], is_text=True)


def _vdi(folder: Path) -> Base:
    data = _laid(folder, "vdi", {"block_size": "16K"}, 96 << 10)
    base = Base("vdi", "vdi", data)
    base.declare(vdi.Header, 0, "header")
    header = vdi.Header.parse(data)
    base.tabulate("block map", header.table_offset, header.block_count, 4)
    return base


def _vhd(folder: Path) -> Iterator[Base]:
    data = _laid(folder, "vhd", {"block_size": "16K"}, 96 << 10)
    base = Base("vhd-dynamic", "vhd", data)
    base.declare(vhd.Footer, 0, "footer copy")
    base.declare(vhd.Footer, len(data) - 512, "footer")
    base.declare(vhd.DynamicHeader, 512, "header")
    table = vhd.DynamicHeader.parse(data[512:1536])
    base.tabulate("BAT", table.table_offset, 8, 4, "big")

    def seal(raw: bytearray) -> None:
        if raw[:511] != data[:511]:  # both copies say the same, so that neither is taken for damaged
            raw[-512:] = raw[:512]
        raw[:512] = sealed(bytes(raw[:512]), 64)
        raw[-512:] = sealed(bytes(raw[-512:]), 64)
        raw[512:1536] = sealed(bytes(raw[512:1536]), 36)

    base.seal = seal
    yield base
    fixed = _laid(folder, "vhd", {"subformat": "fixed"}, 48 << 10)
    base = Base("vhd-fixed", "vhd", fixed)
    base.declare(vhd.Footer, len(fixed) - 512, "footer")

    def seal_fixed(raw: bytearray) -> None:
        raw[-512:] = sealed(bytes(raw[-512:]), 64)

    base.seal = seal_fixed
    yield base


def _vhdx(folder: Path) -> Base:
    data = _laid(folder, "vhdx", {}, 2 << 20)
    base = Base("vhdx", "vhdx", data)
    header_offsets, region_offsets = vhdx.HEADER_OFFSETS, vhdx.REGION_OFFSETS
    for offset in header_offsets:
        base.declare(vhdx.HEADER, offset, "header")
    regions: dict[bytes, int] = {}
    head_bytes, entry_bytes = vhdx.REGION_TABLE_HEADER.sizeof(), vhdx.REGION_ENTRY.sizeof()
    at = region_offsets[0]
    base.declare(vhdx.REGION_TABLE_HEADER, at, "region table")
    for number in range(2):
        where = at + head_bytes + number * entry_bytes
        base.declare(vhdx.REGION_ENTRY, where, f"region {number}")
        entry = vhdx.REGION_ENTRY.parse(data[where : where + entry_bytes])
        regions[entry.guid] = entry.file_offset
    metadata = regions[vhdx.METADATA_REGION.bytes_le]
    base.declare(vhdx.METADATA_TABLE_HEADER, metadata, "metadata table")
    count = struct.unpack_from("<H", data, metadata + 10)[0]
    for number in range(count):
        where = metadata + 32 + 32 * number
        base.declare(vhdx.METADATA_ENTRY, where, f"metadata {number}")
        item = vhdx.METADATA_ENTRY.parse(data[where : where + 32])
        if item.length in (4, 8):
            base.tabulate(f"item {number}", metadata + item.offset, 1, item.length)
            if item.length == 8:
                base.tabulate(f"item {number} halves", metadata + item.offset, 2, 4)
    base.tabulate("BAT", regions[vhdx.BAT_REGION.bytes_le], 3, 8)

    def seal(raw: bytearray) -> None:
        raw[region_offsets[1] : region_offsets[1] + vhdx.REGION_BYTES] = raw[at : at + vhdx.REGION_BYTES]
        for offset, length in [(o, vhdx.HEADER_BYTES) for o in header_offsets] + [
            (o, vhdx.REGION_BYTES) for o in region_offsets
        ]:
            if raw[offset : offset + length] == data[offset : offset + length]:
                continue
            raw[offset + 4 : offset + 8] = bytes(4)
            struct.pack_into("<I", raw, offset + 4, crc32c(raw[offset : offset + length]))

    base.seal = seal
    return base


def _parallels(folder: Path) -> Iterator[Base]:
    for version in ("1", "2"):
        data = _laid(folder, "parallels", {"cluster_size": "16K", "version": version}, 96 << 10)
        base = Base(f"parallels-{version}", "parallels", data)
        base.declare(parallels.HEADER, 0, "header")
        base.tabulate("BAT", 64, 6, 4)
        yield base
