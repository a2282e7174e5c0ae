"""A virtio driver of a few dozen lines: finds the structures, negotiates, lays out rings, sends requests."""

from __future__ import annotations

import struct
from typing import Any

from tests.hv.devices.device_rig import FakeMemory, PciRig
from vdisk.hv.devices.virtio.pci import VirtioPci

RINGS, BUFFERS = 0x10000, 0x80000
NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1, EVENT_INDEX, INDIRECT_FEATURE = 1 << 32, 1 << 29, 1 << 28
SLOT = 3


class Driver:
    """Drives a function in slot 3, legacy or modern. Buffers are handed out from a bump allocator."""

    def __init__(self, device: Any, memory: FakeMemory, *, legacy: bool = False, modern_only: bool = False) -> None:
        self.rig = PciRig()
        self.memory = memory
        self.function = VirtioPci(device, modern_only=modern_only)
        self.rig.plug(self.function, SLOT)
        self.legacy = legacy
        self.free = BUFFERS
        self.sizes: dict[int, int] = {}
        self.avail_index: dict[int, int] = {}
        self.used_seen: dict[int, int] = {}
        self.next_descriptor: dict[int, int] = {}
        if not legacy:
            self._find_structures()

    # Registers -------------------------------------------------------------------------------------------------

    def _find_structures(self) -> None:
        self.structures: dict[int, tuple[int, int, int, int]] = {}
        for kind, at in self.rig.capabilities(SLOT):
            if kind == 9:
                cfg_type = self.rig.config(SLOT, at + 3, 1)
                bar = self.rig.config(SLOT, at + 4, 1)
                offset, length = self.rig.config(SLOT, at + 8), self.rig.config(SLOT, at + 12)
                self.structures.setdefault(cfg_type, (bar, offset, length, at))

    def common(self, offset: int, size: int, value: int | None = None) -> int:
        bar, base, length, _ = self.structures[1]
        assert offset + size <= length
        region = self.rig.region(self.function, bar)
        if value is None:
            return region.read(base + offset, size)
        region.write(base + offset, size, value)
        return value

    def ports(self, offset: int, size: int, value: int | None = None) -> int:
        region = self.rig.region(self.function, 0)
        if value is None:
            return region.read(offset, size)
        region.write(offset, size, value)
        return value

    def status(self, value: int | None = None) -> int:
        return self.ports(18, 1, value) if self.legacy else self.common(20, 1, value)

    def device_config(self, offset: int, size: int) -> int:
        if self.legacy:
            return self.ports(20 + offset, size)
        bar, base, length, _ = self.structures[4]
        assert offset + size <= length
        return self.rig.region(self.function, bar).read(base + offset, size)

    def offered(self) -> int:
        if self.legacy:
            return self.ports(0, 4)
        features = 0
        for half in (0, 1):
            self.common(0, 4, half)
            features |= self.common(4, 4) << 32 * half
        return features

    def isr(self) -> int:
        if self.legacy:
            return self.ports(19, 1)
        bar, offset, _, _ = self.structures[3]
        return self.rig.region(self.function, bar).read(offset, 1)

    # Start -----------------------------------------------------------------------------------------------------

    def start(self, features: int = 0, *, queues: int = 1, size: int = 64) -> Driver:
        """Reset, negotiate `features` (and VERSION_1 if modern), set `queues` up, DRIVER_OK."""
        self.status(0)
        self.status(1)
        self.status(3)
        if self.legacy:
            self.ports(4, 4, features)
        else:
            features |= VERSION_1
            for half in (0, 1):
                self.common(8, 4, half)
                self.common(12, 4, features >> 32 * half & 0xFFFFFFFF)
            self.status(11)
            assert self.status() & 8
        self.features = features
        for queue in range(queues):
            self.setup_queue(queue, size)
        self.status(15 if not self.legacy else 7)
        return self

    def rings(self, queue: int) -> tuple[int, int, int]:
        """(descriptors, available, used)."""
        base, size = RINGS + queue * 0x8000, self.sizes[queue]
        avail = base + 16 * size
        return base, avail, -(-(avail + 6 + 2 * size) // 4096) * 4096

    def setup_queue(self, queue: int, size: int) -> None:
        if self.legacy:
            self.ports(14, 2, queue)
            self.sizes[queue] = self.ports(12, 2)
            self.ports(8, 4, self.rings(queue)[0] >> 12)
        else:
            self.common(22, 2, queue)
            self.sizes[queue] = size
            self.common(24, 2, size)
            for at, address in zip((32, 40, 48), self.rings(queue), strict=True):
                self.common(at, 4, address)
                self.common(at + 4, 4, 0)
            self.common(28, 2, 1)
        self.avail_index[queue] = self.used_seen[queue] = self.next_descriptor[queue] = 0

    # Requests --------------------------------------------------------------------------------------------------

    def buffer(self, data: bytes | int) -> tuple[int, int]:
        """A buffer with `data`, or of a length."""
        content = bytes(data) if isinstance(data, int) else data
        address, self.free = self.free, self.free + len(content)
        self.memory.write(address, content)
        return address, len(content)

    def descriptor(self, queue: int, address: int, length: int, flags: int, following: int = 0) -> int:
        """Write the next descriptor of the table; returns its index."""
        index = self.next_descriptor[queue]
        self.next_descriptor[queue] = (index + 1) % self.sizes[queue]
        table = self.rings(queue)[0]
        self.memory.write(table + 16 * index, struct.pack("<QIHH", address, length, flags, following))
        return index

    def chain(self, queue: int, parts: list[tuple[int, int, bool]]) -> int:
        """Descriptors for (address, length, device writes); returns the head."""
        head = self.next_descriptor[queue]
        for number, (address, length, is_written) in enumerate(parts):
            is_last = number == len(parts) - 1
            flags = (WRITE if is_written else 0) | (0 if is_last else NEXT)
            self.descriptor(queue, address, length, flags, (head + number + 1) % self.sizes[queue])
        return head

    def indirect(self, queue: int, parts: list[tuple[int, int, bool]]) -> int:
        """The same through an indirect table."""
        table = b"".join(
            struct.pack("<QIHH", a, n, (WRITE if w else 0) | (NEXT if i + 1 < len(parts) else 0), i + 1)
            for i, (a, n, w) in enumerate(parts)
        )
        address, length = self.buffer(table)
        return self.descriptor(queue, address, length, INDIRECT)

    def offer(self, queue: int, head: int) -> None:
        """Put a chain into the available ring, without a notification."""
        _, avail, _ = self.rings(queue)
        index, size = self.avail_index[queue], self.sizes[queue]
        self.memory.write(avail + 4 + 2 * (index % size), struct.pack("<H", head))
        self.avail_index[queue] = index = (index + 1) & 0xFFFF
        self.memory.write(avail + 2, struct.pack("<H", index))

    def kick(self, queue: int) -> None:
        if self.legacy:
            self.ports(16, 2, queue)
            return
        bar, offset, _, at = self.structures[2]
        multiplier = self.rig.config(SLOT, at + 16)
        self.common(22, 2, queue)
        target = offset + self.common(30, 2) * multiplier
        self.rig.region(self.function, bar).write(target, 2, queue)

    def used(self, queue: int) -> list[tuple[int, int]]:
        """(head, bytes written) of what came back since the last call."""
        _, _, used = self.rings(queue)
        size = self.sizes[queue]
        index = struct.unpack("<H", self.memory.read(used + 2, 2))[0]
        back = []
        while self.used_seen[queue] != index:
            slot = self.used_seen[queue] % size
            back.append(struct.unpack("<II", self.memory.read(used + 4 + 8 * slot, 8)))
            self.used_seen[queue] = (self.used_seen[queue] + 1) & 0xFFFF
        return back

    def set_used_event(self, queue: int, value: int) -> None:
        _, avail, _ = self.rings(queue)
        self.memory.write(avail + 4 + 2 * self.sizes[queue], struct.pack("<H", value))

    def avail_event(self, queue: int) -> int:
        _, _, used = self.rings(queue)
        return int.from_bytes(self.memory.read(used + 4 + 8 * self.sizes[queue], 2), "little")

    @property
    def irq(self) -> bool:
        return self.rig.irq.get(11, False)
