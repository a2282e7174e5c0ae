"""`Meter`: counts what a guest does with a disk. One lies between every disk and its controller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from vdisk.block.device import BlockDevice
from vdisk.block.filters import Filter

_LAST_READS_KEPT = 8

NameOf = Callable[[BlockDevice, int], str | None]
"""What lies at a byte of a disk, in words: a partition, its file system, a file. The hypervisor knows none of these."""


class Meter(Filter):
    """Passes everything on, and counts. Closing it closes the device below."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner, 0, inner.size, writable=inner.writable)
        self.reads = 0
        self.furthest_read = 0
        """Where the furthest read ended."""
        self.last_reads: deque[tuple[int, int]] = deque(maxlen=_LAST_READS_KEPT)
        """Where the last reads fell, the newest at the end: first byte and end. Reads that follow on are one."""
        self.writes = 0
        self.bytes_written = 0
        self.flushes = 0

    @property
    def requests(self) -> int:
        """Everything that was asked."""
        return self.reads + self.writes + self.flushes

    def _readinto(self, offset: int, view: memoryview) -> None:
        self.reads += 1
        end = offset + len(view)
        if end > self.furthest_read:
            self.furthest_read = end
        last = self.last_reads
        if last and last[-1][1] == offset:
            last[-1] = (last[-1][0], end)
        else:
            last.append((offset, end))
        self.inner.readinto(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self.writes += 1
        self.bytes_written += len(view)
        self.inner.write(offset, view)

    def _flush(self) -> None:
        self.flushes += 1
        self.inner.flush()


def describe_last_reads(meters: Sequence[Meter], name_of: NameOf | None) -> str:
    """Where the last reads of the disks fell, oldest first, in words; "" where there is no disk."""
    told = [_last_reads_of(meter, name_of) for meter in meters]
    if len(told) > 1:
        told = [f"disk {number}: {text}" for number, text in enumerate(told, 1)]
    return "; ".join(told)


def _last_reads_of(meter: Meter, name_of: NameOf | None) -> str:
    reads = list(meter.last_reads)
    if not reads:
        return "nothing was read from it"
    names = list(_names(meter.inner, reads, name_of)) if name_of is not None else []
    places = f"fell in {', then in '.join(names)}, and " if names else ""
    return f"the last reads {places}ended at byte {reads[-1][1]}"


def _names(device: BlockDevice, reads: Sequence[tuple[int, int]], name_of: NameOf) -> Iterator[str]:
    """The names of the reads' places; the same twice in a row is told once."""
    before = None
    for start, end in reads:
        for offset in sorted({start, end - 1}):
            name = name_of(device, offset)
            if name and name != before:
                yield name
            before = name or before
