"""The plan of a conversion: which stretches of the disk are read, passed on or left out, known before a byte moves."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind
from vdisk.formats.image import Writer

_PASSABLE = {("deflate", "deflate"), ("zlib", "zlib"), ("zstd", "zstd"), ("deflate", "zlib"), ("zlib", "deflate")}
"""(source's codec, target's codec) of compressed units that need no compressing anew."""


class Action(enum.IntEnum):
    """What becomes of a stretch."""

    SKIP = 0
    """Zeros in the source, and in what lies behind the target: nothing is written."""
    READ = 1
    """Read, looked through for zeros, compressed where the target is, and written."""
    PASS = 2
    """Compressed units of the target's own size and codec: verified and passed on as they are."""


class Step(NamedTuple):
    """A stretch of the disk, whole units of the target. Offsets and lengths are bytes."""

    action: Action
    start: int
    length: int


class Plan:
    """The steps of a conversion in the disk's order, and their totals."""

    def __init__(self) -> None:
        self._steps = array("Q")
        self.total_bytes = dict.fromkeys(Action, 0)

    def add(self, action: Action, start: int, end: int) -> None:
        """Append a stretch; one that goes on from the last of the same action makes it longer."""
        steps = self._steps
        self.total_bytes[action] += end - start
        if steps and steps[-3] == action and steps[-2] + steps[-1] == start:
            steps[-1] += end - start
        else:
            steps.extend((action, start, end - start))

    def rest(self, offset: int) -> Plan:
        """What of it lies at `offset` and behind."""
        rest = Plan()
        for action, start, length in self:
            if start + length > offset:
                rest.add(action, max(start, offset), start + length)
        return rest

    def __iter__(self) -> Iterator[Step]:
        for at in range(0, len(self._steps), 3):
            action, start, length = self._steps[at : at + 3]
            yield Step(Action(action), start, length)

    def __len__(self) -> int:
        return len(self._steps) // 3

    @property
    def work_bytes(self) -> int:
        """Bytes that have to be looked at."""
        return self.total_bytes[Action.READ] + self.total_bytes[Action.PASS]


def make_plan(source: BlockDevice, writer: Writer) -> Plan:
    """Map the source once and sort it into steps."""
    plan = Plan()
    unit_bytes = writer.unit_bytes
    behind = None if writer.backing is None else writer.backing.device
    planned_to = 0
    for extent in _joined_map(source, behind):
        if extent.kind is Kind.ZERO:
            start = max(planned_to, -(-extent.start // unit_bytes) * unit_bytes)
            end = extent.end if extent.end == source.size else extent.end // unit_bytes * unit_bytes
            if start < end:
                if planned_to < start:
                    plan.add(Action.READ, planned_to, start)
                plan.add(Action.SKIP, start, end)
                planned_to = end
        elif extent.kind is Kind.ENCODED and behind is None and can_pass(extent, writer, source.size):
            if planned_to == extent.start:
                plan.add(Action.PASS, extent.start, extent.end)
                planned_to = extent.end
        else:
            start, end = planned_to, min(-(-extent.end // unit_bytes) * unit_bytes, source.size)
            if start < end:
                plan.add(Action.READ, start, end)
                planned_to = end
    if planned_to < source.size:
        plan.add(Action.READ, planned_to, source.size)
    return plan


def can_pass(extent: Extent, writer: Writer, disk_bytes: int) -> bool:
    """Whether an extent is one whole unit that the target can take as it is compressed."""
    encoded = extent.encoded
    if encoded is None or writer.codec is None or (encoded.codec, writer.codec) not in _PASSABLE:
        return False
    whole = encoded.unit_start == extent.start and extent.end == min(extent.start + encoded.unit_length, disk_bytes)
    return whole and encoded.unit_length == writer.unit_bytes and extent.start % writer.unit_bytes == 0


def _joined_map(source: BlockDevice, behind: BlockDevice | None) -> Iterator[Extent]:
    """The source's map; with a device behind the target, only what is zero in both counts as zero."""
    if behind is None or not behind.size:
        yield from source.map()
        return
    theirs = behind.map(0, min(behind.size, source.size))
    head = next(theirs, None)
    for extent in source.map():
        start = extent.start
        while start < extent.end:
            while head is not None and head.end <= start:
                head = next(theirs, None)
            end = extent.end if head is None else min(extent.end, head.end)
            kind = Kind.ZERO if extent.kind is Kind.ZERO and (head is None or head.kind is Kind.ZERO) else Kind.DATA
            yield Extent(start, end - start, kind)
            start = end
