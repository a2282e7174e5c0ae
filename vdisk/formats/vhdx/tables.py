"""`PageCache`: the file's metadata by pages, with the sectors that were changed and are not in their places yet."""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vdisk.errors import Corrupt
from vdisk.formats.vhdx import structs
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    import numpy

PAGE_BYTES = 64 << 10
_PAGE_MASK = ~(PAGE_BYTES - 1)
_IN_PAGE = PAGE_BYTES - 1
_ENTRY = struct.Struct("<Q")
_PAGES_KEPT = 512
"""32 MiB: the whole BAT of a disk of 4 TiB in blocks of 1 MiB."""
_SECTOR_BYTES = structs.LOG_SECTOR_BYTES


class PageCache:
    """Pages of 64 KiB of metadata, by their offset in the file, and which of their 4 KiB sectors have changed.

    Changed sectors stay until they are in their places (`settled`); other pages go when there are too many.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.changed: set[int] = set()
        """Offsets of changed sectors in the file."""
        self._pages: dict[int, bytearray] = {}
        self._lock = threading.RLock()

    def page(self, offset: int) -> bytearray:
        """The page at `offset`, a multiple of 64 KiB. What the file is too short for reads as zeros."""
        page = self._pages.get(offset)
        if page is not None:
            return page
        with self._lock:
            page = self._pages.get(offset)
            if page is None:
                page = bytearray(PAGE_BYTES)
                self.storage.readinto(offset, memoryview(page))
                if len(self._pages) >= _PAGES_KEPT:
                    self._drop_some()
                self._pages[offset] = page
        return page

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes of metadata."""
        found = bytearray()
        while length:
            base = offset & ~(PAGE_BYTES - 1)
            part = self.page(base)[offset - base : offset - base + length]
            found += part
            offset += len(part)
            length -= len(part)
        return bytes(found)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Change bytes of metadata, for now in memory."""
        view = memoryview(data)
        with self._lock:  # a page must not be dropped between its being found and its being marked as changed
            while view:
                base = offset & ~(PAGE_BYTES - 1)
                inside = offset - base
                part = view[: PAGE_BYTES - inside]
                self.page(base)[inside : inside + len(part)] = part
                first = offset & ~(_SECTOR_BYTES - 1)
                self.changed.update(range(first, offset + len(part), _SECTOR_BYTES))
                view = view[len(part) :]
                offset += len(part)

    def peek(self, offset: int) -> bytearray | None:
        """The page at `offset` when it is in memory."""
        return self._pages.get(offset)

    def settled(self, sectors: Iterable[tuple[int, bytes]]) -> None:
        """These changed sectors are in their places."""
        with self._lock:
            self.changed.difference_update(offset for offset, _ in sectors)

    def changed_sectors(self, most: int) -> list[tuple[int, bytes]]:
        """Up to `most` changed sectors, in the order of the file."""
        offsets = sorted(self.changed)[:most]
        return [(offset, self.read(offset, _SECTOR_BYTES)) for offset in offsets]

    def forget(self, offset: int, length: int) -> None:
        """Drop what is known of a stretch of the file, changes included: it holds something else now."""
        with self._lock:
            for base in [base for base in self._pages if offset - PAGE_BYTES < base < offset + length]:
                del self._pages[base]
            self.changed -= {at for at in self.changed if offset <= at < offset + length}

    def _drop_some(self) -> None:
        busy = {offset & ~(PAGE_BYTES - 1) for offset in self.changed}
        for base in [base for base in self._pages if base not in busy][: _PAGES_KEPT // 4]:
            del self._pages[base]


class BlockTable:
    """The BAT: 64-bit entries, payload blocks with a sector bitmap's entry behind every chunk of them (2.5)."""

    def __init__(self, pages: PageCache, offset: int, chunk_blocks: int) -> None:
        self._pages = pages
        self.offset = offset
        self._chunk_shift = chunk_blocks.bit_length() - 1
        self._chunk_blocks = chunk_blocks

    def payload(self, block: int) -> int:
        """The entry of a payload block."""
        # The way of every read: what `_entry` does, without the call.
        at = self.offset + (block + (block >> self._chunk_shift) << 3)
        page = self._pages.peek(at & _PAGE_MASK)
        if page is None:
            page = self._pages.page(at & _PAGE_MASK)
        return _ENTRY.unpack_from(page, at & _IN_PAGE)[0]  # type: ignore[no-any-return]

    def set_payload(self, block: int, entry: int) -> None:
        """Change a payload block's entry."""
        self._set_entry(block + (block >> self._chunk_shift), entry)

    def bitmap(self, chunk: int) -> int:
        """The entry of a chunk's sector bitmap block."""
        return self._entry((chunk + 1) * (self._chunk_blocks + 1) - 1)

    def set_bitmap(self, chunk: int, entry: int) -> None:
        """Change a sector bitmap block's entry."""
        self._set_entry((chunk + 1) * (self._chunk_blocks + 1) - 1, entry)

    def payloads(self, first: int, count: int) -> numpy.ndarray[Any, Any]:
        """The entries of many payload blocks, as uint64."""
        import numpy

        shift = self._chunk_shift
        start = first + (first >> shift)
        stop = first + count - 1 + ((first + count - 1) >> shift) + 1
        entries = self._entries(start, stop - start)
        places = numpy.arange(start + 1, stop + 1, dtype=numpy.int64)
        return entries[places % (self._chunk_blocks + 1) != 0] if stop - start != count else entries

    def skip_hole(self, block: int, last: int) -> int:
        """The first block from `block` on whose entry may be other than 0: the table may be a hole in the file."""
        if self._pages.changed:
            return block
        at = self.offset + 8 * (block + (block >> self._chunk_shift))
        end = self.offset + 8 * (last + (last >> self._chunk_shift) + 1)
        for start, length, is_data in self._pages.storage.segments(at, end - at):
            if is_data:
                return block
            entry = (start + length - self.offset) // 8
            return min(last, entry - entry // (self._chunk_blocks + 1))
        return block

    def _entry(self, index: int) -> int:
        at = self.offset + index * 8
        return int(_ENTRY.unpack_from(self._pages.page(at & _PAGE_MASK), at & _IN_PAGE)[0])

    def _set_entry(self, index: int, entry: int) -> None:
        self._pages.write(self.offset + index * 8, entry.to_bytes(8, "little"))

    def _entries(self, start: int, count: int) -> numpy.ndarray[Any, Any]:
        import numpy

        length = count * 8
        at = self.offset + start * 8
        if self._pages.changed or length < PAGE_BYTES:
            data = self._pages.read(at, length)
        else:
            data = self._pages.storage.read(at, length).ljust(length, b"\0")
        return numpy.frombuffer(data, "<u8")


class SectorBitmap:
    """Which sectors of a block a differencing file holds: a bit each, the least significant first (2.5.2)."""

    def __init__(self, pages: PageCache) -> None:
        self._pages = pages

    def runs(self, bitmap_offset: int, first: int, count: int) -> Iterator[tuple[int, bool]]:
        """(length, is_present) of the runs among `count` bits from bit `first` of the bitmap block at an offset."""
        length, value = 0, False
        while count:
            step = min(count, 4096 - first % 8)
            byte = first // 8
            data = self._pages.read(bitmap_offset + byte, -(-(first % 8 + step) // 8))
            bits = int.from_bytes(data, "little") >> first % 8 & ((1 << step) - 1)
            first += step
            count -= step
            while step:
                is_set = bool(bits & 1)
                other = ~bits if is_set else bits
                run = min(step, (other & -other).bit_length() - 1) if other & ((1 << step) - 1) else step
                if length and value != is_set:
                    yield length, value
                    length = 0
                length, value = length + run, is_set
                bits >>= run
                step -= run
        if length:
            yield length, value

    def set(self, bitmap_offset: int, first: int, count: int, value: bool = True) -> None:
        """Change `count` bits from bit `first` on."""
        byte, shift = divmod(first, 8)
        size = -(-(shift + count) // 8)
        mask = ((1 << count) - 1) << shift
        bits = int.from_bytes(self._pages.read(bitmap_offset + byte, size), "little")
        bits = bits | mask if value else bits & ~mask
        self._pages.write(bitmap_offset + byte, bits.to_bytes(size, "little"))


def table_of(entries: array[int]) -> bytes:
    """Entries as they stand in a file."""
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def host_of(file: str, what: str, entry: int, length: int, file_bytes: int) -> int:
    """The offset that an entry names, checked to leave `length` bytes in the file and the headers alone."""
    host = entry & structs.OFFSET_MASK
    if host < structs.HEADER_SECTION_BYTES or host + length > file_bytes:
        raise Corrupt(file, what, expected=f"an offset in the file of {file_bytes} bytes", found=host)
    return host
