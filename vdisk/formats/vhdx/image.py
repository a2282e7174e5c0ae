"""`VhdxImage`: a VHDX file, fixed, dynamic or differencing, open for reading or writing."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID, uuid4

from vdisk.block.extent import Kind, coalesce
from vdisk.errors import StorageError, Unsupported
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.gate import Gate
from vdisk.formats.image import Description, OpenRequest
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.blocks import VhdxBlocks
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
    ZERO,
)
from vdisk.formats.vhdx.tables import host_of
from vdisk.storage.base import Storage

_MOST_CHANGED_SECTORS = 2048
"""Changed metadata sectors, 8 MiB, that are kept in memory before they are written."""


class VhdxImage(VhdxBlocks):
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
        super().__init__(storage, regions, metadata, writable=request.writable)
        self.gate: Gate = request.gate
        self._header = header
        self._log_waits = log_waits
        self._log: LogWriter | None = None
        self._freed: list[int] = []
        """Places of blocks given up since the last flush: not to be used again before it."""
        self._free: list[int] = []
        """Places of blocks that hold zeros and belong to none."""
        self._gaps: list[int] = []
        """Places of that size that nothing refers to, and that hold anything."""

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

    @property
    def log_is_lost(self) -> bool:
        """Whether the header says that there is a log, and not one entry of it is whole."""
        return self.header.log_guid != NO_GUID and self._log is None and not self._log_waits

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
        elif self.log_is_lost:
            notes.append("the log is said to be in use and holds no whole entry: what it held is lost")
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

        with self.changing():
            return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.vhdx.resize import resize

        with self.changing():
            resize(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        from vdisk.formats.vhdx.resize import set_parent

        with self.changing():
            set_parent(self, name, format)

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
        fields: dict[str, Any] = {"file_write_guid": uuid4()}
        if of_data:
            fields["data_write_guid"] = uuid4()
        if isinstance(self.storage, ReplayedStorage) and self.log_waits:
            self._header.update(**fields)  # the file's identity changes before the replay, too (2.2.2)
            self.storage.apply()
            self._file_bytes = self.storage.size
            fields = {}
        if self._log is None:
            fields["log_guid"] = NO_GUID
        self._log_waits = False
        self._header.update(**fields, **self._log_room())

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

    def zero_behind_end(self) -> None:
        """Make what the file holds of the last block behind the disk's end zeros, before the disk grows over it."""
        block, inside = divmod(self.size, self._block_bytes)
        entry = self.table.payload(block) if inside else NOT_PRESENT
        state = entry & STATE_MASK
        if state not in (FULLY_PRESENT, PARTIALLY_PRESENT):
            return
        host = host_of(self.name, f"BAT entry of block {block}", entry, inside, self._file_bytes)
        if state == PARTIALLY_PRESENT:
            bitmap, first_bit = self._bitmap_of(block)
            first = inside >> self._sector_shift
            self._bitmap.set(bitmap, first_bit + first, self._block_sectors - first)
        self.storage.zero(host + inside, self._block_bytes - inside)

    def _discard(self, offset: int, length: int) -> None:
        end = offset + length
        if self.metadata.has_parent:  # sectors are not given back one by one, and hiding the parent's would cost space
            offset = -(-offset >> self._block_shift) << self._block_shift
            end = end if end == self.size else end >> self._block_shift << self._block_shift
        if offset < end:
            self._zero(offset, end - offset, True)

    def _flush(self) -> None:
        """Data first; then the log has the metadata; then that goes to its places, to be flushed before the next entry.

        A kill anywhere in between leaves the old or the new tables. The header names the log's GUID only once there
        is an entry: a log that is said to be in use and empty would make the file a corrupt one (2.3.3).
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

    def empty_log(self) -> None:
        """Flush all, and let no log entry count: one of them could say that the file was longer than it is to be."""
        self._flush()
        self.storage.flush()
        if self.header.log_guid != NO_GUID:
            self._header.update(log_guid=NO_GUID)
        self._log = None

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

    def _close(self) -> None:
        try:
            if (
                self._log is not None
                and not self.is_broken
                and not self.pages.changed
                and self.header.log_guid != NO_GUID
            ):
                self.storage.flush()
                self._header.update(log_guid=NO_GUID)
        finally:
            self.storage.close()
