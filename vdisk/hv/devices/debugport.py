"""Ports with hardly anything behind: the debug console of Bochs (E9h), SeaBIOS' log (402h), POST codes, latches."""

from __future__ import annotations

from collections.abc import Callable


class DebugPort:
    """Passes on each byte written. Reads give `signature`, by which a guest knows that it is there."""

    def __init__(self, signature: int, send: Callable[[int], None]) -> None:
        self._signature = signature
        self._send = send

    def read(self, offset: int, size: int) -> int:
        """The signature."""
        return self._signature

    def write(self, offset: int, size: int, value: int) -> None:
        """One byte out."""
        self._send(value & 0xFF)

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """Several, by REP OUTS."""
        for value in data[::size]:
            self._send(value)

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """The signature, again and again."""
        return (self._signature & (1 << 8 * size) - 1).to_bytes(size, "little") * count


class Latch:
    """Byte registers that keep what is written and do nothing: DMA pages, SMI command."""

    def __init__(self, count: int) -> None:
        self._values = bytearray(count)

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return int.from_bytes(self._values[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        end = min(offset + size, len(self._values))
        self._values[offset:end] = value.to_bytes(size, "little")[: end - offset]


class Zeros:
    """Registers that read as zero, where all ones would mean that everything has happened: events, hot plugging."""

    def read(self, offset: int, size: int) -> int:
        """Nothing."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing to acknowledge."""
