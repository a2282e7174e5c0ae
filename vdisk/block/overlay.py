"""`Overlay`: changes kept beside a device that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import OptionError
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

_ZERO_BLOCK = -1


class Overlay(BlockDevice):
    """A writable device over `base`, which is only read. Changed blocks go to `scratch`, in memory if none is given.

    Closing the overlay closes the base; the changes are gone.
    """

    def __init__(
        self,
        base: BlockDevice,
        scratch: Storage | None = None,
        *,
        block_size: int = 64 << 10,
        size: int | None = None,
    ) -> None:
        if block_size < 512 or block_size & (block_size - 1):
            raise OptionError(f"overlay: block_size: expected a power of two of at least 512, found {block_size}")
        super().__init__(
            base.name, base.size if size is None else size, writable=True, block_size=block_size, backing=base
        )
        self._scratch = MemoryStorage(name="<overlay>") if scratch is None else scratch
        self._host_by_block: dict[int, int] = {}
        self._end = 0

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end, block_size = offset + length, self.block_size
        while offset < end:
            block = offset // block_size
            stop = min((block + 1) * block_size, end)
            host = self._host_by_block.get(block)
            if host is None:
                yield Extent(offset, stop - offset, Kind.UNALLOCATED)
            elif host == _ZERO_BLOCK:
                yield Extent(offset, stop - offset, Kind.ZERO)
            else:
                at = host + offset - block * block_size
                yield Extent(offset, stop - offset, Kind.DATA, self._scratch, at)
            offset = stop

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        end, block_size = offset + length, self.block_size
        for block in sorted(b for b in self._host_by_block if offset < (b + 1) * block_size and b * block_size < end):
            start = max(offset, block * block_size)
            if offset < start:
                yield Extent(offset, start - offset, Kind.UNALLOCATED)
            stop = min((block + 1) * block_size, end)
            yield from self._extents(start, stop - start)
            offset = stop
        if offset < end:
            yield Extent(offset, end - offset, Kind.UNALLOCATED)

    def _place(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), self.block_size):
            block = (offset + at) // self.block_size
            host = self._host_by_block.get(block, _ZERO_BLOCK)
            if host == _ZERO_BLOCK:
                host, self._end = self._end, self._end + self.block_size
            self._scratch.write(host, data[at : at + self.block_size])
            self._host_by_block[block] = host

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        for block in range(offset // self.block_size, -(-(offset + length) // self.block_size)):
            self._host_by_block[block] = _ZERO_BLOCK
        return True

    def _close(self) -> None:
        self._scratch.close()
