"""`compare`: whether two disks hold the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind
from vdisk.block.workers import Workers

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
    with Workers(1) as workers:
        for start, length, a_is_zero, b_is_zero in pieces(a, b, total):
            if not (a_is_zero and b_is_zero):
                left = workers.ask(bytes_of, a, start, length, a_is_zero)
                right = bytes_of(b, start, length, b_is_zero)
                offset = _first_difference(left.take(), right)
                if offset is not None:
                    return Comparison(False, start + offset, sizes)
            if progress is not None:
                progress(start + length, total)
    return Comparison(True, None, sizes)


def _zero_map(device: BlockDevice, offset: int, total: int) -> Iterator[Extent]:
    """The map from `offset` on, prolonged by zeros to `total` bytes."""
    start = min(offset, device.size)
    end = min(device.size, total)
    if start < end:
        yield from device.map(start, end - start)
    if end < total:
        yield Extent(max(offset, end), total - max(offset, end), Kind.ZERO)


def pieces(a: BlockDevice, b: BlockDevice, total: int, offset: int = 0) -> Iterator[tuple[int, int, bool, bool]]:
    """Two disks side by side: (start, length, a is zero, b is zero).

    Long where both are zero, else in steps of at most 2 MiB; a disk shorter than `total` is prolonged by zeros.
    """
    maps = (_zero_map(a, offset, total), _zero_map(b, offset, total))
    heads = [next(each, None) for each in maps]
    position = offset
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


def bytes_of(device: BlockDevice, start: int, length: int, is_zero: bool) -> memoryview:
    """A piece's bytes, prolonged by zeros past the disk's end."""
    if is_zero:
        return memoryview(_ZEROS)[:length]
    inside = max(0, min(length, device.size - start))
    return memoryview(device.read(start, inside).ljust(length, b"\0"))


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
