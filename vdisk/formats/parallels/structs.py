"""Declarations of the expandable image (QEMU docs/interop/parallels). All numbers are little-endian."""

from construct import Bytes, Int32ul, Int64ul, Struct

SECTOR_BYTES = 512

MAGIC_SECTORS = b"WithoutFreeSpace"
"""Version 1: BAT entries count sectors, and the disk has at most 2^32 of them."""
MAGIC_CLUSTERS = b"WithouFreSpacExt"
"""Version 2: BAT entries count clusters."""
VERSION = 2
"""What the header's version field says, for both."""

HEADER = Struct(
    "magic" / Bytes(16),
    "version" / Int32ul,
    "heads" / Int32ul,
    "cylinders" / Int32ul,
    "cluster_sectors" / Int32ul,
    "bat_entries" / Int32ul,
    "disk_sectors" / Int64ul,
    "in_use" / Int32ul,
    "data_sector" / Int32ul,
    "flags" / Int32ul,
    "extension_sector" / Int64ul,
)
HEADER_BYTES: int = HEADER.sizeof()

IN_USE = 0x746F6E59
CLOSED = 0x312E3276
EMPTY_IMAGE = 1
"""Flag: the image is clear, whatever its BAT says."""

HEADS = 16
SECTORS_PER_TRACK = 32

MAX_ENTRIES = 1 << 26
"""Of a BAT: 64 TiB in clusters of 1 MiB. The table is held in memory, 4 bytes an entry."""
MAX_CLUSTER_BYTES = 256 << 20

# Format extension, in a cluster of its own.
EXTENSION_HEADER = Struct("magic" / Int64ul, "checksum" / Bytes(16))
EXTENSION_MAGIC = 0xAB234CEF23DCEA87
FEATURE_HEADER = Struct("magic" / Int64ul, "flags" / Int64ul, "data_bytes" / Int32ul, "unused" / Int32ul)
DIRTY_BITMAP = 0x20385FAE252CB34A
NECESSARY = 1
TRANSIT = 2
