"""The journal of a conversion: what it is, and which of its steps are safely on the disk.

All numbers are little-endian. The file is a header and blocks, one for each time that the target was flushed::

    header   magic "vdiskJ1\\n", length u32, checksum u32; then `length` bytes of JSON: the conversion's fields
    block    magic "safe", length u32, position u64, checksum u32; then `length` bytes of records: what the target got
             since the block before; of the disk all before `position` is done
    record   kind u32, file u32, count u32, guest offset u64, length u64, host offset u64

    kind 1   placed: `length` bytes of the disk lie in file `file` from the host offset on
    kind 2   encoded: `count` compressed units, one behind the other on the disk and in the file, where they take
             `length` bytes; `count` u32 follow, the lengths of their payloads
    kind 3   zeros: `length` bytes of the disk are to hide what the backing image has
    kind 4   sized: file `file` was `length` bytes long

A checksum is a CRC-32 that goes on from the one before, over the fields in front of it and what it announces: a block
of another journal, or one behind a damaged one, does not count. The last block may be torn and is then left out, for
it was being written when the power went. Runs are merged, so the journal grows with the data and its fragments.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from vdisk.errors import Corrupt
from vdisk.formats.blockmap import table_bytes
from vdisk.storage.file import FileStorage
from vdisk.storage.kept import START_OVER

PLACED, ENCODED, ZEROED, SIZED = 1, 2, 3, 4

_MAGIC = b"vdiskJ1\n"
_HEADER = struct.Struct("<8sII")
_BLOCK_MAGIC = b"safe"
_BLOCK = struct.Struct("<4sIQI")
_RECORD = struct.Struct("<IIIQQQ")
_CHECKSUM_BYTES = 4
_MOST_BYTES = 1 << 62

Fields = Mapping[str, str | int | bool | None]
"""What a conversion is, field by field, in words that an error can use."""


@dataclass(slots=True)
class Record:
    """Something that a writer was asked for and that is done; offsets and lengths are bytes."""

    kind: int
    file: int = 0
    guest_offset: int = 0
    length: int = 0
    host_offset: int = 0
    payload_bytes: array[int] = field(default_factory=lambda: array("I"))
    """Of each encoded unit."""

    def takes(self, other: Record, unit_bytes: int) -> bool:
        """Make `other` a part of this record, if it goes on from it on the disk and in the file."""
        if self.kind != other.kind or self.file != other.file or self.kind == SIZED:
            return False
        guest_bytes = len(self.payload_bytes) * unit_bytes if self.kind == ENCODED else self.length
        if self.guest_offset + guest_bytes != other.guest_offset:
            return False
        if self.kind != ZEROED and self.host_offset + self.length != other.host_offset:
            return False
        self.length += other.length
        self.payload_bytes += other.payload_bytes
        return True

    def to_bytes(self) -> bytes:
        count = len(self.payload_bytes)
        fields = (self.kind, self.file, count, self.guest_offset, self.length, self.host_offset)
        return _RECORD.pack(*fields) + table_bytes(self.payload_bytes)


class Block(NamedTuple):
    """What one flush of the target made safe."""

    position: int
    """All of the disk before it is done."""
    records: list[Record]


class Journal:
    """The file. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, or make one that says nothing.

        Raises `StorageError`, and `Corrupt` where its header is not one.
        """
        self.path = path
        self._storage = FileStorage(path, writable=True, create=not path.exists())
        self.fields: Fields | None = None
        """What the conversion is; None where the journal says nothing yet."""
        self._end = self._checksum = 0
        self._blocks: list[tuple[int, int, int]] = []  # position, offset and length of the records
        try:
            self._read()
        except BaseException:
            self._storage.close()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return not self._blocks

    def start(self, fields: Fields) -> None:
        """Make it the journal of a conversion that begins."""
        text = json.dumps(fields).encode()
        head = _HEADER.pack(_MAGIC, len(text), 0)[:-_CHECKSUM_BYTES]
        self._checksum = zlib.crc32(text, zlib.crc32(head))
        self._storage.truncate(0)
        self._end = 0
        self._write(head + self._checksum.to_bytes(_CHECKSUM_BYTES, "little") + text)

    def add(self, position: int, records: Iterable[Record]) -> None:
        """Note what is safe by now, and wait until the disk has the note."""
        if not self._blocks:
            self._storage.flush()
        payload = b"".join(record.to_bytes() for record in records)
        head = _BLOCK.pack(_BLOCK_MAGIC, len(payload), position, 0)[:-_CHECKSUM_BYTES]
        checksum = zlib.crc32(payload, zlib.crc32(head, self._checksum))
        self._write(head + checksum.to_bytes(_CHECKSUM_BYTES, "little") + payload)
        self._storage.flush()
        self._checksum = checksum
        self._blocks.append((position, self._end - len(payload), len(payload)))

    def blocks(self) -> Iterator[Block]:
        """All that is safe, in order. Raises `Corrupt` for what no writer can have been asked for."""
        reached = 0
        for position, offset, length in self._blocks:
            if position < reached:
                raise self.damaged(f"goes back from {reached} to {position}")
            yield Block(position, list(self._records(offset, length)))
            reached = position

    def go_on(self) -> None:
        """Cut off what is torn at the end: new blocks come there."""
        self._storage.truncate(self._end)

    def forget(self) -> None:
        """Let nobody go on with what it says."""
        self._storage.truncate(0)

    def close(self) -> None:
        """Close the file."""
        self._storage.close()

    def damaged(self, message: str) -> Corrupt:
        """What to raise for a journal that cannot be right."""
        return Corrupt(self.path, "journal", f"{message}; {START_OVER}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, raw: bytes) -> None:
        self._storage.write(self._end, raw)
        self._end += len(raw)

    def _read(self) -> None:
        """The header, and where the blocks lie that are whole."""
        storage = self._storage
        head = storage.read(0, _HEADER.size)
        if len(head) < _HEADER.size or not any(head):
            return  # a run ended before it had said anything
        magic, length, checksum = _HEADER.unpack(head)
        if magic != _MAGIC:
            raise self.damaged(f"expected the mark of a journal of this version, found {magic!r}")
        text = storage.read(_HEADER.size, length)
        found = zlib.crc32(text, zlib.crc32(head[:-_CHECKSUM_BYTES]))
        if len(text) < length or found != checksum:
            if storage.size <= _HEADER.size + length:
                return  # torn, for the header is on the disk before the first block comes
            raise self.damaged("its header does not have the checksum that it names")
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise self.damaged("its header is not JSON")
        self.fields, self._checksum, self._end = fields, checksum, _HEADER.size + length
        while self._read_block():
            pass

    def _read_block(self) -> bool:
        """Step behind the next block; False where there is none that is whole."""
        head = self._storage.read(self._end, _BLOCK.size)
        if len(head) < _BLOCK.size:
            return False
        magic, length, position, checksum = _BLOCK.unpack(head)
        offset = self._end + _BLOCK.size
        if magic != _BLOCK_MAGIC or offset + length > self._storage.size:
            return False
        payload = self._storage.read(offset, length)
        if zlib.crc32(payload, zlib.crc32(head[:-_CHECKSUM_BYTES], self._checksum)) != checksum:
            return False
        self._checksum, self._end = checksum, offset + length
        self._blocks.append((position, offset, length))
        return True

    def _records(self, offset: int, length: int) -> Iterator[Record]:
        payload = memoryview(self._storage.read(offset, length))
        at = 0
        while at < len(payload):
            if len(payload) - at < _RECORD.size:
                raise self.damaged(f"a record of {len(payload) - at} bytes at {offset + at}")
            kind, file, count, guest_offset, record_bytes, host_offset = _RECORD.unpack_from(payload, at)
            lengths = payload[at + _RECORD.size : at + _RECORD.size + 4 * count]
            is_known = PLACED <= kind <= SIZED and (kind == ENCODED) == (count > 0) and len(lengths) == 4 * count
            if not is_known or max(guest_offset, record_bytes, host_offset) > _MOST_BYTES:
                raise self.damaged(f"a record at {offset + at} that makes no sense")
            payload_bytes = array("I")
            payload_bytes.frombytes(lengths)
            if sys.byteorder == "big":
                payload_bytes.byteswap()
            yield Record(kind, file, guest_offset, record_bytes, host_offset, payload_bytes)
            at += _RECORD.size + 4 * count


__all__ = ["ENCODED", "PLACED", "SIZED", "ZEROED", "Block", "Fields", "Journal", "Record"]
