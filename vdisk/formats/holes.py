"""Holes of the file, seen from the disk: for `_survey` of formats whose blocks may be sparse in the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdisk.block.extent import Extent, Kind
from vdisk.storage.base import Storage


def with_holes(extents: Iterable[Extent]) -> Iterator[Extent]:
    """`extents`, with DATA that is a hole in its storage turned into ZERO.

    A file is asked about all that follows at once: one without holes is asked once, however many extents it has.
    """
    storage: Storage | None = None
    start = end = size = 0
    is_data = True
    for extent in extents:
        if extent.kind is not Kind.DATA:
            yield extent
            continue
        assert extent.storage is not None
        if extent.storage is not storage:
            storage, start, end = extent.storage, 0, 0
            size = storage.size
        at, last = extent.host, extent.host + extent.length
        while at < last:
            if not start <= at < end:
                start, length, is_data = next(iter(storage.segments(at, max(last, size) - at)))
                end = start + length
            part = extent.clip(extent.start + at - extent.host, extent.start + min(last, end) - extent.host)
            yield part if is_data else Extent(part.start, part.length, Kind.ZERO)
            at += part.length
