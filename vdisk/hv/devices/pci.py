"""PCI: a function with its configuration space and BARs, and the host that guests reach by ports CF8 and CFC.

The host knows no bus: it is given callables that map and unmap a region, drive an ISA interrupt and send a
message-signalled interrupt. A BAR is mapped while its kind of decoding is on in the command register and its
address is a usable one (PCI Local Bus 3.0, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vdisk.errors import HypervisorError
from vdisk.hv.devices.base import IrqLine, MsiSender, Region, all_ones, no_irq
from vdisk.hv.devices.msi import MSI_CAPABILITY_ID, MSIX_CAPABILITY_ID, Msi, Msix, send_nowhere

BarKind = Literal["io", "mem"]
MapRegion = Callable[[BarKind, int, int, Region], None]
"""(kind, base, size, region): show the region in the port or the memory space."""
UnmapRegion = Callable[[BarKind, int, int], None]
"""(kind, base, size): take it away again."""

CONFIG_BYTES = 256
COMMAND, STATUS, BAR0, SUBSYSTEM, CAPABILITIES = 0x04, 0x06, 0x10, 0x2C, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_OFF = 0x0001, 0x0002, 0x0004, 0x0400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x08, 0x10
VENDOR_CAPABILITY_ID = 0x09
_FIRST_CAPABILITY = 0x40
_DECODE = {"io": COMMAND_IO, "mem": COMMAND_MEMORY}


@dataclass(slots=True, eq=False)
class Bar:
    """A base address register: `size` is a power of two, at least 4 for ports and 16 for memory."""

    kind: BarKind
    size: int
    region: Region
    mapped_at: int | None = field(default=None, init=False)
    """Where the region is mapped now."""

    @property
    def mask(self) -> int:
        """The address bits that can be set: 32 for ports too, since SeaBIOS computes a port BAR's size so."""
        return -self.size & 0xFFFFFFFF


class PciFunction:
    """One function: `config` is its configuration space, `writable` the mask of the bits a guest may change.

    `interrupt_pin` is 0 for none, 1 to 4 for INTA to INTD. A device derives from this and calls `set_irq` (a level)
    or, with MSI-X, `msix.notify(vector)`.
    """

    def __init__(
        self,
        vendor_id: int,
        device_id: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        bars: Mapping[int, Bar] | None = None,
        interrupt_pin: int = 0,
    ) -> None:
        self.config = bytearray(CONFIG_BYTES)
        self.writable = bytearray(CONFIG_BYTES)
        self.bars = dict(bars or {})
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        self.intx: IrqLine = no_irq
        self.host: PciHost | None = None
        self._send_msi: MsiSender = send_nowhere
        self._irq_level = False
        self._last_capability = CAPABILITIES
        self._next_capability = _FIRST_CAPABILITY
        self.set_config(0x00, 2, vendor_id)
        self.set_config(0x02, 2, device_id)
        self.set_config(0x08, 4, class_code << 8 | revision)
        self.set_config(SUBSYSTEM, 4, subsystem[1] << 16 | subsystem[0])
        command = COMMAND_MASTER
        for index, bar in self.bars.items():
            self._check_bar(index, bar)
            command |= _DECODE[bar.kind]
            self.set_config(BAR0 + 4 * index, 4, 1 if bar.kind == "io" else 0, writable=bar.mask)
        if interrupt_pin:
            command |= COMMAND_INTX_OFF
            self.set_config(INTERRUPT_LINE, 1, 0, writable=0xFF)
            self.config[INTERRUPT_PIN] = interrupt_pin
        self.set_config(COMMAND, 2, 0, writable=command)

    @staticmethod
    def _check_bar(index: int, bar: Bar) -> None:
        smallest = 4 if bar.kind == "io" else 16
        if not 0 <= index <= 5 or bar.size < smallest or bar.size & (bar.size - 1):
            raise ValueError(f"BAR {index}: {bar.kind} of {bar.size} bytes")

    # What a device does ----------------------------------------------------------------------------------------

    def set_config(self, offset: int, size: int, value: int, *, writable: int | None = None) -> None:
        """Set a field from the device's side; `writable`, if given, says which of its bits a guest may change."""
        self.config[offset : offset + size] = value.to_bytes(size, "little")
        if writable is not None:
            self.writable[offset : offset + size] = writable.to_bytes(size, "little")

    def add_capability(self, capability_id: int, body: bytes, *, writable: bytes = b"") -> int:
        """Append a capability with `body` after its id and link; returns its offset.

        `writable` is the mask of guest-changeable bits of the body.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_BYTES:
            raise ValueError("no room for another capability")
        self.config[offset : offset + 2] = bytes((capability_id, 0))
        self.config[offset + 2 : end] = body
        self.writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[self._last_capability] = offset
        self.config[STATUS] |= STATUS_CAPABILITIES
        # The link of the capability before is its second byte; the first link is the header's own byte.
        self._last_capability = offset + 1
        self._next_capability = end + 3 & ~3
        return offset

    def add_msi(self) -> None:
        """Offer one message-signalled interrupt: `set_irq` sends it when the level rises."""
        offset = self.add_capability(MSI_CAPABILITY_ID, Msi.BODY, writable=Msi.WRITABLE)
        self.msi = Msi(self.config, offset)

    def add_msix(self, bar_index: int, count: int) -> Msix:
        """Offer `count` MSI-X vectors, with the table and the pending bits in a memory BAR of their own."""
        table_bytes = 16 * count
        pba_offset = -(-table_bytes // 2048) * 2048
        size = max(4096, 1 << (pba_offset + 8 * -(-count // 64) - 1).bit_length())
        control = (count - 1).to_bytes(2, "little")
        body = control + bar_index.to_bytes(4, "little") + (pba_offset | bar_index).to_bytes(4, "little")
        offset = self.add_capability(MSIX_CAPABILITY_ID, body, writable=b"\x00\xc0")
        self.msix = Msix(self.config, offset, count, pba_offset)
        bar = Bar("mem", size, self.msix)
        self._check_bar(bar_index, bar)
        self.bars[bar_index] = bar
        self.set_config(BAR0 + 4 * bar_index, 4, 0, writable=bar.mask)
        self.writable[COMMAND] |= COMMAND_MEMORY
        return self.msix

    def set_irq(self, level: bool) -> None:
        """Drive the function's interrupt: INTx, or one message for each rise while MSI is on."""
        rises = level and not self._irq_level
        self._irq_level = level
        if self.msi is not None and self.msi.is_enabled:
            if rises:
                self._send_msi(*self.msi.message())
            return
        self._drive_intx()

    def _drive_intx(self) -> None:
        if self._irq_level:
            self.config[STATUS] |= STATUS_INTERRUPT
        else:
            self.config[STATUS] &= ~STATUS_INTERRUPT & 0xFF
        uses_messages = (self.msi is not None and self.msi.is_enabled) or (
            self.msix is not None and self.msix.is_enabled
        )
        is_off = self.config[COMMAND + 1] & (COMMAND_INTX_OFF >> 8)
        self.intx(self._irq_level and not is_off and not uses_messages)

    # What the host does ----------------------------------------------------------------------------------------

    def connect(self, host: PciHost, intx: IrqLine, send_msi: MsiSender) -> None:
        """Plug the function in: `PciHost.plug` calls this."""
        self.host = host
        self.intx = intx
        self._send_msi = send_msi
        if self.msix is not None:
            self.msix.send = send_msi

    def reset(self) -> None:
        """Go back to the state after power-on, BARs unmapped. A device extends it."""
        self._irq_level = False
        for offset in (COMMAND, COMMAND + 1):
            self.config[offset] = 0
        for index, bar in self.bars.items():
            self.set_config(BAR0 + 4 * index, 4, 1 if bar.kind == "io" else 0)
        if self.msi is not None:
            self.config[self.msi.offset + 2] &= 0xFE
        if self.msix is not None:
            self.config[self.msix.offset + 3] &= 0x3F
            self.msix.reset()
        self._drive_intx()
        self._remap()

    def config_read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space, within what is writable."""
        for at in range(offset, min(offset + size, CONFIG_BYTES)):
            mask = self.writable[at]
            self.config[at] = self.config[at] & ~mask | value & mask & 0xFF
            value >>= 8
        if offset < BAR0 + 24 and offset + size > COMMAND:
            self._remap()
        if offset < COMMAND + 2 <= offset + size or offset >= _FIRST_CAPABILITY:
            self._drive_intx()
            if self.msix is not None:
                self.msix.deliver_pending()
        self.config_written(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """A hook for devices: the guest has written `size` bytes at `offset`."""

    def _wanted_address(self, index: int, bar: Bar) -> int | None:
        """Where a BAR ought to be mapped: None while decoding is off, and for what sizing leaves in it."""
        if not self.config[COMMAND] & _DECODE[bar.kind]:
            return None
        value = self.config_read(BAR0 + 4 * index, 4)
        address = value & bar.mask
        if bar.kind == "io" and address > 0xFFFF:
            return None
        return address if address not in (0, bar.mask) else None

    def _remap(self) -> None:
        if self.host is None:
            return
        has_changed = False
        for index, bar in self.bars.items():
            wanted = self._wanted_address(index, bar)
            if bar.mapped_at is not None and bar.mapped_at != wanted:
                self.host.unmap_region(bar.kind, bar.mapped_at, bar.size)
                bar.mapped_at = None
                has_changed = True
        if has_changed:
            self.host.map_missing()
        else:
            self.map_missing()

    def map_missing(self) -> None:
        """Map each BAR that ought to be and is not. One that overlaps another waits until that has gone."""
        if self.host is None:
            return
        for index, bar in self.bars.items():
            wanted = self._wanted_address(index, bar)
            if wanted is not None and bar.mapped_at is None:
                try:
                    self.host.map_region(bar.kind, wanted, bar.size, bar.region)
                except HypervisorError:
                    continue
                bar.mapped_at = wanted


class PciHost:
    """Configuration mechanism 1: a region of 8 ports at CF8h, and the functions of bus 0.

    `set_isa_irq(irq, level)` drives a line of the interrupt controllers. The four PCI lines reach it by `routing`:
    an ISA interrupt number for each, bit 7 set for none, as in the PIIX's PIRQ registers, which the bridge writes.
    Port CF9h is the reset register: `on_reset` is called when a guest asks for a reset there.
    """

    def __init__(
        self,
        map_region: MapRegion,
        unmap_region: UnmapRegion,
        set_isa_irq: Callable[[int, bool], None],
        send_msi: MsiSender = send_nowhere,
        *,
        on_reset: Callable[[], None] | None = None,
    ) -> None:
        self.map_region = map_region
        self.unmap_region = unmap_region
        self.functions: dict[tuple[int, int], PciFunction] = {}
        self.routing = bytearray(b"\x80" * 4)
        self._set_isa_irq = set_isa_irq
        self._send_msi = send_msi
        self._on_reset = on_reset
        self._address = 0
        self._reset_control = 0
        self._raised: list[set[int]] = [set(), set(), set(), set()]
        self._isa_levels: dict[int, bool] = {}

    def plug(self, slot: int, function: PciFunction, number: int = 0) -> PciFunction:
        """Put a function in a slot (0 to 31) of bus 0; returns it."""
        if (slot, number) in self.functions:
            raise ValueError(f"PCI slot {slot:02x}.{number} is taken")
        self.functions[slot, number] = function
        function.connect(self, self._intx_line(slot, number, function), self._send_msi)
        if number:
            first = self.functions.get((slot, 0))
            if first is None:
                raise ValueError(f"PCI slot {slot:02x} has no function 0")
            first.config[0x0E] |= 0x80  # more than one function
        return function

    # Interrupts ------------------------------------------------------------------------------------------------

    @staticmethod
    def line_of(slot: int, pin: int) -> int:
        """Which of the four PCI lines (0 = PIRQA) a slot's pin (1 = INTA) is wired to on an i440FX board."""
        return (slot + pin - 2) & 3

    def _intx_line(self, slot: int, number: int, function: PciFunction) -> IrqLine:
        pin = function.config[INTERRUPT_PIN]
        if not pin:
            return no_irq
        line = self.line_of(slot, pin)
        source = slot << 3 | number
        raised = self._raised[line]

        def drive(level: bool) -> None:
            if level == (source in raised):
                return
            if level:
                raised.add(source)
            else:
                raised.discard(source)
            self.drive_lines()

        return drive

    def drive_lines(self) -> None:
        """Set the ISA interrupts that the PCI lines lead to; the bridge calls it when the routing has changed."""
        levels = dict.fromkeys(self._isa_levels, False)
        for line, raised in enumerate(self._raised):
            irq = self.routing[line]
            if irq < 16:
                levels[irq] = levels.get(irq, False) or bool(raised)
        for irq, level in levels.items():
            if self._isa_levels.get(irq, False) != level:
                self._set_isa_irq(irq, level)
        self._isa_levels = levels

    # Ports CF8h to CFFh ----------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the address register (offset 0), the reset register (1) or configuration data (4 to 7)."""
        if offset >= 4:
            return self._config_data_read(offset - 4, size)
        if offset == 1 and size == 1:
            return self._reset_control
        return self._address >> 8 * offset & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the address register (4 bytes at offset 0), the reset register or configuration data."""
        if offset >= 4:
            self._config_data_write(offset - 4, size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FFFFFC
        elif offset == 1 and size == 1:
            rises = value & 4 and not self._reset_control & 4
            self._reset_control = value & 0x0A
            if rises and self._on_reset is not None:
                self._on_reset()

    def _selected(self) -> PciFunction | None:
        address = self._address
        if not address & 0x80000000 or address & 0x00FF0000:
            return None
        return self.functions.get((address >> 11 & 31, address >> 8 & 7))

    def _config_data_read(self, offset: int, size: int) -> int:
        function = self._selected()
        if function is None or offset + size > 4:
            return all_ones(size)
        return function.config_read((self._address & 0xFC) + offset, size)

    def _config_data_write(self, offset: int, size: int, value: int) -> None:
        function = self._selected()
        if function is not None and offset + size <= 4:
            function.config_write((self._address & 0xFC) + offset, size, value)

    # The whole bus ---------------------------------------------------------------------------------------------

    def map_missing(self) -> None:
        """Map the BARs that waited for room, after another one went away."""
        for function in self.functions.values():
            function.map_missing()

    def reset(self) -> None:
        """Reset every function, as a machine reset does."""
        self._address = 0
        self._reset_control = 0
        for function in self.functions.values():
            function.reset()

    def assign(self, io_base: int, memory_base: int, *, enable: bool = True) -> tuple[int, int]:
        """Do what a BIOS does: give each BAR an address from `io_base` and `memory_base` up, and turn decoding on.

        The interrupt line register gets the routed ISA interrupt. Returns the first free addresses. Larger BARs
        come first, so that nothing is lost to alignment.
        """
        todo = [
            (bar.size, key, index, bar)
            for key, function in self.functions.items()
            for index, bar in function.bars.items()
        ]
        following = {"io": io_base, "mem": memory_base}
        for size, key, index, bar in sorted(todo, key=lambda row: (-row[0], row[1], row[2])):
            address = -(-following[bar.kind] // size) * size
            following[bar.kind] = address + size
            self.functions[key].config_write(BAR0 + 4 * index, 4, address)
        for (slot, _number), function in self.functions.items():
            pin = function.config[INTERRUPT_PIN]
            if pin:
                irq = self.routing[self.line_of(slot, pin)]
                function.config_write(INTERRUPT_LINE, 1, irq if irq < 16 else 0xFF)
            if enable:
                value = function.config_read(COMMAND, 2) | COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER
                function.config_write(COMMAND, 2, value)
        return following["io"], following["mem"]
