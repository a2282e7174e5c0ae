"""Changing what a VHDX file is: its disk's size, its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import OptionError, Unsupported
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import Region, table_with_bat_at
from vdisk.formats.vhdx.metadata import build_metadata
from vdisk.formats.vhdx.parent import LINKAGE, make_locator, open_candidate, parent_name
from vdisk.formats.vhdx.places import block_windows, survey_places
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
from vdisk.formats.vhdx.tables import BlockTable

if TYPE_CHECKING:
    from vdisk.formats.vhdx.image import VhdxImage

_COPY_BYTES = MIB
_SECTOR_BYTES = structs.LOG_SECTOR_BYTES


def resize(image: VhdxImage, size: int, *, shrink: bool) -> None:
    """Give the disk another length; what is new reads as zeros."""
    sector = image.metadata.logical_sector_bytes
    if size % sector or not 0 <= size <= structs.MAX_DISK_BYTES:
        raise OptionError(f"{image.name}: size: expected a multiple of {sector} up to 64 TiB, found {size}")
    image.refuse_cut(size, shrink=shrink)
    if size == image.size:
        return
    image.start_change()
    if size < image.size:
        _shrink(image, size)
    else:
        _grow(image, size)


def _grow(image: VhdxImage, size: int) -> None:
    old_size, old_count = image.size, image.metadata.block_count
    image.metadata.disk_bytes = size
    needed = image.metadata.bat_entries * 8
    image.metadata.disk_bytes = old_size
    if needed > image.regions.bat.length:
        _move_bat(image, needed)
    _clear_entries_behind(image, old_count, size)
    if image.metadata.leaves_blocks_allocated:
        block_bytes = image.metadata.block_bytes
        count = -(-size // block_bytes) - old_count
        host = image.extend(count * block_bytes)
        for index in range(count):
            image.table.set_payload(old_count + index, (host + index * block_bytes) | FULLY_PRESENT)
            image.settle_many()
    image.zero_behind_end()
    image.settle()
    image.metadata.disk_bytes = size
    write_metadata(image)
    if image.metadata.has_parent:  # of a last block that is the parent's, a longer one would show more
        image.write_zeroes(old_size, min(size, old_count * image.metadata.block_bytes) - old_size)
        image.settle()
    _release(image)


def _clear_entries_behind(image: VhdxImage, first: int, size: int) -> None:
    """Entries behind the old end mean nothing: they may hold anything. New blocks are none of the parent's."""
    absent = ZERO if image.metadata.has_parent else NOT_PRESENT
    chunk_blocks = image.metadata.chunk_blocks
    last = -(-size // image.metadata.block_bytes)
    old_chunks = -(-first // chunk_blocks)
    block = first
    while block < last:
        behind = image.table.skip_hole(block, last - 1) if absent == NOT_PRESENT else block
        if behind > block:
            block = behind
            if block == last - 1 and not image.table.payload(block):
                break
            continue
        if image.table.payload(block) != absent:
            image.table.set_payload(block, absent)
            image.settle_many()
        block += 1
    full_chunks = -(-last // chunk_blocks) if image.metadata.has_parent else (last - 1) // chunk_blocks
    for chunk in range(old_chunks if image.metadata.has_parent else 0, full_chunks):
        if image.table.bitmap(chunk):
            image.table.set_bitmap(chunk, 0)
            image.settle_many()


def _shrink(image: VhdxImage, size: int) -> None:
    block_bytes = image.metadata.block_bytes
    first, last = -(-size // block_bytes), image.metadata.block_count
    image.metadata.disk_bytes = size
    write_metadata(image)
    # The table still has the blocks behind the end: give them up once nothing can reach them.
    for block in range(first, last):
        if image.table.payload(block):
            image.table.set_payload(block, NOT_PRESENT)
            image.settle_many()
    if image.metadata.has_parent:
        chunk_blocks = image.metadata.chunk_blocks
        for chunk in range(-(-first // chunk_blocks), -(-last // chunk_blocks)):
            if image.table.bitmap(chunk):
                image.table.set_bitmap(chunk, 0)
    image.settle()
    _release(image)


def _release(image: VhdxImage) -> None:
    """Give back what nothing refers to: the end of the file is cut off, the rest becomes a hole."""
    image.empty_log()
    for start, end in list(survey_places(image).free_ranges()):
        if end >= image.storage.size:
            image.storage.truncate(-(-start // MIB) * MIB)
        else:
            image.storage.zero(start, end - start)
    image.storage.flush()
    image.forget_places()


def _move_bat(image: VhdxImage, needed: int) -> None:
    """Copy the BAT to the end of the file, where there is room for more entries."""
    old = image.regions.bat
    image.settle()
    length = -(-needed // MIB) * MIB
    if length >= 1 << 32:
        raise Unsupported(image.name, "vhdx", f"a BAT of {length} bytes")
    new = Region(old.name, image.extend(length), length)
    for at in range(0, image.metadata.bat_entries * 8, _COPY_BYTES):
        data = image.storage.read(old.offset + at, min(_COPY_BYTES, image.metadata.bat_entries * 8 - at))
        if any(data):
            image.storage.write(new.offset + at, data)
    image.storage.flush()
    table = table_with_bat_at(image.storage, new)
    for offset in structs.REGION_OFFSETS:
        for at in range(0, len(table), _SECTOR_BYTES):
            sector = table[at : at + _SECTOR_BYTES]
            if image.storage.read(offset + at, _SECTOR_BYTES) != sector:
                image.pages.write(offset + at, sector)
    image.settle()
    image.regions.bat = new
    image.table = BlockTable(image.pages, new.offset, image.metadata.chunk_blocks)
    image.pages.forget(old.offset, old.length)


def write_metadata(image: VhdxImage) -> None:
    """Bring the metadata region in line with `image.metadata`, through the log in one entry."""
    region = image.regions.metadata
    data = build_metadata(image.metadata)
    if len(data) > region.length:
        raise Unsupported(image.name, "vhdx", f"metadata of {len(data)} bytes in a region of {region.length}")
    image.settle()
    for at in range(0, len(data), _SECTOR_BYTES):
        part = data[at : at + _SECTOR_BYTES]
        if image.pages.read(region.offset + at, len(part)) != part:
            image.pages.write(region.offset + at, part)
    image.settle()
    image.take_geometry()


def set_parent(image: VhdxImage, name: str | None, format: str | None) -> None:
    """Name another parent, or make the file one that has none."""
    if not image.metadata.has_parent:
        if name is None:
            return
        raise Unsupported(image.name, "vhdx", "giving a parent to a file that has none")
    if name is None:
        image.begin_change(of_data=False)
        _drop_parent(image)
        return
    if format is not None and format != "vhdx":
        raise OptionError(f"{image.name}: backing file: expected a VHDX file, found {format}")
    locator = make_locator(name, NO_GUID)
    with open_candidate(image.gate, image.name, locator) as parent:
        guid = parent.data_write_guid
        if parent.metadata.logical_sector_bytes != image.metadata.logical_sector_bytes:
            raise OptionError(f"{image.name}: backing file: its logical sectors are not of the same size")
    if parent_name(image.metadata.locator) == name:  # the same file: keep its other paths, follow its content
        locator = {key: value for key, value in image.metadata.locator.items() if key != "parent_linkage2"}
    image.begin_change(of_data=False)
    image.metadata.locator = {**locator, LINKAGE: f"{{{guid}}}"}
    write_metadata(image)


def _drop_parent(image: VhdxImage) -> None:
    """Blocks that are the file's in part become whole; sectors that were not its own read as zeros."""
    metadata = image.metadata
    for first, entries in block_windows(image):
        for index, entry in enumerate(entries.tolist()):
            if entry & STATE_MASK != PARTIALLY_PRESENT:
                continue
            block = first + index
            host = entry & OFFSET_MASK
            for start, length in image.absent_sectors(block):
                image.storage.zero(host + start, length)
            image.table.set_payload(block, host | FULLY_PRESENT)
            image.settle_many()
    image.settle()
    metadata.has_parent = False
    metadata.locator = {}
    write_metadata(image)
    for chunk in range(-(-metadata.block_count // metadata.chunk_blocks)):
        if image.table.bitmap(chunk):
            image.table.set_bitmap(chunk, 0)
    image.settle()
    _release(image)
