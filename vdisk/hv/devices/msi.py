"""Message-signalled interrupts: the MSI capability and MSI-X (PCI Local Bus 3.0, 6.8)."""

from __future__ import annotations

import struct

from vdisk.hv.devices.base import MsiSender

MSI_CAPABILITY_ID = 0x05
MSIX_CAPABILITY_ID = 0x11

_MSI_ENABLE = 0x0001
_MSIX_ENABLE = 0x8000
_MSIX_MASK_ALL = 0x4000
_ENTRY = struct.Struct("<QII")
_ENTRY_BYTES = 16
_ENTRY_MASKED = 1


def send_nowhere(address: int, data: int) -> None:
    """The sender of a function that is not plugged in."""


class Msi:
    """One 64-bit message in a function's configuration space, at `offset`; 14 bytes, read straight from there."""

    LENGTH = 14
    BODY = struct.pack("<HQH", 0x0080, 0, 0)
    """The capability after its id and link: one vector, 64-bit address, disabled."""
    WRITABLE = struct.pack("<HQH", 0x0071, 0xFFFF_FFFF_FFFF_FFFC, 0xFFFF)

    def __init__(self, config: bytearray, offset: int) -> None:
        self._config = config
        self.offset = offset

    @property
    def is_enabled(self) -> bool:
        """Whether the guest has turned the message on."""
        return bool(self._config[self.offset + 2] & _MSI_ENABLE)

    def message(self) -> tuple[int, int]:
        """(address, data) as the guest set them."""
        address, data = struct.unpack_from("<QH", self._config, self.offset + 4)
        return address, data


class Msix:
    """The table and the pending bits of MSI-X, as the region that a BAR shows.

    The table lies at 0 and the pending bit array at `pba_offset`; `count` is the number of vectors.
    """

    def __init__(self, config: bytearray, offset: int, count: int, pba_offset: int) -> None:
        self._config = config
        self.offset = offset
        self.count = count
        self._pba_offset = pba_offset
        self._table = bytearray(count * _ENTRY_BYTES)
        self._pending = 0
        self.send: MsiSender = send_nowhere
        self.reset()

    def reset(self) -> None:
        """Mask every vector and forget what is pending."""
        for vector in range(self.count):
            _ENTRY.pack_into(self._table, vector * _ENTRY_BYTES, 0, 0, _ENTRY_MASKED)
        self._pending = 0

    @property
    def is_enabled(self) -> bool:
        """Whether the guest has turned MSI-X on."""
        return bool(self._config[self.offset + 3] & (_MSIX_ENABLE >> 8))

    def notify(self, vector: int) -> None:
        """Send the message of `vector`, or note it as pending while it is masked."""
        if vector >= self.count:
            return
        address, data, control = self._entry(vector)
        if control & _ENTRY_MASKED or self._config[self.offset + 3] & (_MSIX_MASK_ALL >> 8):
            self._pending |= 1 << vector
        else:
            self.send(address, data)

    def deliver_pending(self) -> None:
        """Send what became pending and is no longer masked: called when a mask bit may have changed."""
        if not self._pending or not self.is_enabled:
            return
        waiting, self._pending = self._pending, 0
        for vector in range(self.count):
            if waiting >> vector & 1:
                self.notify(vector)

    def read(self, offset: int, size: int) -> int:
        """Read the table or the pending bits."""
        if offset + size <= len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= self._pba_offset:
            return self._pending >> 8 * (offset - self._pba_offset) & ((1 << 8 * size) - 1)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table; the pending bits are read-only."""
        if offset + size > len(self._table):
            return
        self._table[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.deliver_pending()

    def _entry(self, vector: int) -> tuple[int, int, int]:
        address, data, control = _ENTRY.unpack_from(self._table, vector * _ENTRY_BYTES)
        return address, data, control
