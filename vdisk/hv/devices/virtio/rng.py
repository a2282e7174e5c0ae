"""virtio-rng (Virtual I/O Device 1.2, 5.4): entropy from the host."""

from __future__ import annotations

import os
from collections.abc import Callable

from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.virtio.device import VirtioDevice
from vdisk.hv.devices.virtio.ring import Chain, VirtQueue

_MOST_BYTES = 1 << 16


class VirtioEntropy(VirtioDevice):
    """Fills the driver's buffers from `source`, which is given a count of bytes; 64 KiB a request at most."""

    type_id = 4
    class_code = 0x00FF00
    queue_sizes = (8,)

    def __init__(self, memory: DmaMemory, *, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__(memory)
        self._source = source

    def handle(self, queue: VirtQueue, chain: Chain) -> int:
        """Fill one buffer."""
        pieces = dma.views(self.memory, chain[2])
        return dma.scatter(self._source(min(dma.total_bytes(pieces), _MOST_BYTES)), pieces)
