"""`VhdImage`: fixed and dynamic VHD."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Self

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt, ImageError, NotThisFormat, Unsupported
from vdisk.formats.blockmap import read_table, table_bytes
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.runs import runs_of
from vdisk.formats.vhd.footer import (
    COOKIE,
    DIFFERENCING,
    FIXED,
    FOOTER_BYTES,
    HEADER_BYTES,
    LARGEST_BYTES,
    SECTOR_BYTES,
    TYPE_NAMES,
    DynamicHeader,
    Footer,
)
from vdisk.storage.base import Storage

FREE = 0xFFFFFFFF
_BITMAPS_KEPT = 4096


class VhdImage(StorageDevice, Image):
    """A disk with a footer; a dynamic one has blocks, each behind a bitmap of the sectors that it holds.

    A block's sector whose bit is not set reads as zeros. Written sectors have their bit set; a new block goes where
    the footer stood, which moves behind it (a copy stands in front).
    """

    format_name = "vhd"

    def __init__(
        self, storage: Storage, footer: Footer, header: DynamicHeader | None, notes: list[str], *, writable: bool
    ) -> None:
        super().__init__(storage, footer.disk_bytes, writable=writable)
        self.footer = footer
        self.header = header
        self._notes = notes
        self._table = array("I")
        if header is not None:
            self._table = read_table(storage, "BAT", header.table_offset, header.table_entries, big_endian=True)
            self._block_bytes = header.block_bytes
            self._bitmap_bytes = header.bitmap_bytes
            self._step = (header.block_bytes + header.bitmap_bytes) // SECTOR_BYTES
        self._bitmaps: dict[int, bytearray | None] = {}
        """Sector bitmaps by block; None for one that is full, as nearly all are."""
        self._changed: set[int] = set()
        self._changed_bitmaps: set[int] = set()
        self._end: int | None = None

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        try:
            footer, notes = _read_footer(storage)
            if footer.disk_type == DIFFERENCING:
                raise Unsupported(storage.name, "vhd", "differencing images")
            if footer.disk_bytes % SECTOR_BYTES or footer.disk_bytes > LARGEST_BYTES:
                raise Corrupt(storage.name, "current_size", expected=f"whole sectors up to {LARGEST_BYTES}",
                              found=footer.disk_bytes)  # fmt: skip
            header = None
            if footer.disk_type == FIXED:
                if footer.disk_bytes > storage.size:
                    raise Corrupt(storage.name, "current_size", expected=f"at most the file's {storage.size} bytes",
                                  found=footer.disk_bytes)  # fmt: skip
            else:
                raw = storage.read(min(footer.data_offset, 1 << 62), HEADER_BYTES)
                header = DynamicHeader.parse(raw, storage.name, footer.disk_bytes)
            return cls(storage, footer, header, notes, writable=request.writable)
        except BaseException:
            storage.close()
            raise

    def describe(self) -> Description:
        footer = self.footer
        return Description(
            cluster_size=None if self.header is None else self.header.block_bytes,
            specific={
                "subformat": TYPE_NAMES[footer.disk_type],
                "creator": footer.creator.decode("ascii", "replace").strip(),
                "unique-id": str(footer.unique_id),
                "geometry": "/".join(map(str, footer.geometry)),
            },
            notes=list(self._notes),
        )

    # Reading ---------------------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        if self.header is None:
            return (Extent(offset, length, Kind.DATA, self.storage, offset),)
        block, inside = divmod(offset, self._block_bytes)
        if inside + length <= self._block_bytes:
            entry = self._table[block]
            if entry == FREE:
                return (Extent(offset, length, Kind.UNALLOCATED),)
            bitmap = self._bitmaps[block] if block in self._bitmaps else self._bitmap(block)
            if bitmap is None:
                host = entry * SECTOR_BYTES + self._bitmap_bytes + inside
                return (Extent(offset, length, Kind.DATA, self.storage, host),)
            return self._sector_extents(block, bitmap, offset, offset + length)
        return self._walk(offset, length)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        if self.header is not None:
            yield from self._walk(offset, length)
            return
        for start, count, is_data in self.storage.segments(offset, length):
            yield Extent(start, count, Kind.DATA if is_data else Kind.ZERO, self.storage, start)

    def _walk(self, offset: int, length: int) -> Iterator[Extent]:
        block_bytes, end = self._block_bytes, offset + length
        first = offset // block_bytes
        count = -(-end // block_bytes) - first
        for index, run, entry in runs_of(self._table, first, count, self._step, FREE, FREE):
            if entry == FREE:
                start, stop = max(offset, index * block_bytes), min(end, (index + run) * block_bytes)
                yield Extent(start, stop - start, Kind.UNALLOCATED)
                continue
            for block in range(index, index + run):
                start, stop = max(offset, block * block_bytes), min(end, (block + 1) * block_bytes)
                bitmap = self._bitmap(block)
                if bitmap is not None:
                    yield from self._sector_extents(block, bitmap, start, stop)
                else:
                    host = self._table[block] * SECTOR_BYTES + self._bitmap_bytes + start - block * block_bytes
                    yield Extent(start, stop - start, Kind.DATA, self.storage, host)

    def _sector_extents(self, block: int, bitmap: bytearray, start: int, end: int) -> list[Extent]:
        """A block's stretch by its bitmap: the most significant bit of a byte is the first sector's."""
        block_start = block * self._block_bytes
        data = self._table[block] * SECTOR_BYTES + self._bitmap_bytes
        extents = []
        position = start
        while position < end:
            sector = (position - block_start) // SECTOR_BYTES
            is_set = bool(bitmap[sector >> 3] & 0x80 >> (sector & 7))
            sector += 1
            while block_start + sector * SECTOR_BYTES < end:
                whole = 0xFF if is_set else 0
                if sector & 7 == 0 and bitmap[sector >> 3] == whole:
                    sector += 8
                elif bool(bitmap[sector >> 3] & 0x80 >> (sector & 7)) == is_set:
                    sector += 1
                else:
                    break
            stop = min(end, block_start + sector * SECTOR_BYTES)
            if is_set:
                host = data + position - block_start
                extents.append(Extent(position, stop - position, Kind.DATA, self.storage, host))
            else:
                extents.append(Extent(position, stop - position, Kind.UNALLOCATED))
            position = stop
        return extents

    def _bitmap(self, block: int) -> bytearray | None:
        """The sector bitmap of an allocated block, None when every bit of it is set."""
        if block in self._bitmaps:
            return self._bitmaps[block]
        sectors = self._block_bytes // SECTOR_BYTES
        raw = bytearray(self.storage.read(self._table[block] * SECTOR_BYTES, -(-sectors // 8)))
        raw = raw.ljust(-(-sectors // 8), b"\0")
        bitmap = None if raw == b"\xff" * len(raw) else raw
        if len(self._bitmaps) >= _BITMAPS_KEPT:
            for kept in [kept for kept in self._bitmaps if kept not in self._changed_bitmaps]:
                del self._bitmaps[kept]
        self._bitmaps[block] = bitmap
        return bitmap

    # Writing ---------------------------------------------------------------------------------------------------

    def _place(self, offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            block, inside = divmod(offset + position, self._block_bytes)
            part = data[position : position + self._block_bytes - inside]
            if self._table[block] == FREE:
                self._allocate(block)
            host = self._table[block] * SECTOR_BYTES + self._bitmap_bytes + inside
            self.storage.write(host, part)
            self._set_bits(block, inside // SECTOR_BYTES, -(-len(part) // SECTOR_BYTES))
            position += len(part)

    def _allocate(self, block: int) -> None:
        """Give a block its room, where the footer stood. Without a parent all of it is there, as zeros."""
        assert self.header is not None
        if self._end is None:
            used = max((entry for entry in self._table if entry != FREE), default=0)
            blocks_end = (used + self._step) * SECTOR_BYTES if used else 0
            table_end = self.header.table_offset + 4 * self.header.table_entries
            self._end = -(-max(blocks_end, table_end, HEADER_BYTES + FOOTER_BYTES) // SECTOR_BYTES) * SECTOR_BYTES
        sectors = self._block_bytes // SECTOR_BYTES
        start = self._end
        self.storage.zero(start, self._step * SECTOR_BYTES)  # the footer stood here
        self._table[block] = start // SECTOR_BYTES
        self._changed.add(block)
        if self.backing is None:
            self.storage.write(start, b"\xff" * -(-sectors // 8))
            self._bitmaps[block] = None
        else:
            self._bitmaps[block] = bytearray(-(-sectors // 8))
        self._end += self._step * SECTOR_BYTES

    def _set_bits(self, block: int, first: int, count: int) -> None:
        bitmap = self._bitmap(block)
        if bitmap is None:
            return
        end = first + count
        while first < end:
            if first & 7 == 0 and end - first >= 8:
                whole = (end - first) >> 3
                bitmap[first >> 3 : (first >> 3) + whole] = b"\xff" * whole
                first += whole * 8
            else:
                bitmap[first >> 3] |= 0x80 >> (first & 7)
                first += 1
        self._changed_bitmaps.add(block)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if self.header is None:
            self.storage.zero(offset, length, unmap=unmap)
            return True
        if self.backing is not None:
            return False  # there is no mark for zeros above a parent
        for extent in list(self._walk(offset, length)):
            if extent.kind is Kind.DATA:
                self.storage.zero(extent.host, extent.length, unmap=unmap)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self._zero(offset, length, True)

    def _flush(self) -> None:
        storage = self.storage
        if self._changed:
            assert self._end is not None
            storage.write(self._end, self.footer.to_bytes())
            if storage.size > self._end + FOOTER_BYTES:
                storage.truncate(self._end + FOOTER_BYTES)
        # Data before the bitmaps that show it, bitmaps before the table that shows the blocks.
        storage.flush()
        if self._changed_bitmaps:
            for block in sorted(self._changed_bitmaps):
                bitmap = self._bitmaps[block]
                assert bitmap is not None
                storage.write(self._table[block] * SECTOR_BYTES, bitmap)
            self._changed_bitmaps.clear()
            storage.flush()
        if self._changed:
            assert self.header is not None
            first, last = min(self._changed), max(self._changed)
            part = table_bytes(self._table[first : last + 1], big_endian=True)
            storage.write(self.header.table_offset + 4 * first, part)
            self._changed.clear()
            storage.flush()


def _read_footer(storage: Storage) -> tuple[Footer, list[str]]:
    """The footer at the tail, or its copy in front where that one is damaged; and what a user should be told."""
    name, size = storage.name, storage.size
    tail = storage.read(max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    front = storage.read(0, FOOTER_BYTES)
    notes = []
    old = tail[1:] if tail[1:9] == COOKIE else None
    if front[:8] != COOKIE and tail[:8] != COOKIE and old is None:
        raise NotThisFormat(name, "footer cookie", expected="conectix", found=tail[:8].hex() or "nothing")
    try:
        footer = Footer.parse(old if old is not None else tail, name, "footer")
    except ImageError as damage:
        footer = Footer.parse(front, name, "footer copy")
        notes.append(f"the footer at the end is damaged ({damage.field}); its copy in front was used")
        if footer.disk_type == FIXED:
            raise
        return footer, notes
    if old is not None:
        notes.append("the footer has 511 bytes, as old programs wrote it")
    if footer.disk_type != FIXED:
        try:
            Footer.parse(front, name, "footer copy")
        except ImageError as damage:
            notes.append(f"the footer's copy in front is damaged ({damage.field}); the one at the end was used")
    return footer, notes
