"""Guest memory: one anonymous mapping, seen through guest physical addresses.

RAM lies in up to two places, as on a PC: from 0 up to at most `layout.LOW_RAM_LIMIT`, and the rest from 4 GiB on. Both
are parts of one mapping, so a guest address becomes an offset by a comparison and a subtraction. Devices get `view()`s
and fill them in place: no copy lies between a disk image and the guest.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from vdisk.errors import HypervisorError, OptionError
from vdisk.hv import layout

PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20


def host_address(mapping: mmap.mmap) -> int:
    """Where a mapping begins in this process, without keeping it from being closed."""
    first = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(first)
    del first
    return address


class GuestMemoryError(HypervisorError):
    """An address range that is not, or not wholly, in the guest's RAM."""

    def __init__(self, address: int, length: int) -> None:
        self.address = address
        self.length = length
        super().__init__(f"guest memory: {length} bytes at {address:#x} are not in the guest's RAM")


class GuestMemory:
    """The guest's RAM: `size_bytes` of it, zero at first.

    `view`, `read` and `write` take guest physical addresses and raise `GuestMemoryError` for a range outside RAM.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes < layout.LEAST_RAM or size_bytes % PAGE_BYTES:
            raise OptionError(
                f"guest memory: expected a multiple of {PAGE_BYTES} of at least {layout.LEAST_RAM} bytes, "
                f"found {size_bytes}"
            )
        self.size_bytes: int = size_bytes
        self.low_bytes: int = min(size_bytes, layout.LOW_RAM_LIMIT)
        """Bytes of RAM from address 0 on; what remains of `size_bytes` begins at 4 GiB."""
        self.high_bytes: int = size_bytes - self.low_bytes
        self._high_end = layout.HIGH_RAM_BASE + self.high_bytes
        # Guest address 0 lies at a multiple of 2 MiB, so that the kernel can map the guest by huge pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        try:
            self._mapping = mmap.mmap(-1, size_bytes + HUGE_PAGE_BYTES, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise HypervisorError(f"guest memory: cannot map {size_bytes} bytes: {error}") from error
        begin = host_address(self._mapping)
        skipped = -begin % HUGE_PAGE_BYTES
        self.host_base: int = begin + skipped
        """Where RAM begins in this process: the low part first, the high part behind it. For memory slots."""
        self._bytes = memoryview(self._mapping)[skipped : skipped + size_bytes]
        try:
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, AttributeError):  # a kernel without them; small pages serve
            pass

    def host_offset(self, address: int, length: int) -> int:
        """How far behind `host_base` the guest's range `address`, `length` begins."""
        if length < 0 or address < 0:
            raise GuestMemoryError(address, length)
        end = address + length
        if end <= self.low_bytes:
            return address
        if address >= layout.HIGH_RAM_BASE and end <= self._high_end:
            return address - layout.HIGH_RAM_BASE + self.low_bytes
        raise GuestMemoryError(address, length)

    def view(self, address: int, length: int) -> memoryview:
        """The guest's bytes themselves, writable: `length` of them from guest physical `address`."""
        if 0 <= address <= (end := address + length) <= self.low_bytes:
            return self._bytes[address:end]
        offset = self.host_offset(address, length)
        return self._bytes[offset : offset + length]

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes from guest physical `address`."""
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at guest physical `address`."""
        self.view(address, len(data))[:] = data

    def read_u8(self, address: int) -> int:
        """One byte."""
        return self.view(address, 1)[0]

    def read_u16(self, address: int) -> int:
        """Two bytes, little-endian."""
        return int.from_bytes(self.view(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.view(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """Eight bytes, little-endian."""
        return int.from_bytes(self.view(address, 8), "little")

    def write_u8(self, address: int, value: int) -> None:
        """One byte; higher bits of `value` are dropped, here and below."""
        self.view(address, 1)[0] = value & 0xFF

    def write_u16(self, address: int, value: int) -> None:
        """Two bytes, little-endian."""
        self.view(address, 2)[:] = (value & 0xFFFF).to_bytes(2, "little")

    def write_u32(self, address: int, value: int) -> None:
        """Four bytes, little-endian."""
        self.view(address, 4)[:] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def close(self) -> None:
        """Give the memory back once no view of it is left; a view that is still held keeps it until it goes."""
        try:
            self._bytes.release()
            self._mapping.close()
        except BufferError:
            pass
