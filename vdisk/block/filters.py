"""Devices that show another device changed: a window on a part of it, or without the right to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import OptionError


class Filter(BlockDevice):
    """Passes every range on to `inner`, shifted by `start`. Closing it closes `inner`."""

    def __init__(self, inner: BlockDevice, start: int, size: int, *, writable: bool) -> None:
        super().__init__(inner.name, size, writable=writable, block_size=1)
        self.inner = inner
        self.start = start

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return self._survey(offset, length)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        return self._resolve(offset, length, 0)

    def _resolve(self, offset: int, length: int, depth: int) -> Iterator[Extent]:
        # A filter is no layer of the chain: the extents keep the depth and the layer that hold them.
        for extent in self.inner._resolve(self.start + offset, length, depth):
            encoded = extent.encoded
            if encoded is not None:
                encoded = encoded._replace(unit_start=encoded.unit_start - self.start)
            yield extent._replace(start=extent.start - self.start, encoded=encoded)

    def _read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._readinto(offset, memoryview(buffer))  # a subclass that changes what is read does so there
        return bytes(buffer)

    def _readinto(self, offset: int, view: memoryview) -> None:
        self.inner.readinto(self.start + offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self.inner.write(self.start + offset, view)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.inner.write_zeroes(self.start + offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self.inner.discard(self.start + offset, length)

    @property
    def is_broken(self) -> bool:
        return self.inner.is_broken

    def _flush(self) -> None:
        self.inner.flush()

    def _close(self) -> None:
        self.inner.close()


class Window(Filter):
    """The part [start, start + size) of a device, a partition for example, as a device of its own."""

    def __init__(self, inner: BlockDevice, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > inner.size:
            raise OptionError(f"{inner.name}: window {start}+{size} lies outside the disk of {inner.size} bytes")
        super().__init__(inner, start, size, writable=inner.writable)


class ReadOnly(Filter):
    """A device that refuses every change."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner, 0, inner.size, writable=False)


class Prolonged(Filter):
    """A device with zeros behind its end, to be read only."""

    def __init__(self, inner: BlockDevice, size: int) -> None:
        if size < inner.size:
            raise OptionError(f"{inner.name}: a disk of {inner.size} bytes cannot be prolonged to {size}")
        super().__init__(inner, 0, size, writable=False)

    def _resolve(self, offset: int, length: int, depth: int) -> Iterator[Extent]:
        inside = max(0, min(length, self.inner.size - offset))
        if inside:
            yield from super()._resolve(offset, inside, depth)
        if length > inside:
            yield Extent(offset + inside, length - inside, Kind.ZERO, depth=depth)

    def _readinto(self, offset: int, view: memoryview) -> None:
        inside = max(0, min(len(view), self.inner.size - offset))
        if inside:
            super()._readinto(offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)
