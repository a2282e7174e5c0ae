"""The data phase of a command: what a disk or drive wants moved, told to whatever controller moves it.

A command core (ata.py, scsi.py) decodes a command into a `Transfer` without touching data. The controller then moves
it by bus master, in pieces of guest memory, or by programmed I/O, a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from vdisk.block.device import BlockDevice
from vdisk.hv.devices import dma


class Direction(Enum):
    """Which way the data goes."""

    NONE = 0
    IN = 1
    """From the device to the guest."""
    OUT = 2
    """From the guest to the device."""


@dataclass(slots=True)
class Transfer:
    """`length` bytes, from or to `disk` at `offset`; or out of `payload`; or all at once into `sink`."""

    direction: Direction
    length: int = 0
    disk: BlockDevice | None = None
    offset: int = 0
    payload: bytes = b""
    sink: Callable[[bytes], None] | None = None
    must_last: bool = False
    """Flush the disk behind the data: a write with FUA."""

    @classmethod
    def nothing(cls) -> Transfer:
        """A command without data."""
        return cls(Direction.NONE)

    @classmethod
    def answer(cls, payload: bytes) -> Transfer:
        """Data that the device has ready."""
        return cls(Direction.IN, len(payload), payload=payload)

    @classmethod
    def read_disk(cls, disk: BlockDevice, offset: int, length: int) -> Transfer:
        """Data from the disk."""
        return cls(Direction.IN, length, disk=disk, offset=offset)

    @classmethod
    def write_disk(cls, disk: BlockDevice, offset: int, length: int, *, must_last: bool = False) -> Transfer:
        """Data for the disk."""
        return cls(Direction.OUT, length, disk=disk, offset=offset, must_last=must_last)

    @classmethod
    def parameters(cls, length: int, sink: Callable[[bytes], None]) -> Transfer:
        """Parameters for the device; `sink` gets them whole."""
        return cls(Direction.OUT, length, sink=sink)

    def part(self, at: int, length: int) -> bytes:
        """`length` bytes of an IN transfer from byte `at` on, for programmed I/O. Raises the disk's VdiskError."""
        if self.disk is None:
            return self.payload[at : at + length]
        return self.disk.read(self.offset + at, length)

    def put(self, at: int, data: bytes) -> None:
        """`data` for an OUT transfer from byte `at` on; parameters are to come whole. Raises the disk's VdiskError."""
        if self.disk is not None:
            self.disk.write(self.offset + at, data)
            if self.must_last and at + len(data) == self.length:
                self.disk.flush()
        elif self.sink is not None:
            self.sink(data)

    def run(self, pieces: Sequence[memoryview]) -> int:
        """Move all of it, or as much as the pieces hold; returns the bytes moved. Raises the disk's VdiskError."""
        if self.direction is Direction.NONE:
            return 0
        if self.disk is None:
            if self.direction is Direction.IN:
                return dma.scatter(self.payload, pieces)
            data = dma.gather(dma.clipped(pieces, self.length))
            if self.sink is not None:
                self.sink(data)
            return len(data)
        if dma.total_bytes(pieces) > self.length:
            pieces = dma.clipped(pieces, self.length)
        if self.direction is Direction.IN:
            return dma.disk_to_memory(self.disk, self.offset, pieces)
        moved = dma.memory_to_disk(self.disk, self.offset, pieces)
        if self.must_last:
            self.disk.flush()
        return moved
