"""`ReplayedStorage`: a file as it is once its log is replayed, without a byte of it changed yet."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from vdisk.errors import Corrupt
from vdisk.formats.vhdx.header import Header
from vdisk.formats.vhdx.log import Change, LogReader, Replay
from vdisk.formats.vhdx.structs import NO_GUID
from vdisk.storage.base import Buffer, Storage

_PIECE_BYTES = 1 << 20


def replayed(storage: Storage, header: Header) -> Storage:
    """The file as its log leaves it: `storage` itself when there is nothing to replay."""
    if header.log_guid == NO_GUID:
        return storage
    log = LogReader(storage, header)
    replay = log.active_sequence()
    return storage if replay is None else ReplayedStorage(storage, log, replay)


class ReplayedStorage(Storage):
    """Reads see the log's changes laid over the file. `apply()` makes them last; from then on it is the file itself.

    Memory is bounded by the log's length, for stretches of zeros are kept as stretches.
    """

    def __init__(self, base: Storage, log: LogReader, replay: Replay) -> None:
        self.base = base
        self.name = base.name
        self.writable = base.writable
        self._size = replay.file_bytes
        self._is_applied = False
        # Not overlapping, ascending.
        self._starts: list[int] = []
        self._changes: list[Change] = []
        for entry in replay.entries:
            for change in log.changes(entry):
                if change.offset + change.length > self._size:
                    where = f"{change.length} bytes at {change.offset}"
                    raise Corrupt(self.name, "log", expected=f"changes to a file of {self._size} bytes", found=where)
                self._lay(change)

    @property
    def size(self) -> int:
        return self.base.size if self._is_applied else self._size

    def apply(self) -> None:
        """Put the changes into the file and flush it."""
        for change in self._changes:
            if change.data is None:
                self.base.zero(change.offset, max(0, min(change.length, self.base.size - change.offset)))
            else:
                self.base.write(change.offset, change.data)
        if self.base.size < self._size:
            self.base.truncate(self._size)
        self.base.flush()
        self._is_applied = True

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if self._is_applied:
            return self.base.readinto(offset, buffer)
        count = max(0, min(len(buffer), self._size - offset))
        buffer = buffer[:count]
        filled = self.base.readinto(offset, buffer)
        while filled < count:
            step = min(count - filled, _PIECE_BYTES)
            buffer[filled : filled + step] = bytes(step)
            filled += step
        for change in self._overlapping(offset, count):
            start, end = max(offset, change.offset), min(offset + count, change.offset + change.length)
            if change.data is not None:
                part = change.data[start - change.offset : end - change.offset]
                buffer[start - offset : end - offset] = part
                continue
            for at in range(start, end, _PIECE_BYTES):
                stop = min(end, at + _PIECE_BYTES)
                buffer[at - offset : stop - offset] = bytes(stop - at)
        return count

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        return self.base.segments(offset, length) if self._is_applied else super().segments(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._check_applied()
        self.base.write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check_applied()
        self.base.zero(offset, length, unmap=unmap)

    def truncate(self, size: int) -> None:
        self._check_applied()
        self.base.truncate(size)

    def flush(self) -> None:
        self.base.flush()

    def close(self) -> None:
        self.base.close()

    def _check_applied(self) -> None:
        assert self._is_applied, "the log comes first"

    def _overlapping(self, offset: int, length: int) -> Iterator[Change]:
        index = max(0, bisect.bisect_right(self._starts, offset) - 1)
        while index < len(self._changes) and self._changes[index].offset < offset + length:
            if self._changes[index].offset + self._changes[index].length > offset:
                yield self._changes[index]
            index += 1

    def _lay(self, change: Change) -> None:
        """Put a change over those before it, cutting them where it covers them."""
        if not change.length:
            return
        covered = list(self._overlapping(change.offset, change.length))
        end = change.offset + change.length
        pieces: list[Change] = []
        for old in covered:
            if old.offset < change.offset:
                pieces.append(_cut(old, old.offset, change.offset))
        pieces.append(change)
        for old in covered:
            if old.offset + old.length > end:
                pieces.append(_cut(old, end, old.offset + old.length))
        first = bisect.bisect_left(self._starts, covered[0].offset if covered else change.offset)
        self._changes[first : first + len(covered)] = pieces
        self._starts[first : first + len(covered)] = [piece.offset for piece in pieces]


def _cut(change: Change, start: int, end: int) -> Change:
    data = None if change.data is None else change.data[start - change.offset : end - change.offset]
    return Change(start, end - start, data)
