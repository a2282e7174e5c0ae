"""Checking a VHDX file, and mending it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Fault, Repair, Severity, mend_faults
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import is_sealed, read_headers
from vdisk.formats.vhdx.places import block_windows, survey_places
from vdisk.formats.vhdx.structs import (
    FULLY_PRESENT,
    MIB,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    ZERO,
)

if TYPE_CHECKING:
    from vdisk.formats.vhdx.image import VhdxImage

_COPY_BYTES = MIB


def check(image: VhdxImage, repair: Repair, *, dry_run: bool) -> CheckReport:
    """Hold headers, region tables, log and BAT against one another and the file.

    A damaged copy of a header, or a log that waits, puts nothing at risk: it counts as a leak does.
    """
    report = CheckReport(total_clusters=image.metadata.block_count, allocated_clusters=_allocated(image))
    if repair is not Repair.NONE and not dry_run and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    allowed = Repair.NONE if dry_run else repair
    steps = (_copies(image), _log(image), _entries(image), _places(image))
    mend_faults(report, steps, allowed, begin=lambda: image.begin_session(of_data=False), settle=image.settle)
    places = survey_places(image)
    report.image_end_offset = min(int(places.ends.max()), image.storage.size)
    return report


def _allocated(image: VhdxImage) -> int:
    count = 0
    for _, entries in block_windows(image):
        count += int(((entries & STATE_MASK) >= FULLY_PRESENT).sum())
    return count


def _copies(image: VhdxImage) -> Iterator[Fault]:
    """The two headers and the two region tables: `begin_session` writes both headers anyway."""
    for index, header in enumerate(read_headers(image.storage)):
        if header is None:
            yield Fault(
                Severity.LEAK,
                f"header {index + 1}",
                "is damaged; the other one serves",
                "written anew",
                lambda: None,
            )
    tables = [image.storage.read(offset, structs.REGION_BYTES) for offset in structs.REGION_OFFSETS]
    good = next(table for table in tables if table[:4] == b"regi" and is_sealed(table))
    for index, table in enumerate(tables):
        if table != good:

            def mend(offset: int = structs.REGION_OFFSETS[index]) -> None:
                image.storage.write(offset, good)

            yield Fault(
                Severity.LEAK, f"region table {index + 1}", "is damaged; the other one serves", "written anew", mend
            )


def _log(image: VhdxImage) -> Iterator[Fault]:
    if image.log_waits:
        yield Fault(Severity.LEAK, "log", "holds changes that are not in place yet", "replayed", lambda: None)
    elif image.log_is_lost:
        message = "is said to be in use and holds no whole entry"
        yield Fault(Severity.CORRUPTION, "log", message, "emptied", lambda: None)


def _entries(image: VhdxImage) -> Iterator[Fault]:
    """States that cannot be, and places that cannot be there."""
    import numpy

    has_parent, table = image.metadata.has_parent, image.table
    for first, entries in block_windows(image):
        states = entries & numpy.uint64(STATE_MASK)
        suspect = (states == 4) | ((states == ZERO) & (entries >= MIB))
        if not has_parent:
            suspect |= states == PARTIALLY_PRESENT
        suspect |= (states >= FULLY_PRESENT) & (entries < MIB)
        for index in numpy.flatnonzero(suspect).tolist():
            block, entry, state = first + index, int(entries[index]), int(states[index])
            where = f"BAT entry of block {block}"

            def put(new: int, block: int = block) -> Callable[[], None]:
                return lambda: table.set_payload(block, new)

            if state == ZERO:
                message = f"a block of zeros keeps the place {entry & OFFSET_MASK}, which Hyper-V refuses"
                yield Fault(Severity.LEAK, where, message, "place given up", put(ZERO))
            elif state == 4 or entry < MIB:
                message = f"expected a state and a place that fit, found {entry:#x}"
                yield Fault(Severity.CORRUPTION, where, message, "reads as zeros", put(ZERO))
            else:
                message = "is partially present, and the file has no parent"
                new = (entry & OFFSET_MASK) | FULLY_PRESENT
                yield Fault(Severity.CORRUPTION, where, message, "wholly present", put(new))
        if has_parent:
            for index in numpy.flatnonzero(states == PARTIALLY_PRESENT).tolist():
                block = first + index
                if table.bitmap(block // image.metadata.chunk_blocks) & STATE_MASK != structs.BITMAP_PRESENT:
                    message = "is partially present, and has no sector bitmap"
                    yield Fault(Severity.CORRUPTION, f"BAT entry of block {block}", message)


def _places(image: VhdxImage) -> Iterator[Fault]:
    """Parts that overlap or lie outside the file, and space that nothing refers to."""
    places = survey_places(image)
    file_bytes = image.storage.size
    for name, offset, block in places.beyond_end():
        message = f"expected a place in the file of {file_bytes} bytes, found {offset}"

        def clear(block: int = block) -> None:
            image.table.set_payload(block, ZERO)

        is_block = block >= 0
        fix = "reads as zeros" if is_block else None
        yield Fault(Severity.CORRUPTION, name, message, fix, clear if is_block else None)
    for overlap in places.overlaps():
        message = f"shares the file's offset {overlap.offset} with {overlap.one}"
        block = overlap.other_block if overlap.other_block >= 0 else overlap.one_block
        if block < 0 or overlap.offset >= file_bytes:
            yield Fault(Severity.CORRUPTION, overlap.other, message)
            continue

        def separate(block: int = block) -> None:
            _move_block(image, block)

        yield Fault(Severity.CORRUPTION, overlap.other, message, f"block {block} gets a copy of its own", separate)
    yield from _leaks(image)


def _leaks(image: VhdxImage) -> Iterator[Fault]:
    """Space that nothing refers to, and that takes room: holes in the file do not."""
    places = survey_places(image)
    for start, end in places.free_ranges():
        stop = min(end, image.storage.size)
        held = sum(length for _, length, is_data in image.storage.segments(start, stop - start) if is_data)
        if not held:
            continue

        def release(start: int = start, stop: int = stop) -> None:
            if stop == image.storage.size:
                image.empty_log()
                image.storage.truncate(-(-start // MIB) * MIB)
            else:
                image.storage.zero(start, stop - start)

        message = f"{held} bytes that nothing refers to"
        yield Fault(Severity.LEAK, f"offsets {start} to {stop}", message, "given back", release)


def _move_block(image: VhdxImage, block: int) -> None:
    """Give a block a place of its own, with a copy of what it reads as now."""
    entry = image.table.payload(block)
    old = entry & OFFSET_MASK
    new = image.extend(image.metadata.block_bytes)
    for at in range(0, image.metadata.block_bytes, _COPY_BYTES):
        data = image.storage.read(old + at, _COPY_BYTES)
        if any(data):
            image.storage.write(new + at, data)
    image.table.set_payload(block, new | entry & STATE_MASK)
