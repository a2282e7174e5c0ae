"""Changing what a VHD is: its disk's size, its parent."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import OptionError, Unsupported
from vdisk.formats.blockmap import read_table, table_bytes, write_table_parts
from vdisk.formats.vhd.check import release
from vdisk.formats.vhd.footer import DYNAMIC, LARGEST_BYTES, SECTOR_BYTES
from vdisk.formats.vhd.header import FREE, MAX_ENTRIES, NO_PARENT, DynamicHeader
from vdisk.formats.vhd.parent import (
    identify,
    lay_out_locators,
    make_paths,
    open_candidate,
    parent_name,
    read_locators,
)

if TYPE_CHECKING:
    from vdisk.formats.vhd.image import VhdImage


def resize(image: VhdImage, size: int, *, shrink: bool) -> None:
    """Give the disk another length; what is new reads as zeros. A kill halfway leaves the old length or the new one."""
    if size % SECTOR_BYTES or not 0 <= size <= LARGEST_BYTES:
        raise OptionError(f"{image.name}: size: expected a multiple of 512 up to 2040 GiB, found {size}")
    image.refuse_cut(size, shrink=shrink)
    if size == image.size:
        return
    image.start_change()
    image.settle()
    header = image.header
    if header is None:
        _resize_fixed(image, size)
    elif size < image.size:
        _shrink(image, header, size)
    else:
        _grow(image, header, size)


def _resize_fixed(image: VhdImage, size: int) -> None:
    """The new footer is in its place before the old one goes.

    There is no copy in front. So a kill in between leaves the old footer among the new zeros, or, of a disk that is
    as long as before, the new footer in what was to be cut off.
    """
    old_size, old_end = image.size, image.tail_offset + SECTOR_BYTES
    image.footer.set_size(size)
    image.tail_offset = size
    image.write_footers()
    if old_size < min(old_end, size):
        image.storage.zero(old_size, min(old_end, size) - old_size)
        image.storage.flush()
    image.storage.truncate(size + SECTOR_BYTES)
    image.storage.flush()
    image.take_geometry()


def _grow(image: VhdImage, header: DynamicHeader, size: int) -> None:
    old_size, old_count, count = image.size, len(image.table), header.blocks_of(size)
    if count > MAX_ENTRIES:
        raise Unsupported(image.name, "vhd", f"a BAT of {count} entries")
    if count > header.table_entries:
        _enlarge_table(image, header, count)
    elif count > old_count:
        # Entries behind the disk's end may be anything.
        offset = header.table_offset + 4 * old_count
        image.storage.write(offset, b"\xff" * (4 * (count - old_count)))
        image.storage.flush()
    image.footer.set_size(size)
    image.take_geometry()
    # What the last block held behind the old end, and what a longer parent would show.
    image.write_zeroes(old_size, size - old_size)
    image.settle()
    image.write_footers()
    release(image)


def _enlarge_table(image: VhdImage, header: DynamicHeader, count: int) -> None:
    """More entries where the last sector of the BAT has room, else a new BAT at the end of the file."""
    table = array("I", image.table)
    table.extend(array("I", (FREE,)) * (count - len(table)))
    length = -(-4 * count // SECTOR_BYTES) * SECTOR_BYTES
    has_room = header.table_offset + length <= header.table_end
    table_offset = header.table_offset if has_room else image.extend(length)
    image.storage.write(table_offset, table_bytes(table, big_endian=True).ljust(length, b"\xff"))
    image.storage.flush()
    header.table_offset, header.table_entries = table_offset, count
    image.write_header()


def _shrink(image: VhdImage, header: DynamicHeader, size: int) -> None:
    old_count = len(image.table)
    image.footer.set_size(size)
    image.write_footers()
    image.take_geometry()
    # The table still has the blocks behind the end: give them up once nothing can reach them.
    count = len(image.table)
    table = read_table(image.storage, "BAT", header.table_offset, old_count, big_endian=True)
    gone = [block for block in range(count, old_count) if table[block] != FREE]
    for block in gone:
        table[block] = FREE
    write_table_parts(image.storage, header.table_offset, table, gone, big_endian=True)
    image.storage.flush()
    release(image)


def set_parent(image: VhdImage, name: str | None, format: str | None) -> None:
    """Name another parent, or make the disk one that has none."""
    header = image.header
    if header is None or not image.is_differencing:
        if name is None:
            return
        raise Unsupported(image.name, "vhd", "giving a parent to a disk that has none")
    if name is None:
        image.begin_session(of_data=False)
        _drop_parent(image, header)
        return
    if format is not None and format not in ("vhd", "vpc"):
        raise OptionError(f"{image.name}: backing file: expected a VHD file, found {format}")
    paths = read_locators(image.storage, header)
    is_same = parent_name(header, paths) == name
    windows = name.replace("/", "\\")
    with open_candidate(image.gate, image.name, name, paths if is_same else {b"W2ru": windows}) as parent:
        image.begin_session(of_data=False)
        image.settle()
        identify(header, parent, name)
        if not is_same:
            words = make_paths(name, parent)
            length = len(lay_out_locators(words, 0)[1])
            offset = image.extend(length)
            header.parent_locators, data = lay_out_locators(words, offset)
            image.storage.write(offset, data)
            image.storage.flush()
    image.write_header()
    image.take_paths()


def _drop_parent(image: VhdImage, header: DynamicHeader) -> None:
    """Blocks that are the file's in part become whole; sectors that were not its own read as zeros."""
    for block, entry in enumerate(image.table):
        if entry != FREE:
            image.make_whole(block)
    image.settle()
    image.footer.disk_type = DYNAMIC
    image.write_footers()
    header.parent_unique_id, header.parent_timestamp, header.parent_name = NO_PARENT, 0, ""
    header.parent_locators = []
    image.write_header()
    image.is_differencing = False
    image.take_paths()
