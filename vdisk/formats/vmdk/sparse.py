"""`SparseExtent`: a hosted or COWD sparse extent, by its grain directory and grain tables.

Tables are read when they are first needed and kept in bounded memory. A flush brings data to the disk before the
tables that name it, the redundant tables before the others, and new tables before the directory that names them: a
kill at any point leaks grains at worst.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Encoded, Extent, Kind
from vdisk.errors import Corrupt, StorageError
from vdisk.formats.runs import runs_of
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.header import SparseLayout
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Storage

ZERO_GRAIN = 1
"""The entry of a grain that reads as zeros, where the header's flag allows it."""

_TABLES_KEPT_BYTES = 16 << 20
_SURVEY_TABLE_BYTES = 1 << 20
_LAST_SECTOR = (1 << 32) - 1

_DATA = Kind.DATA
_ZERO = Kind.ZERO
_UNALLOCATED = Kind.UNALLOCATED


def longest_deflated(length: int) -> int:
    """Bytes that zlib's stream of `length` bytes takes at most."""
    return length + (length >> 12) + (length >> 14) + (length >> 25) + 64


class SparseExtent(StorageDevice):
    """The grains of one extent file, offsets counted from the extent's start. Owns its storage."""

    def __init__(
        self,
        storage: Storage,
        layout: SparseLayout,
        *,
        writable: bool = False,
        backing: BlockDevice | None = None,
    ) -> None:
        super().__init__(
            storage, layout.capacity_bytes, block_size=layout.grain_bytes, writable=writable, backing=backing
        )
        self.layout = layout
        self._grain_bytes = layout.grain_bytes
        self._entries_per_table = layout.entries_per_table
        directory_sector = layout.directory_sector
        if layout.directory_is_lost:
            assert layout.redundant_directory_sector is not None
            directory_sector = layout.redundant_directory_sector
        self.directory = self.read_directory(directory_sector)
        self._redundant: array[int] | None = None  # read when it is needed
        self._tables: dict[int, array[int]] = {}
        self._most_tables = max(16, _TABLES_KEPT_BYTES // (4 * layout.entries_per_table))
        self._dirty: set[int] = set()
        self._new_tables: set[int] = set()
        self._end_sector = -(-storage.size // SECTOR_BYTES)
        self._least_entry = ZERO_GRAIN + 1

    # Tables ----------------------------------------------------------------------------------------------------

    def read_directory(self, sector: int) -> array[int]:
        """The grain directory that lies at `sector`."""
        return _entries(self.storage.read(sector * SECTOR_BYTES, self.layout.directory_entries * 4))

    def _load(self, index: int) -> array[int]:
        """Grain table `index`, from the file; all zeros where the directory has none."""
        sector = self.directory[index]
        if sector == 0:
            table = array("I", bytes(4 * self._entries_per_table))
        else:
            table = _entries(self._read_table(index, sector))
        with self._lock:
            kept = self._tables.get(index)
            if kept is not None:
                return kept
            if len(self._tables) >= self._most_tables:
                self._forget_tables()
            self._tables[index] = table
        return table

    @property
    def redundant(self) -> array[int] | None:
        """The redundant grain directory; None where there is none, or it lies outside the file."""
        sector = self.layout.redundant_directory_sector
        if self._redundant is None and sector is not None and self.layout.holds_directory(sector, self.storage.size):
            self._redundant = self.read_directory(sector)
        return self._redundant

    def _read_table(self, index: int, sector: int) -> bytes:
        """A table's bytes; those of its redundant copy, where the table lies outside the file."""
        length = 4 * self._entries_per_table
        raw = self.storage.read(sector * SECTOR_BYTES, length)
        if len(raw) < length and self.redundant is not None:
            raw = self.storage.read(self.redundant[index] * SECTOR_BYTES, length) if self.redundant[index] else b""
        if len(raw) < length:
            raise Corrupt(
                self.name,
                f"grain directory entry {index}",
                expected=f"a grain table inside the file of {self.storage.size} bytes",
                found=f"sector {sector}",
            )
        return raw

    def _forget_tables(self) -> None:
        """Drop the older half of the clean tables; called under the lock."""
        clean = [index for index in self._tables if index not in self._dirty]
        if len(clean) <= len(self._tables) // 2:
            self._write_tables()
            clean = list(self._tables)
        for index in clean[: max(1, len(clean) // 2)]:
            del self._tables[index]

    # Reading ---------------------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        grain, inside = divmod(offset, self._grain_bytes)
        if inside + length > self._grain_bytes:
            return self._many(offset, length)
        index, slot = divmod(grain, self._entries_per_table)
        table = self._tables.get(index) or self._load(index)
        entry = table[slot]
        if entry == 0:
            return (Extent(offset, length, _UNALLOCATED),)
        return (self._extent(offset, length, entry, inside),)

    def _many(self, offset: int, length: int) -> Iterator[Extent]:
        """The grains of a range table by table, neighbours joined."""
        grain_bytes, per_table = self._grain_bytes, self._entries_per_table
        end = offset + length
        grain, last = offset // grain_bytes, -(-end // grain_bytes)
        while grain < last:
            index, slot = divmod(grain, per_table)
            count = min(per_table - slot, last - grain)
            table = self._tables.get(index) or self._load(index)
            yield from self._runs(table, slot, count, grain - slot, offset, end)
            grain += count

    def _runs(self, table: array[int], slot: int, count: int, base: int, offset: int, end: int) -> Iterator[Extent]:
        """The extents of `count` entries from `slot`, clipped to [offset, end); slot 0 is grain `base`."""
        grain_bytes, grain_sectors = self._grain_bytes, self.layout.grain_sectors
        for first, run, entry in runs_of(table, slot, count, grain_sectors, 0, ZERO_GRAIN):
            guest = (base + first) * grain_bytes
            start, stop = max(offset, guest), min(end, guest + run * grain_bytes)
            if entry == 0:
                yield Extent(start, stop - start, _UNALLOCATED)
            elif run == 1 or not self.layout.is_compressed or entry == ZERO_GRAIN:
                yield self._extent(start, stop - start, entry, start - guest)
            else:
                for grain in range(run):
                    at = guest + grain * grain_bytes
                    start, stop = max(offset, at), min(end, at + grain_bytes)
                    yield self._extent(start, stop - start, entry + grain * grain_sectors, start - at)

    def _extent(self, start: int, length: int, entry: int, inside: int) -> Extent:
        """The extent of a grain's, or a run's, entry other than 0."""
        if entry == ZERO_GRAIN and self.layout.has_zero_grains:
            return Extent(start, length, _ZERO)
        if self.layout.is_compressed:
            self._check_entry(entry, start)
            return self._encoded(start, length, entry, inside)
        host = entry * SECTOR_BYTES + inside
        if entry < self._least_entry or host + length > self._end_sector * SECTOR_BYTES:
            self._check_entry(entry, start)
            if host + length > self.storage.size:
                raise Corrupt(
                    self.name,
                    f"grain of guest offset {start}",
                    expected=f"{length} bytes at {host}",
                    found=f"a file of {self.storage.size} bytes: it may be cut short",
                )
        return Extent(start, length, _DATA, self.storage, host)

    def _check_entry(self, entry: int, start: int) -> None:
        if not self._least_entry <= entry < self._end_sector:
            raise Corrupt(
                self.name,
                f"grain table entry of guest offset {start}",
                expected=f"a sector from {self._least_entry} on inside the file of {self._end_sector} sectors",
                found=entry,
            )

    def _encoded(self, start: int, length: int, entry: int, inside: int) -> Extent:
        host = entry * SECTOR_BYTES
        unit_start = start - inside
        host_length = longest_deflated(self._grain_bytes)
        if self.layout.has_markers:
            marker = self.storage.read(host, structs.GRAIN_MARKER_BYTES)
            host += structs.GRAIN_MARKER_BYTES
            found = int.from_bytes(marker[8:12], "little")
            if not 0 < found <= 2 * host_length:
                raise Corrupt(
                    self.name,
                    f"grain marker of guest offset {start}: size",
                    expected=f"1 to {2 * host_length}",
                    found=found,
                )
            host_length = found
        # The last grain may have been compressed whole, or only as far as the disk goes.
        unit_length = min(self._grain_bytes, self.size - unit_start)
        encoded = Encoded("zlib", host, host_length, unit_start, unit_length)
        return Extent(start, length, Kind.ENCODED, self.storage, host, encoded=encoded)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        """The map of a range, by whole stretches of tables; the file's holes hold no entries and are not read."""
        span = self._grain_bytes * self._entries_per_table
        if length < span:
            yield from self._many(offset, length)
            return
        end = offset + length
        index, last = offset // span, -(-end // span)
        most = max(1, _SURVEY_TABLE_BYTES // (4 * self._entries_per_table))
        while index < last:
            count = self._neighbours(index, min(last - index, 64 * most))
            start, stop = max(offset, index * span), min(end, (index + count) * span)
            if self.directory[index] == 0 and not self._touches_new(index, count):
                yield Extent(start, stop - start, _UNALLOCATED)
            else:
                yield from self._survey_tables(index, count, most, start, stop)
            index += count

    def _neighbours(self, index: int, most: int) -> int:
        """How many tables from `index` on are all missing, or lie one behind the other in the file."""
        step = 0 if self.directory[index] == 0 else self.layout.table_sectors
        return next(iter(runs_of(self.directory, index, most, step, 0, 0))).length

    def _touches_new(self, index: int, count: int) -> bool:
        return any(index <= new < index + count for new in self._new_tables)

    def _survey_tables(self, index: int, count: int, most: int, offset: int, end: int) -> Iterator[Extent]:
        """`_survey` of `count` neighbouring tables from `index`."""
        per_table = self._entries_per_table
        table_bytes = self.layout.table_sectors * SECTOR_BYTES
        at = self.directory[index] * SECTOR_BYTES
        if at == 0 or table_bytes != 4 * per_table or any(index <= i < index + count for i in self._dirty):
            yield from self._many(offset, end - offset)
            return
        self._read_table(index + count - 1, self.directory[index + count - 1])  # the last one lies inside the file
        for start, length, is_data in self.storage.segments(at, count * table_bytes):
            # Entries, not tables: a hole may begin inside a table.
            first, stop = (start - at) // 4, (start - at + length) // 4
            base = index * per_table
            if not is_data:
                guest = max(offset, (base + first) * self._grain_bytes)
                guest_end = min(end, (base + stop) * self._grain_bytes)
                if guest < guest_end:
                    yield Extent(guest, guest_end - guest, _UNALLOCATED)
                continue
            for piece in range(first, stop, most * per_table):
                piece_count = min(most * per_table, stop - piece)
                guest = (base + piece) * self._grain_bytes
                if guest >= end:
                    return
                if guest + piece_count * self._grain_bytes <= offset:
                    continue
                entries = _entries(self.storage.read(at + 4 * piece, 4 * piece_count))
                skip = max(0, (offset - guest) // self._grain_bytes)
                keep = min(piece_count, -(-(end - guest) // self._grain_bytes))
                yield from self._runs(entries, skip, keep - skip, base + piece, offset, end)

    # Writing ---------------------------------------------------------------------------------------------------

    def _begin_write(self) -> None:
        layout = self.layout
        self._refuse_damaged_tables()
        self.mark_unclean(True)
        if layout.overhead_sectors <= self._end_sector:
            # A write to a grain that lies among the tables would destroy them.
            self._least_entry = max(self._least_entry, layout.overhead_sectors)
            self._end_sector = max(self._end_sector, layout.free_sector)
        self.align_end()

    def _refuse_damaged_tables(self) -> None:
        """No write before every table, and every copy, has a place of its own inside the file."""
        layout, wanted = self.layout, "every grain table in a place of its own; `check --repair all` may mend it"
        if layout.directory_is_lost:
            raise Corrupt(self.name, "header: gdOffset", expected=wanted, found=f"sector {layout.directory_sector}")
        if layout.redundant_directory_sector is not None and self.redundant is None:
            found = f"sector {layout.redundant_directory_sector}"
            raise Corrupt(self.name, "header: rgdOffset", expected=wanted, found=found)
        import numpy

        copies = [numpy.frombuffer(self.directory, dtype=numpy.uint32)]
        if self._redundant is not None:
            copies.append(numpy.frombuffer(self._redundant, dtype=numpy.uint32))
        sectors = numpy.sort(numpy.concatenate(copies).astype(numpy.int64))
        sectors = sectors[sectors > 0]
        step = layout.table_sectors
        if not len(sectors):
            return
        if (numpy.diff(sectors) < step).any() or sectors[-1] + step > self._end_sector:
            raise Corrupt(self.name, "grain directory", expected=wanted, found="tables that overlap or are missing")

    def mark_unclean(self, is_unclean: bool) -> None:
        """Set or clear the header's note that a program is writing the extent."""
        if self.layout.kind == "cowd":
            self.storage.write(structs.COWD_UNCLEAN_SHUTDOWN_OFFSET, int(is_unclean).to_bytes(4, "little"))
        else:
            self.storage.write(structs.UNCLEAN_SHUTDOWN_OFFSET, bytes([is_unclean]))

    def _place(self, offset: int, data: memoryview) -> None:
        layout = self.layout
        count = -(-len(data) // self._grain_bytes)
        sector = self.take_sectors(count * layout.grain_sectors)
        self.storage.write(sector * SECTOR_BYTES, data)
        if len(data) < count * self._grain_bytes:  # the disk ends inside its last grain; the file does not
            self.storage.write((sector + count * layout.grain_sectors) * SECTOR_BYTES - 1, b"\0")
        grain = offset // self._grain_bytes
        for step in range(count):
            self._set(grain + step, sector + step * layout.grain_sectors)

    def take_sectors(self, count: int) -> int:
        """Room at the end of the file."""
        sector = self._end_sector
        if sector + count > _LAST_SECTOR:
            raise StorageError(self.name, "write", "a sparse extent's file cannot grow past 2 TiB")
        self._end_sector = sector + count
        return sector

    @property
    def end_sector(self) -> int:
        """Behind the last sector that is given away."""
        return self._end_sector

    def align_end(self) -> None:
        """Let what is placed next lie on a grain's edge."""
        grain_sectors = self.layout.grain_sectors
        self._end_sector = -(-self._end_sector // grain_sectors) * grain_sectors

    def reserve(self, sector: int) -> None:
        """The file reaches to `sector` at least: what is placed from now on lies behind it."""
        self._end_sector = max(self._end_sector, sector)

    def place_of_grain(self, grain: int) -> int | None:
        """The file's offset of a grain that is stored."""
        index, slot = divmod(grain, self._entries_per_table)
        entry = (self._tables.get(index) or self._load(index))[slot]
        return entry * SECTOR_BYTES if entry > ZERO_GRAIN else None

    def clear_entries(self, first_grain: int, *, unmap: bool = False) -> None:
        """Forget every grain from `first_grain` on, to the tables' end; with `unmap`, give their space back."""
        for index in range(first_grain // self._entries_per_table, len(self.directory)):
            if self.directory[index] == 0 and index not in self._new_tables:
                continue
            table = self._tables.get(index) or self._load(index)
            for slot in range(max(0, first_grain - index * self._entries_per_table), self._entries_per_table):
                if table[slot]:
                    if unmap and ZERO_GRAIN < table[slot] < self._end_sector:
                        self.storage.zero(table[slot] * SECTOR_BYTES, self._grain_bytes)
                    self._set(index * self._entries_per_table + slot, 0)

    def replace_redundant(self, entries: array[int]) -> None:
        """Take another redundant directory."""
        self._redundant = entries

    def forget_tables(self) -> None:
        """Drop the tables that were read: they were changed in the file."""
        with self._lock:
            self._tables.clear()

    def _set(self, grain: int, entry: int) -> None:
        index, slot = divmod(grain, self._entries_per_table)
        table = self._tables.get(index) or self._load(index)
        table[slot] = entry
        self._dirty.add(index)
        if self.directory[index] == 0:
            self._new_tables.add(index)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        for extent in list(self._many(offset, length)):
            if extent.kind is _DATA:
                self.storage.zero(extent.host, extent.length, unmap=unmap)
            elif extent.kind is _UNALLOCATED and self.backing is not None:
                if not self.layout.has_zero_grains:
                    return False
                for start in range(extent.start, extent.end, self._grain_bytes):
                    self._set(start // self._grain_bytes, ZERO_GRAIN)
        return True

    def _discard(self, offset: int, length: int) -> None:
        for extent in list(self._many(offset, length)):
            if extent.kind is _DATA:
                self.storage.zero(extent.host, extent.length, unmap=True)

    def _flush(self) -> None:
        self._write_tables()
        self.storage.flush()

    def _write_tables(self) -> None:
        """Bring the changed tables to the file, once the data that they name is safe."""
        if not self._dirty:
            return
        self.storage.flush()
        moved = sorted(self._new_tables)
        for index in moved:
            self.directory[index] = self.take_sectors(self.layout.table_sectors)
            if self._redundant is not None:
                self._redundant[index] = self.take_sectors(self.layout.table_sectors)
        for directory in (self._redundant, self.directory):
            if directory is not None:
                for index in sorted(self._dirty):
                    if directory[index]:
                        self._write_table(directory[index], self._tables[index])
        if moved:
            self.storage.flush()
            first, last = moved[0], moved[-1] + 1
            for sector, directory in (
                (self.layout.redundant_directory_sector, self._redundant),
                (self.layout.directory_sector, self.directory),
            ):
                if directory is not None:
                    assert sector is not None
                    self.storage.write(sector * SECTOR_BYTES + 4 * first, entry_bytes(directory[first:last]))
            # What follows the tables is data, which is to lie on a grain's edge.
            grain_sectors = self.layout.grain_sectors
            self._end_sector = -(-self._end_sector // grain_sectors) * grain_sectors
        if self.layout.kind == "cowd":
            self.storage.write(
                structs.COWD_FREE_SECTOR_OFFSET, min(self._end_sector, _LAST_SECTOR).to_bytes(4, "little")
            )
        self._dirty.clear()
        self._new_tables.clear()

    def _write_table(self, sector: int, table: array[int]) -> None:
        raw = entry_bytes(table)
        self.storage.write(sector * SECTOR_BYTES, raw.ljust(self.layout.table_sectors * SECTOR_BYTES, b"\0"))

    def _close(self) -> None:
        try:
            if self._has_begun and not self.is_broken and not self._dirty:
                self.mark_unclean(False)
        finally:
            self.storage.close()


def _entries(raw: bytes) -> array[int]:
    """A directory or table, as numbers."""
    table = array("I")
    assert table.itemsize == 4
    table.frombytes(raw)
    if sys.byteorder == "big":
        table.byteswap()
    return table


def entry_bytes(table: array[int]) -> bytes:
    """A directory or table, as it stands in a file."""
    if sys.byteorder == "big":
        table = table[:]
        table.byteswap()
    return table.tobytes()
