"""`VhdImage`: fixed, dynamic and differencing VHD, open for reading or writing."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Self

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.formats.blockmap import read_table, write_table_parts
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.holes import with_holes
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.places import Part, Places, places_of
from vdisk.formats.runs import runs_of
from vdisk.formats.vhd.bitmaps import SectorBitmaps
from vdisk.formats.vhd.footer import (
    DIFFERENCING,
    FIXED,
    FOOTER_BYTES,
    LARGEST_BYTES,
    SECTOR_BYTES,
    TYPE_NAMES,
    Footers,
    read_footers,
    timestamp_now,
)
from vdisk.formats.vhd.header import FREE, HEADER_BYTES, DynamicHeader
from vdisk.formats.vhd.parent import open_parent, parent_name, read_locators
from vdisk.storage.base import Storage

_ALIGNMENT_BYTES = 4096
"""Blocks' data starts on a multiple of it: a file system's block."""
_WINDOW_BYTES = 256 << 20
"""Long ranges are gone through in steps of this, so that memory does not grow with them."""
_MOST_CHANGED_ENTRIES = 1 << 16


class VhdImage(StorageDevice, Image):
    """A disk with a footer; one that is not fixed has blocks, each behind a bitmap of the sectors that it holds.

    A sector whose bit is not set is the parent's, and zeros without a parent. A new block goes where the footer
    stood, once a new footer stands behind it. `block_size`, in which a write allocates, is the sector.
    """

    format_name = "vhd"

    def __init__(self, storage: Storage, request: OpenRequest, footers: Footers, header: DynamicHeader | None) -> None:
        super().__init__(storage, footers.footer.disk_bytes, writable=request.writable)
        self.gate = request.gate
        self.footer = footers.footer
        self.header = header
        self.is_differencing = self.footer.disk_type == DIFFERENCING
        self.footers = footers
        self.tail_offset = footers.tail_offset
        self._is_tail_whole = footers.tail is not None
        self._notes = footers.notes
        self._table = array("I")
        self._paths: dict[bytes, str] = {}
        self._changed: set[int] = set()
        if header is not None:
            self.take_geometry()
            if not header.is_sound:
                self._notes.append("the dynamic header's checksum is wrong; `check --repair all` computes it anew")
            self.take_paths()

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        image: Self | None = None
        try:
            footers = read_footers(storage)
            footer, file = footers.footer, storage.name
            size = footer.disk_bytes
            if size % SECTOR_BYTES or size > LARGEST_BYTES:
                raise Corrupt(file, "current_size", expected="whole sectors, at most 2040 GiB", found=size)
            if footer.disk_type == FIXED:
                if size > footers.tail_offset:
                    raise Corrupt(file, "current_size", expected=f"at most {footers.tail_offset}", found=size)
                return cls(storage, request, footers, None)
            header = DynamicHeader.read(storage, footer.data_offset, size)
            image = cls(storage, request, footers, header)
            if footer.disk_type == DIFFERENCING and request.with_backing:
                if request.backing_format not in (None, "vhd"):
                    raise Unsupported(file, "vhd", f"a parent of format {request.backing_format}")
                image.backing = open_parent(request.gate, file, header, image._paths)
        except BaseException:
            storage.close()
            raise
        return image

    @property
    def place_bytes(self) -> int:
        """What a block takes in the file, its bitmap included."""
        return self._step * SECTOR_BYTES

    @property
    def table(self) -> array[int]:
        """The BAT's entries for the disk's blocks."""
        return self._table

    def describe(self) -> Description:
        footer, header = self.footer, self.header
        specific: dict[str, Any] = {
            "subformat": TYPE_NAMES[footer.disk_type],
            "creator": footer.creator.decode("ascii", "replace").strip("\0 "),
            "unique-id": str(footer.unique_id),
            "geometry": "/".join(map(str, footer.geometry)),
        }
        name = None
        if header is not None and self.is_differencing:
            name = parent_name(header, self._paths)
            specific["parent-unique-id"] = str(header.parent_unique_id)
        return Description(
            cluster_size=None if header is None else header.block_bytes,
            backing_name=name,
            backing_format="vhd" if self.is_differencing else None,
            specific=specific,
            notes=list(self._notes),
        )

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.vhd.check import check

        with self.changing():
            return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.vhd.resize import resize

        with self.changing():
            resize(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        from vdisk.formats.vhd.resize import set_parent

        with self.changing():
            set_parent(self, name, format)

    def take_geometry(self) -> None:
        """Take size and table out of footer and header. Nothing may be waiting to be written."""
        self.size = self.footer.disk_bytes
        header = self.header
        if header is None:
            return
        count = header.blocks_of(self.size)
        self._table = read_table(self.storage, "BAT", header.table_offset, count, big_endian=True)
        self._block_bytes = header.block_bytes
        self._bitmap_bytes = header.bitmap_bytes
        self._step = (header.block_bytes + header.bitmap_bytes) // SECTOR_BYTES
        self._bitmaps = SectorBitmaps(self.storage, count, header.block_bytes)
        self._file_bytes = self.storage.size

    def take_paths(self) -> None:
        """Read the parent's names."""
        header = self.header
        self._paths = {} if header is None or not self.is_differencing else read_locators(self.storage, header)

    # Reading ---------------------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        if self.header is None:
            return (Extent(offset, length, Kind.DATA, self.storage, offset),)
        block, inside = divmod(offset, self._block_bytes)
        if inside + length <= self._block_bytes:
            return self._block_extents(block, inside, offset, length)
        return self._walk(offset, length)

    def _block_extents(self, block: int, inside: int, offset: int, length: int) -> Iterable[Extent]:
        """A range inside one block."""
        entry = self._table[block]
        if entry == FREE:
            return (Extent(offset, length, Kind.UNALLOCATED),)
        host = entry * SECTOR_BYTES
        data = host + self._bitmap_bytes + inside
        if data + length > self._file_bytes:
            raise Corrupt(
                self.name,
                f"BAT entry of block {block}",
                expected=f"a place in the file of {self._file_bytes} bytes",
                found=host,
            )
        if self._bitmaps.is_whole(block, host):
            return (Extent(offset, length, Kind.DATA, self.storage, data),)
        return self._sector_extents(block, host, inside, offset, length)

    def _sector_extents(self, block: int, host: int, inside: int, offset: int, length: int) -> Iterator[Extent]:
        start, end = offset - inside, offset + length
        data = host + self._bitmap_bytes
        first, last = inside // SECTOR_BYTES, -(-(inside + length) // SECTOR_BYTES)
        for run, stop, is_here in self._bitmaps.runs(block, host, first, last):
            begin = max(offset, start + run * SECTOR_BYTES)
            part = min(end, start + stop * SECTOR_BYTES) - begin
            if is_here:
                yield Extent(begin, part, Kind.DATA, self.storage, data + begin - start)
            else:
                yield Extent(begin, part, Kind.UNALLOCATED)

    def _walk(self, offset: int, length: int) -> Iterator[Extent]:
        """A range of any number of blocks."""
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
                yield from self._block_extents(block, start - block * block_bytes, start, stop - start)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        """As the table and the bitmaps have it, and holes of the file are zeros."""
        return with_holes(self._extents(offset, length))

    # Writing ---------------------------------------------------------------------------------------------------

    def places(self) -> Places:
        """Who has which part of the file."""
        import numpy

        header = self.header
        assert header is not None
        parts = [
            Part("footer copy", 0, FOOTER_BYTES),
            Part("dynamic header", self.footer.data_offset, HEADER_BYTES),
            Part("BAT", header.table_offset, header.table_end - header.table_offset),
        ]
        for locator in header.parent_locators if self.is_differencing else ():
            parts.append(Part("parent locator", locator.offset, locator.length))
        if self._is_tail_whole:
            parts.append(Part("footer", self.tail_offset, FOOTER_BYTES))
        if self.storage.read(header.table_end, 8) == b"tdbatmap":  # tapdisk's note of which blocks are whole
            fields = self.storage.read(header.table_end + 8, 12)
            parts.append(Part("batmap header", header.table_end, SECTOR_BYTES))
            sectors = int.from_bytes(fields[8:12], "big")
            parts.append(Part("batmap", int.from_bytes(fields[:8], "big"), sectors * SECTOR_BYTES))
        entries = numpy.asarray(self._table, numpy.uint32)
        blocks = numpy.flatnonzero(entries != FREE)
        starts = entries[blocks].astype(numpy.uint64) * numpy.uint64(SECTOR_BYTES)
        return places_of(parts, starts, blocks, self._step * SECTOR_BYTES, self.storage.size)

    def _begin_write(self) -> None:
        for part, is_sound in (
            ("footer", self.footer.is_sound),
            ("dynamic header", self.header is None or self.header.is_sound),
        ):
            if not is_sound:
                raise Corrupt(self.name, f"{part} checksum", "is wrong: `check --repair all` mends it before writing")
        if self.header is not None:
            places = self.places()
            places.refuse_overlaps(self.name)
            end = int(places.ends.max())
            if not self._is_tail_whole and end > self.tail_offset:  # new blocks would lie in what is missing
                raise Corrupt(self.name, "file", expected=f"at least {end} bytes", found=self.storage.size)
        self.begin_session(of_data=True)

    def begin_session(self, *, of_data: bool) -> None:
        """Put both footers in order. `of_data`: the disk's content is to change, and so does its time."""
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        if of_data:
            self.footer.timestamp = max(timestamp_now(), self.footer.timestamp + 1)
        self.write_footers()

    def write_footers(self) -> None:
        """Bring the footer to both of its places, the good one last: at any time one of the two is whole."""
        self.footer.is_sound = True
        raw = self.footer.to_bytes()
        places = [self.tail_offset]
        if self.header is not None:
            is_front_good = self.footers.front is not None and self.footers.front.is_sound
            places = [self.tail_offset, 0] if is_front_good else [0, self.tail_offset]
        for offset in places:
            self.storage.write(offset, raw)
            self.storage.flush()
        self._is_tail_whole = True
        self.footers = self.footers._replace(
            tail=self.footer, front=None if self.header is None else self.footer, is_old=False
        )
        self._file_bytes = self.storage.size

    def write_header(self) -> None:
        """Put the dynamic header in its place. Its first sector holds all that `resize` changes."""
        assert self.header is not None
        self.header.is_sound = True
        self.storage.write(self.footer.data_offset, self.header.to_bytes())
        self.storage.flush()

    def extend(self, length: int) -> int:
        """Room of so many zeros where the footer stood, which moves behind it; returns its offset."""
        start = self.tail_offset
        end = -(-(start + length) // SECTOR_BYTES) * SECTOR_BYTES
        self.storage.write(end, self.footer.to_bytes())
        if self._is_tail_whole:
            self.storage.write(start, bytes(FOOTER_BYTES))
        self.tail_offset = end
        self._is_tail_whole = True
        self._file_bytes = end + FOOTER_BYTES
        return start

    def take_place(self) -> int:
        """The offset of a bitmap's and a block's worth of zeros, the block aligned for the file system."""
        start = -(-self.tail_offset // SECTOR_BYTES) * SECTOR_BYTES
        if self._block_bytes >= _ALIGNMENT_BYTES:
            data = -(-(start + self._bitmap_bytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            start = data - self._bitmap_bytes
        if start // SECTOR_BYTES >= FREE:
            raise StorageError(self.name, "grow", f"its table cannot name the offset {start}")
        self.extend(start + self.place_bytes - self.tail_offset)
        return start

    def set_entry(self, block: int, host: int | None) -> None:
        """Let a block's bitmap stand at `host`, or nowhere; lasting after `settle`."""
        self._table[block] = FREE if host is None else host // SECTOR_BYTES
        self._bitmaps.moved(block)
        self._changed.add(block)

    def make_whole(self, block: int) -> None:
        """Make all sectors of an allocated block this file's: those that were not are zeros from now on."""
        host = self._table[block] * SECTOR_BYTES
        sectors = self._block_bytes // SECTOR_BYTES
        data = host + self._bitmap_bytes
        for first, end, is_here in list(self._bitmaps.runs(block, host, 0, sectors)):
            if not is_here:
                self.storage.zero(data + first * SECTOR_BYTES, (end - first) * SECTOR_BYTES)
        self._bitmaps.mark(block, host, 0, sectors)
        self._settle_many()

    def _own(self, block: int, inside: int, length: int) -> int:
        """Make sectors of a block this file's; returns where they lie, for the caller to write or to zero.

        The other sectors of a new block stay the parent's, or are zeros when there is none.
        """
        entry = self._table[block]
        if entry == FREE:
            host = self.take_place()
            self.set_entry(block, host)
            if self.is_differencing:
                self._bitmaps.begin_empty(block)
            else:
                self.storage.write(host, self._bitmaps.full)
                self._bitmaps.begin_whole(block)
        else:
            host = entry * SECTOR_BYTES
        self._bitmaps.mark(block, host, inside // SECTOR_BYTES, -(-(inside + length) // SECTOR_BYTES))
        return host + self._bitmap_bytes + inside

    def _place(self, offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            block, inside = divmod(offset + position, self._block_bytes)
            part = data[position : position + self._block_bytes - inside]
            self.storage.write(self._own(block, inside, len(part)), part)
            position += len(part)
        self._settle_many()

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if self.header is None:
            self.storage.zero(offset, length, unmap=unmap)
            return True
        end = offset + length
        for start in range(offset, end, _WINDOW_BYTES):
            self._zero_window(start, min(end - start, _WINDOW_BYTES), unmap)
        return True

    def _zero_window(self, offset: int, length: int, unmap: bool) -> None:
        if not self.is_differencing:
            self._zero_own(offset, length, unmap)
            return
        stretches = [(offset, offset + length)]
        if unmap and self.backing is not None:  # what reads as zeros through the chain may go on doing so
            extents = self._resolve(offset, length, 0)
            stretches = [(extent.start, extent.end) for extent in extents if extent.kind is not Kind.ZERO]
        for position, end in stretches:
            while position < end:
                block, inside = divmod(position, self._block_bytes)
                part = min(end - position, self._block_bytes - inside)
                self.storage.zero(self._own(block, inside, part), part, unmap=unmap)
                position += part
                self._settle_many()

    def _zero_own(self, offset: int, length: int, unmap: bool) -> None:
        for extent in list(self._extents(offset, length)):
            if extent.kind is Kind.DATA:
                self.storage.zero(extent.host, extent.length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        # Of a differencing disk's sectors, those that are its own: hiding the parent's would cost space.
        if self.header is None:
            self.storage.zero(offset, length)
            return
        for start in range(offset, offset + length, _WINDOW_BYTES):
            self._zero_own(start, min(_WINDOW_BYTES, offset + length - start), True)

    def _flush(self) -> None:
        # Data before the bitmaps that show it, bitmaps before the table that shows the blocks.
        storage = self.storage
        storage.flush()
        is_changed = False
        for block, bitmap in self._bitmaps.take_changed() if self.header is not None else ():
            storage.write(self._table[block] * SECTOR_BYTES, bitmap)
            is_changed = True
        if is_changed:
            storage.flush()
        if self._changed:
            assert self.header is not None
            write_table_parts(storage, self.header.table_offset, self._table, self._changed, big_endian=True)
            self._changed.clear()
            storage.flush()

    def _settle_many(self) -> None:
        if self._bitmaps.is_crowded or len(self._changed) > _MOST_CHANGED_ENTRIES:
            self._flush()

    def settle(self) -> None:
        """Flush all that was changed: for `check` and `resize`, which change the tables by themselves."""
        self._flush()

    def start_change(self) -> None:
        """What the first write does."""
        self._start_change()

    def cut_file(self, tail_offset: int) -> None:
        """Let the footer stand at `tail_offset`, in front of where it stood, and the file end behind it."""
        self.storage.write(tail_offset, self.footer.to_bytes())
        self.storage.flush()
        self.storage.truncate(tail_offset + FOOTER_BYTES)
        self.storage.flush()
        self.tail_offset = tail_offset
        self._is_tail_whole = True
        self._file_bytes = tail_offset + FOOTER_BYTES
