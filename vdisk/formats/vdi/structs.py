"""The header of a VDI file, version 1.1; little-endian throughout (fields as in VirtualBox's Storage/VDICore.h)."""

from construct import Bytes, Int32ul, Int64ul, Struct

SIGNATURE = 0xBEDA107F
VERSION_1_1 = 0x00010001

Geometry = Struct(
    "cylinders" / Int32ul,
    "heads" / Int32ul,
    "sectors" / Int32ul,
    "sector_bytes" / Int32ul,
)

Header = Struct(
    "text" / Bytes(64),
    "signature" / Int32ul,
    "version" / Int32ul,
    "header_bytes" / Int32ul,
    "image_type" / Int32ul,
    "flags" / Int32ul,
    "description" / Bytes(256),
    "table_offset" / Int32ul,
    "data_offset" / Int32ul,
    "geometry" / Geometry,
    "unused" / Int32ul,
    "disk_bytes" / Int64ul,
    "block_bytes" / Int32ul,
    "block_extra_bytes" / Int32ul,
    "block_count" / Int32ul,
    "allocated_count" / Int32ul,
    "uuid" / Bytes(16),
    "modification_uuid" / Bytes(16),
    "parent_uuid" / Bytes(16),
    "parent_modification_uuid" / Bytes(16),
)
"""456 bytes, the first of the file. UUIDs are stored as Microsoft does: their first three fields little-endian."""

HEADER_BYTES = 400
"""What `header_bytes` says where the logical geometry follows, as VirtualBox writes it; older headers say 384."""
