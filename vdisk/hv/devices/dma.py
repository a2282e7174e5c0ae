"""Moving data between a disk and scattered pieces of guest memory.

The pieces are views of guest memory, in the order of the data. Where there is one, or they are large, the disk
fills them in place; many small ones are cheaper through one buffer, since a call to the disk costs more than a copy
of a few pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vdisk.block.device import BlockDevice
from vdisk.errors import HypervisorError, OptionError
from vdisk.hv.devices.base import DmaMemory

SECTOR_BYTES = 512
LONGEST_TRANSFER_BYTES = 64 << 20
"""What one command of a guest may move; each controller's own limit is lower or the same."""
_DIRECT_FROM_BYTES = 64 << 10
"""Pieces of this size on average, and above, are worth a call to the disk each."""

Range = tuple[int, int]
"""A piece of guest memory: (address, length)."""


def sector_count(disk: BlockDevice) -> int:
    """The whole sectors of a disk; a controller cannot show the rest of an odd size."""
    return disk.size // SECTOR_BYTES


def views(memory: DmaMemory, ranges: Iterable[Range]) -> list[memoryview]:
    """The views of some ranges, neighbours joined. Raises a `HypervisorError` where one is not RAM, or too much."""
    pieces: list[memoryview] = []
    start = length = total = 0
    for address, count in ranges:
        if not count:
            continue
        if length and address == start + length:
            length += count
        else:
            if length:
                pieces.append(memory.view(start, length))
            start, length = address, count
        total += count
        if total > LONGEST_TRANSFER_BYTES:
            raise HypervisorError(f"a transfer of more than {LONGEST_TRANSFER_BYTES} bytes")
    if length:
        pieces.append(memory.view(start, length))
    return pieces


def total_bytes(pieces: Iterable[memoryview]) -> int:
    """The length of all pieces together."""
    return sum(map(len, pieces))


def clipped(pieces: Iterable[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of the pieces, or all of them if there are fewer."""
    kept = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(piece[:length])
        length -= len(piece)
    return kept


def skipped(pieces: Iterable[memoryview], length: int) -> list[memoryview]:
    """The pieces without their first `length` bytes."""
    kept = []
    for piece in pieces:
        if length < len(piece):
            kept.append(piece[max(length, 0) :])
        length -= len(piece)
    return kept


def scatter(data: bytes | bytearray | memoryview, pieces: Iterable[memoryview]) -> int:
    """Lay `data` over the pieces as far as both go; returns the bytes moved."""
    at, source = 0, memoryview(data)
    for piece in pieces:
        part = source[at : at + len(piece)]
        piece[: len(part)] = part
        at += len(part)
        if at == len(source):
            break
    return at


def gather(pieces: Sequence[memoryview]) -> bytes:
    """The bytes of all pieces, as one copy."""
    return b"".join(pieces)


def disk_to_memory(disk: BlockDevice, offset: int, pieces: Sequence[memoryview]) -> int:
    """Read the disk from `offset` into the pieces, all of them; returns the bytes moved.

    Raises the disk's `VdiskError`, which the controller turns into its own error status.
    """
    if len(pieces) == 1:
        disk.readinto(offset, pieces[0])
        return len(pieces[0])
    length = total_bytes(pieces)
    if not length:
        return 0
    if length >= _DIRECT_FROM_BYTES * len(pieces):
        at = offset
        for piece in pieces:
            disk.readinto(at, piece)
            at += len(piece)
    else:
        if offset + length > disk.size:
            raise OptionError(f"{disk.name}: range {offset}+{length} lies outside the disk")
        buffer = memoryview(bytearray(length))
        disk.readinto(offset, buffer)
        scatter(buffer, pieces)
    return length


def memory_to_disk(disk: BlockDevice, offset: int, pieces: Sequence[memoryview]) -> int:
    """Write the pieces to the disk from `offset`; returns the bytes moved. Raises the disk's `VdiskError`."""
    if len(pieces) == 1:
        disk.write(offset, pieces[0])
        return len(pieces[0])
    length = total_bytes(pieces)
    if length >= _DIRECT_FROM_BYTES * len(pieces):
        at = offset
        for piece in pieces:
            disk.write(at, piece)
            at += len(piece)
    elif length:
        disk.write(offset, gather(pieces))
    return length
