"""Who has which part of the file: headers, log, regions, blocks and their bitmaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import Corrupt
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import Region
from vdisk.formats.vhdx.structs import MIB, OFFSET_MASK, STATE_MASK

if TYPE_CHECKING:
    import numpy

    from vdisk.formats.vhdx.image import VhdxImage

    Array = numpy.ndarray[Any, Any]

_WINDOW_BLOCKS = 1 << 18


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

    def gaps(self, block_bytes: int) -> list[int]:
        """Offsets where a whole block fits that nothing claims."""
        found = []
        for start, end in self.free_ranges():
            start = -(-start // MIB) * MIB
            found += list(range(start, end - block_bytes + 1, block_bytes))
        found.reverse()  # the first ones are taken from the end of the list
        return found

    def _name(self, index: int) -> str:
        owner = int(self.owners[index])
        return f"BAT entry of block {owner}" if owner >= 0 else self.names[-1 - owner]


def survey_places(image: VhdxImage) -> Places:
    """Read the whole BAT and say who has what."""
    import numpy

    metadata, header = image.metadata, image.header
    parts = [Region("headers", 0, structs.HEADER_SECTION_BYTES), image.regions.bat, image.regions.metadata]
    parts += image.regions.optional
    if header.log_bytes:
        parts.append(Region("log", header.log_offset, header.log_bytes))
    table = image.table
    for chunk in range(-(-metadata.block_count // metadata.chunk_blocks) if metadata.has_parent else 0):
        entry = table.bitmap(chunk)
        if entry & STATE_MASK == structs.BITMAP_PRESENT:
            parts.append(Region(f"BAT entry of sector bitmap {chunk}", entry & OFFSET_MASK, MIB))
    starts = [numpy.array([part.offset for part in parts], numpy.uint64)]
    owners = [-1 - numpy.arange(len(parts), dtype=numpy.int64)]
    for first, entries in block_windows(image):
        states = entries & numpy.uint64(STATE_MASK)
        # Space that an unmapped block keeps reserved is the block's, too.
        indices = numpy.flatnonzero((entries >= MIB) & (states != structs.ZERO))
        starts.append(entries[indices] & numpy.uint64(OFFSET_MASK))
        owners.append(indices + first)
    all_starts, all_owners = numpy.concatenate(starts), numpy.concatenate(owners)
    highest = numpy.uint64(1 << 62)
    all_starts = numpy.minimum(all_starts, highest).astype(numpy.int64)
    lengths = numpy.full(len(all_starts), metadata.block_bytes, numpy.int64)
    lengths[: len(parts)] = [part.length for part in parts]
    order = numpy.argsort(all_starts, kind="stable")
    return Places(
        all_starts[order],
        (all_starts + lengths)[order],
        all_owners[order],
        [part.name for part in parts],
        image.storage.size,
    )


def block_windows(image: VhdxImage) -> Iterator[tuple[int, Array]]:
    """(first block, entries) of the whole BAT in pieces; stretches that are a hole in the file are left out."""
    count = image.metadata.block_count
    block = 0
    while block < count:
        behind = image.table.skip_hole(block, count - 1)
        if behind > block:
            block = behind
            if block == count - 1 and not image.table.payload(block):
                return
            continue
        size = min(_WINDOW_BLOCKS, count - block)
        yield block, image.table.payloads(block, size)
        block += size
