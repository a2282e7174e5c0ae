"""Changing what a VDI is: its disk's size, its parent."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import OptionError, Unsupported
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.vdi.check import compact, copy_block
from vdisk.formats.vdi.header import DYNAMIC, FREE, MAX_BLOCKS, NULL_UUID, SECTOR_BYTES, STATIC, ZERO, Header
from vdisk.formats.vdi.parent import open_named

if TYPE_CHECKING:
    from vdisk.formats.vdi.image import VdiImage

_BATCH_BLOCKS = 64


def resize(image: VdiImage, size: int, *, shrink: bool) -> None:
    """Give the disk another length; what is new reads as zeros. A kill halfway leaves the old length or the new one."""
    header = image.header
    most = MAX_BLOCKS * header.block_bytes
    if size % SECTOR_BYTES or not 0 <= size <= most:
        raise OptionError(f"{image.name}: size: expected a multiple of 512 up to {most}, found {size}")
    image.refuse_cut(size, shrink=shrink)
    if size == image.size:
        return
    image.start_change()
    image.settle()
    if size < image.size:
        _shrink(image, header, size)
    else:
        _grow(image, header, size)


def _shrink(image: VdiImage, header: Header, size: int) -> None:
    header.disk_bytes = size
    header.block_count = header.disk_blocks
    header.write(image.storage)
    image.storage.flush()
    image.take_geometry()
    compact(image)
    image.write_count()
    image.storage.flush()


def _grow(image: VdiImage, header: Header, size: int) -> None:
    old_size, old_count = header.disk_bytes, header.disk_blocks
    count = -(-size // header.block_bytes)
    if header.table_offset + 4 * count > header.data_offset:
        _move_table(image, header, count)
    # Entries behind the disk's end may be anything. A parent may be longer than its child was: it stays hidden.
    mark = ZERO if header.has_parent else FREE
    entries = array("I", (mark,)) * (count - old_count)
    image.storage.write(header.table_offset + 4 * old_count, table_bytes(entries))
    image.storage.flush()
    header.disk_bytes, header.block_count = size, max(count, header.block_count)
    image.take_geometry()
    image.find_slots()
    image.write_zeroes(old_size, min(size, old_count * header.block_bytes) - old_size)
    if header.image_type == STATIC:
        for block in range(old_count, count):
            image.set_entry(block, image.take_slot())
    image.settle()
    header.write(image.storage)
    image.storage.flush()


def _move_table(image: VdiImage, header: Header, count: int) -> None:
    """Make room for a longer table: the first blocks move to the end, and a new table takes their place.

    The header, one sector, is what switches over: all slots are counted from the new table's end on.
    """
    stride = header.stride_bytes
    table_offset = -(-header.data_offset // SECTOR_BYTES) * SECTOR_BYTES
    slots = -(-(table_offset + 4 * count - header.data_offset) // stride)
    image.keep_free(slots)
    moving = [block for block, entry in enumerate(image.table) if entry < slots]
    for number, block in enumerate(moving, 1):
        copy_block(image, block, image.take_slot())
        if number % _BATCH_BLOCKS == 0:
            image.settle()
    image.settle()
    table = array("I", (entry if entry >= ZERO else entry - slots for entry in image.table))
    table.extend(array("I", (FREE,)) * (count - len(table)))
    data_offset = header.data_offset + slots * stride
    image.storage.write(table_offset, table_bytes(table))
    if image.storage.size < data_offset:
        image.storage.truncate(data_offset)
    image.storage.flush()
    header.table_offset, header.data_offset, header.block_count = table_offset, data_offset, count
    header.write(image.storage)
    image.storage.flush()
    image.take_geometry()
    image.find_slots()


def set_parent(image: VdiImage, name: str | None, format: str | None) -> None:
    """Name another parent, or make the image one that has none."""
    header = image.header
    if not header.has_parent:
        if name is None:
            return
        raise Unsupported(image.name, "vdi", "giving a parent to an image that has none")
    if name is None:
        header.image_type = DYNAMIC
        header.parent_uuid = header.parent_modification_uuid = NULL_UUID
    else:
        if format is not None and format != "vdi":
            raise OptionError(f"{image.name}: backing file: expected a VDI file, found {format}")
        with open_named(image.gate, image.name, name) as parent:
            header.parent_uuid = parent.header.uuid
            header.parent_modification_uuid = parent.header.modification_uuid
    header.write(image.storage)
    image.storage.flush()
