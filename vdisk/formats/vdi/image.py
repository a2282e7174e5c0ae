"""`VdiImage`: VirtualBox's disk image, dynamic and static."""

from __future__ import annotations

import uuid
from typing import Self

from vdisk.errors import Unsupported
from vdisk.formats.blockmap import BlockMapImage, read_table, table_bytes
from vdisk.formats.image import Description, OpenRequest
from vdisk.formats.vdi.header import (
    ALLOCATED_COUNT_OFFSET,
    DIFFERENCING,
    FREE,
    MODIFICATION_UUID_OFFSET,
    NULL_UUID,
    STATIC,
    TYPE_NAMES,
    UNDO,
    ZERO,
    Header,
)
from vdisk.storage.base import Storage


class VdiImage(BlockMapImage):
    """Blocks in any order behind a header and one table; the last block is stored whole, whatever the disk's size."""

    format_name = "vdi"
    _marks = (ZERO, FREE)
    _zero_mark = ZERO
    _entry_step = 1

    def __init__(self, storage: Storage, header: Header, *, writable: bool) -> None:
        super().__init__(storage, header.disk_bytes, writable=writable, block_size=header.block_bytes)
        self.header = header
        self._block_bytes = header.block_bytes
        self._table = read_table(storage, "block map", header.table_offset, header.block_count)
        self._data_start = header.data_offset + header.block_extra_bytes
        self._stride = header.stride_bytes
        self._next_entry: int | None = None
        self._changed: set[int] = set()

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        try:
            header = Header.read(storage)
            has_parent = header.parent_uuid != NULL_UUID or header.image_type in (DIFFERENCING, UNDO)
            if has_parent:
                raise Unsupported(storage.name, "vdi", "differencing images")
            return cls(storage, header, writable=request.writable)
        except BaseException:
            storage.close()
            raise

    def describe(self) -> Description:
        header = self.header
        return Description(
            cluster_size=header.block_bytes,
            specific={
                "image-type": TYPE_NAMES[header.image_type],
                "uuid": str(header.uuid),
                "modification-uuid": str(header.modification_uuid),
                **({"description": header.description} if header.description else {}),
            },
        )

    def _host_of(self, entry: int) -> int:
        return self._data_start + entry * self._stride

    # Writing ---------------------------------------------------------------------------------------------------

    def _begin_write(self) -> None:
        """A written image is a new one to the images that are based on it."""
        self.header.modification_uuid = uuid.uuid4()
        self.storage.write(MODIFICATION_UUID_OFFSET, self.header.modification_uuid.bytes_le)

    def _place(self, offset: int, data: memoryview) -> None:
        block_bytes = self._block_bytes
        entry = self._end_of_file_entry()
        for at in range(0, len(data), block_bytes):
            block = data[at : at + block_bytes]
            host = self._host_of(entry)
            self.storage.write(host, block)
            if len(block) < block_bytes:
                self.storage.write(host + block_bytes - 1, b"\0")
            index = (offset + at) // block_bytes
            self._table[index] = entry
            self._changed.add(index)
            entry += 1
        self._next_entry = entry

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        first = offset // self._block_bytes
        for index in range(first, -(-(offset + length) // self._block_bytes)):
            entry = self._table[index]
            if entry < ZERO:
                self.storage.zero(self._host_of(entry), self._block_bytes, unmap=unmap)
            elif entry == FREE and self.backing is not None:
                self._table[index] = ZERO
                self._changed.add(index)
        return True

    def _discard(self, offset: int, length: int) -> None:
        for index in range(offset // self._block_bytes, -(-(offset + length) // self._block_bytes)):
            entry = self._table[index]
            if entry < ZERO:
                self.storage.zero(self._host_of(entry), self._block_bytes, unmap=True)

    def _end_of_file_entry(self) -> int:
        """The first entry behind every block in use and behind the end of the file."""
        if self._next_entry is None:
            used = max((entry for entry in self._table if entry < ZERO), default=-1) + 1
            behind = -(-(self.storage.size - self.header.data_offset) // self._stride)
            self._next_entry = max(used, behind, 0)
        return self._next_entry

    def _flush(self) -> None:
        # The table may name a block only once its bytes are safe.
        self.storage.flush()
        if self._changed:
            if self.header.image_type != STATIC:
                self.header.allocated_count = sum(entry < ZERO for entry in self._table)
                self.storage.write(ALLOCATED_COUNT_OFFSET, self.header.allocated_count.to_bytes(4, "little"))
            first, last = min(self._changed), max(self._changed)
            self.storage.write(self.header.table_offset + 4 * first, table_bytes(self._table[first : last + 1]))
            self._changed.clear()
            self.storage.flush()
