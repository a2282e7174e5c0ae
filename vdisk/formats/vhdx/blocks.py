"""`VhdxBlocks`: where the bytes of a VHDX disk lie, as its BAT and sector bitmaps say ([MS-VHDX] 2.4, 2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind, coalesce
from vdisk.errors import Corrupt
from vdisk.formats.holes import with_holes
from vdisk.formats.image import Image
from vdisk.formats.runs import numpy_pays, runs_of
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import RegionTable
from vdisk.formats.vhdx.metadata import Metadata
from vdisk.formats.vhdx.structs import (
    FULLY_PRESENT,
    MIB,
    NOT_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    UNMAPPED_095,
)
from vdisk.formats.vhdx.tables import BlockTable, PageCache, SectorBitmap, host_of
from vdisk.storage.base import Storage

_BLOCK_WEIGHT = 32
"""How many times the work of an entry of other tables it is to walk a block in Python."""
_WINDOW_BLOCKS = 1 << 18


class VhdxBlocks(StorageDevice, Image):
    """The reading half of `VhdxImage`."""

    def __init__(self, storage: Storage, regions: RegionTable, metadata: Metadata, *, writable: bool) -> None:
        super().__init__(storage, metadata.disk_bytes, writable=writable, block_size=metadata.logical_sector_bytes)
        self.regions = regions
        self.metadata = metadata
        self.pages = PageCache(storage)
        self._file_bytes = storage.size
        self.take_geometry()

    def take_geometry(self) -> None:
        """Take the geometry out of the metadata."""
        metadata = self.metadata
        self.size = metadata.disk_bytes
        self._block_bytes = metadata.block_bytes
        self._block_shift = metadata.block_bytes.bit_length() - 1
        self._chunk_blocks = metadata.chunk_blocks
        self._sector_shift = metadata.logical_sector_bytes.bit_length() - 1
        self._block_sectors = metadata.block_bytes >> self._sector_shift
        self.table = BlockTable(self.pages, self.regions.bat.offset, metadata.chunk_blocks)
        self._bitmap = SectorBitmap(self.pages)

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        block = offset >> self._block_shift
        inside = offset - (block << self._block_shift)
        if inside + length > self._block_bytes:
            return coalesce(self._table_extents(offset, length))
        entry = self.table.payload(block)
        if entry & STATE_MASK == FULLY_PRESENT:
            host = (entry & OFFSET_MASK) + inside
            if host < MIB or host + length > self._file_bytes:
                host_of(self.name, f"BAT entry of block {block}", entry, inside + length, self._file_bytes)
            return (Extent(offset, length, Kind.DATA, self.storage, host),)
        return self._block_extents(block, entry, offset, length)

    def _block_extents(self, block: int, entry: int, offset: int, length: int) -> Iterable[Extent]:
        """A range inside one block."""
        state = entry & STATE_MASK
        if state == FULLY_PRESENT:
            inside = offset - (block << self._block_shift)
            host = host_of(self.name, f"BAT entry of block {block}", entry, inside + length, self._file_bytes)
            return (Extent(offset, length, Kind.DATA, self.storage, host + inside),)
        if state == PARTIALLY_PRESENT:
            return self._sector_extents(block, entry, offset, length)
        if state == NOT_PRESENT:
            return (Extent(offset, length, Kind.UNALLOCATED),)
        if state > UNMAPPED_095 or state == 4:
            raise Corrupt(self.name, f"BAT entry of block {block}", expected="a state from 0 to 7, not 4", found=state)
        return (Extent(offset, length, Kind.ZERO),)

    def _sector_extents(self, block: int, entry: int, offset: int, length: int) -> Iterator[Extent]:
        """A range inside a block that is this file's in part."""
        start = block << self._block_shift
        inside, end = offset - start, offset + length
        host = host_of(self.name, f"BAT entry of block {block}", entry, inside + length, self._file_bytes) - start
        bitmap, first_bit = self._bitmap_of(block)
        sector = inside >> self._sector_shift
        count = ((inside + length - 1) >> self._sector_shift) - sector + 1
        at = start + (sector << self._sector_shift)
        for run, is_present in self._bitmap.runs(bitmap, first_bit + sector, count):
            stop = at + (run << self._sector_shift)
            begin = max(at, offset)
            part = min(stop, end) - begin
            if is_present:
                yield Extent(begin, part, Kind.DATA, self.storage, host + begin)
            else:
                yield Extent(begin, part, Kind.UNALLOCATED)
            at = stop

    def _bitmap_of(self, block: int) -> tuple[int, int]:
        """Where a block's sector bitmap lies: (offset of the bitmap block in the file, its first bit for the block)."""
        if not self.metadata.has_parent:
            raise Corrupt(
                self.name, f"BAT entry of block {block}", "a block is partially present and there is no parent"
            )
        chunk, index = divmod(block, self._chunk_blocks)
        entry = self.table.bitmap(chunk)
        what = f"BAT entry of sector bitmap {chunk}"
        if entry & STATE_MASK != structs.BITMAP_PRESENT:
            raise Corrupt(self.name, what, expected="a sector bitmap, for a partially present block", found=entry & 7)
        return host_of(self.name, what, entry, MIB, self._file_bytes), index * self._block_sectors

    def _table_extents(self, offset: int, length: int) -> Iterator[Extent]:
        """A range of any number of blocks, runs of blocks joined where numpy found them."""
        end, shift = offset + length, self._block_shift
        last = (end - 1) >> shift
        block = offset >> shift
        if not numpy_pays(_BLOCK_WEIGHT * (last + 1 - block)):
            while offset < end:
                part = min(end, (block + 1) << shift) - offset
                yield from self._block_extents(block, self.table.payload(block), offset, part)
                offset += part
                block += 1
            return
        while block <= last:
            after_hole = self.table.skip_hole(block, last)
            if after_hole > block:
                stop = min(end, after_hole << shift)
                yield Extent(offset, stop - offset, Kind.UNALLOCATED)
                block, offset = after_hole, stop
                continue
            count = min(_WINDOW_BLOCKS, last - block + 1)
            yield from self._window_extents(block, count, offset, end)
            block += count
            offset = block << shift

    def _window_extents(self, first: int, count: int, offset: int, end: int) -> Iterator[Extent]:
        import numpy

        entries = self.table.payloads(first, count)
        states = entries & numpy.uint64(STATE_MASK)
        hosts = (entries & numpy.uint64(OFFSET_MASK)).view(numpy.int64)
        has_place = (states == FULLY_PRESENT) & (hosts > 0)
        keys: Any = numpy.where(has_place, hosts, states.view(numpy.int64))
        for place, run, entry in runs_of(keys, 0, count, self._block_bytes, 0, STATE_MASK):
            block = first + place
            start = max(offset, block << self._block_shift)
            stop = min(end, (block + run) << self._block_shift)
            if entry > STATE_MASK:
                inside = start - (block << self._block_shift)
                length = inside + stop - start
                host = host_of(self.name, f"BAT entry of block {block}", entry, length, self._file_bytes)
                yield Extent(start, stop - start, Kind.DATA, self.storage, host + inside)
            elif entry < FULLY_PRESENT:
                yield from self._block_extents(block, entry, start, stop - start)
            else:  # sector bitmaps, or an entry to be refused
                for one in range(place, place + run):
                    begin = max(offset, (first + one) << self._block_shift)
                    length = min(end, (first + one + 1) << self._block_shift) - begin
                    yield from self._block_extents(first + one, int(entries[one]), begin, length)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        """As the table has it, and holes of the file are zeros."""
        return with_holes(self._table_extents(offset, length))

    def absent_sectors(self, block: int) -> list[tuple[int, int]]:
        """(offset in the block, length) of what is not this file's own in a block that is so in part."""
        bitmap, first_bit = self._bitmap_of(block)
        found, at = [], 0
        for run, is_present in self._bitmap.runs(bitmap, first_bit, self._block_sectors):
            if not is_present:
                found.append((at << self._sector_shift, run << self._sector_shift))
            at += run
        return found
