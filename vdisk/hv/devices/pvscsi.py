"""VMware's paravirtual SCSI controller, as Linux's vmw_pvscsi driver knows it: two rings of pages and a doorbell.

The message ring and the request threshold, which came with later revisions, are said not to be there; a driver
then does without them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdisk.errors import HypervisorError
from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.pci import Bar, PciFunction
from vdisk.hv.devices.scsi import CHECK_CONDITION, GOOD, ScsiTarget

VMWARE_PVSCSI = (0x15AD, 0x07C0)
_REGISTERS_BYTES = 0x8000
_NOT_SUPPORTED = 0xFFFFFFFF
_COMPLETED, _ALL_INTERRUPTS = 0x01, 0x0F
_PAGE_BYTES, _MOST_PAGES = 4096, 32
_REQUEST = struct.Struct("<QQQQII16sB8sBBBB")
_REQUEST_BYTES, _COMPLETION_BYTES = 128, 32
_COMPLETION = struct.Struct("<QQIHHII")
_ELEMENT = struct.Struct("<QII")
_HAS_LIST, _CHAIN, _MOST_ELEMENTS = 0x01, 0x01, 4096
_CONTROLLER_PAGE, _CONTROLLER_ADDRESS = 0x1958, 0x2120 << 32
_CONTROLLER = struct.Struct("<IHHH6xQ128s128s64s64s64sI4x")
_MOST_TARGETS = 16
_HOST_OK, _HOST_NO_TARGET, _HOST_BAD_PARAMETER = 0x00, 0x11, 0x1A
# Words of the state page.
_REQUEST_PRODUCED, _REQUEST_CONSUMED, _REQUEST_LOG2, _DONE_PRODUCED, _DONE_CONSUMED, _DONE_LOG2 = range(6)


class Register:
    """The registers, spread over pages."""

    COMMAND, COMMAND_DATA, COMMAND_STATUS = 0x0000, 0x0004, 0x0008
    INTERRUPT_STATUS, INTERRUPT_MASK, KICK_OTHER, KICK_READ_WRITE = 0x100C, 0x2010, 0x3014, 0x4018


class Command:
    """What a driver may ask of the adapter."""

    ADAPTER_RESET, SETUP_RINGS, RESET_BUS, RESET_DEVICE, ABORT, CONFIG = 1, 3, 4, 5, 6, 7


_ARGUMENT_WORDS = {
    Command.ADAPTER_RESET: 0,
    Command.SETUP_RINGS: 132,
    Command.RESET_BUS: 0,
    Command.RESET_DEVICE: 3,
    Command.ABORT: 4,
    Command.CONFIG: 6,
}


class _Rings:
    """The guest's rings: the shared state as 32-bit words, and the pages of entries."""

    def __init__(self, memory: DmaMemory, words: Sequence[int]) -> None:
        request_pages, done_pages, low, high = words[:4]
        for count in (request_pages, done_pages):
            if not 0 < count <= _MOST_PAGES or count & (count - 1):
                raise HypervisorError(f"a ring of {count} pages")
        numbers = struct.unpack("<64Q", struct.pack("<128I", *words[4:132]))
        self.requests = [memory.view(n * _PAGE_BYTES, _PAGE_BYTES) for n in numbers[:request_pages]]
        self.done = [memory.view(n * _PAGE_BYTES, _PAGE_BYTES) for n in numbers[32 : 32 + done_pages]]
        self.state = memory.view((high << 32 | low) * _PAGE_BYTES, _PAGE_BYTES).cast("I")
        self.request_count = request_pages * (_PAGE_BYTES // _REQUEST_BYTES)
        self.done_count = done_pages * (_PAGE_BYTES // _COMPLETION_BYTES)
        for word in range(6):
            self.state[word] = 0
        self.state[_REQUEST_LOG2] = self.request_count.bit_length() - 1
        self.state[_DONE_LOG2] = self.done_count.bit_length() - 1


class Pvscsi(PciFunction):
    """The PCI function, with its registers in BAR 0. `targets` have the ids 0, 1, ...; None is an empty place."""

    def __init__(
        self,
        memory: DmaMemory,
        targets: Sequence[ScsiTarget | None],
        *,
        ids: tuple[int, int] = VMWARE_PVSCSI,
        subsystem: tuple[int, int] = VMWARE_PVSCSI,
    ) -> None:
        self._memory = memory
        self._targets = list(targets)
        self._rings: _Rings | None = None
        super().__init__(
            *ids,
            0x010000,
            revision=2,
            subsystem=subsystem,
            bars={0: Bar("mem", _REGISTERS_BYTES, self)},
            interrupt_pin=1,
        )
        self.add_msi()
        self._reset_adapter()

    @property
    def is_live(self) -> bool:
        """Whether a driver has set the rings up."""
        return self._rings is not None

    def reset(self) -> None:
        """A machine reset."""
        self._reset_adapter()
        super().reset()

    def _reset_adapter(self) -> None:
        self._rings = None
        self._command = 0
        self._arguments: list[int] = []
        self._command_status = 0
        self._interrupts = self._mask = 0
        for target in self._targets:
            if target is not None:
                target.reset()
        self.set_irq(False)

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register; all of them have 4 bytes."""
        if size == 4:
            match offset:
                case Register.COMMAND_STATUS:
                    return self._command_status
                case Register.INTERRUPT_STATUS:
                    return self._interrupts
                case Register.INTERRUPT_MASK:
                    return self._mask
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if size != 4:
            return
        match offset:
            case Register.KICK_READ_WRITE | Register.KICK_OTHER:
                self._process()
            case Register.COMMAND:
                self._start_command(value)
            case Register.COMMAND_DATA:
                self._take_argument(value)
            case Register.INTERRUPT_STATUS:
                self._interrupts &= ~value
                self._update_irq()
            case Register.INTERRUPT_MASK:
                self._mask = value & _ALL_INTERRUPTS
                self._update_irq()

    def _update_irq(self) -> None:
        if self.msi is None or not self.msi.is_enabled:
            self.set_irq(bool(self._interrupts & self._mask))

    def _announce(self) -> None:
        """Completions are there. With a message, a driver does not touch the status: each time is a new message."""
        self._interrupts |= _COMPLETED
        if self.msi is not None and self.msi.is_enabled:
            if self._mask & _COMPLETED:
                self.set_irq(True)
                self.set_irq(False)
        else:
            self._update_irq()

    # Commands of the adapter -----------------------------------------------------------------------------------

    def _start_command(self, command: int) -> None:
        self._command = command
        self._arguments = []
        if command not in _ARGUMENT_WORDS:
            self._command_status = _NOT_SUPPORTED
            return
        self._command_status = _ARGUMENT_WORDS[command]
        if not _ARGUMENT_WORDS[command]:
            self._run_command()

    def _take_argument(self, value: int) -> None:
        expected = _ARGUMENT_WORDS.get(self._command, 0)
        if len(self._arguments) < expected:
            self._arguments.append(value)
            if len(self._arguments) == expected:
                self._run_command()

    def _run_command(self) -> None:
        command, arguments = self._command, self._arguments
        self._command, self._arguments = 0, []
        self._command_status = 0
        match command:
            case Command.ADAPTER_RESET:
                self._reset_adapter()
            case Command.SETUP_RINGS:
                try:
                    self._rings = _Rings(self._memory, arguments)
                except HypervisorError:
                    self._rings = None
                    self._command_status = _NOT_SUPPORTED
            case Command.RESET_BUS:
                for target in self._targets:
                    if target is not None:
                        target.reset()
            case Command.RESET_DEVICE:
                found = self._target(arguments[0])
                if found is not None:
                    found.reset()
            case Command.CONFIG:
                self._show_page(struct.unpack("<QQI4x", struct.pack("<6I", *arguments)))
            case _:  # abort: a command that has been taken has also been completed
                pass

    def _show_page(self, arguments: tuple[int, int, int]) -> None:
        """Write the controller's page, the only one there is, to where the driver wants it."""
        target, address, number = arguments
        if (address, number) != (_CONTROLLER_ADDRESS, _CONTROLLER_PAGE):
            return  # the driver has put an error into the page beforehand
        names = [text.encode("utf-16-le") for text in ("VMware, Inc.", "1", "1.0", "1.0", "1.0")]
        words = _CONTROLLER.size // 4
        page = _CONTROLLER.pack(number, words, _HOST_OK, GOOD, 0x5000C29000000001, *names, _MOST_TARGETS)
        try:
            self._memory.view(target, len(page))[:] = page
        except HypervisorError:
            self._command_status = _NOT_SUPPORTED

    def _target(self, number: int) -> ScsiTarget | None:
        return self._targets[number] if number < len(self._targets) else None

    # Requests --------------------------------------------------------------------------------------------------

    def _process(self) -> None:
        """Do what is in the request ring; interrupt once."""
        rings = self._rings
        if rings is None:
            return
        state = rings.state
        has_completed = False
        while True:
            consumed, done = state[_REQUEST_CONSUMED], state[_DONE_PRODUCED]
            waiting = (state[_REQUEST_PRODUCED] - consumed) & 0xFFFFFFFF
            if not waiting or waiting > rings.request_count:
                break
            if (done - state[_DONE_CONSUMED]) & 0xFFFFFFFF >= rings.done_count:
                break  # no room for the outcome: the driver kicks again
            page, at = divmod(consumed % rings.request_count * _REQUEST_BYTES, _PAGE_BYTES)
            outcome = self._execute(rings.requests[page][at : at + _REQUEST_BYTES])
            page, at = divmod(done % rings.done_count * _COMPLETION_BYTES, _PAGE_BYTES)
            _COMPLETION.pack_into(rings.done[page], at, *outcome, 0, 0)
            state[_REQUEST_CONSUMED] = (consumed + 1) & 0xFFFFFFFF
            state[_DONE_PRODUCED] = (done + 1) & 0xFFFFFFFF
            has_completed = True
        if has_completed:
            self._announce()

    def _execute(self, request: memoryview) -> tuple[int, int, int, int, int]:
        """A request's outcome: (context, bytes moved, sense length, host status, SCSI status)."""
        context, address, length, sense_address, sense_length, flags, cdb, cdb_length, lun, _tag, bus, number, _cpu = (
            _REQUEST.unpack_from(request)
        )
        target = self._target(number) if bus == 0 else None
        if target is None:
            return context, 0, 0, _HOST_NO_TARGET, 0
        try:
            pieces = self._pieces(address, length, bool(flags & _HAS_LIST))
            result = target.execute(cdb[: min(cdb_length, 16)], lun[1], pieces)
            sense = result.sense[:sense_length]
            if sense:
                self._memory.view(sense_address, len(sense))[:] = sense
        except HypervisorError:  # an address that is not RAM
            return context, 0, 0, _HOST_BAD_PARAMETER, CHECK_CONDITION
        return context, result.transferred, len(sense), _HOST_OK, result.status

    def _pieces(self, address: int, length: int, has_list: bool) -> list[memoryview]:
        """The guest's memory of a request."""
        if not length:
            return []
        if length > dma.LONGEST_TRANSFER_BYTES:
            raise HypervisorError(f"a request of {length} bytes")
        if not has_list:
            return dma.views(self._memory, [(address, length)])
        ranges: list[dma.Range] = []
        for _ in range(_MOST_ELEMENTS):
            start, count, flags = _ELEMENT.unpack(self._memory.view(address, _ELEMENT.size))
            address += _ELEMENT.size
            if flags & _CHAIN:
                address = start
                continue
            ranges.append((start, min(count, length)))
            length -= ranges[-1][1]
            if not length:
                return dma.views(self._memory, ranges)
        raise HypervisorError("a scatter-gather list without an end")
