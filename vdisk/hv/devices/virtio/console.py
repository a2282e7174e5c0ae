"""virtio-console (Virtual I/O Device 1.2, 5.3): one port, hvc0 in a Linux guest."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.virtio.device import VirtioDevice
from vdisk.hv.devices.virtio.ring import Chain, RingError, VirtQueue

F_SIZE = 1
_RECEIVE = 0
_MOST_WAITING_BYTES = 1 << 16


class VirtioConsole(VirtioDevice):
    """What the guest prints goes to `on_output`; `type` gives it input."""

    type_id = 3
    class_code = 0x078000
    queue_sizes = (64, 64)

    def __init__(
        self, memory: DmaMemory, on_output: Callable[[bytes], None], *, columns: int = 80, rows: int = 25
    ) -> None:
        super().__init__(memory)
        self.features = F_SIZE
        self._config = struct.pack("<HHII", columns, rows, 1, 0)
        self._on_output = on_output
        self._waiting = bytearray()

    def config(self) -> bytes:
        """struct virtio_console_config."""
        return self._config

    def type(self, data: bytes) -> None:
        """Input for the guest; what exceeds 64 KiB of waiting input is lost, as on a line without flow control."""
        self._waiting += data[: _MOST_WAITING_BYTES - len(self._waiting)]

    def notify(self, index: int) -> None:
        """Output at once; input as far as there is any."""
        if index != _RECEIVE:
            super().notify(index)
            return
        queue = self.queues[_RECEIVE]
        if not queue.enabled:
            return
        while self._waiting:
            chain = queue.pop()
            if chain is None:
                if not queue.wants_kick():
                    break
                continue
            queue.push(chain[0], self.handle(queue, chain))
        if queue.needs_interrupt():
            self.interrupt(queue)

    def handle(self, queue: VirtQueue, chain: Chain) -> int:
        """One buffer of output, or one to be filled with input."""
        _head, readable, writable = chain
        if queue is not self.queues[_RECEIVE]:
            self._on_output(dma.gather(dma.views(self.memory, readable)))
            return 0
        moved = dma.scatter(self._waiting, dma.views(self.memory, writable))
        if not moved:
            raise RingError("an empty receive buffer")
        del self._waiting[:moved]
        return moved
