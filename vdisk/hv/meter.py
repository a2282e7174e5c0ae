"""`Meter`: counts what a guest does with a disk. One lies between every disk and its controller."""

from __future__ import annotations

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Filter


class Meter(Filter):
    """Passes everything on, and counts. Closing it closes the device below."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner, 0, inner.size, writable=inner.writable)
        self.reads = 0
        self.furthest_read = 0
        """Where the furthest read ended."""
        self.writes = 0
        self.bytes_written = 0
        self.flushes = 0

    @property
    def requests(self) -> int:
        """Everything that was asked."""
        return self.reads + self.writes + self.flushes

    def _readinto(self, offset: int, view: memoryview) -> None:
        self.reads += 1
        length = len(view)
        if offset + length > self.furthest_read:
            self.furthest_read = offset + length
        self.inner.readinto(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self.writes += 1
        self.bytes_written += len(view)
        self.inner.write(offset, view)

    def _flush(self) -> None:
        self.flushes += 1
        self.inner.flush()
