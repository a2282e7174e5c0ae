"""Declarations of VHDX's structures ([MS-VHDX] 2.2 to 2.6). All numbers are little-endian, GUIDs mixed-endian."""

import struct
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int32ul, Int64ul, Padding, Struct

KIB = 1 << 10
MIB = 1 << 20

FILE_SIGNATURE = b"vhdxfile"
CREATOR_BYTES = 512
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_BYTES = 4 * KIB
REGION_OFFSETS = (192 * KIB, 256 * KIB)
REGION_BYTES = 64 * KIB
HEADER_SECTION_BYTES = MIB
MAX_TABLE_ENTRIES = 2047
"""Of a region table or a metadata table: what fits behind the first entry of 64 KiB."""

MAX_DISK_BYTES = 64 << 40
MIN_BLOCK_BYTES = MIB
MAX_BLOCK_BYTES = 256 * MIB
CHUNK_SECTORS = 1 << 23
"""Sectors whose bits fill one sector bitmap block of 1 MiB (2.5)."""

NO_GUID = UUID(int=0)
BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
PAGE_83_DATA = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
VHDX_LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")

# 2.2.2
HEADER = Struct(
    "signature" / Const(b"head"),
    "checksum" / Int32ul,
    "sequence_number" / Int64ul,
    "file_write_guid" / Bytes(16),
    "data_write_guid" / Bytes(16),
    "log_guid" / Bytes(16),
    "log_version" / Int16ul,
    "version" / Int16ul,
    "log_length" / Int32ul,
    "log_offset" / Int64ul,
    "reserved" / Padding(4016),
)

# 2.2.3
REGION_TABLE_HEADER = Struct(
    "signature" / Const(b"regi"),
    "checksum" / Int32ul,
    "entry_count" / Int32ul,
    "reserved" / Int32ul,
)
REGION_ENTRY = Struct(
    "guid" / Bytes(16),
    "file_offset" / Int64ul,
    "length" / Int32ul,
    "required" / Int32ul,
)
IS_REQUIRED_REGION = 1

# 2.3.1. Its descriptors are counted in thousands, so a plain struct reads them.
LOG_ENTRY_HEADER = Struct(
    "signature" / Const(b"loge"),
    "checksum" / Int32ul,
    "entry_length" / Int32ul,
    "tail" / Int32ul,
    "sequence_number" / Int64ul,
    "descriptor_count" / Int32ul,
    "reserved" / Int32ul,
    "log_guid" / Bytes(16),
    "flushed_file_offset" / Int64ul,
    "last_file_offset" / Int64ul,
)
LOG_SECTOR_BYTES = 4 * KIB
LOG_DESCRIPTOR = struct.Struct("<4sIQQQ")
"""Signature "desc" or "zero"; trailing bytes; leading bytes, or length of the zeros; file offset; sequence number."""
LOG_DATA_SECTOR = struct.Struct("<4sI4084sI")
"""Signature "data", the sequence number's high half, bytes 8 to 4092 of the sector, the sequence number's low half."""

# 2.6
METADATA_TABLE_BYTES = 64 * KIB
METADATA_TABLE_HEADER = Struct(
    "signature" / Const(b"metadata"),
    "reserved" / Int16ul,
    "entry_count" / Int16ul,
    "reserved2" / Padding(20),
)
METADATA_ENTRY = Struct(
    "item_id" / Bytes(16),
    "offset" / Int32ul,
    "length" / Int32ul,
    "flags" / Int32ul,
    "reserved" / Int32ul,
)
IS_USER_ITEM = 1
IS_VIRTUAL_DISK_ITEM = 2
IS_REQUIRED_ITEM = 4
MAX_ITEM_BYTES = MIB

# 2.6.2.1
FILE_PARAMETERS_ITEM = Struct("block_bytes" / Int32ul, "flags" / Int32ul)
LEAVE_BLOCKS_ALLOCATED = 1
HAS_PARENT = 2

# 2.6.2.6
PARENT_LOCATOR_HEADER = Struct("locator_type" / Bytes(16), "reserved" / Int16ul, "key_value_count" / Int16ul)
PARENT_LOCATOR_ENTRY = Struct(
    "key_offset" / Int32ul,
    "value_offset" / Int32ul,
    "key_length" / Int16ul,
    "value_length" / Int16ul,
)

# BAT entries (2.5.1): a state in the low 3 bits, an offset in whole MiB in the high 44.
STATE_MASK = 7
OFFSET_MASK = ~(MIB - 1) & ((1 << 64) - 1)
NOT_PRESENT = 0
UNDEFINED = 1
ZERO = 2
UNMAPPED = 3
UNMAPPED_095 = 5
"""What version 0.95 of the specification called UNMAPPED."""
FULLY_PRESENT = 6
PARTIALLY_PRESENT = 7
BITMAP_PRESENT = 6
