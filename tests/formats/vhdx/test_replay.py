"""A file seen through its log: changes lie over one another as they would once written."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from tests.formats.vhdx.test_structures import BAT_OFFSET, LOG_OFFSET, MIB, both_headers, patch
from vdisk import formats
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import sealed
from vdisk.formats.vhdx.log import Change, Entry, LogReader, Replay
from vdisk.formats.vhdx.replay import ReplayedStorage
from vdisk.storage.memory import MemoryStorage

SECTOR = 4096
SECTORS = 24


class FakeLog:
    """Gives each entry's changes, which the entry's offset numbers."""

    def __init__(self, changes: list[list[Change]]) -> None:
        self._changes = changes

    def changes(self, entry: Entry) -> list[Change]:
        return self._changes[entry.offset]


def change(what: tuple[int, int, int]) -> Change:
    """A sector of one byte's repetition, or a stretch of zeros."""
    sector, count, byte = what
    if byte:
        return Change(sector * SECTOR, SECTOR, bytes([byte]) * SECTOR)
    return Change(sector * SECTOR, min(count, SECTORS - sector) * SECTOR, None)


@given(
    changes=st.lists(
        st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 9), st.integers(0, 3)), max_size=12), max_size=4
    ),
    length=st.integers(0, SECTORS * SECTOR),
    reads=st.lists(st.tuples(st.integers(0, SECTORS * SECTOR), st.integers(0, SECTORS * SECTOR)), max_size=5),
)
def test_reads_are_those_of_a_file_that_was_replayed(
    changes: list[list[tuple[int, int, int]]], length: int, reads: list[tuple[int, int]]
) -> None:
    base = MemoryStorage(bytes(range(251)) * (length // 251 + 1))
    base.truncate(length)
    before = bytes(base.data)
    laid = [[change(what) for what in entry] for entry in changes]
    entries = [Entry(index, SECTOR, 0, index + 1, 0, 0, 0) for index in range(len(laid))]
    size = SECTORS * SECTOR
    storage = ReplayedStorage(base, cast(LogReader, FakeLog(laid)), Replay(entries, size))
    model = bytearray(before.ljust(size, b"\0"))
    for entry in laid:
        for offset, count, data in entry:
            model[offset : offset + count] = bytes(count) if data is None else data
    assert storage.size == size
    assert storage.read(0, size) == model
    for offset, count in reads:
        assert storage.read(offset, count) == model[offset : offset + count]
    assert base.data == before, "nothing is written before it is asked for"
    storage.apply()
    assert base.data == model
    storage.write(1, b"through")
    assert base.data[1:8] == b"through"


def test_a_zero_descriptor(tmp_path: Path) -> None:
    """Neither QEMU nor our writer makes one."""
    path = tmp_path / "disk.vhdx"
    formats.create(path, 8 * MIB)
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x" * 8 * MIB)
    guid = uuid4()
    head = structs.LOG_ENTRY_HEADER.build(
        {
            "checksum": 0,
            "entry_length": 2 * SECTOR,
            "tail": 0,
            "sequence_number": 1 << 40,
            "descriptor_count": 2,
            "reserved": 0,
            "log_guid": guid.bytes_le,
            "flushed_file_offset": 4 * MIB,
            "last_file_offset": 20 * MIB,
        }
    )
    head += structs.LOG_DESCRIPTOR.pack(b"zero", 0, SECTOR, BAT_OFFSET, 1 << 40)
    first, last = (13 << 20 | 6).to_bytes(8, "little"), bytes(4)
    head += structs.LOG_DESCRIPTOR.pack(
        b"desc", int.from_bytes(last, "little"), int.from_bytes(first, "little"), BAT_OFFSET, 1 << 40
    )
    data = structs.LOG_DATA_SECTOR.pack(b"data", (1 << 40) >> 32, bytes(4084), 0)
    patch(path, LOG_OFFSET, sealed(head.ljust(SECTOR, b"\0") + data))
    both_headers(48, guid.bytes_le)(path)
    with formats.open(path) as disk:
        assert disk.describe().is_dirty
        assert disk.read(0, 8 * MIB) == bytes(8 * MIB), "block 0 lies in what the file grows by, the others are gone"
    with formats.open(path, writable=True) as disk:
        disk.write(5, b"y")
    assert path.stat().st_size >= 20 * MIB
    with formats.open(path) as disk:
        assert disk.read(0, 7) == bytes(5) + b"y\0"
