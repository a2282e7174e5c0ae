"""Footer and dynamic header of a VHD, big-endian (Virtual Hard Disk Image Format Specification 1.0)."""

from construct import Array, Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

Geometry = Struct("cylinders" / Int16ub, "heads" / Int8ub, "sectors" / Int8ub)

Footer = Struct(
    "cookie" / Bytes(8),
    "features" / Int32ub,
    "version" / Int32ub,
    "data_offset" / Int64ub,
    "timestamp" / Int32ub,
    "creator" / Bytes(4),
    "creator_version" / Int32ub,
    "creator_os" / Bytes(4),
    "original_bytes" / Int64ub,
    "current_bytes" / Int64ub,
    "geometry" / Geometry,
    "disk_type" / Int32ub,
    "checksum" / Int32ub,
    "unique_id" / Bytes(16),
    "saved_state" / Int8ub,
    "reserved" / Bytes(427),
)
"""512 bytes. "Hard Disk Footer Format"."""

ParentLocator = Struct(
    "code" / Bytes(4),
    "data_space" / Int32ub,
    "data_bytes" / Int32ub,
    "reserved" / Int32ub,
    "data_offset" / Int64ub,
)

DynamicHeader = Struct(
    "cookie" / Bytes(8),
    "data_offset" / Int64ub,
    "table_offset" / Int64ub,
    "version" / Int32ub,
    "table_entries" / Int32ub,
    "block_bytes" / Int32ub,
    "checksum" / Int32ub,
    "parent_unique_id" / Bytes(16),
    "parent_timestamp" / Int32ub,
    "reserved" / Int32ub,
    "parent_name" / Bytes(512),
    "parent_locators" / Array(8, ParentLocator),
    "rest" / Bytes(256),
)
"""1024 bytes. "Dynamic Disk Header Format"."""
