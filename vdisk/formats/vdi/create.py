"""`VdiWriter`: lays out a dynamic or static VDI."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vdi.header import DYNAMIC, FREE, STATIC, Header
from vdisk.storage.staging import Staging

_TABLE_OFFSET = 512
_ALIGNMENT_BYTES = 4096


class VdiWriter(Writer):
    """Blocks in the order in which they are placed; a static image has every block in its place."""

    FORMAT_NAME = "vdi"
    OPTIONS = (
        Option("static", "bool", "Give every block its room at once.", False),
        Option("block_size", "size", "Bytes of a block; other tools expect 1M.", 1 << 20),
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
        if block_bytes < 4096 or block_bytes > 256 << 20 or block_bytes & (block_bytes - 1):
            raise OptionError(f"vdi: block_size: expected a power of two from 4K to 256M, found {block_bytes}")
        self.size = -(-size // 512) * 512  # a disk of whole sectors
        self.unit_bytes = block_bytes
        block_count = -(-self.size // block_bytes)
        if block_count > 1 << 30:
            raise OptionError(f"vdi: size: expected at most {(1 << 30) * block_bytes}, found {size}")
        self._is_static = self.options["static"]
        self._table = array("I", range(block_count) if self._is_static else (FREE,)) * (
            1 if self._is_static else block_count
        )
        table_end = _TABLE_OFFSET + 4 * block_count
        self._data_offset = -(-table_end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._next_entry = block_count if self._is_static else 0
        self._storage = staging.create()

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        if self._is_static:
            return (Placement(offset, length, self._storage, self._data_offset + offset),)
        return self._place_blocks(offset, length)

    def _place_blocks(self, offset: int, length: int) -> Iterator[Placement]:
        first = offset // self.unit_bytes
        count = -(-length // self.unit_bytes)
        entry = self._next_entry
        self._table[first : first + count] = array("I", range(entry, entry + count))
        self._next_entry += count
        yield Placement(offset, length, self._storage, self._data_offset + entry * self.unit_bytes)

    def finish(self) -> None:
        self._storage.truncate(self._data_offset + self._next_entry * self.unit_bytes)
        header = Header(
            STATIC if self._is_static else DYNAMIC,
            _TABLE_OFFSET,
            self._data_offset,
            self.size,
            self.unit_bytes,
            len(self._table),
            self._next_entry,
            uuid.uuid4(),
            uuid.uuid4(),
        )
        self._storage.write(0, header.to_bytes())
        self._storage.write(_TABLE_OFFSET, table_bytes(self._table))
