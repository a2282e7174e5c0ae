"""Checking a VHD, and mending it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Fault, Repair, Severity, mend_faults
from vdisk.formats.vhd.footer import FIXED, FOOTER_BYTES, SECTOR_BYTES
from vdisk.formats.vhd.header import FREE, NO_PARENT
from vdisk.formats.vhd.parent import read_locators

if TYPE_CHECKING:
    from vdisk.formats.vhd.image import VhdImage

_COPY_BYTES = 1 << 20
_PAGE_BYTES = 4096
"""Less than a file system's block cannot be given back."""
_WINDOW_BYTES = 1 << 20


def check(image: VhdImage, repair: Repair, *, dry_run: bool) -> CheckReport:
    """Hold both footers, the dynamic header, the BAT and the parent's locators against one another and the file.

    One damaged footer of two puts nothing at risk: it counts as a leak does. So does space that nothing refers to.
    """
    if repair is not Repair.NONE and not dry_run and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    header = image.header
    report = CheckReport(image_end_offset=image.tail_offset + FOOTER_BYTES)
    steps = [_footers]
    if header is not None:
        report.total_clusters = len(image.table)
        report.allocated_clusters = len(image.table) - image.table.count(FREE)
        steps += [_header, _entries, _leaks]
    # Footer and header go into the file whenever something is mended, and with them a checksum that was wrong.
    is_sound = image.footer.is_sound and (header is None or header.is_sound)
    if not is_sound and repair is Repair.LEAKS:
        repair = Repair.NONE
    allowed = Repair.NONE if dry_run else repair
    found = [step(image) for step in steps]
    mend_faults(report, found, allowed, begin=lambda: image.begin_session(of_data=False), settle=image.settle)
    report.image_end_offset = image.tail_offset + FOOTER_BYTES
    return report


def _footers(image: VhdImage) -> Iterator[Fault]:
    """The footer at the end and its copy: `begin_session` writes both."""
    found, footer = image.footers, image.footer

    def nothing() -> None:
        pass

    if not footer.is_sound:
        yield Fault(Severity.CORRUPTION, "footer", "its checksum is wrong", "computed anew", nothing)
        return
    is_fixed = footer.disk_type == FIXED
    for name, one in (("footer at the end", found.tail), *([] if is_fixed else [("footer copy", found.front)])):
        if one is None or not one.is_sound:
            yield Fault(Severity.LEAK, name, "is damaged; the other one serves", "written anew", nothing)
        elif one.to_bytes() != footer.to_bytes():
            yield Fault(Severity.LEAK, name, "is not the same as the other one", "written anew", nothing)
    if found.is_old:
        yield Fault(Severity.LEAK, "footer at the end", "has 511 bytes, as old programs wrote it", "512", nothing)


def _header(image: VhdImage) -> Iterator[Fault]:
    header = image.header
    assert header is not None
    if not header.is_sound:
        yield Fault(Severity.CORRUPTION, "dynamic header", "its checksum is wrong", "computed anew", image.write_header)
    if not image.is_differencing:
        return
    if header.parent_unique_id == NO_PARENT:
        yield Fault(Severity.CORRUPTION, "dynamic header", "a differencing disk names no parent's identity")
    if not read_locators(image.storage, header) and not header.parent_name:
        yield Fault(Severity.CORRUPTION, "parent locators", "a differencing disk says nowhere where its parent is")


def _entries(image: VhdImage) -> Iterator[Fault]:
    """Entries that name no place in the file, another block's, or that are behind the disk's end."""
    places, size = image.places(), image.storage.size
    for name, offset, block in places.beyond_end():

        def clear(block: int = block) -> None:
            image.set_entry(block, None)

        is_block = block >= 0
        message = f"expected a place in the file of {size} bytes, found {offset}"
        fix = "not allocated any more" if is_block else None
        yield Fault(Severity.CORRUPTION, name, message, fix, clear if is_block else None)
    yield from _overlaps(image)
    end = image.tail_offset if image.footers.tail is not None else size
    for block, host in _cut_blocks(image, end):

        def lengthen(host: int = host) -> None:
            image.extend(max(0, host + image.place_bytes - image.tail_offset))

        message = f"is cut off by the file's end at {end}"
        yield Fault(Severity.CORRUPTION, f"block {block}", message, "what is missing reads as zeros", lengthen)
    yield from _entries_behind(image)


def _overlaps(image: VhdImage) -> Iterator[Fault]:
    size = image.storage.size
    for overlap in image.places().overlaps():
        if overlap.offset >= size:
            continue
        message = f"shares the file's offset {overlap.offset} with {overlap.one}"
        block = overlap.other_block if overlap.other_block >= 0 else overlap.one_block
        if block < 0:
            yield Fault(Severity.CORRUPTION, overlap.other, message)
            continue

        def separate(block: int = block) -> None:
            _move_block(image, block)

        yield Fault(Severity.CORRUPTION, overlap.other, message, f"block {block} gets a copy of its own", separate)


def _cut_blocks(image: VhdImage, end: int) -> Iterator[tuple[int, int]]:
    """(block, offset) of blocks that begin in the file and do not end in it, where no footer says so already."""
    if image.footers.tail is not None:
        return
    import numpy

    entries = numpy.asarray(image.table, numpy.uint32).astype(numpy.int64)
    starts = entries * SECTOR_BYTES
    is_cut = (entries != FREE) & (starts < end) & (starts + image.place_bytes > end)
    for block in numpy.flatnonzero(is_cut).tolist():
        yield block, int(starts[block])


def _entries_behind(image: VhdImage) -> Iterator[Fault]:
    """A BAT may have more entries than the disk has blocks; those hold nothing."""
    header = image.header
    assert header is not None
    start = header.table_offset + 4 * len(image.table)
    end = header.table_offset + 4 * header.table_entries
    used = 0
    for offset in range(start, end, _WINDOW_BYTES):
        raw = image.storage.read(offset, min(_WINDOW_BYTES, end - offset))
        used += sum(raw[at : at + 4] != b"\xff" * 4 for at in range(0, len(raw), 4)) if raw.strip(b"\xff") else 0
    if not used:
        return

    def clear() -> None:
        for offset in range(start, end, _WINDOW_BYTES):
            image.storage.write(offset, b"\xff" * min(_WINDOW_BYTES, end - offset))

    yield Fault(Severity.LEAK, "BAT", f"{used} entries behind the disk's end are in use", "freed", clear)


def _leaks(image: VhdImage) -> Iterator[Fault]:
    """Space that nothing refers to, and that takes room: holes in the file do not."""
    for start, end in list(image.places().free_ranges()):
        first, stop = -(-start // _PAGE_BYTES) * _PAGE_BYTES, min(end, image.storage.size)
        if stop < image.tail_offset:
            stop -= stop % _PAGE_BYTES
        if stop - first < _PAGE_BYTES:
            continue
        held = sum(length for _, length, is_data in image.storage.segments(first, stop - first) if is_data)
        if not held:
            continue

        def release(first: int = first, stop: int = stop) -> None:
            if stop >= image.tail_offset:
                image.cut_file(first)
            else:
                image.storage.zero(first, stop - first)

        message = f"{held} bytes that nothing refers to"
        yield Fault(Severity.LEAK, f"offsets {first} to {stop}", message, "given back", release)


def _move_block(image: VhdImage, block: int) -> None:
    """Give a block a place of its own, with a copy of what it reads as now, its bitmap included."""
    old = image.table[block] * SECTOR_BYTES
    end = old + image.place_bytes
    new = image.take_place()
    for at in range(old, end, _COPY_BYTES):
        data = image.storage.read(at, min(_COPY_BYTES, end - at))
        if any(data):
            image.storage.write(new + at - old, data)
    image.set_entry(block, new)


def release(image: VhdImage) -> None:
    """Give back what nothing refers to: the end of the file is cut off, the rest becomes a hole."""
    for start, end in list(image.places().free_ranges()):
        first = -(-start // _PAGE_BYTES) * _PAGE_BYTES
        if end >= image.tail_offset and first < image.tail_offset:
            image.cut_file(first)
        elif end - first >= _PAGE_BYTES:
            image.storage.zero(first, (end - first) // _PAGE_BYTES * _PAGE_BYTES)
    image.storage.flush()
