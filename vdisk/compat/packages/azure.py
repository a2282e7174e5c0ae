"""Azure's rules for a VHD, held against the bytes of the file: nothing here shares code with the reader or the writer.

Rules: Microsoft Learn, "Prepare a Windows VHD or VHDX to upload to Azure"; footer: Virtual Hard Disk specification 1.0.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from vdisk.errors import StorageError

_FOOTER_BYTES = 512
_MIB = 1 << 20


def problems_of(path: str | os.PathLike[str]) -> list[str]:
    """What Azure would refuse in the VHD at `path`; nothing for one that is ready."""
    try:
        with Path(path).open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _FOOTER_BYTES))
            footer = file.read(_FOOTER_BYTES)
    except OSError as error:
        raise StorageError(path, "read", error) from error
    if len(footer) < _FOOTER_BYTES or footer[:8] != b"conectix":
        return ["the file does not end in a VHD footer of 512 bytes"]
    problems = []
    (kind,) = struct.unpack_from(">I", footer, 60)
    (data_offset,) = struct.unpack_from(">Q", footer, 16)
    (current_bytes,) = struct.unpack_from(">Q", footer, 48)
    (checksum,) = struct.unpack_from(">I", footer, 64)
    if kind != 2:
        problems.append(f"the footer's disk type is {kind}, a fixed disk's is 2")
    if data_offset != (1 << 64) - 1:
        problems.append(f"the footer's data offset is {data_offset:#x}, a fixed disk's is all ones")
    if (~(sum(footer) - sum(footer[64:68]))) & 0xFFFFFFFF != checksum:
        problems.append("the footer's checksum is wrong")
    if current_bytes != length - _FOOTER_BYTES:
        problems.append(f"the footer gives {current_bytes} bytes, the file holds {length - _FOOTER_BYTES} before it")
    if current_bytes % _MIB or not current_bytes:
        problems.append(f"the size of {current_bytes} bytes is no whole number of MiB")
    return problems
