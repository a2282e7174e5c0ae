"""`VhdWriter`: lays out a fixed or dynamic VHD."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vhd.footer import (
    DYNAMIC,
    FIXED,
    FOOTER_BYTES,
    HEADER_BYTES,
    LARGEST_BYTES,
    SECTOR_BYTES,
    DynamicHeader,
    Footer,
    geometry_for,
)
from vdisk.formats.vhd.image import FREE
from vdisk.storage.staging import Staging

_TABLE_OFFSET = FOOTER_BYTES + HEADER_BYTES


class VhdWriter(Writer):
    """Blocks in the order in which they are placed, each behind a bitmap that shows all of its sectors."""

    FORMAT_NAME = "vhd"
    OPTIONS = (
        Option("subformat", "choice", "Kind of disk.", "dynamic", ("dynamic", "fixed")),
        Option("force_size", "bool", "Keep the exact size; off: one that a CHS geometry has, for Virtual PC.", True),
        Option("block_size", "size", "Bytes of a block of a dynamic disk.", 2 << 20),
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
        block_bytes = self.options["block_size"]
        if block_bytes < 512 or block_bytes > 256 << 20 or block_bytes & (block_bytes - 1):
            raise OptionError(f"vhd: block_size: expected a power of two from 512 to 256M, found {block_bytes}")
        sectors = -(-size // SECTOR_BYTES)
        geometry = geometry_for(sectors)
        if not self.options["force_size"] and sectors < 65535 * 16 * 255:  # above that the exact size counts
            longer = sectors
            while _sectors(geometry) < sectors:  # up to the next size that a geometry has
                longer += 1
                geometry = geometry_for(longer)
            sectors = _sectors(geometry)
        self.size = sectors * SECTOR_BYTES
        if self.size > LARGEST_BYTES:
            raise OptionError(f"vhd: size: expected at most 2040 GiB, found {size} bytes; VHDX takes longer disks")
        is_fixed = self.options["subformat"] == "fixed"
        creator = b"win " if self.options["force_size"] else b"vpc "
        self._footer = Footer(FIXED if is_fixed else DYNAMIC, self.size, self.size, geometry, creator=creator)
        self._storage = staging.create()
        self._header: DynamicHeader | None = None
        self.unit_bytes = 4096
        if not is_fixed:
            self.unit_bytes = block_bytes
            self._header = DynamicHeader(_TABLE_OFFSET, -(-self.size // block_bytes), block_bytes)
            self._footer.data_offset = FOOTER_BYTES
            self._bitmap = b"\xff" * -(-(block_bytes // SECTOR_BYTES) // 8)
            self._table = array("I", (FREE,)) * self._header.table_entries
            table_end = _TABLE_OFFSET + 4 * self._header.table_entries
            self._end = -(-table_end // SECTOR_BYTES) * SECTOR_BYTES

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        if self._header is None:
            return (Placement(offset, length, self._storage, offset),)
        return self._place_blocks(self._header, offset, length)

    def _place_blocks(self, header: DynamicHeader, offset: int, length: int) -> Iterator[Placement]:
        end = offset + length
        while offset < end:
            self._storage.write(self._end, self._bitmap)
            self._table[offset // header.block_bytes] = self._end // SECTOR_BYTES
            data = self._end + header.bitmap_bytes
            yield Placement(offset, min(header.block_bytes, end - offset), self._storage, data)
            self._end = data + header.block_bytes
            offset += header.block_bytes

    def finish(self) -> None:
        storage, footer = self._storage, self._footer.to_bytes()
        if self._header is None:
            storage.truncate(self.size)
            storage.write(self.size, footer)
            return
        storage.truncate(self._end)
        storage.write(0, footer + self._header.to_bytes())
        table = table_bytes(self._table, big_endian=True)
        storage.write(_TABLE_OFFSET, table.ljust(-(-len(table) // SECTOR_BYTES) * SECTOR_BYTES, b"\xff"))
        storage.write(self._end, footer)


def _sectors(geometry: tuple[int, int, int]) -> int:
    cylinders, heads, sectors = geometry
    return cylinders * heads * sectors
