"""`VhdWriter`: lays out a fixed, dynamic or differencing VHD."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vhd.footer import (
    BY_GEOMETRY,
    BY_SIZE,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    FOOTER_BYTES,
    LARGEST_BYTES,
    LARGEST_GEOMETRY,
    SECTOR_BYTES,
    Footer,
    geometry_around,
    geometry_for,
    sectors_of,
)
from vdisk.formats.vhd.header import FREE, HEADER_BYTES, MAX_BLOCK_BYTES, MAX_ENTRIES, DynamicHeader
from vdisk.formats.vhd.image import VhdImage
from vdisk.formats.vhd.parent import identify, lay_out_locators, make_paths
from vdisk.storage.staging import Staging

_TABLE_OFFSET = FOOTER_BYTES + HEADER_BYTES
_ALIGNMENT_BYTES = 4096
_DEFAULT_BLOCK_BYTES = 2 << 20
_SMALLEST_BLOCK_BYTES = 4096
"""QEMU takes a bitmap of less than a byte to be none at all."""
_BITMAPS_KEPT = 4096


class VhdWriter(Writer):
    """Blocks in the order in which they are placed, each behind its sector bitmap.

    A block without a parent is whole, so that readers that know nothing of bitmaps read it right, too; what is not
    placed of it is a hole in the file. A child has the sectors that were placed or made zero.
    """

    FORMAT_NAME = "vhd"
    CAN_BACK = True
    OPTIONS = (
        Option(
            "subformat", "choice", "dynamic: blocks as they are written; fixed: all", "dynamic", ("dynamic", "fixed")
        ),
        Option("force_size", "bool", "keep the exact size; off: one that a geometry has, for Virtual PC", True),
        Option("block_size", "size", "bytes of a block; power of two, 2M or the parent's by default"),
    )

    def __init__(
        self,
        staging: Staging,
        size: int,
        options: Mapping[str, Any],
        *,
        compress: bool = False,
        backing: Backing | None = None,
    ) -> None:
        super().__init__(staging, size, options, compress=compress, backing=backing)
        self._footer = self._make_footer(size)
        self.size = self._footer.current_bytes
        self._storage = staging.create()
        self._header: DynamicHeader | None = None
        self.unit_bytes = 4096
        if self._footer.disk_type == FIXED:
            return
        block_bytes = self._block_bytes()
        self._header = header = DynamicHeader(_TABLE_OFFSET, max(1, -(-self.size // block_bytes)), block_bytes)
        if header.table_entries > MAX_ENTRIES:
            raise OptionError(f"vhd: block_size: {block_bytes} is too small for a disk of {size} bytes")
        self._footer.data_offset = FOOTER_BYTES
        self._table = array("I", (FREE,)) * header.table_entries
        self._end = header.table_end
        self._bitmaps: dict[int, bytearray] = {}
        if backing is None:
            self.unit_bytes = block_bytes
        else:
            self._set_parent(header, backing)

    def _make_footer(self, size: int) -> Footer:
        sectors = -(-size // SECTOR_BYTES)
        if sectors * SECTOR_BYTES > LARGEST_BYTES:
            raise OptionError(f"vhd: size: expected at most 2040 GiB, found {size} bytes; VHDX takes longer disks")
        is_fixed = self.options["subformat"] == "fixed"
        if is_fixed and self.backing is not None:
            raise OptionError("vhd: a fixed disk cannot have a backing file")
        kind = FIXED if is_fixed else DYNAMIC if self.backing is None else DIFFERENCING
        if self.options["force_size"]:
            return Footer(kind, sectors * 512, sectors * 512, geometry_for(sectors), creator=BY_SIZE)
        geometry = geometry_around(sectors)
        if geometry != LARGEST_GEOMETRY:  # that one stands for all that are larger, and their size is exact
            sectors = sectors_of(geometry)
        size = sectors * SECTOR_BYTES
        return Footer(kind, size, size, geometry, creator=BY_GEOMETRY, creator_version=0x00050003)

    def _block_bytes(self) -> int:
        block = self.options["block_size"]
        if block is None:
            block = _DEFAULT_BLOCK_BYTES
            if self.backing is not None and isinstance(self.backing.device, VhdImage):
                parent = self.backing.device.header
                block = block if parent is None else parent.block_bytes
        if block < _SMALLEST_BLOCK_BYTES or block > MAX_BLOCK_BYTES or block & (block - 1):
            raise OptionError(f"vhd: option block_size: expected a power of two from 4K to 256M, found {block}")
        return int(block)

    def _set_parent(self, header: DynamicHeader, backing: Backing) -> None:
        parent = backing.device
        if not isinstance(parent, VhdImage):
            raise OptionError(f"vhd: backing file: expected a VHD file, found {backing.format}")
        identify(header, parent, backing.name)
        header.parent_locators, data = lay_out_locators(make_paths(backing.name, parent), self._end)
        self._storage.write(self._end, data)
        self._end += len(data)

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        if self._header is None:
            return (Placement(offset, length, self._storage, offset),)
        return self._place_blocks(self._header, offset, length)

    def _place_blocks(self, header: DynamicHeader, offset: int, length: int) -> Iterator[Placement]:
        end = offset + length
        while offset < end:
            block, inside = divmod(offset, header.block_bytes)
            part = min(header.block_bytes - inside, end - offset)
            yield Placement(offset, part, self._storage, self._own(header, block, inside, part))
            offset += part

    def zero(self, offset: int, length: int) -> None:
        assert self._header is not None
        for _ in self._place_blocks(self._header, offset, length):
            pass  # room that is not written to is a hole, and reads as zeros

    def _own(self, header: DynamicHeader, block: int, inside: int, length: int) -> int:
        """Where a part of a block lies, which is the file's from now on."""
        host = self._table[block] * SECTOR_BYTES
        if self._table[block] == FREE:
            host = self._end
            host = -(-(host + header.bitmap_bytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES - header.bitmap_bytes
            if host // SECTOR_BYTES >= FREE:
                raise OptionError(f"vhd: the file would be longer than its table can name, {FREE} sectors")
            self._table[block] = host // SECTOR_BYTES
            self._end = host + header.bitmap_bytes + header.block_bytes
            if self.backing is None:
                self._storage.write(host, b"\xff" * (header.block_bytes // SECTOR_BYTES // 8))
        if self.backing is not None:
            self._mark(header, block, inside // SECTOR_BYTES, -(-(inside + length) // SECTOR_BYTES))
        return host + header.bitmap_bytes + inside

    def _mark(self, header: DynamicHeader, block: int, first: int, last: int) -> None:
        """Set the bits of a child's sectors."""
        bitmap = self._bitmaps.get(block)
        if bitmap is None:
            if len(self._bitmaps) >= _BITMAPS_KEPT:
                self._write_bitmaps()
            count = header.block_bytes // SECTOR_BYTES // 8
            raw = self._storage.read(self._table[block] * SECTOR_BYTES, count)
            bitmap = self._bitmaps[block] = bytearray(raw.ljust(count, b"\0"))
        if first % 8 == 0 and last % 8 == 0:
            bitmap[first // 8 : last // 8] = b"\xff" * (last // 8 - first // 8)
            return
        for sector in range(first, last):
            bitmap[sector >> 3] |= 0x80 >> (sector & 7)

    def _write_bitmaps(self) -> None:
        for block, bitmap in self._bitmaps.items():
            self._storage.write(self._table[block] * SECTOR_BYTES, bitmap)
        self._bitmaps.clear()

    def finish(self) -> None:
        storage, footer = self._storage, self._footer.to_bytes()
        if self._header is None:
            storage.truncate(self.size)
            storage.write(self.size, footer)
            return
        self._write_bitmaps()
        storage.truncate(self._end)
        storage.write(0, footer + self._header.to_bytes())
        table = table_bytes(self._table, big_endian=True)
        storage.write(_TABLE_OFFSET, table.ljust(self._header.table_end - _TABLE_OFFSET, b"\xff"))
        storage.write(self._end, footer)
