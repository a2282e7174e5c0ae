"""What a device model is given, and what it gives: register blocks, an interrupt line, guest memory.

A device offers one `Region` for each block of its registers. Whoever wires the machine decides where a
region lies and which interrupt a line means; the device never learns either. Every method of a device is
called by one thread at a time, under the machine's lock, and must return for any value a guest may write: a
guest's mistake becomes an error status in a register, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

IrqLine = Callable[[bool], None]
"""A level-triggered interrupt line: True raises it, False lowers it."""

MsiSender = Callable[[int, int], None]
"""Sends a message-signalled interrupt: (address, data)."""


class Region(Protocol):
    """A block of registers. `offset` counts from the block's start; `size` is 1, 2, 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`, little-endian."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`."""
        ...


@runtime_checkable
class BlockRegion(Protocol):
    """A region that also takes string I/O (REP INS, REP OUTS) as one call."""

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads of `size` bytes from the same `offset`, as one string of `size * count` bytes."""
        ...

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """`len(data) / size` writes of `size` bytes to the same `offset`."""
        ...


class DmaMemory(Protocol):
    """Guest memory as a device sees it. `vdisk.hv.memory.GuestMemory` is the real one.

    Addresses are guest-physical. A range that is not RAM from its first byte to its last raises a
    `HypervisorError`.
    """

    def view(self, address: int, length: int) -> memoryview:
        """A writable view of `length` bytes of RAM."""
        ...

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes of RAM."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write `data` to RAM."""
        ...


def all_ones(size: int) -> int:
    """What a read of `size` bytes gives where no device answers."""
    return (1 << 8 * size) - 1


def no_irq(level: bool) -> None:
    """An interrupt line that leads nowhere."""
