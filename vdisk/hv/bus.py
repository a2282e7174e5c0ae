"""The bus: which device answers at a port or a memory address. It refuses overlaps.

A device's register block is a `Region` (devices/base.py). Where no device answers, reads give all ones and writes go
nowhere, as on a PC.
"""

from __future__ import annotations

from bisect import bisect_right

from vdisk.errors import HypervisorError
from vdisk.hv.devices.base import BlockRegion, Region, all_ones

PORTS = 0x10000


class BusConflict(HypervisorError):
    """Two devices claim the same port or address."""


class ByteWide:
    """A region of byte registers as seen by wider accesses: they are split, as an ISA bus does."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def read(self, offset: int, size: int) -> int:
        """`size` bytes from neighbouring registers."""
        if size == 1:
            return self._region.read(offset, 1)
        return sum((self._region.read(offset + i, 1) & 0xFF) << 8 * i for i in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        """One byte to each of `size` neighbouring registers."""
        for i in range(size):
            self._region.write(offset + i, 1, value >> 8 * i & 0xFF)


class Bus:
    """Ports and memory-mapped ranges of one machine. Called under the machine's lock."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[Region, int]] = {}
        self._memory_starts: list[int] = []
        self._memory: list[tuple[int, int, Region]] = []

    # Ports -----------------------------------------------------------------------------------------------------

    def add_ports(self, base: int, count: int, region: Region, *, offset: int = 0) -> None:
        """`region` answers at ports `base` to `base + count - 1`, from its own `offset` on."""
        if not 0 <= base < base + count <= PORTS:
            raise BusConflict(f"bus: ports {base:#x}+{count:#x} lie outside the port space")
        for port in range(base, base + count):
            if port in self._ports:
                raise BusConflict(f"bus: port {port:#x} is taken by {type(self._ports[port][0]).__name__}")
        for port in range(base, base + count):
            self._ports[port] = (region, port - base + offset)

    def remove_ports(self, base: int, count: int) -> None:
        """Nothing answers at these ports any more."""
        for port in range(base, base + count):
            self._ports.pop(port, None)

    def port_read(self, port: int, size: int) -> int:
        """IN."""
        entry = self._ports.get(port)
        if entry is None:
            return all_ones(size)
        return entry[0].read(entry[1], size)

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        entry = self._ports.get(port)
        if entry is not None:
            entry[0].write(entry[1], size, value)

    def port_read_block(self, port: int, size: int, count: int) -> bytes:
        """REP INS: `count` items of `size` bytes."""
        entry = self._ports.get(port)
        if entry is None:
            return b"\xff" * (size * count)
        region, offset = entry
        if isinstance(region, BlockRegion):
            return region.read_block(offset, size, count)
        mask = all_ones(size)
        return b"".join((region.read(offset, size) & mask).to_bytes(size, "little") for _ in range(count))

    def port_write_block(self, port: int, size: int, data: bytes) -> None:
        """REP OUTS: `len(data) / size` items."""
        entry = self._ports.get(port)
        if entry is None:
            return
        region, offset = entry
        if isinstance(region, BlockRegion):
            region.write_block(offset, size, data)
            return
        for i in range(0, len(data), size):
            region.write(offset, size, int.from_bytes(data[i : i + size], "little"))

    # Memory ----------------------------------------------------------------------------------------------------

    def add_memory(self, base: int, size: int, region: Region) -> None:
        """`region` answers at addresses `base` to `base + size - 1`."""
        index = bisect_right(self._memory_starts, base)
        before = self._memory[index - 1] if index else None
        after = self._memory[index] if index < len(self._memory) else None
        for other in (before, after):
            if other is not None and base < other[1] and other[0] < base + size:
                raise BusConflict(
                    f"bus: {base:#x}+{size:#x} overlaps {type(other[2]).__name__} at {other[0]:#x}-{other[1] - 1:#x}"
                )
        self._memory_starts.insert(index, base)
        self._memory.insert(index, (base, base + size, region))

    def remove_memory(self, base: int, size: int) -> None:
        """Nothing answers in this range any more; it must be one that `add_memory` was given."""
        index = bisect_right(self._memory_starts, base) - 1
        if index >= 0 and self._memory[index][:2] == (base, base + size):
            del self._memory_starts[index], self._memory[index]

    def memory_read(self, address: int, size: int) -> int:
        """A load from outside RAM."""
        index = bisect_right(self._memory_starts, address) - 1
        if index >= 0:
            base, end, region = self._memory[index]
            if address + size <= end:
                return region.read(address - base, size)
        return all_ones(size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        """A store to outside RAM."""
        index = bisect_right(self._memory_starts, address) - 1
        if index >= 0:
            base, end, region = self._memory[index]
            if address + size <= end:
                region.write(address - base, size, value)

    # What devices/pci.py is given -------------------------------------------------------------------------------

    def map_region(self, kind: str, base: int, size: int, region: Region) -> None:
        """A PCI BAR was enabled: `kind` is 'io' or 'mem'. Where another device answers, `BusConflict`."""
        if kind == "io":
            self.add_ports(base, size, region)
        else:
            self.add_memory(base, size, region)

    def unmap_region(self, kind: str, base: int, size: int) -> None:
        """A PCI BAR was disabled or moved."""
        if kind == "io":
            self.remove_ports(base, size)
        else:
            self.remove_memory(base, size)
