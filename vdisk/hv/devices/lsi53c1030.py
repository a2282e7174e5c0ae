"""LSI Logic's 53C1030, the parallel SCSI controller that VMware shows as "LSI Logic": Fusion-MPT messages.

A driver brings it up word by word through the doorbell register, then posts the addresses of request frames to one
FIFO and takes answers from another: the context of a command that went well, or the address of a reply frame.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from vdisk.errors import HypervisorError
from vdisk.hv.devices import dma, mpi
from vdisk.hv.devices.base import DmaMemory, all_ones
from vdisk.hv.devices.pci import Bar, PciFunction
from vdisk.hv.devices.scsi import GOOD, ScsiTarget

LSI_53C1030 = (0x1000, 0x0030)
VMWARE_SUBSYSTEM = (0x15AD, 0x1976)
_PORTS_BYTES, _MEMORY_BYTES = 256, 0x20000
_READY, _OPERATIONAL, _FAULT = 0x10000000, 0x20000000, 0x40000000
_BUS_FAULT = 0x8112
_DOORBELL_ACTIVE = 0x08000000
_KEYS = bytes((0x04, 0x0B, 0x02, 0x07, 0x0D))
_WRITE_ENABLED, _WAS_RESET, _RESET_ADAPTER = 0x80, 0x20, 0x04
_REPLY_INTERRUPT, _DOORBELL_INTERRUPT = 0x08, 0x01
_EMPTY, _ADDRESS_REPLY = 0xFFFFFFFF, 0x80000000
_MOST_FRAMES = 4 * mpi.QUEUE_DEPTH
_SGL_OFFSET, _CONFIG_SGE_OFFSET = 0x30, 0x1C
_LAST, _SIMPLE, _CHAIN, _TYPE, _WIDE, _END_OF_LIST = 0x80, 0x10, 0x30, 0x30, 0x02, 0x01
_MOST_ELEMENTS = 8192
_LONGEST_HANDSHAKE_WORDS = mpi.REQUEST_FRAME_WORDS * 2
_ACTION_HEADER, _READ_ACTIONS, _WRITE_ACTIONS = 0, (1, 5, 6), (2, 4)


class Register:
    """The registers."""

    DOORBELL, WRITE_SEQUENCE, DIAGNOSTIC, INTERRUPT_STATUS, INTERRUPT_MASK = 0x00, 0x04, 0x08, 0x30, 0x34
    REQUEST_FIFO, REPLY_FIFO, HIGH_PRIORITY_FIFO = 0x40, 0x44, 0x48


class Lsi53c1030(PciFunction):
    """The PCI function: registers in ports (BAR 0) and in memory (BAR 1). `targets` have the ids 0, 1, ... but 7."""

    def __init__(
        self,
        memory: DmaMemory,
        targets: Sequence[ScsiTarget],
        *,
        ids: tuple[int, int] = LSI_53C1030,
        subsystem: tuple[int, int] = VMWARE_SUBSYSTEM,
    ) -> None:
        places = [number for number in range(mpi.BUS_IDS) if number != mpi.OWN_ID]
        if len(targets) > len(places):
            raise ValueError(f"a SCSI bus has places for {len(places)} devices, not {len(targets)}")
        self._memory = memory
        self._targets = dict(zip(places, targets, strict=False))
        super().__init__(
            *ids,
            0x010000,
            revision=8,
            subsystem=subsystem,
            bars={0: Bar("io", _PORTS_BYTES, self), 1: Bar("mem", _MEMORY_BYTES, self)},
            interrupt_pin=1,
        )
        self._keys = bytearray()
        self._diagnostic = 0
        self._reset_unit()

    @property
    def is_live(self) -> bool:
        """Whether a driver has initialised the controller."""
        return self._state == _OPERATIONAL

    def reset(self) -> None:
        """A machine reset."""
        self._keys.clear()
        self._diagnostic = 0
        self._reset_unit()
        super().reset()

    def _reset_unit(self) -> None:
        """What every kind of reset does: back to READY, FIFOs empty."""
        self._state = _READY
        self._who_init = 0
        self._mask = _REPLY_INTERRUPT | _DOORBELL_INTERRUPT
        self._doorbell_interrupt = False
        self._expected_words = 0
        self._received: list[int] = []
        self._answer: deque[int] | None = None
        self._has_ended = False
        self._free_frames: deque[int] = deque()
        self._replies: deque[int] = deque()
        self._frame_high = self._sense_high = 0
        self._reply_frame_bytes = mpi.REPLY_FRAME_BYTES
        self._has_events = False
        self._pages = mpi.ConfigPages()
        for target in self._targets.values():
            target.reset()
        self.set_irq(False)

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register; all of them have 4 bytes."""
        value = self._read_word(offset & ~3)
        return value >> 8 * (offset & 3) & all_ones(size)

    def _read_word(self, offset: int) -> int:
        match offset:
            case Register.DOORBELL:
                return self._read_doorbell()
            case Register.DIAGNOSTIC:
                return self._diagnostic
            case Register.INTERRUPT_STATUS:
                replies = _REPLY_INTERRUPT if self._replies else 0
                return replies | (_DOORBELL_INTERRUPT if self._doorbell_interrupt else 0)
            case Register.INTERRUPT_MASK:
                return self._mask
            case Register.REPLY_FIFO:
                if not self._replies:
                    return _EMPTY
                reply = self._replies.popleft()
                self._update_irq()
                return reply
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if size != 4:
            return
        match offset:
            case Register.REQUEST_FIFO | Register.HIGH_PRIORITY_FIFO:
                self._request(value & 0xFFFFFFFC)  # the lowest bits are a hint of the frame's length
            case Register.REPLY_FIFO:
                if len(self._free_frames) < _MOST_FRAMES:
                    self._free_frames.append(value)
            case Register.INTERRUPT_STATUS:
                self._acknowledge_doorbell()
            case Register.INTERRUPT_MASK:
                self._mask = value & (_REPLY_INTERRUPT | _DOORBELL_INTERRUPT)
                self._update_irq()
            case Register.DOORBELL:
                self._write_doorbell(value)
            case Register.WRITE_SEQUENCE:
                self._write_sequence(value & 0x0F)
            case Register.DIAGNOSTIC:
                self._write_diagnostic(value)

    def _update_irq(self) -> None:
        wants = bool(self._replies) and not self._mask & _REPLY_INTERRUPT
        wants |= self._doorbell_interrupt and not self._mask & _DOORBELL_INTERRUPT
        self.set_irq(wants)

    def _write_sequence(self, key: int) -> None:
        self._keys.append(key)
        del self._keys[: -len(_KEYS)]
        if self._keys == _KEYS:
            self._diagnostic |= _WRITE_ENABLED
        else:
            self._diagnostic &= ~_WRITE_ENABLED

    def _write_diagnostic(self, value: int) -> None:
        if not self._diagnostic & _WRITE_ENABLED:
            return
        if value & _RESET_ADAPTER:
            self._reset_unit()
            self._diagnostic = _WAS_RESET
        elif not value & _WAS_RESET:
            self._diagnostic &= ~_WAS_RESET

    # The doorbell ----------------------------------------------------------------------------------------------

    def _read_doorbell(self) -> int:
        is_active = self._expected_words or self._answer is not None
        word = self._answer.popleft() if self._answer and not self._expected_words else 0
        return self._state | self._who_init << 24 | (_DOORBELL_ACTIVE if is_active else 0) | word

    def _write_doorbell(self, value: int) -> None:
        if self._expected_words:
            self._received.append(value)
            if len(self._received) == self._expected_words:
                message = struct.pack(f"<{len(self._received)}I", *self._received)
                self._expected_words = 0
                self._received = []
                self._handshaken(message)
            return
        function = value >> 24
        if function in (mpi.MESSAGE_UNIT_RESET, mpi.IO_UNIT_RESET):
            mask = self._mask
            self._reset_unit()
            self._mask = mask
        elif function == mpi.HANDSHAKE:
            words = value >> 16 & 0xFF
            if 3 <= words <= _LONGEST_HANDSHAKE_WORDS:
                self._answer = None
                self._expected_words = words
                self._ring_doorbell()

    def _handshaken(self, message: bytes) -> None:
        """A message has come through the doorbell.

        The answer to task management still takes the way of the reply frames: it may be needed when no request
        frame is left, and its sender does not wait.
        """
        if message[3] != mpi.TASK_MANAGEMENT:
            self._answer_by_doorbell(self._message(message))
            return
        self._answer_by_doorbell(b"")
        try:
            self._reply(self._message(message))
        except HypervisorError:
            self._state = _FAULT | _BUS_FAULT
        self._update_irq()

    def _answer_by_doorbell(self, reply: bytes) -> None:
        """Give the reply 16 bits at a read. Each is announced by the doorbell interrupt, and so is the end.

        Linux acknowledges every one of them; SeaBIOS reads on and acknowledges once.
        """
        self._answer = deque(struct.unpack(f"<{len(reply) // 2}H", reply))
        self._has_ended = not reply
        self._ring_doorbell()

    def _ring_doorbell(self) -> None:
        self._doorbell_interrupt = True
        self._update_irq()

    def _acknowledge_doorbell(self) -> None:
        if not self._doorbell_interrupt:
            return
        self._doorbell_interrupt = False
        if self._answer is not None and not self._expected_words:
            if self._answer or not self._has_ended:
                self._has_ended = not self._answer
                self._doorbell_interrupt = True  # the next word, or, behind the last one, the end
            else:
                self._answer = None
        self._update_irq()

    # Messages --------------------------------------------------------------------------------------------------

    def _request(self, address: int) -> None:
        """A request frame has been posted."""
        try:
            frame = self._memory.view(self._frame_high | address, mpi.REQUEST_FRAME_WORDS * 4)
            if self._state != _OPERATIONAL:
                return
            if frame[3] == mpi.SCSI_IO:
                self._scsi_io(bytes(frame))
            else:
                self._reply(self._message(bytes(frame)))
        except HypervisorError:
            self._state = _FAULT | _BUS_FAULT
        self._update_irq()

    def _reply(self, reply: bytes) -> None:
        """Write a reply frame to one that the driver has put by, and post its address."""
        if not self._free_frames:
            self._state = _FAULT
            return
        address = self._free_frames.popleft()
        data = reply[: self._reply_frame_bytes]
        self._memory.view(self._frame_high | address, len(data))[:] = data
        self._replies.append(address >> 1 | _ADDRESS_REPLY)

    def _message(self, request: bytes) -> bytes:
        """Do what a message asks for; returns the reply."""
        request = request.ljust(_SGL_OFFSET, b"\0")
        match request[3]:
            case mpi.IOC_FACTS:
                return mpi.ioc_facts(
                    request,
                    who_init=self._who_init,
                    reply_frame_bytes=self._reply_frame_bytes,
                    has_events=self._has_events,
                )
            case mpi.PORT_FACTS:
                return mpi.port_facts(request)
            case mpi.IOC_INIT:
                return self._ioc_init(request)
            case mpi.PORT_ENABLE | mpi.EVENT_ACK:
                return mpi.default_reply(request)
            case mpi.EVENT_NOTIFICATION:
                self._has_events = bool(request[0])
                return mpi.event_notification(request)
            case mpi.CONFIG:
                return self._config(request)
            case mpi.TASK_MANAGEMENT:
                target = self._targets.get(request[0])
                if target is not None:
                    target.reset()  # a command that has been taken has also been completed
                return mpi.task_management(request)
        return mpi.default_reply(request, mpi.INVALID_FUNCTION)

    def _ioc_init(self, request: bytes) -> bytes:
        if self._state != _READY:
            return mpi.default_reply(request, mpi.INVALID_STATE)
        frame_bytes, frame_high, sense_high = struct.unpack_from("<H2xII", request, 0x0C)
        self._who_init = request[0] & 7
        self._reply_frame_bytes = frame_bytes
        self._frame_high, self._sense_high = frame_high << 32, sense_high << 32
        self._state = _OPERATIONAL
        return mpi.default_reply(request)

    def _config(self, request: bytes) -> bytes:
        action, (number, kind) = request[0], request[0x16:0x18]
        address = int.from_bytes(request[0x18:0x1C], "little")
        page = self._pages.find(kind, number, address)
        if page is None:
            return mpi.config(request, request[0x14:0x18], mpi.CONFIG_INVALID_PAGE)
        status = mpi.SUCCESS
        if action in _READ_ACTIONS:
            dma.scatter(page, self._pieces(request, _CONFIG_SGE_OFFSET, 0))
        elif action in _WRITE_ACTIONS:
            data = dma.gather(dma.clipped(self._pieces(request, _CONFIG_SGE_OFFSET, 0), len(page)))
            if kind & 0x0F != mpi.ConfigPages.SCSI_DEVICE or not self._pages.store(number, address, data):
                status = mpi.CONFIG_INVALID_ACTION
        elif action != _ACTION_HEADER:
            status = mpi.CONFIG_INVALID_ACTION
        return mpi.config(request, page, status)

    # SCSI ------------------------------------------------------------------------------------------------------

    def _scsi_io(self, request: bytes) -> None:
        target = self._targets.get(request[0])
        if target is None or request[1]:
            self._reply(mpi.scsi_io(request, mpi.SCSI_INVALID_BUS if request[1] else mpi.SCSI_NOT_THERE))
            return
        length, sense_low = struct.unpack_from("<II", request, 0x28)
        try:
            pieces = self._pieces(request, _SGL_OFFSET, request[2]) if length else []
            pieces = dma.clipped(pieces, length)
        except HypervisorError:
            self._reply(mpi.scsi_io(request, mpi.INVALID_SGL))
            return
        result = target.execute(request[0x18 : 0x18 + min(request[4], 16)], request[0x0D], pieces)
        if result.status == GOOD and result.transferred == length:
            self._replies.append(mpi.header(request)[1] & ~_ADDRESS_REPLY)
            return
        sense = result.sense[: request[5]]
        if sense:
            self._memory.view(self._sense_high | sense_low, len(sense))[:] = sense
        status = mpi.SCSI_UNDERRUN if result.transferred < length else mpi.SUCCESS
        self._reply(
            mpi.scsi_io(
                request,
                status,
                scsi_status=result.status,
                transferred=result.transferred,
                sense_bytes=len(sense),
            )
        )

    def _pieces(self, request: bytes, offset: int, chain_offset: int) -> list[memoryview]:
        """The guest's memory that a request's list of elements names; `chain_offset` counts 32-bit words."""
        segment, at, chain_at = memoryview(request), offset, 4 * chain_offset
        ranges: list[dma.Range] = []
        for _ in range(_MOST_ELEMENTS):
            if at + 8 > len(segment):
                raise HypervisorError("a scatter-gather list that leaves its segment")
            (control,) = struct.unpack_from("<I", segment, at)
            flags = control >> 24
            is_wide = bool(flags & _WIDE)
            if at + (12 if is_wide else 8) > len(segment):
                raise HypervisorError("a scatter-gather list that leaves its segment")
            (address,) = struct.unpack_from("<Q" if is_wide else "<I", segment, at + 4)
            if flags & _TYPE == _CHAIN:
                segment = self._memory.view(address, control & 0xFFFF)
                at, chain_at = 0, 4 * (control >> 16 & 0xFF)
                continue
            if flags & _TYPE != _SIMPLE:
                raise HypervisorError("an element of a scatter-gather list of an unknown kind")
            ranges.append((address, control & 0xFFFFFF))
            if flags & _END_OF_LIST or (flags & _LAST and not chain_at):
                return dma.views(self._memory, ranges)
            at = chain_at if flags & _LAST else at + (12 if is_wide else 8)
        raise HypervisorError("a scatter-gather list without an end")
