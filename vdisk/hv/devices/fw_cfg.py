"""QEMU's firmware configuration ports, by which SeaBIOS learns of the machine (QEMU, docs/specs/fw_cfg.rst). No DMA."""

from __future__ import annotations

import struct
from collections.abc import Mapping

SELECTOR, DATA = 0, 1
_SIGNATURE, _ID, _CPUS, _BOOT_MENU, _MOST_CPUS, _DIRECTORY, _FIRST_FILE = 0x00, 0x01, 0x05, 0x0E, 0x0F, 0x19, 0x20
_TRADITIONAL = 1
_NAME_BYTES = 56


class FwCfg:
    """A selector and a data port. `files` are named blobs; numbers are little-endian."""

    def __init__(self, cpus: int, files: Mapping[str, bytes]) -> None:
        self._items: dict[int, bytes] = {
            _SIGNATURE: b"QEMU",
            _ID: struct.pack("<I", _TRADITIONAL),
            _CPUS: struct.pack("<H", cpus),
            _MOST_CPUS: struct.pack("<H", cpus),
            _BOOT_MENU: struct.pack("<H", 0),
        }
        directory = bytearray(struct.pack(">I", len(files)))
        for key, (name, data) in enumerate(sorted(files.items()), _FIRST_FILE):
            directory += struct.pack(">IHH", len(data), key, 0) + name.encode("ascii").ljust(_NAME_BYTES, b"\0")
            self._items[key] = data
        self._items[_DIRECTORY] = bytes(directory)
        self._item = b""
        self._at = 0

    def read(self, offset: int, size: int) -> int:
        """The next bytes of the chosen item; zeros behind its end."""
        if offset != DATA:
            return 0
        return int.from_bytes(self.read_block(offset, 1, size), "little")

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """The same for REP INS."""
        length = size * count
        data = self._item[self._at : self._at + length]
        self._at += length
        return data.ljust(length, b"\0")

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose an item."""
        if offset == SELECTOR and size == 2:
            self._item = self._items.get(value & 0x3FFF if value & 0x4000 else value, b"")
            self._at = 0

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """Nothing is written by string I/O."""
