"""Checking and mending sparse extents: directories, tables and their copies, grains, markers, the descriptor.

Memory: four bytes a grain that is stored.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Finding, Repair, Severity
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.sparse import ZERO_GRAIN, SparseExtent, entry_bytes
from vdisk.formats.vmdk.structs import SECTOR_BYTES

if TYPE_CHECKING:
    import numpy

    from vdisk.formats.vmdk.image import VmdkImage

    Array = numpy.ndarray[Any, Any]

_BATCH_BYTES = 1 << 20
_NOWHERE_SECTOR = 1 << 40
"""Outside every file."""


def check_image(image: VmdkImage, repair: Repair, *, dry_run: bool) -> CheckReport:
    """Check every sparse extent of a disk, and what the descriptor says of them."""
    report = CheckReport(total_clusters=0, allocated_clusters=0, compressed_clusters=0)
    if repair is not Repair.NONE and not dry_run and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    for number, part in enumerate(image.parts, 1):
        if isinstance(part.device, SparseExtent):
            where = f"extent {number}: " if len(image.parts) > 1 else ""
            ExtentCheck(part.device, where, report, repair, dry_run).run()
    descriptor, layout = image.descriptor, image.source.layout
    if descriptor is not None and layout is not None and len(descriptor.extents) == 1 and layout.capacity_sectors:
        line = descriptor.extents[0]
        if line.sectors != layout.capacity_sectors:
            mends = repair is Repair.ALL and not dry_run
            if mends:
                descriptor.replace_extents([line._replace(sectors=layout.capacity_sectors)])
                image.write_descriptor()
            report.add(
                Finding(
                    Severity.CORRUPTION,
                    "descriptor: extent 1",
                    f"expected the header's capacity of {layout.capacity_sectors} sectors, found {line.sectors}",
                    "the line is made to say what the header says",
                    mends,
                )
            )
    return report


class ExtentCheck:
    """The check of one sparse extent."""

    def __init__(self, extent: SparseExtent, where: str, report: CheckReport, repair: Repair, dry_run: bool) -> None:
        self.extent = extent
        self.layout = extent.layout
        self.storage = extent.storage
        self.where = where
        self.report = report
        self.mends_leaks = repair is not Repair.NONE and not dry_run and extent.writable
        self.mends_all = repair is Repair.ALL and not dry_run and extent.writable
        self.file_sectors = -(-self.storage.size // SECTOR_BYTES)
        self.new_end = -(-self.file_sectors // self.layout.grain_sectors) * self.layout.grain_sectors
        self.directory = extent.directory
        self.redundant = extent.redundant

    def run(self) -> None:
        """All checks, in an order in which one repair may rely on those before."""
        layout, report = self.layout, self.report
        if not layout.capacity_sectors:
            return
        self._check_directories()
        grains = self._check_tables()
        assert report.total_clusters is not None
        assert report.allocated_clusters is not None
        report.total_clusters += -(-layout.capacity_sectors // layout.grain_sectors)
        report.allocated_clusters += len(grains)
        if layout.is_compressed:
            assert report.compressed_clusters is not None
            report.compressed_clusters += len(grains)
        else:
            import numpy

            grains.sort()
            report.fragmented_clusters = (report.fragmented_clusters or 0) + int(
                numpy.count_nonzero(numpy.diff(grains) != layout.grain_sectors)
            )
            if self._check_overlaps(grains) and self.mends_all:
                self.report = CheckReport()  # all has been said; only the new places are asked for
                grains = self._check_tables()
                grains.sort()
                self.report = report
            self._check_leaks(grains)
        if layout.unclean_shutdown:
            if self.mends_leaks:
                self.extent.mark_unclean(False)
                layout.unclean_shutdown = False
            self._found(Severity.LEAK, "header", "uncleanShutdown is set", "the mark is taken away", self.mends_leaks)
        if self.mends_leaks or self.mends_all:
            self.storage.flush()
            self.extent.forget_tables()
        report.image_end_offset = max(report.image_end_offset or 0, self.storage.size)

    def _found(
        self, severity: Severity, where: str, message: str, fix: str | None, is_fixed: bool, count: int = 1
    ) -> None:
        self.report.add(Finding(severity, self.where + where, message, fix, is_fixed and fix is not None), count)

    # Directories -----------------------------------------------------------------------------------------------

    def _check_directories(self) -> None:
        """Directories inside the file; every table in them inside the file, and in a place of its own."""
        layout = self.layout
        if layout.directory_is_lost:
            if self.mends_all:
                self._lose(structs.DIRECTORY_OFFSET)
                layout.directory_sector = self._new_directory(self.directory)
                self._write_header_field(structs.DIRECTORY_OFFSET, layout.directory_sector)
                layout.directory_is_lost = False
                self.directory = self.extent.directory = self.extent.read_directory(layout.directory_sector)
            self._found(
                Severity.CORRUPTION, "header: gdOffset", "the grain directory lies outside the file",
                "a new one is made from the redundant one", self.mends_all,
            )  # fmt: skip
        elif layout.redundant_directory_sector is not None and self.redundant is None:
            if self.mends_all:
                self._lose(structs.REDUNDANT_DIRECTORY_OFFSET)
                layout.redundant_directory_sector = self._new_directory(self.directory)
                self._write_header_field(structs.REDUNDANT_DIRECTORY_OFFSET, layout.redundant_directory_sector)
                self.redundant = self.extent.redundant
            self._found(
                Severity.CORRUPTION, "header: rgdOffset", "the redundant grain directory lies outside the file",
                "a new one is made from the grain directory", self.mends_all,
            )  # fmt: skip
        for name, own, other in (
            ("grain directory", self.directory, self.redundant),
            ("redundant grain directory", self.redundant, self.directory),
        ):
            if own is not None:
                self._check_directory(name, own, other)

    def _check_directory(self, name: str, own: array[int], other: array[int] | None) -> None:
        import numpy

        layout = self.layout
        entries = numpy.frombuffer(own, dtype=numpy.uint32).astype(numpy.int64)
        bad = set(numpy.flatnonzero((entries > 0) & (entries + layout.table_sectors > self.file_sectors)).tolist())
        order = numpy.argsort(entries, kind="stable")
        steps = numpy.diff(entries[order])
        for at in numpy.flatnonzero((entries[order][:-1] > 0) & (steps < layout.table_sectors)).tolist():
            bad.add(int(order[at + 1]))
        if other is not None:
            bad |= set(numpy.flatnonzero((entries == 0) & (numpy.frombuffer(other, dtype=numpy.uint32) > 0)).tolist())
        for index in sorted(bad):
            copy = None if other is None else self._table_at(other[index])
            fix = "a new table is made from the other directory's" if copy is not None else None
            if self.mends_all and copy is not None:
                sector = self._append(copy)
                self._write_entry(name, index, sector)
                own[index] = sector
            self._found(
                Severity.CORRUPTION, f"{name} entry {index}",
                f"expected a grain table in a place of its own inside the file, found sector {int(entries[index])}",
                fix, self.mends_all,
            )  # fmt: skip

    def _table_at(self, sector: int) -> bytes | None:
        if sector == 0 or sector + self.layout.table_sectors > self.file_sectors:
            return None
        return self.storage.read(sector * SECTOR_BYTES, self.layout.table_sectors * SECTOR_BYTES)

    def _new_directory(self, like: array[int]) -> int:
        """A directory at the end of the file, with copies of the tables that `like` has; its sector."""
        entries = array("I", bytes(4 * len(like)))
        for index, sector in enumerate(like):
            copy = self._table_at(sector)
            if copy is not None:
                entries[index] = self._append(copy)
        return self._append(entry_bytes(entries).ljust(self.layout.directory_sectors * SECTOR_BYTES, b"\0"))

    def _append(self, raw: bytes) -> int:
        sector = self.new_end
        self.storage.write(sector * SECTOR_BYTES, raw)
        self.new_end += len(raw) // SECTOR_BYTES
        self.file_sectors = self.new_end
        self.extent.reserve(self.new_end)
        self.storage.flush()
        return sector

    def _write_entry(self, name: str, index: int, sector: int) -> None:
        layout = self.layout
        at = layout.directory_sector if name == "grain directory" else layout.redundant_directory_sector
        assert at is not None
        self.storage.write(at * SECTOR_BYTES + 4 * index, sector.to_bytes(4, "little"))

    def _lose(self, field: int) -> None:
        """Let an offset that lies outside the file stay there while the file grows: a kill may come."""
        self._write_header_field(field, _NOWHERE_SECTOR)
        self.storage.flush()

    def _write_header_field(self, offset: int, value: int) -> None:
        self.storage.write(offset, value.to_bytes(8, "little"))

    # Tables ----------------------------------------------------------------------------------------------------

    def _check_tables(self) -> Array:
        """Every entry, and its redundant copy; the sectors of all grains that are stored."""
        import numpy

        layout, per_table = self.layout, self.layout.entries_per_table
        last_grain = -(-layout.capacity_sectors // layout.grain_sectors)
        found: list[Array] = []
        for index, own in self._batches(self.directory):
            own = own.copy()
            base = index * per_table
            if base + len(own) > last_grain:
                self._check_behind(index, last_grain)
                own = own[: max(0, last_grain - base)]
            self._check_copies(index, own)
            is_wrong = (own >= self.file_sectors) | ((own == ZERO_GRAIN) & (not layout.has_zero_grains))
            for slot in numpy.flatnonzero(is_wrong).tolist():
                self._found(
                    Severity.CORRUPTION, f"grain table entry of guest offset {(base + slot) * layout.grain_bytes}",
                    f"expected a sector inside the file of {self.file_sectors} sectors, found {int(own[slot])}",
                    None, False,
                )  # fmt: skip
            own[is_wrong] = 0
            slots = numpy.flatnonzero(own > ZERO_GRAIN)
            if layout.has_markers:
                self._check_markers(base, slots, own)
            found.append(own[slots])
        return numpy.concatenate(found) if found else numpy.empty(0, numpy.uint32)

    def _check_behind(self, index: int, last_grain: int) -> None:
        """No entry stands behind the disk's end, in a batch of tables from `index` to the last."""
        import numpy

        per_table = self.layout.entries_per_table
        first = last_grain - index * per_table
        for name, directory in (("grain table", self.directory), ("redundant grain table", self.redundant)):
            if directory is None:
                continue
            behind = numpy.flatnonzero(self._entries(directory, index, len(directory) - index)[first:]) + first
            for slot in behind.tolist() if self.mends_leaks else ():
                table, at = index + slot // per_table, 4 * (slot % per_table)
                self.storage.write(directory[table] * SECTOR_BYTES + at, bytes(4))
            if len(behind):
                self._found(
                    Severity.LEAK, f"{name} {index + int(behind[0]) // per_table}",
                    f"{len(behind)} entries stand behind the disk's end", "they are taken out", self.mends_leaks,
                    len(behind),
                )  # fmt: skip

    def _check_copies(self, index: int, own: Array) -> None:
        """Hold a batch of tables against the redundant ones, which are made equal."""
        import numpy

        if self.redundant is None:
            return
        layout, per_table = self.layout, self.layout.entries_per_table
        count = -(-len(own) // per_table)
        other = self._entries(self.redundant, index, count)[: len(own)].copy()
        for slot in numpy.flatnonzero(own != other).tolist():
            mine, theirs = int(own[slot]), int(other[slot])
            table = index + slot // per_table
            at = f"grain table entry of guest offset {(index * per_table + slot) * layout.grain_bytes}"
            is_lost = mine >= self.file_sectors or (mine == ZERO_GRAIN and not layout.has_zero_grains)
            takes_theirs = is_lost and ZERO_GRAIN < theirs < self.file_sectors
            target = self.directory if takes_theirs else self.redundant
            fix = "the redundant entry is taken" if takes_theirs else "the redundant entry is made the same"
            severity = Severity.CORRUPTION if takes_theirs or (mine and theirs) else Severity.LEAK
            mends = self.mends_all or (self.mends_leaks and severity is Severity.LEAK)
            can_mend = bool(target[table])
            entry = theirs if takes_theirs else mine
            own[slot] = entry  # the checks to come look at what a repair leaves
            if mends and can_mend:
                place = target[table] * SECTOR_BYTES + 4 * (slot % per_table)
                self.storage.write(place, entry.to_bytes(4, "little"))
            self._found(severity, at, f"{mine}, and {theirs} in the redundant table", fix if can_mend else None, mends)

    def _batches(self, directory: array[int]) -> Iterator[tuple[int, Array]]:
        """(first table, entries) of all tables that hold any entry, some at a time."""
        per_table = self.layout.entries_per_table
        most = max(1, _BATCH_BYTES // (4 * per_table))
        for index in range(0, len(directory), most):
            count = min(most, len(directory) - index)
            if any(self._holds_data(d, index, count) for d in (self.directory, self.redundant) if d is not None):
                yield index, self._entries(directory, index, count)

    def _holds_data(self, directory: array[int], index: int, count: int) -> bool:
        """False where all tables are missing, or lie in a hole of the file."""
        sectors = [sector for sector in directory[index : index + count] if sector]
        if not sectors:
            return False
        start, end = min(sectors), max(sectors) + self.layout.table_sectors
        if end - start > 4 * count * self.layout.table_sectors:
            return True
        pieces = self.storage.segments(start * SECTOR_BYTES, (end - start) * SECTOR_BYTES)
        return any(is_data for _, _, is_data in pieces)

    def _entries(self, directory: array[int], index: int, count: int) -> Array:
        """The entries of `count` tables, one behind the other; zeros for one that is missing or outside the file."""
        import numpy

        layout, table_bytes = self.layout, 4 * self.layout.entries_per_table
        sectors = directory[index : index + count]
        start = sectors[0]
        step = layout.table_sectors
        in_line = start > 0 and step * SECTOR_BYTES == table_bytes
        if in_line and list(sectors) == list(range(start, start + count * step, step)):
            raw = self.storage.read(start * SECTOR_BYTES, count * table_bytes).ljust(count * table_bytes, b"\0")
        else:
            raw = b"".join(
                (self._table_at(sector) or b"").ljust(table_bytes, b"\0")[:table_bytes] for sector in sectors
            )
        entries = numpy.frombuffer(raw, dtype="<u4")
        return entries if sys.byteorder == "little" else entries.astype(numpy.uint32)

    def _check_markers(self, base: int, slots: Array, own: Array) -> None:
        """Every compressed grain says where it belongs, and lies inside the file."""
        layout = self.layout
        for slot in slots.tolist():
            sector = int(own[slot])
            raw = self.storage.read(sector * SECTOR_BYTES, structs.GRAIN_MARKER_BYTES)
            place, length = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")
            wanted = (base + slot) * layout.grain_sectors
            end = sector * SECTOR_BYTES + structs.GRAIN_MARKER_BYTES + length
            if place != wanted or not length or end > self.storage.size:
                self._found(
                    Severity.CORRUPTION, f"grain marker at sector {sector}",
                    f"expected the grain of sector {wanted} inside the file, found {length} bytes of sector {place}",
                    None, False,
                )  # fmt: skip

    # Grains ----------------------------------------------------------------------------------------------------

    def _metadata(self) -> list[tuple[int, int, str]]:
        """(first sector, end, name) of header, descriptor, directories and tables, ascending, neighbours joined."""
        import numpy

        layout, step = self.layout, self.layout.table_sectors
        found = [(0, 4 if layout.kind == "cowd" else 1, "the header")]
        if layout.descriptor_sector:
            at = layout.descriptor_sector
            found.append((at, at + layout.descriptor_sectors, "the descriptor"))
        for name, sector, directory in (
            ("grain directory", layout.directory_sector, self.directory),
            ("redundant grain directory", layout.redundant_directory_sector, self.redundant),
        ):
            if directory is None or sector is None:
                continue
            found.append((sector, sector + layout.directory_sectors, f"the {name}"))
            tables = numpy.sort(numpy.frombuffer(directory, dtype=numpy.uint32).astype(numpy.int64))
            tables = tables[(tables > 0) & (tables < self.file_sectors)]
            if len(tables):
                firsts = numpy.concatenate(([0], numpy.flatnonzero(numpy.diff(tables) != step) + 1))
                lasts = numpy.append(firsts[1:] - 1, len(tables) - 1)
                found += [
                    (int(tables[first]), int(tables[last]) + step, f"a table of the {name}")
                    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
                ]
        return sorted(found)

    def _check_overlaps(self, grains: Array) -> bool:
        """Whether a grain shares a sector with another, or with metadata. `grains` is sorted."""
        import numpy

        size = self.layout.grain_sectors
        shared = set(numpy.unique(grains[1:][numpy.diff(grains) < size]).tolist())
        bad: dict[int, str] = dict.fromkeys(shared, "another grain")
        for start, end, name in self._metadata():
            first, last = numpy.searchsorted(grains, [max(0, start - size + 1), end])
            for sector in grains[first:last].tolist():
                if bad.get(sector, "another grain") == "another grain":
                    bad[sector] = name
        if not bad:
            return False
        seen: set[int] = set()
        wanted = numpy.array(sorted(bad), dtype=numpy.uint32)
        for index, own in self._batches(self.directory):
            for slot in numpy.flatnonzero(numpy.isin(own, wanted)).tolist():
                sector = int(own[slot])
                is_first = sector not in seen
                seen.add(sector)
                if is_first and bad[sector] == "another grain" and self._begins_a_group(grains, sector):
                    continue
                self._give_own_place(index * self.layout.entries_per_table + slot, sector, bad[sector])
        return True

    def _begins_a_group(self, grains: Array, sector: int) -> bool:
        """Whether no other grain begins before `sector` and reaches into it."""
        import numpy

        first = int(numpy.searchsorted(grains, sector))
        return first == 0 or sector - int(grains[first - 1]) >= self.layout.grain_sectors

    def _give_own_place(self, grain: int, sector: int, sharer: str) -> None:
        index, slot = divmod(grain, self.layout.entries_per_table)
        if self.mends_all:
            data = self.storage.read(sector * SECTOR_BYTES, self.layout.grain_bytes)
            new = self._append(data.ljust(self.layout.grain_bytes, b"\0"))
            for directory in (self.redundant, self.directory):
                if directory is not None and directory[index]:
                    self.storage.write(directory[index] * SECTOR_BYTES + 4 * slot, new.to_bytes(4, "little"))
        self._found(
            Severity.CORRUPTION, f"grain of guest offset {grain * self.layout.grain_bytes}",
            f"shares sector {sector} with {sharer}", "it gets a copy of its own", self.mends_all,
        )  # fmt: skip

    def _check_leaks(self, grains: Array) -> None:
        """Stretches behind the tables that hold something and that nothing refers to."""
        import numpy

        layout, size = self.layout, self.layout.grain_sectors
        metadata = self._metadata()
        starts = numpy.concatenate((grains.astype(numpy.int64), numpy.array([m[0] for m in metadata])))
        ends = numpy.concatenate((grains.astype(numpy.int64) + size, numpy.array([m[1] for m in metadata])))
        order = numpy.argsort(starts, kind="stable")
        starts, ends = starts[order], numpy.maximum.accumulate(ends[order])
        # What lies before the first grain and the overhead's end is room for tables.
        first_data = min(layout.overhead_sectors, int(grains[0]) if len(grains) else layout.overhead_sectors)
        following = numpy.append(starts[1:], max(self.file_sectors, int(ends[-1])))
        for at in numpy.flatnonzero(following > ends).tolist():
            start, end = max(int(ends[at]), first_data), int(following[at])
            is_tail = at == len(ends) - 1
            if end - start >= (1 if is_tail else size):  # less is padding up to a grain's edge
                self._leak(start, end, is_tail=is_tail)

    def _leak(self, start: int, end: int, *, is_tail: bool) -> None:
        held = self._held(start * SECTOR_BYTES, (end - start) * SECTOR_BYTES)
        if not held:
            return
        if self.mends_leaks:
            if is_tail and end >= self.file_sectors and self.new_end <= end:
                self.storage.truncate(start * SECTOR_BYTES)
            else:
                length = min(end * SECTOR_BYTES, self.storage.size) - start * SECTOR_BYTES
                self.storage.zero(start * SECTOR_BYTES, length, unmap=True)
        self._found(
            Severity.LEAK, f"sectors {start} to {end - 1}", f"{held} grains that nothing refers to",
            "the space is given back", self.mends_leaks, held,
        )  # fmt: skip

    def _held(self, start: int, length: int) -> int:
        """Grains of a stretch that hold anything: zeros and holes of the file hold nothing."""
        grain_bytes, held = self.layout.grain_bytes, 0
        for data_start, data_length, is_data in self.storage.segments(start, length):
            if is_data:
                for at in range(data_start, data_start + data_length, grain_bytes):
                    held += any(self.storage.read(at, min(grain_bytes, data_start + data_length - at)))
        return held
