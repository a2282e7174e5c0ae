"""Runs in an allocation table: neighbouring entries that say the same, or name neighbouring blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SCALAR_COUNT = 64
"""Fewer entries than this are walked in Python: numpy would cost more than it gains."""
_CHUNK_ENTRIES = 1 << 18


class Run(NamedTuple):
    """`length` entries from `first` on. They all equal `entry` when it is a mark, else they go up from it by `step`."""

    first: int
    length: int
    entry: int


def runs_of(table: Sequence[int], index: int, count: int, step: int, first_mark: int, last_mark: int) -> Iterator[Run]:
    """The runs of `table[index:index + count]`, in pieces of bounded memory.

    Entries in [`first_mark`, `last_mark`] are marks ("free", "zero"); others are places of blocks, and a block's
    neighbour in the file is `step` further. Arrays of numpy and of the array module, and lists, will do.
    """
    end = index + count
    if count < _SCALAR_COUNT:
        while index < end:
            start, entry = index, table[index]
            index += 1
            if first_mark <= entry <= last_mark:
                while index < end and table[index] == entry:
                    index += 1
            else:
                while (
                    index < end
                    and table[index] == entry + (index - start) * step
                    and not (first_mark <= table[index] <= last_mark)
                ):
                    index += 1
            yield Run(start, index - start, int(entry))
        return
    import numpy

    for chunk in range(index, end, _CHUNK_ENTRIES):
        entries = numpy.asarray(table[chunk : min(chunk + _CHUNK_ENTRIES, end)]).astype(numpy.int64, copy=False)
        is_mark = (entries >= first_mark) & (entries <= last_mark)
        delta = numpy.diff(entries)
        goes_on = numpy.where(is_mark[:-1], delta == 0, (delta == step) & ~is_mark[1:])
        starts = numpy.concatenate(([0], numpy.flatnonzero(~goes_on) + 1))
        counts = numpy.diff(starts, append=len(entries))
        for start, length, entry in zip(
            (starts + chunk).tolist(), counts.tolist(), entries[starts].tolist(), strict=True
        ):
            yield Run(start, length, entry)
