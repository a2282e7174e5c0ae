"""What stands in a qcow2 file's header; big-endian throughout (QEMU docs/interop/qcow2)."""

from construct import Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

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

SnapshotHead = Struct(
    "l1_offset" / Int64ub,
    "l1_entries" / Int32ub,
    "id_bytes" / Int16ub,
    "name_bytes" / Int16ub,
    "date_seconds" / Int32ub,
    "date_nanoseconds" / Int32ub,
    "vm_clock_nanoseconds" / Int64ub,
    "vm_state_bytes" / Int32ub,
    "extra_bytes" / Int32ub,
)
"""40 bytes that begin an entry of the snapshot table; extra data, ID and name follow, padded to a multiple of 8."""

SnapshotExtra = Struct("vm_state_bytes" / Int64ub, "disk_bytes" / Int64ub)
"""How the extra data begins, where there is any; an instruction count may follow."""

BitmapExtension = Struct(
    "count" / Int32ub, "reserved" / Int32ub, "directory_bytes" / Int64ub, "directory_offset" / Int64ub
)

BitmapHead = Struct(
    "table_offset" / Int64ub,
    "table_entries" / Int32ub,
    "flags" / Int32ub,
    "kind" / Int8ub,
    "granularity_bits" / Int8ub,
    "name_bytes" / Int16ub,
    "extra_bytes" / Int32ub,
)
"""24 bytes that begin an entry of the bitmap directory; extra data and name follow, padded to a multiple of 8."""

LuksExtension = Struct("offset" / Int64ub, "length" / Int64ub)

LuksSlot = Struct(
    "state" / Int32ub, "iterations" / Int32ub, "salt" / Bytes(32), "material_sector" / Int32ub, "stripes" / Int32ub
)

LuksHeader = Struct(
    "magic" / Bytes(6),
    "version" / Int16ub,
    "cipher" / Bytes(32),
    "mode" / Bytes(32),
    "hash" / Bytes(32),
    "payload_sector" / Int32ub,
    "key_bytes" / Int32ub,
    "digest" / Bytes(20),
    "digest_salt" / Bytes(32),
    "digest_iterations" / Int32ub,
    "uuid" / Bytes(40),
    "slots" / LuksSlot[8],
)
"""592 bytes: the LUKS1 on-disk format's header."""
