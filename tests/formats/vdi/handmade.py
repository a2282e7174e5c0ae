"""VDI files put together byte by byte, as VirtualBox's VDICore.h has them, with nothing of ours."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence

NULL = uuid.UUID(int=0)
FREE, ZERO = 0xFFFFFFFF, 0xFFFFFFFE


def vdi(
    entries: Sequence[int],
    slots: Mapping[int, bytes],
    *,
    disk_bytes: int,
    block_bytes: int = 1 << 20,
    extra: bytes = b"",
    image_type: int = 1,
    own: uuid.UUID | None = None,
    modification: uuid.UUID | None = None,
    parent: uuid.UUID = NULL,
    parent_modification: uuid.UUID = NULL,
    header_bytes: int = 400,
    allocated: int | None = None,
    table_offset: int = 512,
    data_offset: int | None = None,
) -> bytes:
    """A file whose block map has `entries`, and `slots` of its data area filled, each with the prefix `extra`."""
    if data_offset is None:
        data_offset = -(-(table_offset + 4 * len(entries)) // 512) * 512
    header = b"<<< Sun xVM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
    header += struct.pack("<IIIII", 0xBEDA107F, 0x00010001, header_bytes, image_type, 0)
    header += b"hand-made".ljust(256, b"\0")
    header += struct.pack("<IIIIIII", table_offset, data_offset, 0, 0, 0, 512, 0)
    used = sum(entry < ZERO for entry in entries) if allocated is None else allocated
    header += struct.pack("<QIIII", disk_bytes, block_bytes, len(extra), len(entries), used)
    for one in (own or uuid.uuid4(), modification or uuid.uuid4(), parent, parent_modification):
        header += one.bytes_le
    header += struct.pack("<IIII", 1024, 16, 63, 512)  # the logical geometry
    file = bytearray(header.ljust(table_offset, b"\0"))
    file += struct.pack(f"<{len(entries)}I", *entries)
    file = file.ljust(data_offset, b"\0")
    for slot in range(max(slots, default=-1) + 1):
        file += extra + slots.get(slot, b"").ljust(block_bytes, b"\0")
    return bytes(file)
