"""Growing and shrinking Parallels disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import OptionError, Unsupported
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.gate import path_of
from vdisk.formats.parallels import structs
from vdisk.formats.parallels.bundle import BundleImage
from vdisk.formats.parallels.check import copy_cluster
from vdisk.formats.parallels.descriptor import resized_descriptor
from vdisk.formats.parallels.hds import HdsImage
from vdisk.formats.parallels.structs import SECTOR_BYTES
from vdisk.formats.raw.image import RawImage
from vdisk.storage.locks import open_held
from vdisk.storage.staging import Staging

if TYPE_CHECKING:
    from vdisk.formats.parallels.image import ParallelsImage


def resize(image: ParallelsImage, size: int, *, shrink: bool) -> None:
    """Give the disk another length; what is new reads as zeros."""
    if size % SECTOR_BYTES or size < 0:
        raise OptionError(f"{image.name}: size: expected a multiple of {SECTOR_BYTES}, found {size}")
    image.refuse_cut(size, shrink=shrink)
    if size == image.size:
        return
    if isinstance(image, HdsImage):
        image.start_change()
        _resize_file(image, size)
        return
    assert isinstance(image, BundleImage)
    _resize_bundle(image, size)


def _resize_bundle(image: BundleImage, size: int) -> None:
    """A bundle grows in its last file; the descriptor says so at the end, or, when it shrinks, at the beginning."""
    if image.backing is not None or len(image.descriptor.layers) > 1:
        raise Unsupported(image.name, "parallels", "resizing a disk that has snapshots")
    last = image.parts[-1] if image.parts else None
    if last is None or size <= last.start:
        raise Unsupported(image.name, "parallels", "resizing a split disk by more than its last file")
    image.start_change()
    is_shorter = size < image.size
    if is_shorter:
        _write_descriptor(image, size)
    if isinstance(last.image, HdsImage):
        _resize_file(last.image, size - last.start)
    else:
        assert isinstance(last.image, RawImage)
        last.image.storage.truncate(size - last.start)
        last.image.storage.flush()
        last.image.size = size - last.start
    if not is_shorter:
        _write_descriptor(image, size)
    image.parts[-1] = last._replace(end=size)
    image.size = size


def _write_descriptor(image: BundleImage, size: int) -> None:
    path = path_of(image.descriptor_storage)
    data = resized_descriptor(image.xml, size // SECTOR_BYTES)
    if path is None:
        image.descriptor_storage.write(0, data)
        image.descriptor_storage.truncate(len(data))
        image.descriptor_storage.flush()
    else:
        with Staging(path, is_held=True) as staging:
            staging.create().write(0, data)
            staging.commit()
        image.descriptor_storage.close()
        image.descriptor_storage = open_held(path, writable=True)
    image.descriptor.disk_sectors = size // SECTOR_BYTES
    image.descriptor.areas[-1].end = size // SECTOR_BYTES


def _resize_file(image: HdsImage, size: int) -> None:
    header = image.header
    old_size = image.size
    sectors = size // SECTOR_BYTES
    entries = -(-sectors // header.cluster_sectors)
    most_bytes = header.data_offset + (entries + 2) * header.cluster_bytes + 4 * entries
    if entries > structs.MAX_ENTRIES or most_bytes // header.entry_bytes >= 1 << 32:
        raise OptionError(f"{image.name}: size: {size} is more than this version of the format can have")
    if not header.is_version_2 and sectors >= 1 << 32:
        raise OptionError(f"{image.name}: size: {size} is more than this version of the format can have")
    image.settle()
    old_entries = header.bat_entries
    if entries > old_entries:
        _make_room(image, structs.HEADER_BYTES + 4 * entries)
        # What the table's new entries stood on may be anything.
        image.storage.zero(header.bat_end, 4 * (entries - old_entries), unmap=False)
        image.storage.flush()
    if size > old_size:
        _zero_behind_end(image)
    cut_off = image.table[entries:]
    header.set_disk_sectors(sectors)
    image.write_header()
    image.storage.flush()
    if size < old_size and any(cut_off):
        image.storage.write(header.bat_end, table_bytes(cut_off[:0]) + bytes(4 * len(cut_off)))
    image.take_size()
    image.settle()
    _release(image)


def _zero_behind_end(image: HdsImage) -> None:
    """Make what the last cluster holds behind the disk's end zeros, before the disk grows over it."""
    cluster, inside = divmod(image.size, image.header.cluster_bytes)
    host = image.host_of_cluster(cluster) if inside else 0
    if host:
        image.storage.zero(host + inside, image.header.cluster_bytes - inside)
        image.storage.flush()


def _make_room(image: HdsImage, bat_end: int) -> None:
    """Move the data area's first clusters away until the table fits in front of it."""
    header = image.header
    if bat_end <= header.data_offset:
        return
    cluster_bytes = header.cluster_bytes
    origin = header.data_offset
    new_origin = origin + -(-(bat_end - origin) // cluster_bytes) * cluster_bytes
    if header.extension_sector and header.extension_offset < new_origin:
        raise Unsupported(image.name, "parallels", "growing over a format extension")
    if image.storage.size < new_origin:
        image.storage.truncate(new_origin)
    image.forget_free()
    entry_bytes = header.entry_bytes
    for cluster, entry in enumerate(image.table):
        if entry and entry * entry_bytes < new_origin:
            copy_cluster(image, entry * entry_bytes, cluster)
    image.settle()
    header.data_sector = new_origin // SECTOR_BYTES
    image.write_header()
    image.storage.flush()


def _release(image: HdsImage) -> None:
    """Cut off the end of the file that nothing refers to; make a hole of the rest."""
    for start, end in list(image.places().free_ranges()):
        if end >= image.storage.size:
            image.storage.truncate(start)
        else:
            image.storage.zero(start, end - start)
    image.storage.flush()
    image.forget_free()
