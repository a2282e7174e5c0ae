"""Runs in an allocation table: neighbouring entries that say the same, or name neighbouring blocks."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SCALAR_COUNT = 64
"""Fewer entries than this are walked in Python: numpy would cost more than it gains."""
_ENTRIES_WORTH_IMPORT = 1 << 20
"""Importing numpy takes 0.1 s, longer than it takes to walk this many entries in Python."""
_CHUNK_ENTRIES = 1 << 18
_LEAP_ENTRIES = 256


class _Walked:
    """How many entries this process has walked without numpy: a sum, for tables come one by one."""

    entries = 0


def numpy_pays(count: int) -> bool:
    """Whether `count` entries should be left to numpy: there are many, or it is there already.

    Where it says no, the caller walks them in Python, and they are counted.
    """
    if count < _SCALAR_COUNT:
        return False
    if "numpy" in sys.modules or _Walked.entries + count > _ENTRIES_WORTH_IMPORT:
        return True
    _Walked.entries += count
    return False


def end_of_equal(table: Sequence[int], index: int, end: int) -> int:
    """The index behind the entries from `index` on that all equal the first."""
    entry = table[index]
    index += 1
    if isinstance(table, array) and end - index >= _LEAP_ENTRIES and table[index + _LEAP_ENTRIES - 1] == entry:
        same = array(table.typecode, (entry,)) * _LEAP_ENTRIES
        while end - index >= _LEAP_ENTRIES and table[index : index + _LEAP_ENTRIES] == same:
            index += _LEAP_ENTRIES
    while index < end and table[index] == entry:
        index += 1
    return index


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
    if not numpy_pays(count):
        while index < end:
            start, entry = index, table[index]
            if first_mark <= entry <= last_mark:
                index = end_of_equal(table, index, end)
            else:
                index += 1
                following = entry + step
                while index < end and table[index] == following and not first_mark <= following <= last_mark:
                    index += 1
                    following += step
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
