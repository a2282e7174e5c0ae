"""An NVMe controller (NVM Express 1.3) with one namespace: admin and I/O queues, MSI-X or INTx.

A command is done while the guest rings the doorbell. Queues are contiguous, memory is described by PRP lists.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from vdisk.block.device import BlockDevice
from vdisk.errors import HypervisorError, VdiskError
from vdisk.hv.devices import dma, nvme_data
from vdisk.hv.devices.base import DmaMemory, all_ones
from vdisk.hv.devices.dma import SECTOR_BYTES
from vdisk.hv.devices.nvme_data import PAGE_BYTES, Identity
from vdisk.hv.devices.nvme_queue import (
    COMPLETION,
    CQE_BYTES,
    MOST_PAGES,
    SQE_BYTES,
    Command,
    CompletionQueue,
    NvmeError,
    SubmissionQueue,
    memory_ranges,
)
from vdisk.hv.devices.pci import Bar, PciFunction

VMWARE_NVME = (0x15AD, 0x07F0)
VDISK_NVME = (0x1B36, 0x0010)
"""The id pair that Linux, Windows and firmware know for a virtual NVMe controller."""

IO_QUEUES = 16
_LARGEST_QUEUE = 1024
_REGISTERS_BYTES = 0x2000
_DOORBELLS = 0x1000
_MSIX_BAR = 4
_CAP = 1 << 37 | 20 << 24 | 1 << 16 | _LARGEST_QUEUE - 1  # NVM commands, 10 s, contiguous queues
_READY, _FATAL, _SHUTDOWN_DONE = 1, 2, 2 << 2

SUCCESS, INVALID_OPCODE, INVALID_FIELD, DATA_ERROR, INVALID_NAMESPACE = 0x00, 0x01, 0x02, 0x04, 0x0B
OUT_OF_RANGE = 0x80
_QUEUE_ID, _QUEUE_SIZE, _TOO_MANY_EVENTS, _VECTOR, _LOG_PAGE = 0x101, 0x102, 0x105, 0x108, 0x109
_COMPLETION_QUEUE, _DELETE_ORDER, _WRITE_PROTECTED, _READ_ERROR, _WRITE_FAULT = 0x100, 0x10C, 0x182, 0x281, 0x280
_DO_NOT_RETRY = 0x4000
_FEATURES = {1: 0, 2: 0, 4: 0x157, 5: 0, 8: 0, 9: 0, 0xA: 0, 0xB: 0}
_DSM_DEALLOCATE = 4


class Register:
    """The registers (3.1); the 64-bit ones have a second half."""

    CAP, CAP_HIGH, VS, INTMS, INTMC, CC, CSTS, AQA = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24
    ASQ, ASQ_HIGH, ACQ, ACQ_HIGH = 0x28, 0x2C, 0x30, 0x34


class NvmeController(PciFunction):
    """The PCI function, with its registers in BAR 0 and the MSI-X table in BAR 4."""

    def __init__(
        self,
        memory: DmaMemory,
        disk: BlockDevice,
        *,
        ids: tuple[int, int] = VDISK_NVME,
        subsystem: tuple[int, int] = (0x1AF4, 0x1100),
        model: str = "vdisk NVMe disk",
        serial: str = "VD00000001",
        firmware: str = "1.0",
    ) -> None:
        self.disk = disk
        self._memory = memory
        self._blocks = dma.sector_count(disk)
        self._identity = Identity(ids[0], subsystem[0], model, serial, firmware)
        self._submission: dict[int, SubmissionQueue] = {}
        self._completion: dict[int, CompletionQueue] = {}
        self._io_commands: dict[int, Callable[[Command], None]] = {
            0x00: self._flush,
            0x01: self._write,
            0x02: self._read,
            0x08: self._write_zeroes,
            0x09: self._dataset_management,
        }
        self._admin_commands: dict[int, Callable[[Command], int]] = {
            0x00: self._delete_sq,
            0x01: self._create_sq,
            0x02: self._get_log_page,
            0x04: self._delete_cq,
            0x05: self._create_cq,
            0x06: self._identify,
            0x08: self._abort,
            0x09: self._set_features,
            0x0A: self._get_features,
        }
        super().__init__(
            *ids,
            0x010802,
            revision=2,
            subsystem=subsystem,
            bars={0: Bar("mem", _REGISTERS_BYTES, self)},
            interrupt_pin=1,
        )
        self.add_msix(_MSIX_BAR, IO_QUEUES + 1)
        self._aqa = self._asq = self._acq = 0
        self._configuration = 0
        self._stop()

    # State -----------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether a driver has made an I/O queue."""
        return any(number for number in self._submission)

    def reset(self) -> None:
        """A machine reset."""
        self._configuration = 0
        self._aqa = self._asq = self._acq = 0
        self._stop()
        super().reset()

    def _stop(self) -> None:
        """What clearing CC.EN does."""
        self._status = 0
        self._mask = 0
        self._events_waiting = 0
        self._features = dict(_FEATURES)
        self._write_cache = 1
        self._submission.clear()
        self._completion.clear()
        self.set_irq(False)

    def _start(self) -> None:
        """CC.EN has been set: take the admin queues up."""
        sizes = (self._aqa & 0xFFF) + 1, (self._aqa >> 16 & 0xFFF) + 1
        try:
            if self._configuration & 0x7F0 or min(sizes) < 2:
                raise HypervisorError("another page size or command set than is offered")
            cq = CompletionQueue(self._memory.view(self._acq, sizes[1] * CQE_BYTES), sizes[1], 0, True)
            sq = SubmissionQueue(0, self._memory.view(self._asq, sizes[0] * SQE_BYTES), sizes[0], cq)
        except HypervisorError:
            self._status |= _FATAL
            return
        cq.users = 1
        self._completion[0], self._submission[0] = cq, sq
        self._status = _READY

    # Registers -------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register; the 64-bit ones in halves, too."""
        word = self._read_word(offset & ~3)
        if size == 8:
            return word | self._read_word((offset & ~3) + 4) << 32
        return word >> 8 * (offset & 3) & all_ones(size)

    def _read_word(self, offset: int) -> int:
        match offset:
            case Register.CAP:
                return _CAP & 0xFFFFFFFF
            case Register.CAP_HIGH:
                return _CAP >> 32
            case Register.VS:
                return nvme_data.VERSION
            case Register.INTMS | Register.INTMC:
                return self._mask
            case Register.CC:
                return self._configuration
            case Register.CSTS:
                return self._status
            case Register.AQA:
                return self._aqa
            case Register.ASQ:
                return self._asq & 0xFFFFFFFF
            case Register.ASQ_HIGH:
                return self._asq >> 32
            case Register.ACQ:
                return self._acq & 0xFFFFFFFF
            case Register.ACQ_HIGH:
                return self._acq >> 32
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register or a doorbell."""
        if size == 8:
            self.write(offset, 4, value & 0xFFFFFFFF)
            self.write(offset + 4, 4, value >> 32)
            return
        if offset >= _DOORBELLS:
            number, is_head = divmod((offset - _DOORBELLS) >> 2, 2)
            if is_head:
                self._ring_completion(number, value & 0xFFFF)
            else:
                self._ring_submission(number, value & 0xFFFF)
            return
        match offset:
            case Register.INTMS:
                self._mask |= value
                self._update_intx()
            case Register.INTMC:
                self._mask &= ~value
                self._update_intx()
            case Register.CC:
                self._write_configuration(value)
            case Register.AQA:
                self._aqa = value
            case Register.ASQ:
                self._asq = self._asq & ~0xFFFFFFFF | value & 0xFFFFF000
            case Register.ASQ_HIGH:
                self._asq = self._asq & 0xFFFFFFFF | value << 32
            case Register.ACQ:
                self._acq = self._acq & ~0xFFFFFFFF | value & 0xFFFFF000
            case Register.ACQ_HIGH:
                self._acq = self._acq & 0xFFFFFFFF | value << 32

    def _write_configuration(self, value: int) -> None:
        was, self._configuration = self._configuration, value & 0x00FFFFF1
        if not value & 1 and was & 1:
            self._stop()
        elif value & 1 and not was & 1:
            self._start()
        if value & 0xC000:
            try:
                self.disk.flush()
            except VdiskError:
                self._status |= _FATAL
            self._status |= _SHUTDOWN_DONE
        else:
            self._status &= ~0x0C

    def _ring_completion(self, number: int, head: int) -> None:
        queue = self._completion.get(number)
        if queue is None or head >= queue.size:
            return
        was_full = queue.is_full
        queue.head = head
        self._update_intx()
        if was_full:
            for waiting in list(self._submission.values()):
                if waiting.cq is queue and waiting.head != waiting.tail:
                    self._process(waiting)

    def _ring_submission(self, number: int, tail: int) -> None:
        queue = self._submission.get(number)
        if queue is not None and tail < queue.size:
            queue.tail = tail
            self._process(queue)

    def _update_intx(self) -> None:
        if self.msix is None or not self.msix.is_enabled:
            pending = any(
                queue.has_interrupts and queue.head != queue.tail and not self._mask >> queue.vector & 1
                for queue in self._completion.values()
            )
            self.set_irq(pending)

    # Queues ----------------------------------------------------------------------------------------------------

    def _process(self, sq: SubmissionQueue) -> None:
        """Do the commands of a queue while there is room for their completions; interrupt once."""
        cq = sq.cq
        has_posted = False
        while sq.head != sq.tail and not cq.is_full:
            at = sq.head * SQE_BYTES
            command = Command(sq.entries[at : at + SQE_BYTES])
            sq.head = (sq.head + 1) % sq.size
            if sq.number == 0 and command.opcode == 0x0C and self._events_waiting < nvme_data.ASYNC_EVENTS:
                self._events_waiting += 1  # answered when there is an event: never, here
                continue
            result, status = self._execute(sq.number, command)
            COMPLETION.pack_into(
                cq.entries,
                cq.tail * CQE_BYTES,
                result,
                0,
                sq.head,
                sq.number,
                command.cid,
                (status | (_DO_NOT_RETRY if status else 0)) << 1 | cq.phase,
            )
            cq.tail += 1
            if cq.tail == cq.size:
                cq.tail, cq.phase = 0, cq.phase ^ 1
            has_posted = True
            if not self._submission:
                return  # the controller was stopped
        if has_posted and cq.has_interrupts:
            if self.msix is not None and self.msix.is_enabled:
                self.msix.notify(cq.vector)
            else:
                self._update_intx()

    def _execute(self, queue: int, command: Command) -> tuple[int, int]:
        """(result, status) of a command."""
        try:
            if queue:
                handler = self._io_commands.get(command.opcode)
                if handler is None:
                    return 0, INVALID_OPCODE
                if command.namespace != 1 and not (command.opcode == 0 and command.namespace == 0xFFFFFFFF):
                    return 0, INVALID_NAMESPACE
                handler(command)
                return 0, SUCCESS
            admin = self._admin_commands.get(command.opcode)
            if admin is None:
                return 0, _TOO_MANY_EVENTS if command.opcode == 0x0C else INVALID_OPCODE
            return admin(command), SUCCESS
        except NvmeError as error:
            return 0, error.status
        except HypervisorError:  # an address that is not RAM
            return 0, DATA_ERROR
        except VdiskError:
            return 0, _READ_ERROR if command.opcode == 2 else _WRITE_FAULT

    def _pieces(self, command: Command, length: int) -> list[memoryview]:
        return dma.views(self._memory, memory_ranges(self._memory, command, length))

    # I/O commands ----------------------------------------------------------------------------------------------

    def _range(self, command: Command) -> tuple[int, int]:
        """(offset, length) in bytes."""
        first, count = command.cdw11 << 32 | command.cdw10, (command.cdw12 & 0xFFFF) + 1
        if first + count > self._blocks:
            raise NvmeError(OUT_OF_RANGE)
        return first * SECTOR_BYTES, count * SECTOR_BYTES

    def _transfer_range(self, command: Command) -> tuple[int, int]:
        offset, length = self._range(command)
        if length > MOST_PAGES * PAGE_BYTES:
            raise NvmeError(INVALID_FIELD)
        return offset, length

    def _writable(self) -> None:
        if not self.disk.writable:
            raise NvmeError(_WRITE_PROTECTED)

    def _flush(self, command: Command) -> None:
        self.disk.flush()

    def _read(self, command: Command) -> None:
        offset, length = self._transfer_range(command)
        dma.disk_to_memory(self.disk, offset, self._pieces(command, length))

    def _write(self, command: Command) -> None:
        self._writable()
        offset, length = self._transfer_range(command)
        dma.memory_to_disk(self.disk, offset, self._pieces(command, length))
        if command.cdw12 >> 30 & 1 or not self._write_cache:
            self.disk.flush()

    def _write_zeroes(self, command: Command) -> None:
        self._writable()
        offset, length = self._range(command)
        self.disk.write_zeroes(offset, length, unmap=bool(command.cdw12 >> 25 & 1))

    def _dataset_management(self, command: Command) -> None:
        self._writable()
        count = (command.cdw10 & 0xFF) + 1
        data = dma.gather(self._pieces(command, 16 * count))
        if not command.cdw11 & _DSM_DEALLOCATE:
            return  # hints about access patterns
        todo = [(first, blocks) for _attributes, blocks, first in struct.iter_unpack("<IIQ", data) if blocks]
        if any(first + blocks > self._blocks for first, blocks in todo):
            raise NvmeError(OUT_OF_RANGE)
        for first, blocks in todo:
            self.disk.discard(first * SECTOR_BYTES, blocks * SECTOR_BYTES)

    # Admin commands --------------------------------------------------------------------------------------------

    def _new_queue(self, command: Command, existing: object, entry_bytes: int) -> tuple[int, int, memoryview]:
        number, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        if not 1 <= number <= IO_QUEUES or existing is not None:
            raise NvmeError(_QUEUE_ID)
        if not 2 <= size <= _LARGEST_QUEUE:
            raise NvmeError(_QUEUE_SIZE)
        if not command.cdw11 & 1 or command.prp1 & PAGE_BYTES - 1:
            raise NvmeError(INVALID_FIELD)
        return number, size, self._memory.view(command.prp1, size * entry_bytes)

    def _create_cq(self, command: Command) -> int:
        existing = self._completion.get(command.cdw10 & 0xFFFF)
        number, size, entries = self._new_queue(command, existing, CQE_BYTES)
        vector = command.cdw11 >> 16
        if vector > IO_QUEUES:
            raise NvmeError(_VECTOR)
        self._completion[number] = CompletionQueue(entries, size, vector, bool(command.cdw11 & 2))
        return 0

    def _create_sq(self, command: Command) -> int:
        existing = self._submission.get(command.cdw10 & 0xFFFF)
        number, size, entries = self._new_queue(command, existing, SQE_BYTES)
        cq = self._completion.get(command.cdw11 >> 16)
        if cq is None or not command.cdw11 >> 16:
            raise NvmeError(_COMPLETION_QUEUE)
        cq.users += 1
        self._submission[number] = SubmissionQueue(number, entries, size, cq)
        return 0

    def _delete_sq(self, command: Command) -> int:
        number = command.cdw10 & 0xFFFF
        if not number or number not in self._submission:
            raise NvmeError(_QUEUE_ID)
        self._submission.pop(number).cq.users -= 1
        return 0

    def _delete_cq(self, command: Command) -> int:
        number = command.cdw10 & 0xFFFF
        queue = self._completion.get(number)
        if not number or queue is None:
            raise NvmeError(_QUEUE_ID)
        if queue.users:
            raise NvmeError(_DELETE_ORDER)
        del self._completion[number]
        self._update_intx()
        return 0

    def _identify(self, command: Command) -> int:
        kind = command.cdw10 & 0xFF
        if kind == 1:
            data = nvme_data.identify_controller(self._identity, writable=self.disk.writable)
        elif kind == 2:
            data = nvme_data.namespace_list(command.namespace)
        elif kind in (0, 3):
            if command.namespace not in (1, 0xFFFFFFFF):
                raise NvmeError(INVALID_NAMESPACE)
            if kind == 3:
                data = nvme_data.namespace_descriptors(self._identity)
            else:
                data = nvme_data.identify_namespace(self._blocks, writable=self.disk.writable)
        else:
            raise NvmeError(INVALID_FIELD)
        dma.scatter(data, self._pieces(command, PAGE_BYTES))
        return 0

    def _get_log_page(self, command: Command) -> int:
        page = command.cdw10 & 0xFF
        length = ((command.cdw11 & 0xFFFF) << 16 | command.cdw10 >> 16) * 4 + 4
        match page:
            case 1:
                data = bytes(64)
            case 2:
                data = nvme_data.health_log()
            case 3:
                data = nvme_data.firmware_log(self._identity)
            case _:
                raise NvmeError(_LOG_PAGE)
        length = min(length, MOST_PAGES * PAGE_BYTES)
        dma.scatter(data.ljust(length, b"\0")[:length], self._pieces(command, length))
        return 0

    def _abort(self, command: Command) -> int:
        return 1  # not aborted: no command is ever under way

    def _set_features(self, command: Command) -> int:
        feature, value = command.cdw10 & 0xFF, command.cdw11
        if feature == 6:
            self._write_cache = value & 1
            return 0
        if feature == 7:
            if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                raise NvmeError(INVALID_FIELD)
            return IO_QUEUES - 1 << 16 | IO_QUEUES - 1
        if feature not in self._features:
            raise NvmeError(INVALID_FIELD)
        self._features[feature] = value
        return 0

    def _get_features(self, command: Command) -> int:
        feature = command.cdw10 & 0xFF
        if feature == 6:
            return self._write_cache
        if feature == 7:
            return IO_QUEUES - 1 << 16 | IO_QUEUES - 1
        if feature not in self._features:
            raise NvmeError(INVALID_FIELD)
        return self._features[feature]
