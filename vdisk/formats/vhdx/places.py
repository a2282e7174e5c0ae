"""Who has which part of a VHDX file, as its BAT says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vdisk.formats.places import Part, Places, places_of
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.structs import MIB, OFFSET_MASK, STATE_MASK

if TYPE_CHECKING:
    import numpy

    from vdisk.formats.vhdx.image import VhdxImage

_WINDOW_BLOCKS = 1 << 18


def survey_places(image: VhdxImage) -> Places:
    """Read the whole BAT and say who has what."""
    import numpy

    metadata, header, regions = image.metadata, image.header, image.regions
    parts = [Part("headers", 0, structs.HEADER_SECTION_BYTES)]
    for region in (regions.bat, regions.metadata, *regions.optional):
        parts.append(Part(f"{region.name} region", region.offset, region.length))
    if header.log_bytes:
        parts.append(Part("log", header.log_offset, header.log_bytes))
    table = image.table
    for chunk in range(-(-metadata.block_count // metadata.chunk_blocks) if metadata.has_parent else 0):
        entry = table.bitmap(chunk)
        if entry & STATE_MASK == structs.BITMAP_PRESENT:
            parts.append(Part(f"BAT entry of sector bitmap {chunk}", entry & OFFSET_MASK, MIB))
    starts = [numpy.zeros(0, numpy.uint64)]
    blocks = [numpy.zeros(0, numpy.int64)]
    for first, entries in block_windows(image):
        states = entries & numpy.uint64(STATE_MASK)
        # Space that an unmapped block keeps reserved is the block's, too.
        indices = numpy.flatnonzero((entries >= MIB) & (states != structs.ZERO))
        starts.append(entries[indices] & numpy.uint64(OFFSET_MASK))
        blocks.append(indices + first)
    return places_of(
        parts, numpy.concatenate(starts), numpy.concatenate(blocks), metadata.block_bytes, image.storage.size
    )


def block_windows(image: VhdxImage) -> Iterator[tuple[int, numpy.ndarray[Any, Any]]]:
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
