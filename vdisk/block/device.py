"""`BlockDevice`: a disk of bytes. The read loop, the write loop and the chain are here, and only here.

A format, overlay or filter supplies hooks, whose names start with an underscore:

=====================  ==========================================================================================
`_extents`             what this layer holds of a range (may say UNALLOCATED)                            required
`_survey`              the same for `map()`, finer where that costs more (holes of the file)             optional
`_decode`              a compressed unit's bytes, where no codec of `codecs.py` decodes them               optional
`_begin_write`         called once, under the lock, before the first change of an opened device          optional
`_place`               store whole blocks that are not there, or may not be overwritten                  to write
`_zero`, `_discard`    make whole blocks zero, or forget them                                            optional
`_flush`, `_close`     put the metadata in order; let go of the storages                                 optional
=====================  ==========================================================================================
"""

from __future__ import annotations

import abc
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self, final

from vdisk.block.extent import Encoded, Extent, Kind, coalesce, near_units
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError, Unsupported
from vdisk.storage.base import Buffer, Storage

if TYPE_CHECKING:
    from vdisk.block.file import DeviceFile

_DATA = Kind.DATA
_ZERO = Kind.ZERO
_ENCODED = Kind.ENCODED
_UNALLOCATED = Kind.UNALLOCATED

_ZEROS = memoryview(bytes(1 << 20))
_WRITE_STEP_BYTES = 4 << 20
_DECODED_UNITS_KEPT_BYTES = 8 << 20
_REFUSALS = (OptionError, Unsupported, PolicyError)
"""Raised before anything is changed."""


class BlockDevice(abc.ABC):
    """A virtual disk: `size` bytes, read and written at any offset and length.

    Reading is safe from several threads at once; writes take one lock. Offsets and lengths are bytes. A range
    beyond the end is an `OptionError`: disks do not grow by being written.
    """

    size: int
    """Length in bytes."""
    writable: bool
    block_size: int
    """Bytes of the unit in which this device allocates: a write of less has the rest of the unit copied up."""
    backing: BlockDevice | None = None
    """The device that shows through where this one holds nothing; zeros when there is none, and past its end."""
    name: str
    """What errors call it."""

    def __init__(
        self,
        name: str,
        size: int,
        *,
        writable: bool = False,
        block_size: int = 512,
        backing: BlockDevice | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.writable = writable
        self.block_size = block_size
        self.backing = backing
        self._lock = threading.RLock()
        self._has_begun = False
        self._is_closed = False
        self._is_broken = False
        self._decoded: OrderedDict[tuple[int, int], Buffer] = OrderedDict()
        self._decoded_bytes = 0

    # Reading ---------------------------------------------------------------------------------------------------

    @final
    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        if length < 0 or offset < 0 or offset + length > self.size:
            self._refuse_range(offset, length)
        return self._read(offset, length) if length else b""

    @final
    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole of `buffer`, memory that the caller owns, from `offset`."""
        view = memoryview(buffer)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if offset < 0 or offset + len(view) > self.size:
            self._refuse_range(offset, len(view))
        if view:
            self._readinto(offset, view)

    @final
    def map(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """What the disk holds from `offset` on, chain resolved: DATA, ZERO and ENCODED extents without a gap.

        Neighbours that continue one another are one extent. The map is that of the moment it is asked for.
        """
        if length is None:
            length = self.size - offset
        if offset < 0 or length < 0 or offset + length > self.size:
            self._refuse_range(offset, length)
        return coalesce(self._resolve(offset, length, 0)) if length else iter(())

    def as_file(self) -> DeviceFile:
        """The disk as a seekable binary file (`io.RawIOBase`), for any library that takes one."""
        from vdisk.block.file import DeviceFile

        return DeviceFile(self)

    # Writing ---------------------------------------------------------------------------------------------------

    @final
    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`. It lasts once `flush()` has returned."""
        view = memoryview(data)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if offset < 0 or offset + len(view) > self.size:
            self._refuse_range(offset, len(view))
        with self._lock:
            self._start_change()
            self._write(offset, view)

    @final
    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeros; with `unmap`, space that is given up may be given back."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self._refuse_range(offset, length)
        with self._lock:
            self._start_change()
            self._write_zeroes(offset, length, unmap)

    @final
    def discard(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed. Afterwards it reads as zeros or as before; nothing is promised."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self._refuse_range(offset, length)
        first = -(-offset // self.block_size) * self.block_size
        end = offset + length
        last = end if end == self.size else end // self.block_size * self.block_size
        with self._lock:
            self._start_change()
            if first < last:
                with self.changing():
                    self._discard(first, last - first)

    @final
    def flush(self) -> None:
        """Return once everything written would survive a loss of power."""
        with self._lock:
            if self.writable and self._has_begun:
                self._refuse_broken()
                with self.changing():
                    self._flush()

    def changing(self) -> Changing:
        """The device's lock, for a change of the image: an error or an interrupt in the midst of it breaks it off."""
        return Changing(self)

    @property
    def is_broken(self) -> bool:
        """Whether a change failed half done. Nothing is written then any more."""
        return self._is_broken

    def break_off(self) -> None:
        """Let nothing more be written: what is in memory is half changed, and a flush would bring that to the file.

        The file is as a kill at this moment would leave it, and every format's order of writing sees to it that a
        kill leaves an image whole, with all that a flush had confirmed.
        """
        self._is_broken = True

    @final
    def close(self) -> None:
        """Flush, and let go of every file, those of the backing devices too. A second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                if not self.is_broken:
                    self.flush()
            finally:
                self._decoded.clear()
                try:
                    self._close()
                finally:
                    if self.backing is not None:
                        self.backing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Hooks -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        """What this layer holds of a range inside the disk: ascending, without a gap, clipped to the range.

        Reads go by it, so it must be quick: a list of one extent for a short range is best.
        """

    def _survey(self, offset: int, length: int) -> Iterable[Extent]:
        """`_extents` for `map()`: may ask the file system for holes, and may come piece by piece."""
        return self._extents(offset, length)

    def _decode(self, encoded: Encoded, data: memoryview) -> Buffer:
        """A unit of an ENCODED extent: `encoded.unit_length` bytes, out of the `encoded.host_length` (or, where the
        storage ends, fewer) that lie in the storage."""
        from vdisk.block.codecs import decode

        try:
            return decode(encoded.codec, data, encoded.unit_length)
        except ValueError as error:
            raise Corrupt(self.name, f"compressed data at {encoded.host}", str(error)) from error

    def _begin_write(self) -> None:
        """The first change is about to come: mark the image (dirty bits, new identifiers)."""

    def _place(self, offset: int, data: memoryview) -> None:
        """Store whole blocks from `offset`, a multiple of `block_size`: find room, write the data, then map it.

        `data` ends on a block's edge or at the end of the disk. The blocks hold nothing of their own yet, or may not
        be overwritten where they lie; what they held is in `data` already.
        """
        raise NotImplementedError(f"{type(self).__name__} is writable and has no _place")

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        """Make whole blocks zero without writing data; False when the format cannot, and zeros are to be written."""
        return False

    def _discard(self, offset: int, length: int) -> None:
        """Forget whole blocks, where that gives space back."""

    def _flush(self) -> None:
        """Bring everything to the storages in the order that keeps them whole, and flush those."""

    def _close(self) -> None:
        """Close the storages of this layer; write to them first only if it is not broken."""

    # The loops -------------------------------------------------------------------------------------------------

    def _read(self, offset: int, length: int) -> bytes:
        """A range as new bytes. One that lies in one piece of a storage is the storage's own read: no copy of ours."""
        extents = iter(self._extents(offset, length))
        extent = next(extents)
        if extent.kind is _DATA and extent.length == length:
            assert extent.storage is not None
            data = extent.storage.read(extent.host, length)
            return data if len(data) == length else data.ljust(length, b"\0")
        parts = [extent, *extents]
        bare = self.backing is None
        if all(part.kind is _DATA or part.kind is _ZERO or (bare and part.kind is _UNALLOCATED) for part in parts):
            return b"".join(map(_plain_bytes, parts))
        buffer = bytearray(length)
        self._fill(parts, offset, memoryview(buffer))
        return bytes(buffer)

    def _readinto(self, offset: int, view: memoryview) -> None:
        """A range into memory. A filter overrides it, and `_read`, to pass the range on."""
        self._fill(self._extents(offset, len(view)), offset, view)

    def _fill(self, extents: Iterable[Extent], offset: int, view: memoryview) -> None:
        """The read loop."""
        units: list[Extent] = []
        for extent in extents:
            start, length, kind, storage, host, *_ = extent
            part = view[start - offset : start - offset + length]
            if kind is _DATA:
                count = storage.readinto(host, part)  # type: ignore[union-attr]
                if count < length:
                    _fill_zeros(part[count:])  # a file may end inside its last cluster
            elif kind is _ENCODED:
                encoded = extent.encoded
                assert encoded is not None
                if length == encoded.unit_length:
                    units.append(extent)
                else:
                    at = start - encoded.unit_start
                    part[:] = memoryview(self._decoded_unit(extent))[at : at + length]
            elif kind is _UNALLOCATED and self.backing is not None:
                self.backing._read_through(start, part)
            else:
                _fill_zeros(part)
        if units:
            self._fill_units(units, offset, view)

    def _fill_units(self, units: list[Extent], offset: int, view: memoryview) -> None:
        """Whole compressed units, those that lie near one another in the storage by one read."""
        for near in near_units(units):
            first = near[0].encoded
            assert first is not None
            end = max(unit.encoded.host + unit.encoded.host_length for unit in near)  # type: ignore[union-attr]
            data = memoryview(near[0].storage.read(first.host, end - first.host))  # type: ignore[union-attr]
            for start, length, _, _, _, _, _, encoded, _ in near:
                assert encoded is not None
                at = encoded.host - first.host
                view[start - offset : start - offset + length] = self._decode(
                    encoded, data[at : at + encoded.host_length]
                )

    def _read_through(self, offset: int, view: memoryview) -> None:
        """Read for a device above, whose disk may be longer than this one."""
        inside = max(0, min(len(view), self.size - offset))
        if inside:
            self._readinto(offset, view[:inside])
        if inside < len(view):
            _fill_zeros(view[inside:])

    def _resolve(self, offset: int, length: int, depth: int) -> Iterator[Extent]:
        """The chain's map of a range inside this device."""
        for extent in self._survey(offset, length):
            if extent.kind is not _UNALLOCATED:
                start, length, kind, storage, host, _, _, encoded, in_place = extent  # _replace takes thrice as long
                yield Extent(start, length, kind, storage, host, depth, self, encoded, in_place)
                continue
            inside = 0
            if self.backing is not None:
                inside = max(0, min(extent.length, self.backing.size - extent.start))
                if inside:
                    yield from self.backing._resolve(extent.start, inside, depth + 1)
            if inside < extent.length:
                yield Extent(extent.start + inside, extent.length - inside, _ZERO, depth=depth)

    def _decoded_unit(self, extent: Extent) -> Buffer:
        """A compressed unit's bytes, from a small cache of the units read last."""
        encoded = extent.encoded
        assert encoded is not None
        key = (encoded.host, encoded.unit_start)
        with self._lock:
            unit = self._decoded.get(key)
            if unit is not None:
                self._decoded.move_to_end(key)
                return unit
        assert extent.storage is not None
        unit = self._decode(encoded, memoryview(extent.storage.read(encoded.host, encoded.host_length)))
        with self._lock:
            if key not in self._decoded:
                self._decoded[key] = unit
                self._decoded_bytes += len(unit)
            while self._decoded_bytes > _DECODED_UNITS_KEPT_BYTES and len(self._decoded) > 1:
                self._decoded_bytes -= len(self._decoded.popitem(last=False)[1])
        return unit

    def _write(self, offset: int, view: memoryview) -> None:
        """The write loop. A filter overrides it to pass the range on."""
        position, end = offset, offset + len(view)
        while position < end:
            step_end = min(end, position + _WRITE_STEP_BYTES)
            if step_end < end:  # cut on a block's edge, so that no block is copied up twice
                step_end = max(step_end // self.block_size * self.block_size, position + 1)
                if step_end - position < self.block_size:
                    step_end = min(end, (position // self.block_size + 1) * self.block_size)
            self._write_step(position, view[position - offset : step_end - offset])
            position = step_end

    def _write_step(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        placed_to = offset  # blocks that `_place` has stored by now end here
        for extent in list(self._extents(offset, len(view))):
            if extent.end <= placed_to:
                continue
            if extent.start < placed_to:
                extent = extent.clip(placed_to, extent.end)
            if extent.kind is _DATA and extent.in_place:
                assert extent.storage is not None
                extent.storage.write(extent.host, view[extent.start - offset : extent.end - offset])
                placed_to = extent.end
                continue
            first = extent.start // self.block_size * self.block_size
            last = min(-(-extent.end // self.block_size) * self.block_size, self.size)
            if first == extent.start and last <= extent.end:
                block_data = view[first - offset : last - offset]
                placed_to = last
            else:
                block_data = self._copied_up(first, last, offset, view)
                placed_to = min(last, end)
            with self.changing():
                self._place(first, block_data)
            self._forget_decoded(first, last - first)

    def _copied_up(self, first: int, last: int, offset: int, view: memoryview) -> memoryview:
        """The blocks of [first, last) as they shall be: what was there, with `view` laid over it."""
        block = memoryview(bytearray(last - first))
        start, end = max(first, offset), min(last, offset + len(view))
        if first < start:
            self._readinto(first, block[: start - first])
        if end < last:
            self._readinto(end, block[end - first :])
        block[start - first : end - first] = view[start - offset : end - offset]
        return block

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        end = offset + length
        first = min(-(-offset // self.block_size) * self.block_size, end)
        last = end if end == self.size else max(first, end // self.block_size * self.block_size)
        if offset < first:
            self._write_plain_zeros(offset, first - offset)
        if first < last:
            with self.changing():
                is_done = self._zero(first, last - first, unmap)
            if is_done:
                self._forget_decoded(first, last - first)
            else:
                self._write_plain_zeros(first, last - first)
        if last < end:
            self._write_plain_zeros(last, end - last)

    def _write_plain_zeros(self, offset: int, length: int) -> None:
        """Write zeros where the range does not read as zeros already."""
        for extent in list(self._resolve(offset, length, 0)):
            if extent.kind is _ZERO:
                continue
            for start in range(extent.start, extent.end, len(_ZEROS)):
                self._write(start, _ZEROS[: min(len(_ZEROS), extent.end - start)])

    def _forget_decoded(self, offset: int, length: int) -> None:
        if self._decoded:
            for key in [key for key in self._decoded if offset - (2 << 20) < key[1] < offset + length]:
                self._decoded_bytes -= len(self._decoded.pop(key))

    def _start_change(self) -> None:
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        self._refuse_broken()
        if not self._has_begun:
            with Changing(self, (*_REFUSALS, Corrupt)):  # a damaged image is refused before anything is changed
                self._begin_write()
            self._has_begun = True

    def _refuse_broken(self) -> None:
        if self.is_broken:
            raise StorageError(self.name, "write", "an earlier change failed, and nothing is written any more")

    def _refuse_range(self, offset: int, length: int) -> None:
        if self._is_closed:
            raise StorageError(self.name, "read", "closed")
        raise OptionError(f"{self.name}: range {offset}+{length} lies outside the disk of {self.size} bytes")


class Changing:
    """Holds a device's lock. Left by an error that is no plain refusal, it breaks the device off."""

    __slots__ = ("_device", "_refusals")

    def __init__(self, device: BlockDevice, refusals: tuple[type[Exception], ...] = _REFUSALS) -> None:
        self._device = device
        self._refusals = refusals

    def __enter__(self) -> None:
        self._device._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, self._refusals):
            self._device.break_off()
        self._device._lock.release()


class StorageDevice(BlockDevice):
    """A device whose metadata and, mostly, data lie in one `Storage`, which it owns."""

    def __init__(
        self,
        storage: Storage,
        size: int,
        *,
        block_size: int = 512,
        writable: bool | None = None,
        backing: BlockDevice | None = None,
    ) -> None:
        super().__init__(
            storage.name,
            size,
            writable=storage.writable if writable is None else writable,
            block_size=block_size,
            backing=backing,
        )
        self.storage = storage

    def _flush(self) -> None:
        self.storage.flush()

    def _close(self) -> None:
        self.storage.close()


def _plain_bytes(extent: Extent) -> bytes:
    """What an extent holds that is DATA, or else zeros."""
    if extent.kind is not _DATA:
        return bytes(extent.length)
    assert extent.storage is not None
    return extent.storage.read(extent.host, extent.length).ljust(extent.length, b"\0")


def _fill_zeros(view: memoryview) -> None:
    """Set all of `view` to zero."""
    length = len(view)
    if length <= len(_ZEROS):
        view[:] = _ZEROS[:length]
        return
    for start in range(0, length, len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
