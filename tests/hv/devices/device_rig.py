"""What device tests share: guest memory over a bytearray, an interrupt line that remembers, a disk in memory."""

from __future__ import annotations

from typing import Any

from vdisk.block.device import StorageDevice
from vdisk.block.extent import Extent, Kind
from vdisk.errors import HypervisorError, StorageError
from vdisk.hv.devices.pci import PciFunction, PciHost
from vdisk.storage.memory import MemoryStorage


class FakeMemory:
    """RAM from 0 up; anything beyond raises, as the real one does."""

    def __init__(self, size_bytes: int = 4 << 20) -> None:
        self.size_bytes = size_bytes
        self.ram = bytearray(size_bytes)
        self._view = memoryview(self.ram)

    def view(self, address: int, length: int) -> memoryview:
        if address < 0 or length < 0 or address + length > self.size_bytes:
            raise HypervisorError(f"{address:#x}+{length} is not RAM")
        return self._view[address : address + length]

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes) -> None:
        self.view(address, len(data))[:] = data


class Line:
    """An interrupt line: its level, and how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def __call__(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class RamDisk(StorageDevice):
    """A disk over a bytearray that notes flushes, discards and zeroing, and can be told to fail."""

    def __init__(self, size: int = 1 << 20, *, writable: bool = True) -> None:
        super().__init__(MemoryStorage(bytes(size)), size, writable=writable)
        self.data: bytearray = self.storage.data  # type: ignore[attr-defined]
        self.flushes = 0
        self.discards: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int, bool]] = []
        self.fails = False

    def fill(self) -> RamDisk:
        """Give every sector its own content: its number, repeated."""
        for sector in range(self.size // 512):
            self.data[sector * 512 : sector * 512 + 512] = sector.to_bytes(4, "little") * 128
        return self

    def sectors(self, first: int, count: int) -> bytes:
        return bytes(self.data[first * 512 : (first + count) * 512])

    def _extents(self, offset: int, length: int) -> list[Extent]:
        if self.fails:
            raise StorageError(self.name, "read", "the disk is broken")
        return [Extent(offset, length, Kind.DATA, self.storage, offset)]

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        self.zeroed.append((offset, length, unmap))
        self.data[offset : offset + length] = bytes(length)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.discards.append((offset, length))

    def _flush(self) -> None:
        self.flushes += 1


class PciRig:
    """A PCI host whose maps, interrupts and messages are recorded; `port` and `memory` find a mapped region."""

    def __init__(self) -> None:
        self.maps: dict[tuple[str, int], tuple[int, Any]] = {}
        self.irq: dict[int, bool] = {}
        self.messages: list[tuple[int, int]] = []
        self.resets = 0
        self.host = PciHost(self._map, self._unmap, self._set_irq, self._send, on_reset=self._reset)

    def _map(self, kind: str, base: int, size: int, region: Any) -> None:
        for (other_kind, other), (other_size, _) in self.maps.items():
            if other_kind == kind and base < other + other_size and other < base + size:
                raise HypervisorError(f"{kind} {base:#x} overlaps {other:#x}")
        self.maps[kind, base] = (size, region)

    def _unmap(self, kind: str, base: int, size: int) -> None:
        assert self.maps.pop((kind, base))[0] == size

    def _set_irq(self, irq: int, level: bool) -> None:
        self.irq[irq] = level

    def _send(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def _reset(self) -> None:
        self.resets += 1

    def plug(self, function: PciFunction, slot: int = 3) -> PciFunction:
        """Plug a function in, route all four lines to interrupt 11, and assign its BARs."""
        self.host.routing[:] = bytes([11]) * 4
        self.host.plug(slot, function)
        self.host.assign(0xC000, 0xE000_0000)
        return function

    def config(self, slot: int, offset: int, size: int = 4, *, value: int | None = None, number: int = 0) -> int:
        """Read or write configuration space as a guest does, by ports."""
        self.host.write(0, 4, 0x8000_0000 | slot << 11 | number << 8 | offset & 0xFC)
        if value is None:
            return self.host.read(4 + (offset & 3), size)
        self.host.write(4 + (offset & 3), size, value)
        return value

    def region(self, function: PciFunction, bar: int) -> Any:
        """The region that a BAR shows, provided that it is mapped."""
        where = function.bars[bar]
        assert where.mapped_at is not None
        return self.maps[where.kind, where.mapped_at][1]

    def capabilities(self, slot: int) -> list[tuple[int, int]]:
        """(id, offset) of each capability, found as a driver finds them."""
        found = []
        offset = self.config(slot, 0x34, 1) if self.config(slot, 0x06, 2) & 0x10 else 0
        while offset:
            found.append((self.config(slot, offset, 1), offset))
            offset = self.config(slot, offset + 1, 1)
        return found
