"""`VdiWriter`: lays out a dynamic, static or differencing VDI."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vdi.header import (
    DIFFERENCING,
    DYNAMIC,
    FREE,
    MAX_BLOCK_BYTES,
    MAX_BLOCKS,
    SECTOR_BYTES,
    STATIC,
    ZERO,
    Header,
)
from vdisk.formats.vdi.image import VdiImage
from vdisk.formats.vdi.parent import refuse_elsewhere
from vdisk.storage.staging import Staging

_TABLE_OFFSET = 512
_ALIGNMENT_BYTES = 4096
_DEFAULT_BLOCK_BYTES = 1 << 20


class VdiWriter(Writer):
    """Blocks in the order in which they are placed; a static image has every block in its place."""

    FORMAT_NAME = "vdi"
    CAN_BACK = True
    OPTIONS = (
        Option("static", "bool", "give every block its room at once", False),
        Option("block_size", "size", "bytes of a block; the parent's or 1M by default, and other tools expect 1M"),
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
        self._is_static = self.options["static"]
        parent = None if backing is None else self._parent(backing)
        block_bytes = self.options["block_size"]
        if block_bytes is None:
            block_bytes = _DEFAULT_BLOCK_BYTES if parent is None else parent.header.block_bytes
        if block_bytes < 4096 or block_bytes > MAX_BLOCK_BYTES or block_bytes & (block_bytes - 1):
            raise OptionError(f"vdi: option block_size: expected a power of two from 4K to 256M, found {block_bytes}")
        self.size = -(-size // SECTOR_BYTES) * SECTOR_BYTES  # a disk of whole sectors
        self.unit_bytes = block_bytes
        block_count = -(-self.size // block_bytes)
        if block_count > MAX_BLOCKS:
            raise OptionError(f"vdi: size: expected at most {MAX_BLOCKS * block_bytes}, found {size}")
        self._table = array("I", range(block_count)) if self._is_static else array("I", (FREE,)) * block_count
        table_end = _TABLE_OFFSET + 4 * block_count
        self._header = Header(
            STATIC if self._is_static else DYNAMIC,
            _TABLE_OFFSET,
            -(-table_end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES,
            self.size,
            block_bytes,
            block_count,
            block_count if self._is_static else 0,
            uuid.uuid4(),
            uuid.uuid4(),
        )
        if parent is not None:
            self._header.image_type = DIFFERENCING
            self._header.parent_uuid = parent.header.uuid
            self._header.parent_modification_uuid = parent.header.modification_uuid
        self._storage = staging.create()

    def _parent(self, backing: Backing) -> VdiImage:
        parent = backing.device
        if not isinstance(parent, VdiImage):
            raise OptionError(f"vdi: backing file: expected a VDI file, found {backing.format}")
        if self._is_static:
            raise OptionError("vdi: a static image cannot have a backing file")
        refuse_elsewhere(self.staging.target, parent)
        return parent

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        if self._is_static:
            return (Placement(offset, length, self._storage, self._header.data_offset + offset),)
        return self._place_blocks(offset, length)

    def _place_blocks(self, offset: int, length: int) -> Iterator[Placement]:
        first = offset // self.unit_bytes
        count = -(-length // self.unit_bytes)
        entry = self._header.allocated_count
        self._table[first : first + count] = array("I", range(entry, entry + count))
        self._header.allocated_count += count
        yield Placement(offset, length, self._storage, self._header.data_offset + entry * self.unit_bytes)

    def zero(self, offset: int, length: int) -> None:
        first, last = offset // self.unit_bytes, -(-(offset + length) // self.unit_bytes)
        self._table[first:last] = array("I", (ZERO,)) * (last - first)

    def finish(self) -> None:
        header = self._header
        self._storage.truncate(header.data_offset + header.allocated_count * self.unit_bytes)
        self._storage.write(0, header.to_bytes())
        self._storage.write(header.table_offset, table_bytes(self._table))
