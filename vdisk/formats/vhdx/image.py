"""`VhdxImage`: a VHDX file, fixed, dynamic or differencing, open for reading or writing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self
from uuid import UUID, uuid4

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind, coalesce
from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.gate import Gate
from vdisk.formats.holes import with_holes
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.runs import runs_of
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import (
    Header,
    HeaderWriter,
    RegionTable,
    check_signature,
    current_header,
    read_creator,
    read_region_table,
)
from vdisk.formats.vhdx.log import LogWriter
from vdisk.formats.vhdx.metadata import Metadata, read_metadata
from vdisk.formats.vhdx.parent import LINKAGE, open_parent, parent_name
from vdisk.formats.vhdx.replay import ReplayedStorage, replayed
from vdisk.formats.vhdx.structs import (
    FULLY_PRESENT,
    MIB,
    NO_GUID,
    NOT_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    UNMAPPED_095,
    ZERO,
)
from vdisk.formats.vhdx.tables import BlockTable, PageCache, SectorBitmap, host_of
from vdisk.storage.base import Storage

_FEW_BLOCKS = 64
"""Runs of fewer blocks are walked in Python: numpy would cost more than it gains."""
_WINDOW_BLOCKS = 1 << 18
_MOST_CHANGED_SECTORS = 2048
"""Changed metadata sectors, 8 MiB, that are kept in memory before they are written."""


class VhdxImage(StorageDevice, Image):
    """A VHDX file. A log that waits for replay is replayed in memory, and in the file once something is written.

    `block_size`, in which a write allocates, is the logical sector: a new block's other sectors are zeros in the
    file, or stay the parent's by the sector bitmap.
    """

    format_name = "vhdx"

    def __init__(
        self,
        storage: Storage,
        request: OpenRequest,
        header: HeaderWriter,
        regions: RegionTable,
        metadata: Metadata,
        *,
        log_waits: bool,
    ) -> None:
        super().__init__(
            storage, metadata.disk_bytes, writable=request.writable, block_size=metadata.logical_sector_bytes
        )
        self.regions = regions
        self.metadata = metadata
        self.gate: Gate = request.gate
        self._header = header
        self._log_waits = log_waits
        self._log: LogWriter | None = None
        self.pages = PageCache(storage)
        self._freed: list[int] = []
        """Places of blocks given up since the last flush: not to be used again before it."""
        self._free: list[int] = []
        """Places of blocks that hold zeros and belong to none."""
        self._gaps: list[int] = []
        """Places of that size that nothing refers to, and that hold anything."""
        self.take_geometry()
        self._file_bytes = storage.size

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        image: Self | None = None
        try:
            check_signature(storage)
            index, header = current_header(storage)
            source = replayed(storage, header)
            regions = read_region_table(source)
            metadata = read_metadata(source, regions.metadata)
            metadata.check_bat(source, regions.bat)
            writer = HeaderWriter(storage, index, header)
            image = cls(source, request, writer, regions, metadata, log_waits=source is not storage)
            if metadata.has_parent and request.with_backing:
                if request.backing_format not in (None, "vhdx"):
                    raise Unsupported(storage.name, "vhdx", f"a parent of format {request.backing_format}")
                image.backing = open_parent(request.gate, storage.name, metadata.locator)
        except BaseException:
            storage.close()
            raise
        return image

    @property
    def data_write_guid(self) -> UUID:
        """Changes when the disk's content does; a child keeps its parent's."""
        return self._header.header.data_write_guid

    @property
    def header(self) -> Header:
        """The current header."""
        return self._header.header

    @property
    def log_waits(self) -> bool:
        """Whether the file has a log that was not replayed yet."""
        return self._log_waits

    def describe(self) -> Description:
        metadata, header = self.metadata, self.header
        kind = "fixed" if metadata.leaves_blocks_allocated else "dynamic"
        specific: dict[str, Any] = {
            "subformat": "differencing" if metadata.has_parent else kind,
            "block-size": metadata.block_bytes,
            "logical-sector-size": metadata.logical_sector_bytes,
            "physical-sector-size": metadata.physical_sector_bytes,
            "log-size": header.log_bytes,
            "creator": read_creator(self.storage),
            "virtual-disk-id": str(metadata.page_83_data),
            "data-write-guid": str(header.data_write_guid),
        }
        notes = []
        if metadata.has_parent:
            specific["parent-linkage"] = metadata.locator.get(LINKAGE, "")
        if self._log_waits:
            notes.append("the log holds changes that are not in place yet; they are read as if they were")
        return Description(
            cluster_size=metadata.block_bytes,
            is_dirty=self._log_waits,
            backing_name=parent_name(metadata.locator) if metadata.has_parent else None,
            backing_format="vhdx" if metadata.has_parent else None,
            specific=specific,
            notes=notes,
        )

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.vhdx.check import check

        return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.vhdx.resize import resize

        with self._lock:
            resize(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        from vdisk.formats.vhdx.resize import set_parent

        with self._lock:
            set_parent(self, name, format)

    # Reading ---------------------------------------------------------------------------------------------------

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
        if last - block < _FEW_BLOCKS:
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

    # Writing ---------------------------------------------------------------------------------------------------

    def _begin_write(self) -> None:
        self.begin_change(of_data=True)

    def begin_change(self, *, of_data: bool) -> None:
        """Make the file ready for changes: replay the log, refuse tables that would harm, take a new identity.

        `of_data`: the disk's content is to change, and what it is known by to its children with it.
        """
        from vdisk.formats.vhdx.places import survey_places

        places = survey_places(self)
        places.refuse_overlaps(self.name)
        self.begin_session(of_data=of_data)
        self._gaps = places.gaps(self._block_bytes, MIB)

    def begin_session(self, *, of_data: bool) -> None:
        """What `begin_change` does, whatever the table is like: for a repair of it."""
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        self.settle_log()
        fields: dict[str, Any] = {"file_write_guid": uuid4(), **self._log_room()}
        if of_data:
            fields["data_write_guid"] = uuid4()
        self._header.update(**fields)

    def settle_log(self) -> None:
        """Put what waits in the log into its place in the file, and empty the log."""
        if isinstance(self.storage, ReplayedStorage) and self._log_waits:
            self.storage.apply()
            self._file_bytes = self.storage.size
        if self.header.log_guid != NO_GUID:
            self._header.update(log_guid=NO_GUID)
        self._log_waits = False

    def _log_room(self) -> dict[str, int]:
        """A place for a log, in a file that has none or one that is cut off by its end."""
        header = self.header
        if header.log_bytes and header.log_offset + header.log_bytes <= self.storage.size:
            return {}
        return {"log_offset": self.extend(MIB), "log_bytes": MIB}

    def extend(self, length: int) -> int:
        """Lengthen the file by so many zeros from a whole MiB on; returns their offset."""
        host = -(-self.storage.size // MIB) * MIB
        self.storage.truncate(host + length)
        self._file_bytes = host + length
        return host

    def _take_block(self) -> int:
        """The offset of a block's worth of zeros that nothing refers to."""
        if self._free:
            return self._free.pop()
        if self._gaps:
            host = self._gaps.pop()
            self.storage.zero(host, self._block_bytes)
            return host
        return self.extend(self._block_bytes)

    def _place(self, offset: int, data: memoryview) -> None:
        position, end = offset, offset + len(data)
        while position < end:
            block = position >> self._block_shift
            part = min(end, (block + 1) << self._block_shift) - position
            host = self._own(block, position, part)
            self.storage.write(host, data[position - offset : position - offset + part])
            position += part
        self.settle_many()

    def _own(self, block: int, offset: int, length: int) -> int:
        """Make sectors of a block this file's own; returns where they lie, for the caller to write or to zero.

        Sectors of the block that were neither the file's nor the parent's are zeros.
        """
        start = block << self._block_shift
        entry = self.table.payload(block)
        state = entry & STATE_MASK
        has_place = state in (FULLY_PRESENT, PARTIALLY_PRESENT)
        base = host_of(self.name, f"BAT entry of block {block}", entry, 0, self._file_bytes) if has_place else 0
        if not has_place:
            base = self._take_block()
        shows_parent = self.metadata.has_parent and state in (NOT_PRESENT, PARTIALLY_PRESENT)
        is_whole = length == min(self._block_bytes, self.size - start)
        if state != FULLY_PRESENT:
            if shows_parent and not is_whole:
                if state == NOT_PRESENT:
                    self._make_bitmap(block)
                bitmap, first_bit = self._bitmap_of(block)
                if state == NOT_PRESENT:
                    self._bitmap.set(bitmap, first_bit, self._block_sectors, False)
                first = (offset - start) >> self._sector_shift
                self._bitmap.set(bitmap, first_bit + first, -(-length >> self._sector_shift))
                self.table.set_payload(block, base | PARTIALLY_PRESENT)
            else:
                self.table.set_payload(block, base | FULLY_PRESENT)
        return base + offset - start

    def _make_bitmap(self, block: int) -> None:
        """See to it that the block's chunk has a sector bitmap."""
        chunk = block // self._chunk_blocks
        if self.table.bitmap(chunk) & STATE_MASK != structs.BITMAP_PRESENT:
            host = self.extend(MIB)
            self.pages.forget(host, MIB)
            self.table.set_bitmap(chunk, host | structs.BITMAP_PRESENT)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if self.metadata.has_parent:  # what is not there shows the parent, so that no block can be passed over
            stretches = [(offset, offset + length)]
        else:
            extents = coalesce(self._table_extents(offset, length))
            stretches = [(extent.start, extent.end) for extent in extents if extent.kind is Kind.DATA]
        for position, end in stretches:
            while position < end:
                block = position >> self._block_shift
                stop = min(end, (block + 1) << self._block_shift)
                self._zero_in_block(block, position, stop - position, unmap)
                position = stop
        self.settle_many()
        return True

    def _zero_in_block(self, block: int, offset: int, length: int, unmap: bool) -> None:
        entry = self.table.payload(block)
        state = entry & STATE_MASK
        has_place = state in (FULLY_PRESENT, PARTIALLY_PRESENT)
        if not has_place and (state != NOT_PRESENT or not self.metadata.has_parent):
            return
        start = block << self._block_shift
        is_whole = length == min(self._block_bytes, self.size - start)
        if is_whole and (not has_place or (unmap and not self.metadata.leaves_blocks_allocated)):
            self.table.set_payload(block, ZERO)
            if has_place:
                self._freed.append(entry & OFFSET_MASK)
            return
        self.storage.zero(self._own(block, offset, length), length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        end = offset + length
        if self.metadata.has_parent:  # sectors are not given back one by one, and hiding the parent's would cost space
            offset = -(-offset >> self._block_shift) << self._block_shift
            end = end if end == self.size else end >> self._block_shift << self._block_shift
        if offset < end:
            self._zero(offset, end - offset, True)

    def _flush(self) -> None:
        """Data first; then the log has the metadata; then that goes to its places, to be flushed before the next entry.

        A kill anywhere in between leaves the old or the new tables.
        """
        self.storage.flush()
        while self.pages.changed:
            if self._log is None:
                header = self.header
                self._log = LogWriter(self.storage, header.log_offset, header.log_bytes, uuid4())
            sectors = self.pages.changed_sectors(self._log.most_sectors)
            self._log.append(sectors)
            self.storage.flush()
            if self.header.log_guid != self._log.guid:
                self._header.update(log_guid=self._log.guid)
            for offset, data in sectors:
                self.storage.write(offset, data)
            self.pages.settled(sectors)
            if self.pages.changed:
                self.storage.flush()
        while self._freed:
            host = self._freed.pop()
            self.storage.zero(host, self._block_bytes)
            self._free.append(host)

    def settle(self) -> None:
        """Flush all that was changed, tables included: for `check` and `resize`, which change them by themselves."""
        self._flush()

    def settle_many(self) -> None:
        """Flush when there is much of it."""
        if len(self.pages.changed) > _MOST_CHANGED_SECTORS:
            self._flush()

    def start_change(self) -> None:
        """What the first write does."""
        self._start_change()

    def forget_places(self) -> None:
        """The file was cut or given back in part: no space in it is known to be free."""
        self._file_bytes = self.storage.size
        self._free.clear()
        self._gaps.clear()

    def absent_sectors(self, block: int) -> list[tuple[int, int]]:
        """(offset in the block, length) of what is not this file's own in a block that is so in part."""
        bitmap, first_bit = self._bitmap_of(block)
        found, at = [], 0
        for run, is_present in self._bitmap.runs(bitmap, first_bit, self._block_sectors):
            if not is_present:
                found.append((at << self._sector_shift, run << self._sector_shift))
            at += run
        return found

    def _close(self) -> None:
        try:
            if self._log is not None and not self.pages.changed and self.header.log_guid != NO_GUID:
                self.storage.flush()
                self._header.update(log_guid=NO_GUID)
        finally:
            self.storage.close()
