"""Hostile images made by hand, one function for each construction.

`CORPUS` maps a name to a function that makes the image in a folder and returns its path. Where many constructions
differ in one number they stand in a table.
"""

from __future__ import annotations

import functools
import struct
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.conformance.image import lay_out
from tests.formats.vdi.handmade import vdi
from tests.formats.vmdk import handmade
from tests.hostile.fields import fields_of
from tests.hostile.making import ALLOCATED, CLUSTER, bundle, bundle_image, qcow2
from vdisk.formats.parallels import structs as parallels
from vdisk.formats.vhd import structs as vhd
from vdisk.formats.vhd.footer import sealed
from vdisk.formats.vhdx import structs as vhdx
from vdisk.formats.vhdx.crc32c import crc32c

Maker = Callable[[Path], Path]
CORPUS: dict[str, Maker] = {}
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def hostile(maker: Maker) -> Maker:
    """Enter a maker under its name."""
    CORPUS[maker.__name__] = maker
    return maker


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# qcow2 -------------------------------------------------------------------------------------------------------------

_DATA = ALLOCATED | 5 * CLUSTER
_QCOW2: dict[str, bytes] = {
    "l1_of_four_billion_entries": qcow2(l1_entries=U32),
    "l1_of_32_mib_in_a_file_of_20k": qcow2(l1_entries=1 << 22),
    "l1_past_the_end": qcow2(l1_offset=1 << 40),
    "l1_is_the_header": qcow2(l1_offset=0),
    "l1_at_the_top_of_the_type": qcow2(l1_offset=U64 - CLUSTER + 1),
    "disk_of_16_eib": qcow2(disk_bytes=U64),
    "disk_of_8_eib_in_one_table": qcow2(disk_bytes=(1 << 63) - 512, l1_entries=1),
    "cluster_of_2_to_the_4_billion": qcow2(cluster_bits=U32),
    "cluster_of_one_byte": qcow2(cluster_bits=0),
    "cluster_of_a_gib": qcow2(cluster_bits=30),
    "refcounts_of_2_to_the_31_bits": qcow2(refcount_order=31),
    "refcount_table_of_16_tib": qcow2(refcount_table_clusters=U32),
    "refcount_table_past_the_end": qcow2(refcount_table_offset=1 << 50),
    "refcount_table_is_the_header": qcow2(refcount_table_offset=0),
    "snapshots_without_end": qcow2(snapshot_count=U32, snapshots_offset=CLUSTER),
    "snapshots_in_the_header": qcow2(snapshot_count=65536, snapshots_offset=0),
    "backing_name_of_4_gib": qcow2(backing="x", backing_name_bytes=U32),
    "backing_name_past_the_end": qcow2(backing="x", backing_name_offset=1 << 62),
    "backing_name_of_control_characters": qcow2(backing=b"\x1b]0;owned\x07\n\r\x1b[2J"),
    "backing_name_that_is_no_utf8": qcow2(backing=b"\xff\xfe\x80"),
    "backing_format_unknown": qcow2(backing="base", backing_format="../../x"),
    "backing_is_itself": qcow2(backing="image", backing_format="qcow2"),
    "header_longer_than_the_file": qcow2(header_bytes=U32),
    "header_of_no_bytes": qcow2(header_bytes=0),
    "header_cut_short": qcow2()[:60],
    "nothing_but_the_magic": b"QFI\xfb\0\0\0\3",
    "extension_of_4_gib": qcow2(raw_extensions=struct.pack(">II", 0x6803F857, U32)),
    "extensions_without_end": qcow2(raw_extensions=struct.pack(">II", 1, 0) * 499),
    "all_incompatible_bits": qcow2(incompatible=U64),
    "unknown_encryption": qcow2(crypt_method=77),
    "luks_header_past_the_end": qcow2(crypt_method=2, extensions=[(0x0537BE77, struct.pack(">QQ", 1 << 60, U64))]),
    "bitmaps_past_the_end": qcow2(
        autoclear=1, extensions=[(0x23852875, struct.pack(">IIQQ", U32, 0, U64, 1 << 50))]
    ),
    "l2_is_the_l1": qcow2(l1=[ALLOCATED | 3 * CLUSTER]),
    "l2_is_the_header": qcow2(l1=[ALLOCATED | 0]),
    "l2_past_the_end": qcow2(l1=[ALLOCATED | 1 << 50]),
    "l2_reserved_bits": qcow2(l2={0: 0x7E00000000000000}),
    "every_cluster_is_the_same": qcow2(size=2 << 20, l2=dict.fromkeys(range(512), _DATA), body=b"same"),
    "clusters_are_the_tables": qcow2(l2={index: ALLOCATED | index * CLUSTER for index in range(5)}),
    "cluster_past_the_end": qcow2(l2={0: ALLOCATED | 1 << 55}),
    "cluster_not_aligned": qcow2(l2={0: ALLOCATED | 5 * CLUSTER + 512}, body=b"x" * 5000),
    "compressed_past_the_end": qcow2(l2={0: 1 << 62 | 3 << 58 | 1 << 50}),
    "compressed_noise": qcow2(l2={0: 1 << 62 | 7 << 58 | 5 * CLUSTER}, body=bytes(range(256)) * 16),
    "compressed_by_nothing_known": qcow2(incompatible=8, header_bytes=112),
}  # fmt: skip


def _qcow2_file(folder: Path, *, name: str) -> Path:
    return _write(folder, "image", _QCOW2[name])


CORPUS |= {f"qcow2_{name}": functools.partial(_qcow2_file, name=name) for name in _QCOW2}


def _bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(bytes(size)) + packer.flush()


@hostile
def qcow2_compressed_bomb(folder: Path) -> Path:
    """Each of 512 entries names the same few KiB, which unpack to 4 MiB instead of 4 KiB."""
    packed = _bomb(4 << 20)
    sectors = -(-len(packed) // 512)
    entry = 1 << 62 | min(sectors, 15) << 58 | 5 * CLUSTER
    return _write(folder, "image", qcow2(size=2 << 20, l2=dict.fromkeys(range(512), entry), body=packed))


@hostile
def qcow2_zstd_bomb(folder: Path) -> Path:
    """A frame of zeros whose header promises gigabytes."""
    import zstandard

    packed = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    entry = 1 << 62 | 7 << 58 | 5 * CLUSTER
    data = bytearray(
        qcow2(incompatible=8, header_bytes=112, raw_extensions=b"\1" + bytes(23), l2={0: entry}, body=packed)
    )
    return _write(folder, "image", bytes(data))


@hostile
def qcow2_chain_of_100(folder: Path) -> Path:
    """Each names the next; the gate stops at 64."""
    for number in range(100):
        _write(folder, f"{number}", qcow2(backing=f"{number + 1}", backing_format="qcow2"))
    _write(folder, "100", qcow2())
    return folder / "0"


@hostile
def qcow2_circle_of_two(folder: Path) -> Path:
    """A names B, and B names A."""
    _write(folder, "b", qcow2(backing="a", backing_format="qcow2"))
    return _write(folder, "a", qcow2(backing="b", backing_format="qcow2"))


@hostile
def qcow2_tables_all_one(folder: Path) -> Path:
    """16 MiB of L1, each entry the same L2: a map of a disk of exabytes that never ends in a hole."""
    count = 1 << 21
    data = bytearray(qcow2(l1_entries=count, disk_bytes=count * 512 * CLUSTER, l1_offset=8 * CLUSTER,
                           l2=dict.fromkeys(range(512), _DATA), body=b"x"))  # fmt: skip
    data = data.ljust(8 * CLUSTER, b"\0") + struct.pack(">Q", ALLOCATED | 4 * CLUSTER) * (count - 8 * CLUSTER // 8)
    return _write(folder, "image", bytes(data.ljust(8 * CLUSTER + 8 * count, b"\0")[: 16 << 20]))


# VMDK --------------------------------------------------------------------------------------------------------------

_GRAIN = b"grain" * 100
_VMDK: dict[str, bytes] = {
    "capacity_of_the_type": handmade.header(capacity=U64).ljust(70000, b"\0"),
    "capacity_of_2_to_the_55": handmade.header(capacity=1 << 54).ljust(70000, b"\0"),
    "grain_of_nothing": handmade.header(capacity=128, grain=0).ljust(70000, b"\0"),
    "grain_of_the_type": handmade.header(capacity=128, grain=U64).ljust(70000, b"\0"),
    "grain_of_three": handmade.header(capacity=128, grain=3).ljust(70000, b"\0"),
    "tables_of_no_entries": handmade.header(capacity=128, per_table=0).ljust(70000, b"\0"),
    "tables_of_four_billion_entries": handmade.header(capacity=128, per_table=U32).ljust(70000, b"\0"),
    "directory_past_the_end": handmade.header(capacity=128, directory=1 << 60).ljust(70000, b"\0"),
    "directory_is_the_header": handmade.header(capacity=128, directory=0).ljust(70000, b"\0"),
    "directory_at_the_end_without_footer": handmade.header(capacity=128, directory=U64, compression=1, flags=0x30001),
    "descriptor_of_exabytes": handmade.header(capacity=128, descriptor=(1, 1 << 55)).ljust(70000, b"\0"),
    "descriptor_past_the_end": handmade.header(capacity=128, descriptor=(1 << 40, 20)).ljust(70000, b"\0"),
    "unknown_compression": handmade.header(capacity=128, compression=9, flags=0x30001).ljust(70000, b"\0"),
    "newlines_translated": handmade.header(capacity=128, newlines=b"\n\n\n\n").ljust(70000, b"\0"),
    "grain_is_the_header": handmade.sparse({0: 0x80000000, 1: U32}, 512),
    "every_grain_is_the_same": handmade.sparse({0: _GRAIN} | dict.fromkeys(range(1, 512), 128), 512 * 128),
    "cowd_of_four_billion_tables": struct.pack("<4s7I", b"COWD", 1, 3, U32, 1, 4, U32, U32).ljust(4096, b"\0"),
    "cowd_of_no_grain": struct.pack("<4s7I", b"COWD", 1, 3, 64, 0, 4, 1, 5).ljust(4096, b"\0"),
    "sesparse_of_ones": struct.pack("<QQ", 0xCAFEBABE, 0x0000000200000001) + b"\xff" * 496,
    "million_lines": b"# Disk DescriptorFile\nversion=1\n" + b"a=b\n" * 1_000_000,
    "million_extents": handmade.descriptor(*["RW 1 ZERO"] * 1_000_000).encode(),
    "extents_up_to_the_most": handmade.descriptor(*["RW 1 ZERO"] * 60_000).encode(),
    "one_line_of_a_mib": b"# Disk DescriptorFile\nversion=1\n" + b"x" * (1 << 20),
    "extent_of_the_type": handmade.descriptor(f"RW {U64} ZERO", f"RW {U64} ZERO").encode(),
    "extent_below_zero": handmade.descriptor('RW -1 FLAT "image" 0').encode(),
    "extent_of_a_number_of_a_million_digits": handmade.descriptor("RW " + "9" * 900_000 + " ZERO").encode(),
    "extent_is_itself": handmade.descriptor('RW 16 FLAT "image" 0').encode(),
    "extent_without_quotes": handmade.descriptor('RW 16 FLAT "image').encode(),
    "parent_is_itself": handmade.descriptor("RW 16 ZERO", parent=1, more='parentFileNameHint="image"').encode(),
    "descriptor_of_nul": b"# Disk DescriptorFile\nversion=1\n" + bytes(100_000),
}


def _vmdk_file(folder: Path, *, name: str) -> Path:
    return _write(folder, "image", _VMDK[name])


CORPUS |= {f"vmdk_{name}": functools.partial(_vmdk_file, name=name) for name in _VMDK}


@hostile
def vmdk_stream_bomb(folder: Path) -> Path:
    """A grain of 64 KiB that unpacks to 8 MiB."""
    return _write(folder, "image", handmade.stream({0: bytes(8 << 20), 1: bytes(8 << 20)}, 256))


@hostile
def vmdk_flat_past_the_end(folder: Path) -> Path:
    """An offset of exabytes in a file of 512 bytes."""
    _write(folder, "flat", bytes(512))
    return _write(folder, "image", handmade.descriptor('RW 1 FLAT "flat" 9223372036854775807').encode())


# VDI ---------------------------------------------------------------------------------------------------------------


def _vdi_of(**fields: int) -> Callable[[], bytes]:
    sizes = {"disk_bytes": 8192, "block_bytes": 4096}
    return lambda: vdi([0, 0xFFFFFFFF], {0: b"data"}, **(sizes | fields))  # type: ignore[arg-type]


_VDI: dict[str, Callable[[], bytes]] = {
    "disk_of_16_eib": _vdi_of(disk_bytes=U64),
    "data_over_the_table": _vdi_of(data_offset=512),
    "header_of_4_gib": _vdi_of(header_bytes=U32),
    "unknown_type": _vdi_of(image_type=99),
    "more_allocated_than_there_are": _vdi_of(allocated=U32),
    "every_block_is_the_same": lambda: vdi([0] * 4096, {0: b"x"}, disk_bytes=4096 * 4096, block_bytes=4096),
    "blocks_past_the_end": lambda: vdi([0xFFFFFFF0] * 2, {}, disk_bytes=8192, block_bytes=4096),
    "parent_is_itself": lambda: vdi(
        [0xFFFFFFFF], {}, disk_bytes=4096, block_bytes=4096, image_type=4, own=uuid.UUID(int=5), parent=uuid.UUID(int=5)
    ),
    "no_parent": lambda: vdi([0xFFFFFFFF], {}, disk_bytes=4096, block_bytes=4096, image_type=4),
}


def _vdi_patched(name: str, value: int) -> Callable[[], bytes]:
    def make() -> bytes:
        from vdisk.formats.vdi.structs import Header

        data = bytearray(_vdi_of()())
        next(field for field in fields_of(Header) if field.name == name).put(data, 0, value)
        return bytes(data)

    return make


for _name, _value in (("block_bytes", 0), ("block_bytes", 1 << 31), ("block_bytes", 3), ("block_count", U32),
                      ("block_extra_bytes", U32), ("table_offset", U32 - 511),
                      ("data_offset", U32 - 511), ("table_offset", 0)):  # fmt: skip
    _VDI[f"{_name}_{_value:#x}"] = _vdi_patched(_name, _value)


def _vdi_file(folder: Path, *, name: str) -> Path:
    return _write(folder, "image.vdi", _VDI[name]())


CORPUS |= {f"vdi_{name}": functools.partial(_vdi_file, name=name) for name in _VDI}

# VHD ---------------------------------------------------------------------------------------------------------------


def _laid_out(folder: Path, name: str, options: dict[str, str], size: int) -> tuple[Path, bytearray]:
    path = folder / f"image.{name}"
    lay_out(path, name, options, b"data" * (size // 4))
    return path, bytearray(path.read_bytes())


_VHD = [
    ("footer", "current_bytes", U64), ("footer", "current_bytes", 1 << 62), ("footer", "disk_type", 99),
    ("footer", "data_offset", 0), ("footer", "data_offset", 1 << 60), ("footer", "data_offset", U64),
    ("footer", "version", 0), ("header", "table_offset", 0), ("header", "table_offset", 1 << 62),
    ("header", "table_entries", U32), ("header", "table_entries", 0), ("header", "block_bytes", 0),
    ("header", "block_bytes", 1 << 31), ("header", "block_bytes", 513), ("header", "checksum", 7),
    ("footer", "checksum", 7), ("bat", "0", 0), ("bat", "0", 0xFFFFFFFE), ("bat", "1", 3),
]  # fmt: skip


def _vhd_file(folder: Path, *, where: str, name: str, value: int) -> Path:
    path, data = _laid_out(folder, "vhd", {"block_size": "16K"}, 64 << 10)
    if where == "bat":
        struct.pack_into(">I", data, 1536 + 4 * int(name), value)
    else:
        declaration, base = (vhd.Footer, 0) if where == "footer" else (vhd.DynamicHeader, 512)
        next(field for field in fields_of(declaration) if field.name == name).put(data, base, value)
    if name != "checksum":
        data[:512] = sealed(bytes(data[:512]), 64)
        data[512:1536] = sealed(bytes(data[512:1536]), 36)
    data[-512:] = data[:512]
    path.write_bytes(data)
    return path


for _where, _name, _value in _VHD:
    CORPUS[f"vhd_{_where}_{_name}_{_value:#x}"] = functools.partial(_vhd_file, where=_where, name=_name, value=_value)

# VHDX --------------------------------------------------------------------------------------------------------------

_VHDX = [
    ("header", "log_length", U32), ("header", "log_offset", 1 << 60), ("header", "log_offset", 0),
    ("header", "version", 9), ("regions", "entry_count", U32), ("regions", "entry_count", 0),
    ("region 0", "file_offset", 0), ("region 0", "file_offset", 1 << 62), ("region 0", "length", U32),
    ("region 1", "file_offset", 0), ("region 1", "length", 0), ("region 1", "required", U32),
]  # fmt: skip


def _vhdx_file(folder: Path, *, where: str, name: str, value: int) -> Path:
    path, data = _laid_out(folder, "vhdx", {}, 1 << 20)
    head, entry = vhdx.REGION_TABLE_HEADER.sizeof(), vhdx.REGION_ENTRY.sizeof()
    if where == "header":
        declaration, offsets, length = vhdx.HEADER, vhdx.HEADER_OFFSETS, vhdx.HEADER_BYTES
        inside = 0
    else:
        declaration = vhdx.REGION_TABLE_HEADER if where == "regions" else vhdx.REGION_ENTRY
        offsets, length = vhdx.REGION_OFFSETS, vhdx.REGION_BYTES
        inside = 0 if where == "regions" else head + entry * int(where[-1])
    found = next(field for field in fields_of(declaration) if field.name == name)
    for offset in offsets:
        found.put(data, offset + inside, value)
        if name == "log_length" or name == "log_offset":
            data[offset + 48 : offset + 64] = b"L" * 16  # a log that has something to say
        data[offset + 4 : offset + 8] = bytes(4)
        struct.pack_into("<I", data, offset + 4, crc32c(data[offset : offset + length]))
    path.write_bytes(data)
    return path


for _where, _name, _value in _VHDX:
    CORPUS[f"vhdx_{_where.replace(' ', '_')}_{_name}_{_value:#x}"] = functools.partial(
        _vhdx_file, where=_where, name=_name, value=_value
    )

# Parallels ---------------------------------------------------------------------------------------------------------

_PARALLELS = [
    ("bat_entries", U32), ("bat_entries", 0), ("cluster_sectors", 0), ("cluster_sectors", U32), ("cluster_sectors", 3),
    ("disk_sectors", U64), ("disk_sectors", 1 << 54), ("data_sector", U32), ("extension_sector", 1 << 62),
    ("extension_sector", 0), ("version", 3),
]  # fmt: skip


def _parallels_file(folder: Path, *, name: str, value: int) -> Path:
    path, data = _laid_out(folder, "parallels", {"cluster_size": "16K"}, 64 << 10)
    next(field for field in fields_of(parallels.HEADER) if field.name == name).put(data, 0, value)
    path.write_bytes(data)
    return path


for _name, _value in _PARALLELS:
    CORPUS[f"parallels_{_name}_{_value:#x}"] = functools.partial(_parallels_file, name=_name, value=_value)


@hostile
def parallels_every_cluster_is_the_header(folder: Path) -> Path:
    """BAT entries that lead into the table itself."""
    path, data = _laid_out(folder, "parallels", {"cluster_size": "16K"}, 64 << 10)
    data[64:80] = struct.pack("<4I", 0x80000000, 1, 1, U32)
    path.write_bytes(data)
    return path


@hostile
def parallels_laughs(folder: Path) -> Path:
    """Entities that grow tenfold ten times."""
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 11))
    text = f'<!DOCTYPE x [<!ENTITY e0 "ha">{lines}]><Parallels_disk_image>&e10;</Parallels_disk_image>'
    return _write(folder, "DiskDescriptor.xml", text.encode())


@hostile
def parallels_external_entity(folder: Path) -> Path:
    """An entity that is a file of the host."""
    entity = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
    text = entity + '<Parallels_disk_image Version="1.0">&e;</Parallels_disk_image>'
    return _write(folder, "DiskDescriptor.xml", text.encode())


@hostile
def parallels_deep_xml(folder: Path) -> Path:
    """A hundred thousand elements, one in the other."""
    text = "<Parallels_disk_image>" + "<a>" * 100_000 + "</a>" * 100_000 + "</Parallels_disk_image>"
    return _write(folder, "DiskDescriptor.xml", text.encode())


@hostile
def parallels_snapshots_in_a_circle(folder: Path) -> Path:
    """Two snapshots, each the other's parent."""
    one, two = "5fbaabe3-6958-40ff-92a7-860e329aab41", "5fbaabe3-6958-40ff-92a7-860e329aab42"
    shots = "".join(
        f"<Shot><GUID>{{{a}}}</GUID><ParentGUID>{{{b}}}</ParentGUID></Shot>" for a, b in ((one, two), (two, one))
    )
    _write(folder, "a", bytes(1024))
    bundle(folder, bundle_image("a", guid=one) + bundle_image("a", guid=two), 1024, shots)
    return folder / "DiskDescriptor.xml"


@hostile
def parallels_names_itself(folder: Path) -> Path:
    """The bundle's data file is its descriptor."""
    bundle(folder, bundle_image("DiskDescriptor.xml"), 1024)
    return folder / "DiskDescriptor.xml"


# Packages ----------------------------------------------------------------------------------------------------------


def _tar_entry(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    entry = bytearray(512)
    entry[: len(name)] = name
    entry[124 : 124 + len(size)] = size
    entry[156:157] = kind
    entry[257:265] = b"ustar\x0000"
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry)
    return bytes(entry)


@hostile
def ova_member_of_exabytes(folder: Path) -> Path:
    """A size in base 256 that no file has."""
    return _write(folder, "image.ova", _tar_entry(b"vm.ovf", b"\x80" + b"\x7f" * 11) + bytes(4096))


@hostile
def ova_of_ten_thousand_empty_members(folder: Path) -> Path:
    """No descriptor, only entries."""
    return _write(folder, "image.ova", _tar_entry(b"x", b"00000000000") * 10_000 + bytes(1024))


@hostile
def ova_long_name_of_gibibytes(folder: Path) -> Path:
    """A GNU long name of 8 GiB."""
    return _write(folder, "image.ova", _tar_entry(b"././@LongLink", b"77777777777", b"L") + bytes(4096))


@hostile
def ovf_laughs(folder: Path) -> Path:
    """The same entities in an OVF descriptor."""
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 11))
    text = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{lines}]><Envelope>&e10;</Envelope>'
    return _write(folder, "image.ovf", text.encode())


# No format at all --------------------------------------------------------------------------------------------------


@hostile
def nothing(folder: Path) -> Path:
    """An empty file."""
    return _write(folder, "image", b"")


@hostile
def one_byte(folder: Path) -> Path:
    """A file that ends before any header does."""
    return _write(folder, "image", b"Q")
