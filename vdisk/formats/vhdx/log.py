"""The log: finding the active sequence, and writing entries ([MS-VHDX] 2.3).

Metadata (BAT, sector bitmaps, items) changes in two steps: an entry with the new sectors goes to the log and is
flushed, then the sectors go to their places. A kill at any point leaves the old or the new state, by replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import Header, is_sealed, sealed
from vdisk.storage.base import MAX_OFFSET, Storage

SECTOR_BYTES = structs.LOG_SECTOR_BYTES
_HEAD_BYTES: int = structs.LOG_ENTRY_HEADER.sizeof()
_DESCRIPTOR_BYTES = structs.LOG_DESCRIPTOR.size
MAX_DESCRIPTORS = (SECTOR_BYTES - _HEAD_BYTES) // _DESCRIPTOR_BYTES
"""As many as share the first sector of an entry with its header: 126."""
_SCAN_BYTES = 1 << 20
_MAX_LOG_BYTES = 256 << 20
"""Programs make logs of 1 MiB, a few more at most; replaying takes as much memory as the log has sectors."""


class Change(NamedTuple):
    """One sector, or one stretch of zeros, that the log puts at `offset`."""

    offset: int
    length: int
    data: bytes | None
    """None: zeros."""


@dataclass(slots=True)
class Entry:
    """A log entry that is whole."""

    offset: int
    """In the log."""
    length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    flushed_file_bytes: int
    last_file_bytes: int


class Replay(NamedTuple):
    """What replaying the active sequence comes to."""

    entries: list[Entry]
    """The oldest first."""
    file_bytes: int
    """The file has at least this length afterwards."""


class LogReader:
    """The log of a file whose header says that it is in use."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._guid = header.log_guid.bytes_le
        self._offset = header.log_offset
        self._length = header.log_bytes
        if self._length > _MAX_LOG_BYTES:
            raise Unsupported(storage.name, "vhdx", f"a log of {self._length} bytes to be replayed")
        if self._offset + self._length > storage.size:
            raise Corrupt(
                storage.name,
                "log",
                expected=f"{self._length} bytes at {self._offset}",
                found=f"a file of {storage.size} bytes",
            )

    def active_sequence(self) -> Replay | None:
        """The sequence to replay (2.3.2): the valid one whose last entry is the newest; None when there is none."""
        entries = {entry.offset: entry for entry in self._entries()}
        # Entries that follow one another in place and number are a run; a head is good when its tail is in its run.
        run_of: dict[int, tuple[int, int]] = {}
        is_followed = {self._behind(e) for e in entries.values() if self._follows(entries.get(self._behind(e)), e)}
        for start, entry in entries.items():
            if start in is_followed:
                continue
            place = 0
            following: Entry | None = entry
            while following is not None and following.offset not in run_of:
                run_of[following.offset] = (start, place)
                place += 1
                after = entries.get(self._behind(following))
                following = after if self._follows(after, following) else None
        for head in sorted(entries.values(), key=lambda e: e.sequence_number, reverse=True):
            tail = entries.get(head.tail)
            if tail is None or head.offset not in run_of or tail.offset not in run_of:
                continue
            (head_run, head_place), (tail_run, tail_place) = run_of[head.offset], run_of[tail.offset]
            if head_run != tail_run or tail_place > head_place:
                continue
            sequence = [tail]
            while sequence[-1] is not head:
                sequence.append(entries[self._behind(sequence[-1])])
            if head.flushed_file_bytes > self._storage.size:
                raise Corrupt(
                    self._storage.name,
                    "log",
                    expected=f"a file of at least {head.flushed_file_bytes} bytes",
                    found=f"one of {self._storage.size} bytes: it was cut short",
                )
            return Replay(sequence, max(self._storage.size, head.last_file_bytes))
        return None

    def changes(self, entry: Entry) -> Iterator[Change]:
        """What an entry puts where."""
        data = self._read(entry.offset, entry.length)
        data_at = self._descriptor_sectors(entry.descriptor_count) * SECTOR_BYTES
        for index in range(entry.descriptor_count):
            at = _HEAD_BYTES + index * _DESCRIPTOR_BYTES
            signature, trailing, leading, offset, _ = structs.LOG_DESCRIPTOR.unpack_from(data, at)
            if signature == b"zero":
                yield Change(offset, leading, None)
                continue
            middle = data[data_at + 8 : data_at + SECTOR_BYTES - 4]
            data_at += SECTOR_BYTES
            yield Change(offset, SECTOR_BYTES, leading.to_bytes(8, "little") + middle + trailing.to_bytes(4, "little"))

    def _behind(self, entry: Entry) -> int:
        return (entry.offset + entry.length) % self._length

    @staticmethod
    def _follows(after: Entry | None, entry: Entry) -> bool:
        return after is not None and after.sequence_number == entry.sequence_number + 1

    def _entries(self) -> Iterator[Entry]:
        """Every entry of the log that is whole, wherever it begins."""
        for start in range(0, self._length, _SCAN_BYTES):
            piece = self._storage.read(self._offset + start, min(_SCAN_BYTES, self._length - start))
            at = piece.find(b"loge")
            while at >= 0:
                if at % SECTOR_BYTES == 0:
                    entry = self._entry(start + at, piece[at : at + _HEAD_BYTES])
                    if entry is not None:
                        yield entry
                at = piece.find(b"loge", at + 1)

    def _entry(self, offset: int, head: bytes) -> Entry | None:
        """The entry at `offset`, or None when it is not whole or not of this log."""
        raw = parse(structs.LOG_ENTRY_HEADER, head, self._storage.name, "log entry")
        length = raw.entry_length
        if (
            raw.log_guid != self._guid
            or not raw.sequence_number
            or length % SECTOR_BYTES
            or not SECTOR_BYTES <= length <= self._length
            or raw.tail % SECTOR_BYTES
            or raw.tail >= self._length
            or raw.descriptor_count * _DESCRIPTOR_BYTES + _HEAD_BYTES > length
            or max(raw.flushed_file_offset, raw.last_file_offset) > MAX_OFFSET
        ):
            return None
        entry = Entry(
            offset,
            length,
            raw.tail,
            raw.sequence_number,
            raw.descriptor_count,
            raw.flushed_file_offset,
            raw.last_file_offset,
        )
        return entry if self._is_whole(entry) else None

    def _is_whole(self, entry: Entry) -> bool:
        """Descriptors, data sectors and checksum agree.

        What lies where is looked at before anything is summed: no two entries that pass can overlap, so that a
        hostile log costs no more than one pass over it.
        """
        count, number = entry.descriptor_count, entry.sequence_number
        descriptor_sectors = self._descriptor_sectors(count)
        for sector in range(1, entry.length // SECTOR_BYTES):
            signature = self._read(entry.offset + sector * SECTOR_BYTES, 4)
            wanted = (b"desc", b"zero") if sector < descriptor_sectors else (b"data",)
            if signature not in wanted:
                return False
        data = self._read(entry.offset, entry.length)
        data_at = descriptor_sectors * SECTOR_BYTES
        for index in range(count):
            at = _HEAD_BYTES + index * _DESCRIPTOR_BYTES
            signature, _, leading, offset, its_number = structs.LOG_DESCRIPTOR.unpack_from(data, at)
            length = leading if signature == b"zero" else SECTOR_BYTES
            if signature not in (b"desc", b"zero") or its_number != number:
                return False
            if offset % SECTOR_BYTES or length % SECTOR_BYTES or offset + length > MAX_OFFSET:
                return False
            if signature == b"desc":
                sector_data = data[data_at : data_at + SECTOR_BYTES]
                if len(sector_data) < SECTOR_BYTES:
                    return False
                _, high, _, low = structs.LOG_DATA_SECTOR.unpack(sector_data)
                if high << 32 | low != number:
                    return False
                data_at += SECTOR_BYTES
        return data_at == entry.length and is_sealed(data)

    @staticmethod
    def _descriptor_sectors(count: int) -> int:
        return -(-(_HEAD_BYTES + count * _DESCRIPTOR_BYTES) // SECTOR_BYTES)

    def _read(self, offset: int, length: int) -> bytes:
        """Bytes of the log, which goes on at its start behind its end."""
        offset %= self._length
        first = self._storage.read(self._offset + offset, min(length, self._length - offset))
        return first if len(first) == length else first + self._storage.read(self._offset, length - len(first))


class LogWriter:
    """Appends entries, each a sequence of its own: what came before it is in place by then."""

    def __init__(self, storage: Storage, offset: int, length: int, guid: UUID) -> None:
        self._storage = storage
        self._offset = offset
        self._length = length
        self.guid = guid
        self._position = 0
        self._sequence_number = 0
        # An entry never reaches the one before it: if it is torn, that one is still there to be replayed.
        self.most_sectors = min(MAX_DESCRIPTORS, length // 2 // SECTOR_BYTES - 1)

    def append(self, sectors: Sequence[tuple[int, bytes]]) -> None:
        """Write one entry that puts each (offset, 4096 bytes) in its place, at most `most_sectors`; does not flush."""
        assert 0 < len(sectors) <= self.most_sectors
        self._sequence_number += 1
        number = self._sequence_number
        file_bytes = self._storage.size
        whole_mib = file_bytes // structs.MIB * structs.MIB
        length = SECTOR_BYTES * (1 + len(sectors))
        head = bytearray(
            structs.LOG_ENTRY_HEADER.build(
                {
                    "checksum": 0,
                    "entry_length": length,
                    "tail": self._position,
                    "sequence_number": number,
                    "descriptor_count": len(sectors),
                    "reserved": 0,
                    "log_guid": self.guid.bytes_le,
                    "flushed_file_offset": whole_mib,
                    "last_file_offset": whole_mib if whole_mib == file_bytes else whole_mib + structs.MIB,
                }
            )
        )
        body = bytearray()
        for offset, data in sectors:
            leading = int.from_bytes(data[:8], "little")
            trailing = int.from_bytes(data[-4:], "little")
            head += structs.LOG_DESCRIPTOR.pack(b"desc", trailing, leading, offset, number)
            body += structs.LOG_DATA_SECTOR.pack(b"data", number >> 32, data[8:-4], number & 0xFFFFFFFF)
        entry = memoryview(sealed(bytes(head.ljust(SECTOR_BYTES, b"\0") + body)))
        first = entry[: self._length - self._position]
        self._storage.write(self._offset + self._position, first)
        if len(first) < length:
            self._storage.write(self._offset, entry[len(first) :])
        self._position = (self._position + length) % self._length
