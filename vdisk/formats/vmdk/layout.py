"""Extent files in the making: flat, hosted sparse and COWD.

An extent's tables stand before its data and are written in windows as the guest's offsets go by, so that memory does
not grow with the disk.
"""

from __future__ import annotations

import abc
from array import array
from collections.abc import Iterator
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.descriptor import sectors_for
from vdisk.formats.vmdk.sparse import ZERO_GRAIN, entry_bytes
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Storage

GRAIN_SECTORS = 128
ENTRIES_PER_TABLE = 512
_TABLE_SECTORS = ENTRIES_PER_TABLE * 4 // SECTOR_BYTES
_WINDOW_ENTRIES = 1 << 16
_LAST_SECTOR = (1 << 32) - 1


class ExtentWriter(abc.ABC):
    """One extent file. Offsets count from the extent's start and go up from call to call."""

    storage: Storage
    unit_bytes: int

    @abc.abstractmethod
    def place(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Room: (offset, length, host) for the pieces of a range."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Write headers and tables."""

    def zero(self, offset: int, length: int) -> None:
        """Hide what a parent has under zeros."""
        raise OptionError("vmdk: this subformat cannot have a backing file")


class FlatWriter(ExtentWriter):
    """A file of the extent's length."""

    unit_bytes = 4096

    def __init__(self, storage: Storage, sectors: int) -> None:
        self.storage = storage
        self._length = sectors * SECTOR_BYTES

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        yield offset, length, offset

    def finish(self) -> None:
        self.storage.truncate(self._length)


class _GrainWriter(ExtentWriter):
    """What hosted and COWD extents have in common: tables at known places, grains behind them in order."""

    def __init__(self, storage: Storage, sectors: int, grain_sectors: int, table_starts: tuple[int, ...], data: int):
        """`table_starts`: the sectors where copies of the (contiguous) tables start; `data`: where grains may."""
        self.storage = storage
        self._grain_bytes = grain_sectors * SECTOR_BYTES
        self.unit_bytes = max(self._grain_bytes, 4096)
        self._sectors = sectors
        self._grain_sectors = grain_sectors
        self._table_starts = table_starts
        self._next_sector = data
        self._window = array("I", bytes(4 * _WINDOW_ENTRIES))
        self._window_start = 0
        self._window_used = 0

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        count = -(-length // self._grain_bytes)
        sector = self._next_sector
        if sector + count * self._grain_sectors > _LAST_SECTOR:
            raise OptionError(
                "vmdk: more data than the 2 TiB that a sparse extent's file can hold: "
                "choose subformat=twoGbMaxExtentSparse or a flat one"
            )
        self._next_sector += count * self._grain_sectors
        self._set(offset // self._grain_bytes, count, sector, self._grain_sectors)
        yield offset, length, sector * SECTOR_BYTES

    def zero(self, offset: int, length: int) -> None:
        for _ in self.place(offset, length):
            pass  # what is not written of a new file reads as zeros

    def _set(self, grain: int, count: int, entry: int, step: int) -> None:
        """Let the entries of `count` grains go up from `entry` by `step`."""
        while count:
            if grain >= self._window_start + _WINDOW_ENTRIES:
                self._write_window()
                self._window_start = grain // _WINDOW_ENTRIES * _WINDOW_ENTRIES
            slot = grain - self._window_start
            part = min(count, _WINDOW_ENTRIES - slot)
            self._window[slot : slot + part] = array(
                "I", range(entry, entry + part * step, step) if step else [entry] * part
            )
            self._window_used = slot + part
            grain, count, entry = grain + part, count - part, entry + part * step

    def _write_window(self) -> None:
        if self._window_used:
            raw = entry_bytes(self._window[: self._window_used])
            for start in self._table_starts:
                self.storage.write(start * SECTOR_BYTES + 4 * self._window_start, raw)
        self._window = array("I", bytes(4 * _WINDOW_ENTRIES))
        self._window_used = 0

    def _write_directory(self, sector: int, first_table: int, count: int, table_sectors: int) -> None:
        """A directory whose tables lie one behind the other, in pieces."""
        for start in range(0, count, _WINDOW_ENTRIES):
            stop = min(count, start + _WINDOW_ENTRIES)
            entries = range(first_table + start * table_sectors, first_table + stop * table_sectors, table_sectors)
            self.storage.write(sector * SECTOR_BYTES + 4 * start, entry_bytes(array("I", entries)))


class HostedWriter(_GrainWriter):
    """A hosted sparse extent: header, descriptor, redundant directory and tables, directory and tables, grains."""

    def __init__(self, storage: Storage, sectors: int, descriptor: bytes, *, has_zero_grains: bool) -> None:
        """`descriptor` is empty when it has a file of its own."""
        self._descriptor = descriptor
        self._descriptor_sectors = sectors_for(descriptor) if descriptor else 0
        self._has_zero_grains = has_zero_grains
        self._tables = -(-sectors // (GRAIN_SECTORS * ENTRIES_PER_TABLE))
        directory_sectors = max(1, -(-self._tables * 4 // SECTOR_BYTES))
        self._redundant_sector = 1 + self._descriptor_sectors
        first = self._redundant_sector + directory_sectors
        self._directory_sector = first + self._tables * _TABLE_SECTORS
        second = self._directory_sector + directory_sectors
        end = second + self._tables * _TABLE_SECTORS
        data = -(-end // GRAIN_SECTORS) * GRAIN_SECTORS
        if data > _LAST_SECTOR:
            raise OptionError("vmdk: the disk is too long for one sparse extent: choose subformat=twoGbMaxExtentSparse")
        self._first_tables = (first, second)
        self._overhead_sectors = data
        super().__init__(storage, sectors, GRAIN_SECTORS, (first, second), data)

    def zero(self, offset: int, length: int) -> None:
        if self._has_zero_grains:
            self._set(offset // self._grain_bytes, -(-length // self._grain_bytes), ZERO_GRAIN, 0)
        else:
            super().zero(offset, length)

    def finish(self) -> None:
        self._write_window()
        self.storage.truncate(self._next_sector * SECTOR_BYTES)
        for sector, first in zip((self._redundant_sector, self._directory_sector), self._first_tables, strict=True):
            self._write_directory(sector, first, self._tables, _TABLE_SECTORS)
        flags = structs.FLAG_NEWLINES | structs.FLAG_REDUNDANT_TABLES
        flags |= structs.FLAG_ZERO_GRAINS if self._has_zero_grains else 0
        header = hosted_header(
            version=2 if self._has_zero_grains else 1,
            flags=flags,
            capacity_sectors=self._sectors,
            descriptor_sector=1 if self._descriptor else 0,
            descriptor_sectors=self._descriptor_sectors,
            redundant_directory_sector=self._redundant_sector,
            directory_sector=self._directory_sector,
            overhead_sectors=self._overhead_sectors,
        )
        self.storage.write(0, header + self._descriptor.ljust(self._descriptor_sectors * SECTOR_BYTES, b"\0"))


class CowdWriter(_GrainWriter):
    """A COWD extent: header, directory, all tables, grains of one sector each."""

    GRAIN_SECTORS = 1

    def __init__(self, storage: Storage, sectors: int) -> None:
        if sectors > _LAST_SECTOR:
            raise OptionError("vmdk: a vmfsSparse disk is shorter than 2 TiB")
        per_table = structs.COWD_ENTRIES_PER_TABLE
        self._tables = -(-sectors // (per_table * self.GRAIN_SECTORS))
        self._directory_sector = structs.CowdHeader.sizeof() // SECTOR_BYTES
        self._table_sectors = per_table * 4 // SECTOR_BYTES
        self._first_table = self._directory_sector + max(1, -(-self._tables * 4 // SECTOR_BYTES))
        data = self._first_table + self._tables * self._table_sectors
        super().__init__(storage, sectors, self.GRAIN_SECTORS, (self._first_table,), data)

    def finish(self) -> None:
        self._write_window()
        self.storage.truncate(self._next_sector * SECTOR_BYTES)
        self._write_directory(self._directory_sector, self._first_table, self._tables, self._table_sectors)
        raw: bytes = structs.CowdHeader.build(
            {
                "version": 1,
                "flags": 3,
                "capacity_sectors": self._sectors,
                "grain_sectors": self.GRAIN_SECTORS,
                "directory_sector": self._directory_sector,
                "directory_entries": self._tables,
                "free_sector": self._next_sector,
                "parent_or_geometry": bytes(1028),
                "generation": 1,
                "name": bytes(60),
                "description": bytes(512),
                "saved_generation": 1,
                "reserved": bytes(8),
                "unclean_shutdown": 0,
            }
        )
        self.storage.write(0, raw)


def hosted_header(**fields: Any) -> bytes:
    """512 bytes of a hosted header (or footer); what isn't given is as for an extent of default grains."""
    raw: bytes = structs.HostedHeader.build(
        {
            "grain_sectors": GRAIN_SECTORS,
            "entries_per_table": ENTRIES_PER_TABLE,
            "unclean_shutdown": 0,
            "newlines": structs.NEWLINES,
            "compression": structs.COMPRESSION_NONE,
            **fields,
        }
    )
    return raw
