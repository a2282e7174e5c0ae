"""`BlockMapImage`: a disk of equal blocks and one table (BAT) that says where each lies.

VDI, dynamic VHD and Parallels are so made. The table is held whole as an array of 32-bit entries; new blocks go to the
end of the file, data first, then the table's entry: a kill between the two leaks a block and loses nothing.
"""

from __future__ import annotations

import abc
import sys
from array import array
from collections.abc import Iterable, Iterator

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt
from vdisk.formats.image import Image
from vdisk.formats.runs import runs_of
from vdisk.storage.base import Storage

NO_MARK = -1
_PIECE_ENTRIES = 128


def read_table(storage: Storage, field: str, offset: int, count: int, *, big_endian: bool = False) -> array[int]:
    """A table of `count` 32-bit entries. One that the file cannot hold is `Corrupt`, before memory is taken."""
    length = count * 4
    if offset + length > storage.size:
        raise Corrupt(storage.name, field, expected=f"{length} bytes at {offset}", found=f"a file of {storage.size}")
    table = array("I")
    assert table.itemsize == 4
    table.frombytes(storage.read(offset, length))
    if big_endian != (sys.byteorder == "big"):
        table.byteswap()
    return table


def table_bytes(table: array[int], *, big_endian: bool = False) -> bytes:
    """The entries as they stand in a file."""
    if big_endian != (sys.byteorder == "big"):
        table = table[:]
        table.byteswap()
    return table.tobytes()


def write_table_parts(
    storage: Storage, offset: int, table: array[int], changed: Iterable[int], *, big_endian: bool = False
) -> None:
    """Write the pieces of a table at `offset` that hold the `changed` entries: 128 entries each, a sector of the disk.

    Neighbouring pieces go in one write.
    """
    pieces = sorted({index // _PIECE_ENTRIES for index in changed})
    at = 0
    while at < len(pieces):
        stop = at + 1
        while stop < len(pieces) and pieces[stop] == pieces[stop - 1] + 1:
            stop += 1
        first = pieces[at] * _PIECE_ENTRIES
        part = table[first : (pieces[stop - 1] + 1) * _PIECE_ENTRIES]
        storage.write(offset + 4 * first, table_bytes(part, big_endian=big_endian))
        at = stop


class BlockMapImage(StorageDevice, Image):
    """An image whose table entries are the places of blocks, or marks.

    A subclass sets `_table`, `_data_offset` and friends before it is read, and says how an entry becomes an offset.
    """

    _table: array[int]
    _marks: tuple[int, int]
    """The first and the last value that mark a block without a place."""
    _zero_mark: int = NO_MARK
    """The mark that says "zeros"; the others say "not here"."""
    _entry_step: int
    """What a block's neighbour in the file has more in its entry."""
    _block_bytes: int

    @abc.abstractmethod
    def _host_of(self, entry: int) -> int:
        """Offset in the file of the block's first data byte."""

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        block_bytes = self._block_bytes
        block, inside = divmod(offset, block_bytes)
        if inside + length <= block_bytes:
            return (self._extent(offset, length, self._table[block], inside),)
        return self._survey(offset, length)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        block_bytes = self._block_bytes
        first = offset // block_bytes
        count = -(-(offset + length) // block_bytes) - first
        end = offset + length
        for index, run, entry in runs_of(self._table, first, count, self._entry_step, *self._marks):
            start = max(offset, index * block_bytes)
            stop = min(end, (index + run) * block_bytes)
            yield self._extent(start, stop - start, entry, start - index * block_bytes)

    def _extent(self, start: int, length: int, entry: int, inside: int) -> Extent:
        if self._marks[0] <= entry <= self._marks[1]:
            return Extent(start, length, Kind.ZERO if entry == self._zero_mark else Kind.UNALLOCATED)
        return Extent(start, length, Kind.DATA, self.storage, self._host_of(entry) + inside)
