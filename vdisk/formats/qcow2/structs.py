"""What stands in a qcow2 file's header; big-endian throughout (QEMU docs/interop/qcow2)."""

from construct import Bytes, Int8ub, Int32ub, Int64ub, Struct

MAGIC = b"QFI\xfb"

HeaderV2 = Struct(
    "magic" / Bytes(4),
    "version" / Int32ub,
    "backing_name_offset" / Int64ub,
    "backing_name_bytes" / Int32ub,
    "cluster_bits" / Int32ub,
    "disk_bytes" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_entries" / Int32ub,
    "l1_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "snapshot_count" / Int32ub,
    "snapshots_offset" / Int64ub,
)
"""72 bytes: all of a version 2 header."""

HeaderV3 = Struct(
    "incompatible" / Int64ub,
    "compatible" / Int64ub,
    "autoclear" / Int64ub,
    "refcount_order" / Int32ub,
    "header_bytes" / Int32ub,
)
"""What version 3 adds at 72; behind it, where `header_bytes` is larger than 104, the compression type."""

ExtensionHead = Struct("type" / Int32ub, "length" / Int32ub)
"""A header extension begins so; its data is padded to a multiple of 8."""

FeatureName = Struct("kind" / Int8ub, "bit" / Int8ub, "name" / Bytes(46))
"""A row of the feature name table."""
