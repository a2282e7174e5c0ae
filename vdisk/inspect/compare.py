"""`compare`: whether two disks hold the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind

_STEP_BYTES = 2 << 20
_ZEROS = bytes(_STEP_BYTES)

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Comparison(NamedTuple):
    """What comparing two disks found."""

    identical: bool
    offset: int | None
    """The first byte that differs; None when none does."""
    sizes: tuple[int, int]


def compare(a: BlockDevice, b: BlockDevice, *, strict: bool = False, progress: Progress | None = None) -> Comparison:
    """Compare two disks byte by byte, reading only what is not a hole in both.

    Disks of different length are the same when the longer one ends in zeros, unless `strict`.
    """
    sizes = (a.size, b.size)
    common = min(sizes)
    if strict and a.size != b.size:
        return Comparison(False, common, sizes)
    total = max(sizes)
    with ThreadPoolExecutor(2) as pool:
        for start, length, a_is_zero, b_is_zero in _pieces(a, b, total):
            if not (a_is_zero and b_is_zero):
                left = pool.submit(_bytes_of, a, start, length, a_is_zero)
                right = _bytes_of(b, start, length, b_is_zero)
                offset = _first_difference(left.result(), right)
                if offset is not None:
                    return Comparison(False, start + offset, sizes)
            if progress is not None:
                progress(start + length, total)
    return Comparison(True, None, sizes)


def _zero_map(device: BlockDevice, total: int) -> Iterator[Extent]:
    """The map, prolonged by zeros to `total` bytes."""
    yield from device.map()
    if device.size < total:
        yield Extent(device.size, total - device.size, Kind.ZERO)


def _pieces(a: BlockDevice, b: BlockDevice, total: int) -> Iterator[tuple[int, int, bool, bool]]:
    """(start, length, a is zero, b is zero): long where both are, else in steps that fit memory."""
    maps = (_zero_map(a, total), _zero_map(b, total))
    heads = [next(each, None) for each in maps]
    position = 0
    while heads[0] is not None and heads[1] is not None:
        end = min(heads[0].end, heads[1].end)
        zero = (heads[0].kind is Kind.ZERO, heads[1].kind is Kind.ZERO)
        if all(zero):
            yield position, end - position, True, True
            position = end
        while position < end:
            length = min(_STEP_BYTES, end - position)
            yield position, length, *zero
            position += length
        for index in (0, 1):
            head = heads[index]
            if head is not None and head.end <= end:
                heads[index] = next(maps[index], None)


def _bytes_of(device: BlockDevice, start: int, length: int, is_zero: bool) -> memoryview:
    return memoryview(_ZEROS)[:length] if is_zero else memoryview(device.read(start, length))


def _first_difference(left: memoryview, right: memoryview) -> int | None:
    """The index of the first byte that differs, by halving."""
    if left == right:
        return None
    start, end = 0, len(left)
    while end - start > 1:
        middle = (start + end) // 2
        if left[start:middle] != right[start:middle]:
            end = middle
        else:
            start = middle
    return start
