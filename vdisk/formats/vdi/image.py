"""`VdiImage`: VirtualBox's disk image, dynamic, static, differencing and undo."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.formats.blockmap import BlockMapImage, read_table, write_table_parts
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.holes import with_holes
from vdisk.formats.image import Description, OpenRequest
from vdisk.formats.places import Part, Places, places_of
from vdisk.formats.runs import runs_of
from vdisk.formats.vdi.header import (
    ALLOCATED_COUNT_OFFSET,
    FREE,
    SECTOR_BYTES,
    TYPE_NAMES,
    ZERO,
    Header,
)
from vdisk.formats.vdi.parent import open_parent, parent_name
from vdisk.storage.base import Storage

_PIECE_ENTRIES = 128
_MOST_CHANGED_PIECES = 1 << 16
_NO_RUNS = 1 << 40
_MOST_HOLES = 1 << 20


class VdiImage(BlockMapImage):
    """Blocks in any order behind a header and one table; the last block is stored whole, whatever the disk's size.

    An entry of the table is a slot of the data area. VirtualBox and QEMU take the number of blocks in use for the next
    slot, so slots are given out without a gap, and that number is never less than the blocks in use.

    Without a parent a write allocates for a sector at a time, as a new block is zeros in the file; with one, whole
    blocks are copied up.
    """

    format_name = "vdi"
    _marks = (ZERO, FREE)
    _zero_mark = ZERO

    def __init__(self, storage: Storage, header: Header, request: OpenRequest) -> None:
        block_size = header.block_bytes if header.has_parent else SECTOR_BYTES
        super().__init__(storage, header.disk_bytes, writable=request.writable, block_size=block_size)
        self.header = header
        self.gate = request.gate
        self._changed: set[int] = set()
        """Pieces of the table, 128 entries each, that are not in the file yet."""
        self._holes: list[int] = []
        """Slots below the last one in use that no block has; the lowest is the last."""
        self._next_slot = 0
        self.take_geometry()

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        try:
            header = Header.read(storage)
            image = cls(storage, header, request)
            if header.has_parent and request.with_backing:
                if request.backing_format not in (None, "vdi"):
                    raise Unsupported(storage.name, "vdi", f"a parent of format {request.backing_format}")
                image.backing = open_parent(request.gate, storage.name, header)
        except BaseException:
            storage.close()
            raise
        return image

    @property
    def table(self) -> array[int]:
        """The entries of the disk's blocks: slots, `FREE` or `ZERO`."""
        return self._table

    def describe(self) -> Description:
        header = self.header
        specific: dict[str, Any] = {
            "image-type": TYPE_NAMES[header.image_type],
            "uuid": str(header.uuid),
            "modification-uuid": str(header.modification_uuid),
        }
        if header.description:
            specific["description"] = header.description
        name, notes = None, []
        if header.has_parent:
            if self.backing is not None:
                name = Path(self.backing.name).name
            else:
                name = parent_name(self.gate, self.name, header)
            if name is None:
                notes.append("its parent is not among the .vdi files beside it")
            specific["parent-uuid"] = str(header.parent_uuid)
            specific["parent-modification-uuid"] = str(header.parent_modification_uuid)
        return Description(
            cluster_size=header.block_bytes,
            backing_name=name,
            backing_format="vdi" if header.has_parent else None,
            specific=specific,
            notes=notes,
        )

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.vdi.check import check

        with self.changing():
            return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.vdi.resize import resize

        with self.changing():
            resize(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        from vdisk.formats.vdi.resize import set_parent

        with self.changing():
            set_parent(self, name, format)

    def take_geometry(self) -> None:
        """Take size and table as the header has them. Nothing may be waiting to be written."""
        header = self.header
        self.size = header.disk_bytes
        self._block_bytes = header.block_bytes
        self._stride = header.stride_bytes
        # Blocks in neighbouring slots are one run, unless each has a prefix.
        self._entry_step = _NO_RUNS if header.block_extra_bytes else 1
        self._data_start = header.data_offset + header.block_extra_bytes
        self._table = read_table(self.storage, "block map", header.table_offset, header.disk_blocks)
        self._file_bytes = self.storage.size

    # Reading ---------------------------------------------------------------------------------------------------

    def _host_of(self, entry: int) -> int:
        return self._data_start + entry * self._stride

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        block, inside = divmod(offset, self._block_bytes)
        if inside + length <= self._block_bytes:
            return (self._extent(offset, length, self._table[block], inside),)
        return super()._survey(offset, length)

    def _extent(self, start: int, length: int, entry: int, inside: int) -> Extent:
        if entry >= ZERO:
            return Extent(start, length, Kind.ZERO if entry == ZERO else Kind.UNALLOCATED)
        host = self._data_start + entry * self._stride + inside
        if host + length > self._file_bytes:
            # Of a run of blocks, the first that is not there as a whole.
            number = max(0, self._file_bytes - host + inside) // self._block_bytes
            raise Corrupt(
                self.name,
                f"block map entry {start // self._block_bytes + number}",
                expected=f"a place in the file of {self._file_bytes} bytes",
                found=entry + number,
            )
        return Extent(start, length, Kind.DATA, self.storage, host)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        """As the table has it, and holes of the file are zeros."""
        return with_holes(self._extents(offset, length))

    # Writing ---------------------------------------------------------------------------------------------------

    def places(self) -> Places:
        """Who has which part of the file."""
        import numpy

        header = self.header
        parts = [
            Part("header", 0, SECTOR_BYTES),
            Part("block map", header.table_offset, 4 * header.block_count),
        ]
        entries = numpy.asarray(self._table, numpy.uint32)
        blocks = numpy.flatnonzero(entries < ZERO)
        starts = entries[blocks].astype(numpy.uint64) * numpy.uint64(self._stride) + numpy.uint64(header.data_offset)
        return places_of(parts, starts, blocks, self._stride, self.storage.size)

    def _begin_write(self) -> None:
        places = self.places()
        places.refuse_overlaps(self.name)
        end = int(places.ends.max())
        if end > self._file_bytes and len(places.starts) > 2:  # a longer file would show what is missing as zeros
            raise Corrupt(self.name, "file", expected=f"at least {end} bytes", found=self._file_bytes)
        self.begin_session(of_data=True)

    def begin_session(self, *, of_data: bool) -> None:
        """Find the slots that are not in use. `of_data`: the disk's content is to change, and what it is known by."""
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        self.find_slots()
        if of_data:
            self.header.modification_uuid = uuid.uuid4()
            self.header.write(self.storage)
            self.storage.flush()

    def find_slots(self) -> None:
        """Take stock of the slots, as the table has them."""
        used = self.used_slots()
        self._allocated = len(self._table) - self._table.count(FREE) - self._table.count(ZERO)
        self._next_slot = int(used[-1]) + 1 if len(used) else 0
        if len(used) < self._next_slot:
            import numpy

            is_used = numpy.zeros(self._next_slot, bool)
            is_used[used] = True
            self._holes = numpy.flatnonzero(~is_used)[:_MOST_HOLES][::-1].tolist()
        else:
            self._holes = []

    def used_slots(self) -> Any:
        """The slots in use that lie in the file, ascending and each once: an array of numpy's."""
        import numpy

        entries = numpy.asarray(self._table, numpy.uint32)
        most = max(0, self.storage.size - self.header.data_offset) // self._stride
        return numpy.unique(entries[entries < min(ZERO, most + 1)])

    @property
    def hole_count(self) -> int:
        """How many slots in front of the last one in use are known to be free."""
        return len(self._holes)

    def take_slot(self) -> int:
        """A slot of zeros that no block has."""
        if self._holes:
            slot = self._holes.pop()
        else:
            slot = self._next_slot
            self._next_slot += 1
        start = self.header.data_offset + slot * self._stride
        end = start + self._stride
        if start < self._file_bytes:
            self.storage.zero(start, min(end, self._file_bytes) - start)
        if end > self._file_bytes:
            self.storage.truncate(end)
            self._file_bytes = end
        return slot

    def keep_free(self, slot_count: int) -> None:
        """Give out none of the first slots."""
        self._holes = [slot for slot in self._holes if slot >= slot_count]
        self._next_slot = max(self._next_slot, slot_count)

    def set_entry(self, block: int, entry: int) -> None:
        """Let a block have a slot, or be `FREE` or `ZERO`; lasting after `settle`."""
        self._allocated += (entry < ZERO) - (self._table[block] < ZERO)
        self._table[block] = entry
        self._changed.add(block // _PIECE_ENTRIES)

    def _place(self, offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            block, inside = divmod(offset + position, self._block_bytes)
            part = data[position : position + self._block_bytes - inside]
            if self._table[block] >= ZERO:
                self.set_entry(block, self.take_slot())
            self.storage.write(self._host_of(self._table[block]) + inside, part)
            position += len(part)
        if len(self._changed) > _MOST_CHANGED_PIECES:
            self._flush()

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if self.header.has_parent:  # whole blocks, then: those that show the parent's are marked
            first = offset // self._block_bytes
            count = -(-(offset + length) // self._block_bytes) - first
            for index, run, entry in list(runs_of(self._table, first, count, 1, ZERO, FREE)):
                if entry == FREE:
                    self._table[index : index + run] = array("I", (ZERO,)) * run
                    self._changed.update(range(index // _PIECE_ENTRIES, (index + run - 1) // _PIECE_ENTRIES + 1))
        for extent in list(super()._survey(offset, length)):
            if extent.kind is Kind.DATA:
                self.storage.zero(extent.host, extent.length, unmap=unmap)
        return True

    def _discard(self, offset: int, length: int) -> None:
        for extent in list(super()._survey(offset, length)):
            if extent.kind is Kind.DATA:
                self.storage.zero(extent.host, extent.length)

    def _flush(self) -> None:
        # Data before the table that shows it; and the number of blocks first, as the next slot is found by it.
        self.storage.flush()
        if not self._changed:
            return
        if self.header.allocated_count < self._allocated:
            self.write_count()
            self.storage.flush()
        changed = [piece * _PIECE_ENTRIES for piece in self._changed]
        write_table_parts(self.storage, self.header.table_offset, self._table, changed)
        self._changed.clear()
        self.storage.flush()
        if self.header.allocated_count > self._allocated:
            self.write_count()

    def write_count(self) -> None:
        """Bring the number of blocks in use into the header."""
        self.header.allocated_count = self._allocated
        self.storage.write(ALLOCATED_COUNT_OFFSET, self._allocated.to_bytes(4, "little"))

    def settle(self) -> None:
        """Flush all that was changed: for `check` and `resize`, which change the table by themselves."""
        self._flush()

    def start_change(self) -> None:
        """What the first write does."""
        self._start_change()

    def cut_file(self) -> None:
        """Cut off what lies behind the last slot in use."""
        self.storage.truncate(min(self.storage.size, self.header.data_offset + self._next_slot * self._stride))
        self._file_bytes = self.storage.size

    def lengthen(self, size: int) -> None:
        """Make a file that was cut off as long as its last block needs it."""
        self.storage.truncate(max(self.storage.size, size))
        self._file_bytes = self.storage.size
