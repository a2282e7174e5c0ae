"""Holes of the file, seen from the disk: for `_survey` of formats whose blocks may be sparse in the file."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from vdisk.block.extent import Extent, Kind
from vdisk.storage.base import Storage


def with_holes(extents: Iterable[Extent]) -> Iterator[Extent]:
    """`extents`, with DATA that is a hole in its storage turned into ZERO."""
    storage: Storage | None = None
    segments: _Segments | None = None
    for extent in extents:
        if extent.kind is not Kind.DATA:
            yield extent
            continue
        assert extent.storage is not None
        if segments is None or extent.storage is not storage:
            storage, segments = extent.storage, _Segments(extent.storage)
        at, last = extent.host, extent.host + extent.length
        is_data, end = segments.find(at, last)
        if is_data and end >= last:
            yield extent
            continue
        while True:
            start = extent.start + at - extent.host
            stop = min(last, end)
            if is_data:
                yield Extent(start, stop - at, Kind.DATA, storage, at)
            else:
                yield Extent(start, stop - at, Kind.ZERO)
            if stop == last:
                break
            at = stop
            is_data, end = segments.find(at, last)


class _Segments:
    """What is known of a storage's holes. It is asked about all that follows at once, and nothing twice.

    A file without holes costs one question when its blocks come in order, and a few when they do not.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._size = storage.size
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._are_data: list[bool] = []

    def find(self, at: int, last: int) -> tuple[bool, int]:
        """Whether there is data at `at`, and the offset to which that holds."""
        index = bisect.bisect_right(self._starts, at) - 1
        if index >= 0 and at < self._ends[index]:
            return self._are_data[index], self._ends[index]
        follows = index + 1
        limit = self._starts[follows] if follows < len(self._starts) else max(last, self._size)
        _, length, is_data = next(iter(self._storage.segments(at, limit - at)))
        end = at + length
        if follows < len(self._starts) and end == limit and self._are_data[follows] == is_data:
            self._starts[follows] = at
            return is_data, self._ends[follows]
        if index >= 0 and self._ends[index] == at and self._are_data[index] == is_data:
            self._ends[index] = end
        else:
            self._starts.insert(follows, at)
            self._ends.insert(follows, end)
            self._are_data.insert(follows, is_data)
        return is_data, end
