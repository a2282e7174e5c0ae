"""Changing a disk's length: sparse extents get more tables, flat ones another file length, split disks more files.

A kill at any point leaves the old disk or the new one, and space that nothing refers to at worst: what is new is in
place before the header or the descriptor says so.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from vdisk.errors import OptionError, StorageError, Unsupported
from vdisk.formats.gate import path_of
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.assemble import Part
from vdisk.formats.vmdk.create import SPLIT_SECTORS
from vdisk.formats.vmdk.descriptor import ExtentLine
from vdisk.formats.vmdk.flat import FlatExtent
from vdisk.formats.vmdk.header import LARGEST_DIRECTORY_ENTRIES, read_hosted
from vdisk.formats.vmdk.layout import FlatWriter, HostedWriter
from vdisk.formats.vmdk.sparse import SparseExtent, entry_bytes
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage import locks
from vdisk.storage.file import FileStorage

if TYPE_CHECKING:
    from vdisk.formats.vmdk.image import VmdkImage


def resize_image(image: VmdkImage, size: int, *, shrink: bool) -> None:
    """Make the disk `size` bytes long, rounded up to whole sectors. Called under the image's lock."""
    size = -(-size // SECTOR_BYTES) * SECTOR_BYTES
    if not image.writable:
        raise StorageError(image.name, "resize", "opened read-only")
    if size < image.size and not shrink:
        raise OptionError(f"{image.name}: {size} bytes are fewer than the disk's {image.size}; allow shrinking")
    if size == 0:
        raise OptionError(f"{image.name}: a disk cannot shrink to nothing")
    if size == image.size:
        return
    _refuse(image, size)
    old = image.size
    image._start_change()
    if size < old:
        _shrink(image, size)
    else:
        _grow(image, size)
    image.size = size
    _write_geometry(image)
    if size > old:
        _hide_parent(image, old)


def _refuse(image: VmdkImage, size: int) -> None:
    last = image.parts[-1]
    cut = next(part for part in image.parts if size <= part.end or part is last)
    if not cut.device.writable:
        raise Unsupported(image.name, "vmdk", "resize of a disk where it meets an RDONLY extent")
    if image.descriptor is not None and image.descriptor.has_parent and image.backing is None:
        raise OptionError(f"{image.name}: cannot be resized without its parent, which would show through")
    if not isinstance(last.device, SparseExtent | FlatExtent):
        kind = "ZERO" if last.line is None else last.line.type
        raise Unsupported(image.name, "vmdk", f"resize of a disk whose last extent is of type {kind}")
    if isinstance(last.device, FlatExtent):
        users = [part for part in image.parts if part.storage is not None and _path(part) == _path(last)]
        if len(users) > 1:
            raise Unsupported(image.name, "vmdk", "resize of a file that several extents share")


def _path(part: Part) -> Path | None:
    assert part.storage is not None
    return path_of(part.storage)


# Growing -------------------------------------------------------------------------------------------------------


def _grow(image: VmdkImage, size: int) -> None:
    """Lengthen the last extent; a split disk gets further files once that one is full."""
    last = image.parts[-1]
    is_split = image.create_type in ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
    length = size - last.start
    if is_split:
        length = min(length, max(last.length, SPLIT_SECTORS * SECTOR_BYTES))
    _set_length(last, length)
    lines = _lines(image)
    if is_split:
        start = last.start + length
        while start < size:
            count = min(size - start, SPLIT_SECTORS * SECTOR_BYTES)
            image.parts.append(_new_part(image, start, count))
            start += count
            lines = _lines(image)
    _write_lines(image, lines)


def _set_length(part: Part, length: int) -> None:
    device = part.device
    if isinstance(device, SparseExtent):
        grow_sparse(device, length // SECTOR_BYTES)
    else:
        assert isinstance(device, FlatExtent)
        end = device.start + length
        # What the file holds behind the extent was never part of the disk.
        if device.storage.size > device.start + device.size:
            device.storage.truncate(device.start + device.size)
        device.storage.truncate(end)
        device.storage.flush()
        device.size = length
    part.length = length
    if part.line is not None:
        part.line = part.line._replace(sectors=length // SECTOR_BYTES)


def grow_sparse(extent: SparseExtent, sectors: int) -> None:
    """Give an extent room for `sectors`: new tables at the file's end, and new directories where the old are full."""
    layout, storage = extent.layout, extent.storage
    if sectors <= layout.capacity_sectors:
        return
    extent.flush()
    extent._start_change()
    _clear_behind(extent)
    old_count = layout.directory_entries
    new_count = -(-sectors // (layout.grain_sectors * layout.entries_per_table))
    if layout.kind == "cowd" and sectors >= 1 << 32:
        raise OptionError(f"{extent.name}: a COWD extent is shorter than 2 TiB")
    if new_count > LARGEST_DIRECTORY_ENTRIES:
        raise OptionError(f"{extent.name}: a sparse extent has at most {LARGEST_DIRECTORY_ENTRIES} grain tables")
    added = new_count - old_count
    places: list[tuple[int, array[int]]] = []
    if added:
        for directory in (extent.redundant, extent.directory):
            if directory is None:
                continue
            first = extent.take_sectors(added * layout.table_sectors)
            end = first + added * layout.table_sectors
            entries = array("I", [*directory, *range(first, end, layout.table_sectors)])
            sector = extent.take_sectors(-(-4 * new_count // SECTOR_BYTES))
            storage.write(sector * SECTOR_BYTES, entry_bytes(entries))
            places.append((sector, entries))
        extent.align_end()
        storage.truncate(max(storage.size, extent.end_sector * SECTOR_BYTES))
        storage.flush()
    given_up = []
    if added:
        length = layout.directory_sectors
        given_up = [(at, length) for at in (layout.directory_sector, layout.redundant_directory_sector) if at]
        layout.directory_sector, extent.directory = places.pop()
        if places:
            layout.redundant_directory_sector, entries = places.pop()
            extent.replace_redundant(entries)
    _write_header(extent, sectors)
    layout.capacity_sectors = sectors
    extent.size = layout.capacity_bytes
    _give_back(extent, given_up)


def _give_back(extent: SparseExtent, places: list[tuple[int, int]]) -> None:
    """Zero (sector, count) that the header refers to no more."""
    for sector, count in places:
        extent.storage.zero(sector * SECTOR_BYTES, count * SECTOR_BYTES, unmap=True)


def _write_header(extent: SparseExtent, sectors: int) -> None:
    """Bring another capacity, and where the directories lie, to the header: its first sector, at once."""
    layout, storage = extent.layout, extent.storage
    header = bytearray(storage.read(0, SECTOR_BYTES))
    if layout.kind == "cowd":
        tables = -(-sectors // (layout.grain_sectors * layout.entries_per_table))
        for offset, value in (
            (structs.COWD_CAPACITY_OFFSET, sectors),
            (structs.COWD_DIRECTORY_OFFSET, layout.directory_sector),
            (structs.COWD_DIRECTORY_ENTRIES_OFFSET, tables),
            (structs.COWD_FREE_SECTOR_OFFSET, extent.end_sector),
        ):
            header[offset : offset + 4] = value.to_bytes(4, "little")
    else:
        for offset, value in (
            (structs.CAPACITY_OFFSET, sectors),
            (structs.REDUNDANT_DIRECTORY_OFFSET, layout.redundant_directory_sector or 0),
            (structs.DIRECTORY_OFFSET, layout.directory_sector),
        ):
            header[offset : offset + 8] = value.to_bytes(8, "little")
    storage.write(0, header)
    storage.flush()


def _clear_behind(extent: SparseExtent) -> None:
    """Nothing that stood behind the old end may come to light: the last grain's rest, entries of the last table."""
    layout = extent.layout
    if not layout.capacity_sectors:
        return
    last_grain = (layout.capacity_sectors - 1) // layout.grain_sectors
    extent.clear_entries(last_grain + 1)
    rest = -layout.capacity_sectors % layout.grain_sectors
    if rest:
        place = extent.place_of_grain(last_grain)
        if place is not None:
            inside = (layout.grain_sectors - rest) * SECTOR_BYTES
            extent.storage.zero(place + inside, rest * SECTOR_BYTES, unmap=False)
    extent.flush()


def _new_part(image: VmdkImage, start: int, length: int) -> Part:
    """A further file of a split disk, named as its series goes on."""
    is_flat = image.create_type == "twoGbMaxExtentFlat"
    folder = Path(image.name).parent
    names = [part.line.name for part in image.parts if part.line is not None and part.line.name is not None]
    name = _next_name(names[-1], folder)
    sectors = length // SECTOR_BYTES
    storage = FileStorage(folder / name, create=True)
    try:
        locks.hold(storage)
        writer = FlatWriter(storage, sectors) if is_flat else HostedWriter(storage, sectors, b"", has_zero_grains=False)
        writer.finish()
        storage.flush()
        line = ExtentLine("RW", sectors, "FLAT" if is_flat else "SPARSE", name, 0 if is_flat else None)
        if is_flat:
            return Part(start, length, FlatExtent(storage, 0, length, writable=True), line, storage)
        return Part(start, length, SparseExtent(storage, read_hosted(storage), writable=True), line, storage)
    except BaseException:
        storage.close()
        with contextlib.suppress(OSError):
            storage.path.unlink()
        raise


def _next_name(name: str, folder: Path) -> str:
    match = re.fullmatch(r"(.*?)(\d+)(\.[^.]*)?", name)
    stem, digits, suffix = match.groups() if match else (Path(name).stem + "-", "001", Path(name).suffix)
    number = int(digits)
    while True:
        number += 1
        found = f"{stem}{number:0{len(digits)}d}{suffix or ''}"
        if not (folder / found).exists():
            return found


def _hide_parent(image: VmdkImage, old: int) -> None:
    """What is new reads as zeros, whatever a longer parent has there."""
    if image.backing is not None and image.backing.size > old:
        image.attach_backing()
        image.write_zeroes(old, min(image.size, image.backing.size) - old, unmap=False)


# Shrinking -----------------------------------------------------------------------------------------------------


def _shrink(image: VmdkImage, size: int) -> None:
    """Cut the extent that the new end lies in; drop those behind it, their files too."""
    keep = [part for part in image.parts if part.start < size]
    dropped = image.parts[len(keep) :]
    last = keep[-1]
    length = size - last.start
    if not isinstance(last.device, SparseExtent | FlatExtent):
        last.length = length
    if last.line is not None:
        last.line = last.line._replace(sectors=length // SECTOR_BYTES)
    image.parts[len(keep) :] = []
    own_header = last.storage is image.source.storage
    if own_header and isinstance(last.device, SparseExtent):
        _cut(last, length)
    _write_lines(image, _lines(image))
    if not own_header or not isinstance(last.device, SparseExtent):
        _cut(last, length)
    for part in dropped:
        path = None if part.storage is None else _path(part)
        part.device.close()
        if path is not None and path.parent == Path(image.name).resolve().parent:
            with contextlib.suppress(OSError):
                path.unlink()


def _cut(part: Part, length: int) -> None:
    device = part.device
    part.length = length
    if isinstance(device, FlatExtent):
        device.size = length
        if device.start + length < device.storage.size:
            device.storage.truncate(device.start + length)
            device.storage.flush()
    elif isinstance(device, SparseExtent):
        shrink_sparse(device, length // SECTOR_BYTES)


def shrink_sparse(extent: SparseExtent, sectors: int) -> None:
    """Let an extent end after `sectors`; the grains behind give their space back."""
    layout = extent.layout
    extent.flush()
    extent._start_change()
    first_grain = -(-sectors // layout.grain_sectors)
    _write_header(extent, sectors)
    extent.clear_entries(first_grain, unmap=True)
    extent.flush()
    layout.capacity_sectors = sectors
    extent.size = layout.capacity_bytes
    count = layout.directory_entries
    dropped = extent.directory[count:]
    extent.directory = extent.directory[:count]
    if extent.redundant is not None:
        dropped += extent.redundant[count:]
        extent.replace_redundant(extent.redundant[:count])
    _give_back(extent, [(sector, layout.table_sectors) for sector in dropped if sector])


# The descriptor ------------------------------------------------------------------------------------------------


def _lines(image: VmdkImage) -> list[ExtentLine]:
    return [part.line for part in image.parts if part.line is not None]


def _write_lines(image: VmdkImage, lines: list[ExtentLine]) -> None:
    if image.descriptor is not None:
        image.descriptor.replace_extents(lines)
        image.write_descriptor()
    image.parts_changed()


def _write_geometry(image: VmdkImage) -> None:
    """The cylinders follow the size; heads and sectors stay."""
    descriptor = image.descriptor
    if descriptor is None:
        return
    try:
        heads, sectors = int(descriptor.ddb["geometry.heads"]), int(descriptor.ddb["geometry.sectors"])
        cylinders = image.size // SECTOR_BYTES // (heads * sectors)
    except (KeyError, ValueError, ZeroDivisionError):
        return
    descriptor.set_ddb("geometry.cylinders", str(cylinders))
    image.write_descriptor()
