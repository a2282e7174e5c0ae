"""The split virtqueue (Virtual I/O Device 1.2, 2.7), the device's side of it.

A guest is not trusted: a chain that loops, leaves the table or is longer than a queue may be raises `RingError`,
and the transport then asks the driver for a reset. Rings are little-endian, as is every host with a KVM this
machine runs on, so 16- and 32-bit fields are read through casts of the guest memory itself.
"""

from __future__ import annotations

import struct

from vdisk.errors import HypervisorError
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.dma import Range

DESCRIPTOR = struct.Struct("<QIHH")
DESCRIPTOR_BYTES = 16
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
LARGEST_QUEUE = 1024
_LEGACY_ALIGN = 4096

Chain = tuple[int, list[Range], list[Range]]
"""A request: (head, ranges the device reads, ranges it writes)."""

_unpack_descriptor = DESCRIPTOR.unpack_from


class RingError(HypervisorError):
    """The driver has put something into a ring that no driver may."""


class VirtQueue:
    """One queue: the driver's addresses, and the views of its rings while it is enabled."""

    __slots__ = (
        "_avail",
        "_descriptors",
        "_memory",
        "_signalled_used",
        "_used",
        "_used_elements",
        "avail_address",
        "desc_address",
        "enabled",
        "event_index",
        "largest_size",
        "last_avail",
        "legacy_page",
        "size",
        "used_address",
        "used_index",
        "vector",
    )

    def __init__(self, memory: DmaMemory, largest_size: int) -> None:
        self._memory = memory
        self.largest_size = largest_size
        self.reset()

    def reset(self) -> None:
        """Forget the driver's settings and let go of guest memory."""
        self.size = self.largest_size
        self.desc_address = self.avail_address = self.used_address = 0
        self.legacy_page = 0
        self.vector = 0xFFFF
        self.enabled = False
        self.event_index = False
        self.last_avail = self.used_index = self._signalled_used = 0
        self._descriptors = self._avail = self._used = self._used_elements = memoryview(b"")

    def place_legacy(self, page: int) -> None:
        """Lay the three parts out from a page number on, as drivers before virtio 1.0 do."""
        self.legacy_page = page
        self.size = self.largest_size
        self.desc_address = page * _LEGACY_ALIGN
        self.avail_address = self.desc_address + DESCRIPTOR_BYTES * self.size
        end = self.avail_address + 6 + 2 * self.size
        self.used_address = -(-end // _LEGACY_ALIGN) * _LEGACY_ALIGN

    def enable(self, *, event_index: bool) -> None:
        """Take the rings up. Raises a `HypervisorError` when the addresses or the size make no sense."""
        size = self.size
        if not 0 < size <= self.largest_size or size & (size - 1):
            raise RingError(f"a virtqueue of {size} entries")
        view = self._memory.view
        self._descriptors = view(self.desc_address, DESCRIPTOR_BYTES * size)
        self._avail = view(self.avail_address, 6 + 2 * size).cast("H")
        used = view(self.used_address, 6 + 8 * size)
        self._used = used.cast("H")
        self._used_elements = used[4 : 4 + 8 * size].cast("I")
        self.event_index = event_index
        self.last_avail = self.used_index = self._signalled_used = 0
        self.enabled = True

    def pop(self) -> Chain | None:
        """The next request, or None when there is none."""
        last = self.last_avail
        waiting = (self._avail[1] - last) & 0xFFFF
        if not waiting:
            return None
        size = self.size
        if waiting > size:
            raise RingError(f"{waiting} requests in a virtqueue of {size}")
        head = self._avail[2 + (last & (size - 1))]
        self.last_avail = (last + 1) & 0xFFFF
        return self._chain(head)

    def _chain(self, head: int) -> Chain:
        table, count = self._descriptors, self.size
        index, steps = head, 0
        readable: list[Range] = []
        writable: list[Range] = []
        limit = count
        while True:
            if index >= count or steps >= limit:
                raise RingError("a descriptor chain that loops or leaves its table")
            steps += 1
            address, length, flags, following = _unpack_descriptor(table, index * DESCRIPTOR_BYTES)
            if flags & INDIRECT:
                if table is not self._descriptors or flags & NEXT or not length or length % DESCRIPTOR_BYTES:
                    raise RingError("an indirect descriptor out of place")
                table, count = self._memory.view(address, length), length // DESCRIPTOR_BYTES
                limit = min(count, LARGEST_QUEUE)
                index = steps = 0
                continue
            if flags & WRITE:
                writable.append((address, length))
            elif writable:
                raise RingError("a readable descriptor behind a writable one")
            else:
                readable.append((address, length))
            if not flags & NEXT:
                return head, readable, writable
            index = following

    def push(self, head: int, written: int) -> None:
        """Give a chain back with the count of bytes written to it; the driver can see it from now on."""
        index = self.used_index
        at = (index & (self.size - 1)) * 2
        elements = self._used_elements
        elements[at] = head
        elements[at + 1] = written
        self.used_index = index = (index + 1) & 0xFFFF
        self._used[1] = index

    def wants_kick(self) -> bool:
        """Ask for a notification with the next request; True when one has come in meanwhile."""
        if self.event_index:
            # Behind the used ring. x86 may let the read below overtake this store for the time of a store buffer;
            # the interpreter's own thousands of stores between the two drain it.
            self._used[2 + 4 * self.size] = self.last_avail
        return self._avail[1] != self.last_avail

    def needs_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call."""
        new, old = self.used_index, self._signalled_used
        if new == old:
            return False
        self._signalled_used = new
        if self.event_index:
            event = self._avail[2 + self.size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[0] & AVAIL_NO_INTERRUPT
