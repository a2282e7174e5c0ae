"""Who has which part of a file: headers, tables and blocks, and what is left between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import Corrupt

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

_HIGHEST = 1 << 62
"""Offsets of a hostile table are cut to this, so that sums with them stay in 64 bits."""


class Part(NamedTuple):
    """A part of the file that is no block."""

    name: str
    offset: int
    length: int


class Overlap(NamedTuple):
    """Two parts of the file that claim the same bytes."""

    one: str
    other: str
    one_block: int
    """Its number; negative when it is no block."""
    other_block: int
    offset: int


@dataclass(slots=True)
class Places:
    """All that claims a part of the file, in ascending order of the offset."""

    starts: Array
    ends: Array
    owners: Array
    """A block's number; -1 - n for the nth of `names`."""
    names: list[str]
    file_bytes: int

    def overlaps(self) -> Iterator[Overlap]:
        """Every part that begins before another one ends."""
        import numpy

        if len(self.starts) < 2:
            return
        reached = numpy.maximum.accumulate(self.ends)
        farthest = numpy.maximum.accumulate(numpy.where(self.ends == reached, numpy.arange(len(reached)), 0))
        for index in numpy.flatnonzero(reached[:-1] > self.starts[1:]).tolist():
            before = int(farthest[index])
            yield Overlap(
                self._name(before),
                self._name(index + 1),
                int(self.owners[before]),
                int(self.owners[index + 1]),
                int(self.starts[index + 1]),
            )

    def refuse_overlaps(self, file: str) -> None:
        """`Corrupt` when a part claims another's bytes, or bytes behind the end: writing could destroy either."""
        for overlap in self.overlaps():
            raise Corrupt(file, overlap.other, f"shares the file's offset {overlap.offset} with {overlap.one}")
        for name, offset, _ in self.beyond_end():
            raise Corrupt(file, name, expected=f"an offset in the file of {self.file_bytes} bytes", found=offset)

    def beyond_end(self) -> Iterator[tuple[str, int, int]]:
        """(name, offset, block or a negative number) of parts that begin behind the end of the file."""
        import numpy

        for index in numpy.flatnonzero(self.starts >= self.file_bytes).tolist():
            yield self._name(index), int(self.starts[index]), int(self.owners[index])

    def free_ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, end) of every part of the file that nothing claims."""
        import numpy

        reached = numpy.maximum.accumulate(self.ends)
        following = numpy.append(self.starts[1:], max(self.file_bytes, int(reached[-1])))
        for index in numpy.flatnonzero(following > reached).tolist():
            yield int(reached[index]), int(following[index])

    def gaps(self, block_bytes: int, step: int, origin: int = 0) -> list[int]:
        """Offsets, whole `step`s from `origin`, where a block fits that nothing claims; the lowest is the last."""
        found: list[int] = []
        for start, end in self.free_ranges():
            start = origin + -(-(start - origin) // step) * step
            found += list(range(start, end - block_bytes + 1, block_bytes))
        found.reverse()  # the first ones are taken from the end of the list
        return found

    def _name(self, index: int) -> str:
        owner = int(self.owners[index])
        return f"BAT entry of block {owner}" if owner >= 0 else self.names[-1 - owner]


def places_of(parts: Sequence[Part], starts: Array, blocks: Array, block_bytes: int, file_bytes: int) -> Places:
    """All claims in order: `parts`, and blocks of which number `blocks[i]` begins at `starts[i]`."""
    import numpy

    part_starts = numpy.array([min(part.offset, _HIGHEST) for part in parts], numpy.int64)
    part_lengths = numpy.array([part.length for part in parts], numpy.int64)
    block_starts = numpy.minimum(starts.astype(numpy.uint64, copy=False), numpy.uint64(_HIGHEST)).astype(numpy.int64)
    all_starts = numpy.concatenate([part_starts, block_starts])
    all_ends = numpy.concatenate([part_starts + part_lengths, block_starts + block_bytes])
    owners = numpy.concatenate([-1 - numpy.arange(len(parts), dtype=numpy.int64), blocks.astype(numpy.int64)])
    order = numpy.argsort(all_starts, kind="stable")
    return Places(all_starts[order], all_ends[order], owners[order], [part.name for part in parts], file_bytes)
