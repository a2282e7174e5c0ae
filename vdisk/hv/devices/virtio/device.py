"""What every virtio device is to its transport."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.virtio.ring import Chain, VirtQueue

F_ANY_LAYOUT, F_INDIRECT, F_EVENT_INDEX, F_VERSION_1 = (1 << n for n in (27, 28, 29, 32))
RING_FEATURES = F_ANY_LAYOUT | F_INDIRECT | F_EVENT_INDEX | F_VERSION_1


class VirtioDevice(abc.ABC):
    """A device without its transport: features, queues, configuration, and what to do with a request."""

    type_id: ClassVar[int]
    """The virtio device type: 1 network, 2 block, 3 console, 4 entropy."""
    class_code: ClassVar[int]
    """The PCI class that fits it."""
    queue_sizes: ClassVar[tuple[int, ...]]
    features: int = 0
    """The device's own feature bits, without those of the ring."""

    def __init__(self, memory: DmaMemory) -> None:
        self.memory = memory
        self.queues = [VirtQueue(memory, size) for size in self.queue_sizes]
        self.negotiated = 0
        """The features that the driver has accepted."""
        self.interrupt: Callable[[VirtQueue], None] = _no_interrupt
        """Set by the transport: tell the driver that a queue has used entries."""

    def reset(self) -> None:
        """Back to the state before a driver came."""
        self.negotiated = 0
        for queue in self.queues:
            queue.reset()

    def config(self) -> bytes:
        """The device-specific configuration as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes to the device-specific configuration; nothing in it is writable unless overridden."""

    @abc.abstractmethod
    def handle(self, queue: VirtQueue, chain: Chain) -> int:
        """Do a request; returns the count of bytes written to the driver's memory.

        A `HypervisorError` (a bad address, a chain that lacks what it needs) makes the transport ask for a reset.
        """

    def notify(self, index: int) -> None:
        """The driver has put requests into a queue: do all of them, then interrupt once."""
        queue = self.queues[index]
        if not queue.enabled:
            return
        handle, pop, push = self.handle, queue.pop, queue.push
        try:
            while True:
                while (chain := pop()) is not None:
                    push(chain[0], handle(queue, chain))
                if not queue.wants_kick():
                    break
        finally:
            if queue.needs_interrupt():
                self.interrupt(queue)


def _no_interrupt(queue: VirtQueue) -> None:
    """The interrupt of a device without a transport."""
