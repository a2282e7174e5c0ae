"""`DeviceFile`: a block device as a seekable binary file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice


class PositionedFile(io.RawIOBase):
    """A file of a known length that can be read anywhere: its place, and how one gets about."""

    def __init__(self) -> None:
        self._position = 0

    @property
    def length(self) -> int:
        """Bytes, as they are now."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position


class BytesFile(PositionedFile):
    """One whose reader gives its bytes as they are asked for; libyal's libraries take it as a file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on; fewer at the end, or where the reader has no more at once."""
        raise NotImplementedError

    def get_size(self) -> int:
        """What `length` is, as libyal asks for it."""
        return self.length

    def readinto(self, buffer: Any, /) -> int:
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class DeviceFile(PositionedFile):
    """A disk's bytes through Python's file interface; wrap it in `io.BufferedReader` for many small reads.

    Closing the file leaves the device open.
    """

    def __init__(self, device: BlockDevice) -> None:
        super().__init__()
        self._device = device

    @property
    def length(self) -> int:
        return self._device.size

    def writable(self) -> bool:
        return self._device.writable

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._device.size - self._position))
        if count:
            self._device.readinto(self._position, view[:count])
            self._position += count
        return count

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        count = max(0, min(len(view), self._device.size - self._position))
        if len(view) and not count:
            raise OSError(28, "the disk ends here")
        self._device.write(self._position, view[:count])
        self._position += count
        return count

    def flush(self) -> None:
        if not self.closed and self._device.writable:
            self._device.flush()
