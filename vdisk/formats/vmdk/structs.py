"""Headers and markers of VMDK extents; little-endian throughout.

Hosted sparse extents and markers: VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
"Stream-Optimized Compressed Sparse Extents". COWD: the same, "ESX Server Sparse Extents". seSparse has no public
specification; its constant header is declared as QEMU and libvmdk know it.
"""

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

SECTOR_BYTES = 512

HOSTED_MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"
SESPARSE_MAGIC = 0x00000000CAFEBABE

FLAG_NEWLINES = 1 << 0
FLAG_REDUNDANT_TABLES = 1 << 1
FLAG_ZERO_GRAINS = 1 << 2
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17

GD_AT_END = 0xFFFFFFFFFFFFFFFF
"""The grain directory's offset in a header that a footer overrides."""

COMPRESSION_NONE = 0
COMPRESSION_DEFLATE = 1

NEWLINES = b"\n \r\n"
"""Characters that a transfer in text mode would change."""

HostedHeader = Struct(
    "magic" / Const(HOSTED_MAGIC),
    "version" / Int32ul,
    "flags" / Int32ul,
    "capacity_sectors" / Int64ul,
    "grain_sectors" / Int64ul,
    "descriptor_sector" / Int64ul,
    "descriptor_sectors" / Int64ul,
    "entries_per_table" / Int32ul,
    "redundant_directory_sector" / Int64ul,
    "directory_sector" / Int64ul,
    "overhead_sectors" / Int64ul,
    "unclean_shutdown" / Int8ul,
    "newlines" / Bytes(4),
    "compression" / Int16ul,
    Padding(433),
)
"""512 bytes: the first of a hosted sparse extent, and its footer."""

CAPACITY_OFFSET = 12
REDUNDANT_DIRECTORY_OFFSET = 48
DIRECTORY_OFFSET = 56
UNCLEAN_SHUTDOWN_OFFSET = 72

MARKER_END_OF_STREAM = 0
MARKER_TABLE = 1
MARKER_DIRECTORY = 2
MARKER_FOOTER = 3

Marker = Struct(
    "value" / Int64ul,
    "length" / Int32ul,
    "type" / Int32ul,
)
"""What precedes all else in a stream. `length` 0: metadata of `value` sectors, of `type`. Otherwise a compressed grain:
`value` is its first guest sector, and its `length` bytes follow at once, in the place of `type`."""

GRAIN_MARKER_BYTES = 12

CowdHeader = Struct(
    "magic" / Const(COWD_MAGIC),
    "version" / Int32ul,
    "flags" / Int32ul,
    "capacity_sectors" / Int32ul,
    "grain_sectors" / Int32ul,
    "directory_sector" / Int32ul,
    "directory_entries" / Int32ul,
    "free_sector" / Int32ul,
    "parent_or_geometry" / Bytes(1028),
    "generation" / Int32ul,
    "name" / Bytes(60),
    "description" / Bytes(512),
    "saved_generation" / Int32ul,
    "reserved" / Bytes(8),
    "unclean_shutdown" / Int32ul,
    Padding(396),
)
"""2048 bytes: the first of a COWD (vmfsSparse) extent."""

COWD_CAPACITY_OFFSET = 12
COWD_DIRECTORY_OFFSET = 20
COWD_DIRECTORY_ENTRIES_OFFSET = 24
COWD_FREE_SECTOR_OFFSET = 28
COWD_UNCLEAN_SHUTDOWN_OFFSET = 1648
COWD_ENTRIES_PER_TABLE = 4096

SeSparseHeader = Struct(
    "magic" / Const(SESPARSE_MAGIC, Int64ul),
    "version" / Int64ul,
    "capacity_sectors" / Int64ul,
    "grain_sectors" / Int64ul,
    "table_sectors" / Int64ul,
    "flags" / Int64ul,
    "reserved" / Bytes(32),
    "volatile_header_sector" / Int64ul,
    "volatile_header_sectors" / Int64ul,
    "journal_header_sector" / Int64ul,
    "journal_header_sectors" / Int64ul,
    "journal_sector" / Int64ul,
    "journal_sectors" / Int64ul,
    "directory_sector" / Int64ul,
    "directory_sectors" / Int64ul,
    "tables_sector" / Int64ul,
    "tables_sectors" / Int64ul,
    "free_bitmap_sector" / Int64ul,
    "free_bitmap_sectors" / Int64ul,
    "backmap_sector" / Int64ul,
    "backmap_sectors" / Int64ul,
    "grains_sector" / Int64ul,
    "grains_sectors" / Int64ul,
    Padding(304),
)
"""512 bytes: the constant header of an seSparse extent."""

SESPARSE_VERSION = 0x0000000200000001

SeSparseVolatileHeader = Struct(
    "magic" / Int64ul,
    "free_grain" / Int64ul,
    "next_transaction" / Int64ul,
    "replay_journal" / Int8ul,
    Padding(487),
)
SESPARSE_VOLATILE_MAGIC = 0x00000000CAFECAFE
