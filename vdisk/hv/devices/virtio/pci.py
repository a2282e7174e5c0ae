"""Virtio over PCI (Virtual I/O Device 1.2, 4.1): the modern capabilities and the legacy port interface in one.

BAR 0 holds the legacy registers in ports, BAR 1 the MSI-X table, BAR 4 the modern structures in memory. A modern
driver is pointed to the legacy notify port first, because a port exit is cheaper than a memory exit: the latter
has KVM decode the guest's instruction.
"""

from __future__ import annotations

import struct

from vdisk.errors import HypervisorError
from vdisk.hv.devices.base import Region, all_ones
from vdisk.hv.devices.pci import VENDOR_CAPABILITY_ID, Bar, PciFunction
from vdisk.hv.devices.virtio.device import F_EVENT_INDEX, F_VERSION_1, RING_FEATURES, VirtioDevice
from vdisk.hv.devices.virtio.ring import VirtQueue

VENDOR_ID = 0x1AF4
DRIVER_OK, FEATURES_OK, NEEDS_RESET = 4, 8, 64
NO_VECTOR = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2

_CAP_COMMON, _CAP_NOTIFY, _CAP_ISR, _CAP_DEVICE, _CAP_PCI_CFG = 1, 2, 3, 4, 5
_LEGACY_BAR, _MSIX_BAR, _MODERN_BAR = 0, 1, 4
_LEGACY_BYTES, _MODERN_BYTES = 128, 0x4000
_AREA_COMMON, _AREA_ISR, _AREA_DEVICE, _AREA_NOTIFY = 0, 1, 2, 3
_AREA_BYTES = 0x1000


class Legacy:
    """Registers of BAR 0 (4.1.4.8); the two vectors are there only while MSI-X is on."""

    DEVICE_FEATURES, DRIVER_FEATURES, QUEUE_PAGE, QUEUE_SIZE, QUEUE_SELECT = 0, 4, 8, 12, 14
    QUEUE_NOTIFY, STATUS, ISR, CONFIG_VECTOR, QUEUE_VECTOR = 16, 18, 19, 20, 22


class Common:
    """Fields of the common configuration structure (4.1.4.3); the queue's addresses have a second half."""

    DEVICE_SELECT, DEVICE_FEATURES, DRIVER_SELECT, DRIVER_FEATURES, CONFIG_VECTOR, QUEUES = 0, 4, 8, 12, 16, 18
    STATUS, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, NOTIFY_OFFSET = 20, 22, 24, 26, 28, 30
    DESC, DESC_HIGH, AVAIL, AVAIL_HIGH, USED, USED_HIGH = 32, 36, 40, 44, 48, 52


class _LegacyRegisters:
    """BAR 0."""

    def __init__(self, transport: VirtioPci) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        return self._read(offset, size) & all_ones(size)

    def _read(self, offset: int, size: int) -> int:
        transport = self._transport
        queue = transport.queue
        match offset:
            case Legacy.DEVICE_FEATURES:
                return transport.offered & 0xFFFFFFFF
            case Legacy.DRIVER_FEATURES:
                return transport.device.negotiated & 0xFFFFFFFF
            case Legacy.QUEUE_PAGE:
                return queue.legacy_page if queue is not None else 0
            case Legacy.QUEUE_SIZE:
                return queue.largest_size if queue is not None else 0
            case Legacy.QUEUE_SELECT:
                return transport.queue_select
            case Legacy.STATUS:
                return transport.status
            case Legacy.ISR:
                return transport.read_isr()
            case Legacy.CONFIG_VECTOR if transport.uses_msix:
                return transport.config_vector
            case Legacy.QUEUE_VECTOR if transport.uses_msix:
                return queue.vector if queue is not None else NO_VECTOR
        start = 24 if transport.uses_msix else 20
        return transport.read_device_config(offset - start, size) if offset >= start else 0

    def write(self, offset: int, size: int, value: int) -> None:
        transport = self._transport
        if offset == Legacy.QUEUE_NOTIFY:  # the hot one
            transport.notify(value)
            return
        queue = transport.queue
        match offset:
            case Legacy.DRIVER_FEATURES:
                transport.device.negotiated = value & transport.offered & 0xFFFFFFFF
            case Legacy.QUEUE_PAGE if queue is not None:
                transport.set_legacy_page(queue, value)
            case Legacy.QUEUE_SELECT:
                transport.queue_select = value & 0xFFFF
            case Legacy.STATUS:
                transport.set_status(value & 0xFF)
            case Legacy.CONFIG_VECTOR if transport.uses_msix:
                transport.config_vector = transport.valid_vector(value)
            case Legacy.QUEUE_VECTOR if transport.uses_msix:
                if queue is not None:
                    queue.vector = transport.valid_vector(value)
            case _:
                start = 24 if transport.uses_msix else 20
                if offset >= start:
                    transport.write_device_config(offset - start, size, value)


class _ModernRegisters:
    """BAR 4: a page each for the common structure, the interrupt status, the device's configuration, notifies."""

    def __init__(self, transport: VirtioPci) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        area, offset = divmod(offset, _AREA_BYTES)
        transport = self._transport
        if area == _AREA_COMMON:
            if size == 8:
                return transport.read_common(offset) | transport.read_common(offset + 4) << 32
            return transport.read_common(offset) & all_ones(size)
        if area == _AREA_ISR:
            return transport.read_isr() if offset == 0 else 0
        if area == _AREA_DEVICE:
            return transport.read_device_config(offset, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        area, offset = divmod(offset, _AREA_BYTES)
        transport = self._transport
        if area == _AREA_NOTIFY:
            transport.notify(offset >> 2)
        elif area == _AREA_COMMON:
            transport.write_common(offset, value & 0xFFFFFFFF)
            if size == 8:
                transport.write_common(offset + 4, value >> 32)
        elif area == _AREA_DEVICE:
            transport.write_device_config(offset, size, value)


class VirtioPci(PciFunction):
    """A virtio device as a PCI function; transitional (1af4:10xx) unless `modern_only` (1af4:104x)."""

    def __init__(self, device: VirtioDevice, *, modern_only: bool = False) -> None:
        self.device = device
        self.offered = device.features | RING_FEATURES
        self.status = 0
        self.config_vector = NO_VECTOR
        self.queue_select = 0
        self._feature_select = [0, 0]
        self._isr = 0
        bars = {_MODERN_BAR: Bar("mem", _MODERN_BYTES, _ModernRegisters(self))}
        if not modern_only:
            legacy: Region = _LegacyRegisters(self)
            bars[_LEGACY_BAR] = Bar("io", _LEGACY_BYTES, legacy)
        ids = {1: 0x1000, 2: 0x1001, 3: 0x1003, 4: 0x1005, 8: 0x1004}
        super().__init__(
            VENDOR_ID,
            0x1040 + device.type_id if modern_only else ids[device.type_id],
            device.class_code,
            revision=1 if modern_only else 0,
            subsystem=(VENDOR_ID, 0x1100 if modern_only else device.type_id),
            bars=bars,
            interrupt_pin=1,
        )
        self._pci_cfg = self._add_structures(modern_only)
        self.add_msix(_MSIX_BAR, len(device.queues) + 1)
        device.interrupt = self._queue_interrupt

    def _add_structures(self, modern_only: bool) -> int:
        """The vendor capabilities; returns the offset of the one that reaches BARs through configuration space."""

        def structure(kind: int, bar: int, offset: int, length: int, extra: bytes = b"", mask: bytes = b"") -> int:
            head = struct.pack("<BBBB2xII", 16 + len(extra), kind, bar, 0, offset, length)
            return self.add_capability(VENDOR_CAPABILITY_ID, head + extra, writable=mask)

        structure(_CAP_COMMON, _MODERN_BAR, _AREA_COMMON * _AREA_BYTES, 56)
        if not modern_only:
            structure(_CAP_NOTIFY, _LEGACY_BAR, Legacy.QUEUE_NOTIFY, 2, struct.pack("<I", 0))
        notify_bytes = 4 * len(self.device.queues)
        structure(_CAP_NOTIFY, _MODERN_BAR, _AREA_NOTIFY * _AREA_BYTES, notify_bytes, struct.pack("<I", 4))
        structure(_CAP_ISR, _MODERN_BAR, _AREA_ISR * _AREA_BYTES, 1)
        length = len(self.device.config())
        if length:
            structure(_CAP_DEVICE, _MODERN_BAR, _AREA_DEVICE * _AREA_BYTES, length)
        mask = bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 12
        return structure(_CAP_PCI_CFG, 0, 0, 0, bytes(4), mask)

    @property
    def is_live(self) -> bool:
        """Whether a driver runs the device."""
        return bool(self.status & DRIVER_OK)

    @property
    def uses_msix(self) -> bool:
        """Whether the driver has turned MSI-X on: it also moves the legacy device configuration."""
        return self.msix is not None and self.msix.is_enabled

    @property
    def queue(self) -> VirtQueue | None:
        """The queue that the driver has selected."""
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    # Status, queues, interrupts --------------------------------------------------------------------------------

    def reset(self) -> None:
        """A reset of the whole machine."""
        self.reset_device()
        super().reset()

    def reset_device(self) -> None:
        """What writing 0 to the status does."""
        self.status = 0
        self.config_vector = NO_VECTOR
        self.queue_select = 0
        self._feature_select = [0, 0]
        self._isr = 0
        self.device.reset()
        self.set_irq(False)

    def set_status(self, value: int) -> None:
        """The driver writes the status."""
        if value == 0:
            self.reset_device()
            return
        if value & FEATURES_OK and not self.status & FEATURES_OK:
            accepted = self.device.negotiated
            if accepted & ~self.offered or not accepted & F_VERSION_1:
                value &= ~FEATURES_OK
        self.status = value | self.status & NEEDS_RESET

    def notify(self, index: int) -> None:
        """The driver has put something into queue `index`."""
        if index >= len(self.device.queues) or self.status & NEEDS_RESET:
            return
        try:
            self.device.notify(index)
        except HypervisorError:
            self._ask_for_reset()

    def poll(self, index: int) -> None:
        """Look at a queue unasked, for a device whose data comes from outside."""
        self.notify(index)

    def set_legacy_page(self, queue: VirtQueue, page: int) -> None:
        """The legacy driver places a queue, or takes it away with page 0."""
        if page == 0:
            queue.reset()
            return
        queue.place_legacy(page)
        self._enable(queue)

    def _enable(self, queue: VirtQueue) -> None:
        try:
            queue.enable(event_index=bool(self.device.negotiated & F_EVENT_INDEX))
        except HypervisorError:
            self._ask_for_reset()

    def _ask_for_reset(self) -> None:
        self.status |= NEEDS_RESET
        self._isr |= ISR_CONFIG
        self._interrupt(self.config_vector)

    def _queue_interrupt(self, queue: VirtQueue) -> None:
        self._isr |= ISR_QUEUE
        self._interrupt(queue.vector)

    def _interrupt(self, vector: int) -> None:
        if self.msix is not None and self.msix.is_enabled:
            if vector != NO_VECTOR:
                self.msix.notify(vector)
        else:
            self.set_irq(True)

    def read_isr(self) -> int:
        """Reading the interrupt status clears it and lowers the line."""
        value, self._isr = self._isr, 0
        self.set_irq(False)
        return value

    def valid_vector(self, value: int) -> int:
        """`value` if it is a vector of this function, else none."""
        value &= 0xFFFF
        return value if self.msix is not None and value < self.msix.count else NO_VECTOR

    # The structures --------------------------------------------------------------------------------------------

    def read_common(self, offset: int) -> int:
        """A field of the common configuration structure."""
        queue = self.queue
        match offset:
            case Common.DEVICE_SELECT | Common.DRIVER_SELECT:
                return self._feature_select[offset >> 3]
            case Common.DEVICE_FEATURES | Common.DRIVER_FEATURES:
                select = self._feature_select[offset >> 3]
                bits = self.offered if offset == Common.DEVICE_FEATURES else self.device.negotiated
                return bits >> 32 * select & 0xFFFFFFFF if select < 2 else 0
            case Common.CONFIG_VECTOR:
                return self.config_vector
            case Common.QUEUES:
                return len(self.device.queues)
            case Common.STATUS:
                return self.status
            case Common.QUEUE_SELECT:
                return self.queue_select
        if queue is None:
            return NO_VECTOR if offset == Common.QUEUE_VECTOR else 0
        match offset:
            case Common.QUEUE_SIZE:
                return queue.size
            case Common.QUEUE_VECTOR:
                return queue.vector
            case Common.QUEUE_ENABLE:
                return int(queue.enabled)
            case Common.NOTIFY_OFFSET:
                return self.queue_select
            case Common.DESC | Common.DESC_HIGH:
                return queue.desc_address >> 8 * (offset - Common.DESC) & 0xFFFFFFFF
            case Common.AVAIL | Common.AVAIL_HIGH:
                return queue.avail_address >> 8 * (offset - Common.AVAIL) & 0xFFFFFFFF
            case Common.USED | Common.USED_HIGH:
                return queue.used_address >> 8 * (offset - Common.USED) & 0xFFFFFFFF
        return 0

    def write_common(self, offset: int, value: int) -> None:
        """Write a field of the common configuration structure."""
        match offset:
            case Common.DEVICE_SELECT | Common.DRIVER_SELECT:
                self._feature_select[offset >> 3] = value
            case Common.DRIVER_FEATURES:
                select = self._feature_select[1]
                if select < 2 and not self.status & FEATURES_OK:
                    kept = self.device.negotiated & ~(0xFFFFFFFF << 32 * select)
                    self.device.negotiated = kept | value << 32 * select
            case Common.CONFIG_VECTOR:
                self.config_vector = self.valid_vector(value)
            case Common.STATUS:
                self.set_status(value & 0xFF)
            case Common.QUEUE_SELECT:
                self.queue_select = value & 0xFFFF
            case _:
                if self.queue is not None:
                    self._write_queue(self.queue, offset, value)

    def _write_queue(self, queue: VirtQueue, offset: int, value: int) -> None:
        match offset:
            case Common.QUEUE_VECTOR:
                queue.vector = self.valid_vector(value)
                return
            case Common.QUEUE_ENABLE:
                if value & 1 and not queue.enabled:
                    self._enable(queue)
                return
        if queue.enabled:
            return  # a driver does not move a ring in use
        match offset:
            case Common.QUEUE_SIZE:
                queue.size = value & 0xFFFF
            case Common.DESC | Common.DESC_HIGH:
                queue.desc_address = _replaced(queue.desc_address, offset - Common.DESC, value)
            case Common.AVAIL | Common.AVAIL_HIGH:
                queue.avail_address = _replaced(queue.avail_address, offset - Common.AVAIL, value)
            case Common.USED | Common.USED_HIGH:
                queue.used_address = _replaced(queue.used_address, offset - Common.USED, value)

    def read_device_config(self, offset: int, size: int) -> int:
        """The device's own configuration; zeros behind its end."""
        return int.from_bytes(self.device.config()[offset : offset + size], "little")

    def write_device_config(self, offset: int, size: int, value: int) -> None:
        """Pass a write of the device's own configuration on."""
        self.device.write_config(offset, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    # BARs through configuration space (4.1.4.9) ------------------------------------------------------------------

    def _window(self) -> tuple[Region, int, int] | None:
        bar, at, length = struct.unpack_from("<B3xII", self.config, self._pci_cfg + 4)
        target = self.bars.get(bar)
        if target is None or length not in (1, 2, 4) or at + length > target.size or at % length:
            return None
        return target.region, at, length

    def config_read(self, offset: int, size: int) -> int:
        """Configuration space, with the window onto the BARs."""
        data = self._pci_cfg + 16
        if data <= offset < data + 4:
            window = self._window()
            if window is not None:
                region, at, length = window
                self.config[data : data + 4] = region.read(at, length).to_bytes(4, "little")
        return super().config_read(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """A write to the window's data goes to the BAR."""
        data = self._pci_cfg + 16
        if data <= offset < data + 4:
            window = self._window()
            if window is not None:
                region, at, length = window
                region.write(at, length, int.from_bytes(self.config[data : data + length], "little"))


def _replaced(address: int, byte: int, value: int) -> int:
    """A 64-bit address with its lower (byte 0) or upper (byte 4) half replaced."""
    if byte:
        return address & 0xFFFFFFFF | value << 32
    return address & ~0xFFFFFFFF | value
