"""Persistent bitmaps: which parts of the disk changed since they were cleared (QEMU docs/interop/qcow2, "Bitmaps
extension").

They are good only while the autoclear bit says so, and each only while it is not marked as in use. An image that is
written keeps them true: `begin_tracking` marks those that record as in use, memory takes the changes, and closing
stores them. A kill in between leaves them marked: they are then known to be out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.qcow2 import structs
from vdisk.formats.qcow2.header import BITMAPS, EXTENSION_BITMAPS
from vdisk.formats.qcow2.words import load_big_endian, store_big_endian

if TYPE_CHECKING:
    from array import array

    from vdisk.formats.qcow2.image import Qcow2Image

IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4
_DIRTY_TRACKING = 1
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_ALL_ONES = 1
_MOST_BITMAPS = 65535
_MOST_DIRECTORY_BYTES = 1024 * 65535
_MOST_BITMAP_BYTES = 512 << 20
_MIN_GRANULARITY_BITS, _MAX_GRANULARITY_BITS = 9, 31


@dataclass(slots=True)
class Bitmap:
    """An entry of the bitmap directory."""

    name: str
    granularity_bits: int
    """A bit stands for so many bytes, as a power of two."""
    flags: int
    table_offset: int
    table_entries: int
    kind: int = _DIRTY_TRACKING
    extra: bytes = field(default=b"", repr=False)

    @property
    def granularity_bytes(self) -> int:
        """Bytes of the disk that a bit stands for."""
        return 1 << self.granularity_bits

    @property
    def is_recording(self) -> bool:
        """Whether writes to the disk set its bits."""
        return bool(self.flags & AUTO)

    @property
    def is_consistent(self) -> bool:
        """Whether its bits can be trusted."""
        return not self.flags & IN_USE

    def describe(self) -> dict[str, Any]:
        """As in qemu-img's `format-specific.data.bitmaps`."""
        names = [word for flag, word in ((IN_USE, "in-use"), (AUTO, "auto")) if self.flags & flag]
        return {"flags": names, "name": self.name, "granularity": self.granularity_bytes}

    def to_bytes(self) -> bytes:
        """The entry as it stands in the directory."""
        name = self.name.encode("utf-8", "surrogateescape")
        raw: bytes = structs.BitmapHead.build(
            {
                "table_offset": self.table_offset,
                "table_entries": self.table_entries,
                "flags": self.flags,
                "kind": self.kind,
                "granularity_bits": self.granularity_bits,
                "name_bytes": len(name),
                "extra_bytes": len(self.extra),
            }
        )
        raw += self.extra + name
        return raw + bytes(-len(raw) % 8)


def directory_place(image: Qcow2Image) -> tuple[int, int, int]:
    """(offset, bytes, entries) of the directory; three zeros where there are no good bitmaps."""
    header, file = image.header, image.name
    data = header.extension(EXTENSION_BITMAPS)
    if data is None or not header.autoclear & BITMAPS:
        return 0, 0, 0
    place = parse(structs.BitmapExtension, data, file, "bitmaps extension")
    if place.count > _MOST_BITMAPS or place.directory_bytes > _MOST_DIRECTORY_BYTES:
        raise Corrupt(file, "bitmaps extension", expected=f"at most {_MOST_BITMAPS} bitmaps", found=place.count)
    if place.directory_offset % header.cluster_bytes:
        raise Corrupt(file, "bitmap directory", expected="an offset of a cluster", found=place.directory_offset)
    return place.directory_offset, place.directory_bytes, place.count


def read_bitmaps(image: Qcow2Image) -> list[Bitmap]:
    """The bitmap directory, every entry checked; empty where the image has no bitmaps that hold."""
    file = image.name
    offset, length, count = directory_place(image)
    raw = image.storage.read(offset, length) if count else b""
    head = structs.BitmapHead.sizeof()
    found: list[Bitmap] = []
    at = 0
    for number in range(count):
        where = f"bitmap {number + 1}"
        fields = parse(structs.BitmapHead, raw[at : at + head], file, where)
        at += head
        if at + fields.extra_bytes + fields.name_bytes > len(raw):
            raise Corrupt(file, where, expected="an entry inside the directory", found=f"{length} bytes in all")
        if not _MIN_GRANULARITY_BITS <= fields.granularity_bits <= _MAX_GRANULARITY_BITS:
            raise Corrupt(file, f"{where}: granularity", expected="9 to 31 bits", found=fields.granularity_bits)
        if fields.table_offset % image.header.cluster_bytes or fields.table_entries > _MOST_BITMAP_BYTES // 8:
            raise Corrupt(file, f"{where}: table", expected="an offset of a cluster", found=fields.table_offset)
        extra = raw[at : at + fields.extra_bytes]
        at += fields.extra_bytes
        name = raw[at : at + fields.name_bytes].decode("utf-8", "surrogateescape")
        found.append(
            Bitmap(
                name, fields.granularity_bits, fields.flags, fields.table_offset, fields.table_entries,
                fields.kind, extra,
            )
        )  # fmt: skip
        at += fields.name_bytes
        at += -(head + fields.extra_bytes + fields.name_bytes) % 8
    return found


def describe_bitmaps(image: Qcow2Image) -> list[dict[str, Any]]:
    """As qemu-img shows them."""
    return [bitmap.describe() for bitmap in read_bitmaps(image)]


def table_of(image: Qcow2Image, bitmap: Bitmap) -> array[int]:
    """A bitmap's table: where each cluster of its bits lies."""
    length = bitmap.table_entries * 8
    raw = image.storage.read(bitmap.table_offset, length)
    if len(raw) < length:
        raise Corrupt(image.name, f"bitmap {bitmap.name}: table", expected=f"{length} bytes", found=len(raw))
    return load_big_endian(raw, "Q")


def bits_bytes(disk_bytes: int, granularity_bits: int) -> int:
    """Bytes of a bitmap of a disk's length."""
    bits = (disk_bytes + (1 << granularity_bits) - 1) >> granularity_bits
    return (bits + 7) // 8


def load_bits(image: Qcow2Image, bitmap: Bitmap) -> bytearray:
    """A bitmap's bits, least significant first: bit n stands for `granularity_bytes` from n times as many on."""
    if bitmap.kind != _DIRTY_TRACKING or (bitmap.extra and not bitmap.flags & EXTRA_COMPATIBLE):
        raise Unsupported(image.name, "qcow2", f"a bitmap of type {bitmap.kind} with unknown extra data")
    cluster_bytes = image.header.cluster_bytes
    length = bits_bytes(image.header.disk_bytes, bitmap.granularity_bits)
    if length > _MOST_BITMAP_BYTES:
        raise Unsupported(image.name, "qcow2", f"a bitmap of {length} bytes")
    bits = bytearray(length)
    for number, entry in enumerate(table_of(image, bitmap)):
        start = number * cluster_bytes
        part = min(cluster_bytes, length - start)
        if part <= 0:
            break
        host = entry & _OFFSET_MASK
        if host:
            bits[start : start + part] = image.storage.read(host, part).ljust(part, b"\0")
        elif entry & _ALL_ONES:
            bits[start : start + part] = b"\xff" * part
    return bits


class BitmapTracker:
    """The recording bitmaps of an image that is being written."""

    def __init__(self, image: Qcow2Image, bitmaps: list[Bitmap]) -> None:
        """`bitmaps` are all of the image's; those that record and hold are loaded and marked as in use."""
        self._image = image
        self._bitmaps = bitmaps
        self._bits: dict[str, bytearray] = {}
        lost: list[str] = []
        for bitmap in bitmaps:
            if bitmap.is_recording and bitmap.is_consistent:
                try:
                    self._bits[bitmap.name] = load_bits(image, bitmap)
                except Unsupported:
                    lost.append(bitmap.name)  # it stays marked: who knows it will find it out of date
                bitmap.flags |= IN_USE
        self._recording = [(b.granularity_bits, self._bits[b.name]) for b in bitmaps if b.name in self._bits]
        if self._bits or lost:
            offset, _, _ = directory_place(image)
            image.storage.write(offset, b"".join(bitmap.to_bytes() for bitmap in bitmaps))
            image.storage.flush()

    def mark(self, offset: int, length: int) -> None:
        """A range of the disk is about to change."""
        if not length:
            return
        for granularity_bits, bits in self._recording:
            set_bits(bits, offset >> granularity_bits, (offset + length - 1 >> granularity_bits) + 1)

    def resize(self, disk_bytes: int) -> None:
        """The disk has a new length; what is new counts as changed."""
        for granularity_bits, bits in self._recording:
            length = bits_bytes(disk_bytes, granularity_bits)
            if length < len(bits):
                del bits[length:]
            else:
                bits.extend(bytes(length - len(bits)))

    def store(self) -> None:
        """Write the bits, and say that they hold again. The image is flushed already."""
        if not self._bits:
            return
        for bitmap in self._bitmaps:
            if bitmap.name in self._bits:
                store_bits(self._image, bitmap, self._bits[bitmap.name])
                bitmap.flags &= ~IN_USE
        write_directory(self._image, self._bitmaps)
        self._bits.clear()
        self._recording.clear()


def set_bits(bits: bytearray, first: int, end: int) -> None:
    """Set the bits [first, end)."""
    first_byte, last_byte = first >> 3, (end - 1) >> 3
    if first_byte == last_byte:
        bits[first_byte] |= (0xFF >> (8 - (end - first))) << (first & 7)
        return
    bits[first_byte] |= 0xFF << (first & 7) & 0xFF
    bits[last_byte] |= 0xFF >> (7 - ((end - 1) & 7))
    bits[first_byte + 1 : last_byte] = b"\xff" * (last_byte - first_byte - 1)


def begin_tracking(image: Qcow2Image) -> BitmapTracker:
    """Keep the image's bitmaps true from now on."""
    return BitmapTracker(image, read_bitmaps(image))


def store_bits(image: Qcow2Image, bitmap: Bitmap, bits: bytearray) -> None:
    """Write a bitmap's bits to new clusters and let `bitmap` name them; the old ones become free at the next flush."""
    editor, header = image.editor, image.header
    cluster_bytes = header.cluster_bytes
    release_bits(image, bitmap)
    entries = -(-len(bits) // cluster_bytes)
    table = load_big_endian(bytes(8 * entries), "Q")
    for number in range(entries):
        part = bits[number * cluster_bytes : (number + 1) * cluster_bytes]
        if not any(part):
            continue
        if len(part) == cluster_bytes and part.count(0xFF) == cluster_bytes:
            table[number] = _ALL_ONES
            continue
        host = editor.refcounts.allocate(1) << header.cluster_bits
        image.storage.write(host, part.ljust(cluster_bytes, b"\0"))
        table[number] = host
    data = store_big_endian(table)
    clusters = -(-len(data) // cluster_bytes)
    bitmap.table_entries, bitmap.table_offset = entries, 0
    if clusters:
        bitmap.table_offset = editor.refcounts.allocate(clusters) << header.cluster_bits
        image.storage.write(bitmap.table_offset, data.ljust(clusters * cluster_bytes, b"\0"))


def release_bits(image: Qcow2Image, bitmap: Bitmap) -> None:
    """Give up the clusters of a bitmap that is about to be replaced, at the next flush."""
    cluster_bytes = image.header.cluster_bytes
    for entry in table_of(image, bitmap):
        if entry & _OFFSET_MASK:
            image.editor.release(entry & _OFFSET_MASK, 1)
    if bitmap.table_entries:
        image.editor.release(bitmap.table_offset, -(-bitmap.table_entries * 8 // cluster_bytes))


def write_directory(image: Qcow2Image, bitmaps: list[Bitmap]) -> None:
    """Put a new directory in the place of the old one, flushed on both sides of the switch."""
    header, editor, storage = image.header, image.editor, image.storage
    old_offset, old_bytes, _ = directory_place(image)
    data = b"".join(bitmap.to_bytes() for bitmap in bitmaps)
    if len(data) > _MOST_DIRECTORY_BYTES or len(bitmaps) > _MOST_BITMAPS:
        raise OptionError(f"{image.name}: has no room for more bitmaps")
    if bitmaps:
        clusters = -(-len(data) // header.cluster_bytes)
        offset = editor.refcounts.allocate(clusters) << header.cluster_bits
        storage.write(offset, data.ljust(clusters << header.cluster_bits, b"\0"))
        place: bytes | None = structs.BitmapExtension.build(
            {"count": len(bitmaps), "reserved": 0, "directory_bytes": len(data), "directory_offset": offset}
        )
    else:
        place = None
    editor.refcounts.write_back()
    storage.flush()
    header.set_extension(EXTENSION_BITMAPS, place)
    header.autoclear = header.autoclear & ~BITMAPS | (BITMAPS if bitmaps else 0)
    header.write_whole(storage)
    storage.flush()
    if old_bytes:
        editor.release(old_offset, -(-old_bytes // header.cluster_bytes))
    editor.flush()
    storage.flush()


# What a user asks for --------------------------------------------------------------------------------------------


def find_bitmap(image: Qcow2Image, bitmaps: list[Bitmap], name: str) -> Bitmap:
    """The bitmap of that name; `OptionError` where there is none."""
    for bitmap in bitmaps:
        if bitmap.name == name:
            return bitmap
    raise OptionError(f"{image.name}: has no bitmap {name!r}")


def add_bitmap(image: Qcow2Image, name: str, *, granularity_bytes: int = 65536, recording: bool = True) -> None:
    """Make an empty bitmap, that records writes from now on unless told not to."""
    with _change(image) as bitmaps:
        bits = granularity_bytes.bit_length() - 1
        if granularity_bytes != 1 << bits or not _MIN_GRANULARITY_BITS <= bits <= _MAX_GRANULARITY_BITS:
            raise OptionError(f"a bitmap's granularity is a power of two from 512 to 2G, not {granularity_bytes}")
        if not 1 <= len(name.encode()) <= 1023:
            raise OptionError("a bitmap's name has 1 to 1023 bytes")
        if any(bitmap.name == name for bitmap in bitmaps):
            raise OptionError(f"{image.name}: has a bitmap {name!r} already")
        length = bits_bytes(image.header.disk_bytes, bits)
        if length > _MOST_BITMAP_BYTES:
            raise OptionError(f"a bitmap of {length} bytes is too large: choose a coarser granularity")
        bitmap = Bitmap(name, bits, AUTO if recording else 0, 0, 0)
        store_bits(image, bitmap, bytearray(length))
        bitmaps.append(bitmap)


def remove_bitmap(image: Qcow2Image, name: str) -> None:
    """Forget a bitmap."""
    with _change(image) as bitmaps:
        bitmap = find_bitmap(image, bitmaps, name)
        release_bits(image, bitmap)
        bitmaps.remove(bitmap)


def clear_bitmap(image: Qcow2Image, name: str) -> None:
    """Set all bits of a bitmap to zero; it holds again if it did not."""
    with _change(image) as bitmaps:
        bitmap = find_bitmap(image, bitmaps, name)
        store_bits(image, bitmap, bytearray(bits_bytes(image.header.disk_bytes, bitmap.granularity_bits)))
        bitmap.flags &= ~IN_USE


def set_recording(image: Qcow2Image, name: str, recording: bool) -> None:
    """Let writes set the bits of a bitmap, or no longer."""
    with _change(image) as bitmaps:
        bitmap = find_bitmap(image, bitmaps, name)
        if not bitmap.is_consistent:
            raise OptionError(f"{image.name}: bitmap {name!r} is out of date: clear or remove it")
        bitmap.flags = bitmap.flags & ~AUTO | (AUTO if recording else 0)


@contextlib.contextmanager
def _change(image: Qcow2Image) -> Iterator[list[Bitmap]]:
    """The bitmaps to be changed, with nothing of theirs in memory; written on leaving without an error."""
    with image.changing():
        if image.header.version < 3:
            raise Unsupported(image.name, "qcow2", "bitmaps in version 2")
        image.editor.flush()
        image.stop_tracking()
        bitmaps = read_bitmaps(image)
        try:
            yield bitmaps
        except OptionError:  # nothing has changed
            image.start_tracking()
            raise
        write_directory(image, bitmaps)
        image.start_tracking()
