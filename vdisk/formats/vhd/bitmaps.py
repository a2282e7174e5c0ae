"""Sector bitmaps: which sectors of a block the file has. One stands in front of each block.

Nearly all blocks are whole, so a byte a block says so, and only the bitmaps of the others are kept, a bounded number.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.formats.vhd.footer import SECTOR_BYTES
from vdisk.storage.base import Storage

_UNKNOWN, _WHOLE, _PARTIAL = 0, 1, 2
_KEPT_BYTES = 8 << 20
_MOST_CHANGED = 2048


class SectorBitmaps:
    """The bitmaps of all blocks. The most significant bit of a byte is the first sector's."""

    def __init__(self, storage: Storage, block_count: int, block_bytes: int) -> None:
        self._storage = storage
        self._sectors = block_bytes // SECTOR_BYTES
        self._bytes = -(-self._sectors // 8)
        self._most_kept = max(16, _KEPT_BYTES // self._bytes)
        # A block of less than eight sectors uses a part of one byte.
        self._full = b"\xff" * self._bytes if self._sectors >= 8 else bytes([0xFF00 >> self._sectors & 0xFF])
        self._state = bytearray(block_count)
        self._partial: dict[int, bytearray] = {}
        self._changed: set[int] = set()

    @property
    def full(self) -> bytes:
        """The bitmap of a block that is whole."""
        return self._full

    @property
    def is_crowded(self) -> bool:
        """Whether so many are changed that they should be written."""
        return len(self._changed) > min(_MOST_CHANGED, self._most_kept)

    def is_whole(self, block: int, host: int) -> bool:
        """Whether the file has every sector of a block whose bitmap stands at `host`."""
        state = self._state[block]
        return state == _WHOLE or (state == _UNKNOWN and self._load(block, host) is None)

    def runs(self, block: int, host: int, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(first sector, last + 1, whether the file has them) of a stretch of a block's sectors."""
        bitmap = self._load(block, host)
        if bitmap is None:
            yield first, end, True
            return
        while first < end:
            is_set = bool(bitmap[first >> 3] & 0x80 >> (first & 7))
            whole = 0xFF if is_set else 0
            sector = first + 1
            while sector < end:
                if sector & 7 == 0 and bitmap[sector >> 3] == whole:
                    sector += 8
                elif bool(bitmap[sector >> 3] & 0x80 >> (sector & 7)) == is_set:
                    sector += 1
                else:
                    break
            sector = min(sector, end)
            yield first, sector, is_set
            first = sector

    def mark(self, block: int, host: int, first: int, end: int) -> None:
        """The file has these sectors from now on."""
        bitmap = self._load(block, host)
        if bitmap is None:
            return
        while first < end:
            if first & 7 == 0 and end - first >= 8:
                whole = (end - first) >> 3
                bitmap[first >> 3 : (first >> 3) + whole] = b"\xff" * whole
                first += whole << 3
            else:
                bitmap[first >> 3] |= 0x80 >> (first & 7)
                first += 1
        self._changed.add(block)

    def begin_whole(self, block: int) -> None:
        """A new block that the file has wholly; the caller writes its bitmap."""
        self._forget(block)
        self._state[block] = _WHOLE

    def begin_empty(self, block: int) -> None:
        """A new block of which the file has nothing yet."""
        self._make_room()
        self._partial[block] = bytearray(self._bytes)
        self._state[block] = _PARTIAL
        self._changed.add(block)

    def moved(self, block: int) -> None:
        """The block lies elsewhere, or nowhere: what is known of it is void."""
        self._forget(block)
        self._state[block] = _UNKNOWN

    def resize(self, block_count: int) -> None:
        """The disk has another number of blocks. Nothing may be waiting to be written."""
        self._partial.clear()
        self._state = bytearray(block_count)

    def take_changed(self) -> Iterator[tuple[int, bytes]]:
        """(block, bitmap) of all that are to be written, each once."""
        for block in sorted(self._changed):
            bitmap = self._partial[block]
            yield block, bytes(bitmap)
            if bitmap.startswith(self._full):
                del self._partial[block]
                self._state[block] = _WHOLE
        self._changed.clear()

    def _forget(self, block: int) -> None:
        self._partial.pop(block, None)
        self._changed.discard(block)

    def _load(self, block: int, host: int) -> bytearray | None:
        """A block's bitmap; None when every bit of it is set."""
        if self._state[block] == _WHOLE:
            return None
        bitmap = self._partial.get(block)
        if bitmap is not None:
            return bitmap
        bitmap = bytearray(self._storage.read(host, self._bytes)).ljust(self._bytes, b"\0")
        if self._sectors < 8:
            bitmap[0] &= self._full[0]
        if bitmap == self._full:
            self._state[block] = _WHOLE
            return None
        self._make_room()
        self._partial[block] = bitmap
        self._state[block] = _PARTIAL
        return bitmap

    def _make_room(self) -> None:
        if len(self._partial) >= self._most_kept:
            for block in list(self._partial):
                if block not in self._changed:
                    self._partial.pop(block, None)
