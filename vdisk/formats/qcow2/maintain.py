"""Changes to an image as a whole: its disk's length, its backing file, its version, the width of its counts."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import OptionError, Unsupported
from vdisk.formats.check import CheckReport
from vdisk.formats.qcow2.bitmaps import bits_bytes, load_bits, read_bitmaps, store_bits, write_directory
from vdisk.formats.qcow2.header import (
    EXTENSION_BACKING_FORMAT,
    EXTENSION_BITMAPS,
    EXTENSION_FEATURE_NAMES,
    LAZY_REFCOUNTS,
    MAX_L1_BYTES,
    RAW_DATA_FILE,
    feature_name_table,
    qemu_name,
)
from vdisk.formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO_FLAG
from vdisk.formats.qcow2.words import store_big_endian

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2Image


def resize(image: Qcow2Image, size: int, *, shrink: bool) -> None:
    """Change the disk's length to `size` bytes, rounded up to a sector; what is new reads as zeros."""
    size = -(-size // 512) * 512
    header, editor = image.header, image.editor
    if header.version < 3 and header.snapshot_count:
        raise Unsupported(image.name, "qcow2", "resizing a version 2 image that has snapshots")
    if size == header.disk_bytes:
        return
    if size < header.disk_bytes and not shrink:
        raise OptionError(f"{image.name}: {size} bytes are fewer than the disk's {header.disk_bytes}")
    editor.flush()
    image.stop_tracking()
    old_bits = [(bitmap, load_bits(image, bitmap)) for bitmap in read_bitmaps(image)]
    if size > header.disk_bytes:
        _grow(image, size)
    else:
        _shrink(image, size)
    if old_bits:
        for bitmap, bits in old_bits:
            length = bits_bytes(size, bitmap.granularity_bits)
            store_bits(image, bitmap, bits[:length].ljust(length, b"\0"))
        write_directory(image, [bitmap for bitmap, _ in old_bits])
    image.start_tracking()


def _grow(image: Qcow2Image, size: int) -> None:
    header, editor, old_size = image.header, image.editor, image.header.disk_bytes
    marks_to = 0
    if header.backing_name is not None:
        # What is new must not show the backing file, should that be longer than the disk was.
        if image.backing is None and header.version < 3:
            raise OptionError(f"{image.name}: resizing a version 2 image needs its backing file opened too")
        marks_to = size if image.backing is None else max(old_size, min(size, image.backing.size))
    needed = -(-size // (header.l2_entries << header.cluster_bits))
    if needed * 8 > MAX_L1_BYTES:
        raise OptionError(f"{image.name}: {size} bytes are too many for clusters of {header.cluster_bytes}")
    if needed > header.l1_entries:
        _grow_l1(image, needed)
    if image.data_file is not None:
        image.data_file.truncate(size)
    header.disk_bytes = image.size = size
    try:
        cluster_end = min(-(-old_size // header.cluster_bytes) * header.cluster_bytes, size)
        if old_size < cluster_end:  # the old last cluster's rest may hold anything
            image._write_zeroes(old_size, cluster_end - old_size, True)
        if cluster_end < marks_to:
            image._write_zeroes(cluster_end, marks_to - cluster_end, True)
        if max(cluster_end, marks_to) < size:  # tables that a shrinking program left behind
            editor.forget(-(-max(cluster_end, marks_to) // header.cluster_bytes), -(-size // header.cluster_bytes))
        # Until all this is written, the header keeps the old length.
        header.disk_bytes = old_size
        editor.flush()
        image.storage.flush()
        header.disk_bytes = size
        header.write_fields(image.storage)
        image.storage.flush()
    except BaseException:
        header.disk_bytes = image.size = old_size
        raise


def _grow_l1(image: Qcow2Image, entries: int) -> None:
    """Move the L1 table to where it can have `entries` entries."""
    header, editor, storage = image.header, image.editor, image.storage
    old_offset, old_clusters = header.l1_offset, -(-header.l1_entries * 8 // header.cluster_bytes)
    clusters = -(-entries * 8 // header.cluster_bytes)
    l1 = image.tables.l1
    table = l1 + array("Q", bytes(8 * (entries - len(l1))))
    offset = editor.refcounts.allocate(clusters) << header.cluster_bits
    storage.write(offset, store_big_endian(table).ljust(clusters << header.cluster_bits, b"\0"))
    editor.refcounts.write_back()
    storage.flush()
    header.l1_offset, header.l1_entries = offset, entries
    header.write_fields(storage)
    storage.flush()
    image.tables.l1_offset = offset
    l1.extend(table[len(l1) :])
    if old_clusters:
        editor.release(old_offset, old_clusters)


def _shrink(image: Qcow2Image, size: int) -> None:
    header, editor, old_size = image.header, image.editor, image.header.disk_bytes
    header.disk_bytes = image.size = size
    header.write_fields(image.storage)
    image.storage.flush()
    # Only now, when no reader looks for it any more, is what lay behind given up.
    editor.forget(-(-size // header.cluster_bytes), -(-old_size // header.cluster_bytes))
    editor.flush()
    if image.data_file is not None:
        image.data_file.truncate(size)
    image._decoded.clear()
    image._decoded_bytes = 0


def set_backing(image: Qcow2Image, name: str | None, format: str | None) -> None:
    """`Image.set_backing` for qcow2."""
    header, editor = image.header, image.editor
    if name is not None and header.autoclear & RAW_DATA_FILE:
        raise OptionError(f"{image.name}: a raw data file cannot have a backing file behind it")
    editor.flush()
    header.backing_name = name
    header.set_extension(EXTENSION_BACKING_FORMAT, None if not (name and format) else qemu_name(format).encode())
    header.write_whole(image.storage)
    image.storage.flush()


def amend(
    image: Qcow2Image,
    *,
    compat: str | None = None,
    refcount_bits: int | None = None,
    lazy_refcounts: bool | None = None,
) -> None:
    """Change the version ("0.10" or "1.1"), the width of reference counts, or whether they may be put off."""
    if compat not in (None, "0.10", "1.1", "v2", "v3"):
        raise OptionError(f"compat: expected 0.10 or 1.1, found {compat!r}")
    if refcount_bits not in (None, 1, 2, 4, 8, 16, 32, 64):
        raise OptionError(f"refcount_bits: expected a power of two from 1 to 64, found {refcount_bits}")
    with image.changing():
        header, storage = image.header, image.storage
        wanted = header.version if compat is None else 2 if compat in ("0.10", "v2") else 3
        if wanted == 2 and (lazy_refcounts or refcount_bits not in (None, 16)):
            raise OptionError("refcount_bits other than 16, and lazy_refcounts, need compat 1.1")
        image.editor.flush()
        if wanted == 3 and header.version == 2:
            header.version = 3
            header.compatible = header.incompatible = header.autoclear = header.compression_type = 0
            if header.cluster_bytes >= 4096 and header.extension(EXTENSION_FEATURE_NAMES) is None:
                header.extensions.append((EXTENSION_FEATURE_NAMES, feature_name_table()))
            header.write_whole(storage)
            storage.flush()
            image.reload()
        if refcount_bits is not None or (wanted == 2 and header.refcount_order != 4):
            _set_refcount_bits(image, refcount_bits or 16)
        if wanted == 2 and header.version == 3:
            _downgrade(image)
        if lazy_refcounts is not None and header.version == 3:
            header.compatible = header.compatible & ~LAZY_REFCOUNTS | (LAZY_REFCOUNTS if lazy_refcounts else 0)
            header.write_fields(storage)
            storage.flush()


def _set_refcount_bits(image: Qcow2Image, bits: int) -> None:
    """Write all counts anew with another width."""
    from vdisk.formats.qcow2.recount import Recount
    from vdisk.formats.qcow2.repair import write_refcounts

    order = bits.bit_length() - 1
    if order == image.header.refcount_order:
        return
    report = CheckReport()
    counted = Recount(image, report, with_refcounts=False)
    if counted.structural:
        raise OptionError(f"{image.name}: its tables are damaged: vdisk check --repair all")
    write_refcounts(image, counted.counts[: counted.file_clusters], order)
    image.reload()


def _downgrade(image: Qcow2Image) -> None:
    header, storage = image.header, image.storage
    for is_used, what in (
        (header.incompatible, "an incompatible feature"),
        (header.crypt_method == 2, "LUKS"),
        (bool(read_bitmaps(image)), "bitmaps"),
        (any(snapshot.disk_bytes != header.disk_bytes for snapshot in image.snapshots()), "snapshots of other sizes"),
    ):
        if is_used:
            raise OptionError(f"{image.name}: compat 0.10 has no place for {what}")
    _expand_zeros(image)
    header.version = 2
    header.compatible = header.autoclear = 0
    header.set_extension(EXTENSION_FEATURE_NAMES, None)
    header.set_extension(EXTENSION_BITMAPS, None)
    header.tail = b""
    header.write_whole(storage)
    storage.flush()
    image.reload()


def _expand_zeros(image: Qcow2Image) -> None:
    """Version 2 has no mark for zeros: entries become empty, or real zeros where a backing file would show."""
    from vdisk.formats.qcow2.recount import Recount

    header, editor, storage = image.header, image.editor, image.storage
    counted = Recount(image, CheckReport())
    if counted.structural:
        raise OptionError(f"{image.name}: its tables are damaged: vdisk check --repair all")
    changed: list[tuple[int, array[int]]] = []
    for host, users in counted.tables.items():
        table = counted.read_table(host)
        marked = [n for n, entry in enumerate(table) if entry & ZERO_FLAG and not entry & COMPRESSED]
        for number in marked:
            old = table[number] & OFFSET_MASK
            for _ in range(users if old else 0):
                editor.release(old, 1)
            table[number] = 0
            if header.backing_name is not None:
                cluster = editor.refcounts.allocate(1)
                if users > 1:
                    editor.refcounts.add(cluster, users - 1)
                storage.write(cluster << header.cluster_bits, bytes(header.cluster_bytes))
                table[number] = cluster << header.cluster_bits | (COPIED if users == 1 else 0)
        if marked:
            changed.append((host, table))
    editor.refcounts.write_back()
    storage.flush()
    for host, table in changed:
        storage.write(host, store_big_endian(table))
    storage.flush()
    editor.flush()
