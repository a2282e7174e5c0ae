"""A storage that remembers every change, and gives the file as a loss of power at any moment could leave it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from vdisk.storage.base import Buffer
from vdisk.storage.memory import MemoryStorage

Change = tuple[str, int, bytes | int]
_SECTOR_BYTES = 512


class RecordingStorage(MemoryStorage):
    """What is written is in `data` at once; `changes` has it in order, flushes included."""

    def __init__(self, data: Buffer, name: str = "disk") -> None:
        super().__init__(data, name)
        self.before = bytes(data)
        self.changes: list[Change] = []

    def write(self, offset: int, data: Buffer) -> None:
        self.changes.append(("write", offset, bytes(data)))
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        self.changes.append(("truncate", size, 0))
        super().truncate(size)

    def flush(self) -> None:
        self.changes.append(("flush", 0, 0))

    def after_kill(self, moment: int, maker: random.Random) -> bytes:
        """The file when the power fails before `changes[moment]`.

        What was flushed is there. Behind that, each sector of 512 bytes stands as it was after any one of the later
        writes to it, whatever became of other sectors, and the file's length as after any of its changes.
        """
        flushed = max((at for at in range(moment) if self.changes[at][0] == "flush"), default=0)
        disk = MemoryStorage(self.before)
        lasts_to: dict[int, int] = {}
        length_lasts_to = maker.randint(flushed, moment)
        for at, (what, offset, value) in enumerate(self.changes[:moment]):
            if what == "truncate" and at < max(flushed, length_lasts_to):
                disk.truncate(offset)
            elif what == "write":
                assert isinstance(value, bytes)
                if at < flushed:
                    disk.write(offset, value)
                    continue
                for start, piece in _pieces(offset, value):
                    sector = start // _SECTOR_BYTES
                    if sector not in lasts_to:
                        lasts_to[sector] = maker.randint(flushed, moment)
                    if at < lasts_to[sector]:
                        disk.write(start, piece)
        return bytes(disk.data)


def _pieces(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    end = offset + len(data)
    while offset < end:
        stop = min(end, (offset // _SECTOR_BYTES + 1) * _SECTOR_BYTES)
        yield offset, data[len(data) - (end - offset) : len(data) - (end - stop)]
        offset = stop


class History:
    """What each sector of the disk may hold after a kill: its bytes at the last flush, or any it was given since."""

    sector_bytes = 512

    def __init__(self, content: Buffer) -> None:
        self.model = bytearray(content)
        self._versions: list[tuple[int, int, bytes]] = []
        """(the moment from which on it may be there, sector, bytes)"""
        self._flushes: list[tuple[int, bytes]] = [(0, bytes(content))]

    def write(self, moment: int, offset: int, data: bytes) -> None:
        """The disk is about to be given `data`; `moment` is the count of changes so far."""
        self.model[offset : offset + len(data)] = data
        for sector in range(offset // 512, -(-(offset + len(data)) // 512)):
            self._versions.append((moment, sector, bytes(self.model[sector * 512 : (sector + 1) * 512])))

    def flush(self, moment: int) -> None:
        """A flush of the disk has returned."""
        self._flushes.append((moment, bytes(self.model)))

    def check(self, moment: int, found: bytes) -> None:
        """Hold what is read after a kill at `moment` against all that may be."""
        since, base = max((flush for flush in self._flushes if flush[0] <= moment), key=lambda flush: flush[0])
        may_be: dict[int, set[bytes]] = {}
        for at, sector, data in self._versions:
            if since <= at <= moment:
                may_be.setdefault(sector, set()).add(data)
        for sector in range(len(base) // 512):
            part = slice(sector * 512, (sector + 1) * 512)
            if found[part] != base[part]:
                assert found[part] in may_be.get(sector, set()), f"sector {sector} after a kill at {moment}"
