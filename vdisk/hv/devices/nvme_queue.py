"""NVMe queues and commands as they lie in guest memory (NVM Express 1.3, chapter 4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.nvme_data import LARGEST_TRANSFER_LOG2_PAGES, PAGE_BYTES

SQE_BYTES, CQE_BYTES = 64, 16
COMMAND = struct.Struct("<BBHI16xQQIIIIII")
COMPLETION = struct.Struct("<IIHHHH")
"""Result, nothing, the submission queue's head and number, command identifier, status with the phase."""
INVALID_PRP = 0x13
MOST_PAGES = 1 << LARGEST_TRANSFER_LOG2_PAGES


class NvmeError(Exception):
    """A command ends with a status other than success."""

    def __init__(self, status: int) -> None:
        super().__init__(f"NVMe status {status:#05x}")
        self.status = status


class Command:
    """A submission queue entry."""

    __slots__ = ("cdw10", "cdw11", "cdw12", "cid", "namespace", "opcode", "prp1", "prp2")

    def __init__(self, entry: memoryview) -> None:
        self.opcode, flags, self.cid, self.namespace, self.prp1, self.prp2, *words = COMMAND.unpack(entry)
        self.cdw10, self.cdw11, self.cdw12 = words[:3]
        if flags & 0xC3:
            self.opcode = -1  # fused commands and scatter-gather lists are not offered


class CompletionQueue:
    """Where the outcomes go; the phase bit turns over each time round."""

    __slots__ = ("entries", "has_interrupts", "head", "phase", "size", "tail", "users", "vector")

    def __init__(self, entries: memoryview, size: int, vector: int, has_interrupts: bool) -> None:
        self.entries, self.size, self.vector, self.has_interrupts = entries, size, vector, has_interrupts
        self.head = self.tail = self.users = 0
        self.phase = 1

    @property
    def is_full(self) -> bool:
        """Whether the guest has yet to take what it has been given."""
        return (self.tail + 1) % self.size == self.head


class SubmissionQueue:
    """Where the commands come from; `number` 0 is the admin queue."""

    __slots__ = ("cq", "entries", "head", "number", "size", "tail")

    def __init__(self, number: int, entries: memoryview, size: int, cq: CompletionQueue) -> None:
        self.number, self.entries, self.size, self.cq = number, entries, size, cq
        self.head = self.tail = 0


def memory_ranges(memory: DmaMemory, command: Command, length: int) -> Iterator[dma.Range]:
    """The guest's memory for `length` bytes, by PRP entries (4.3): pages, and lists of pages."""
    if command.prp1 & 3:
        raise NvmeError(INVALID_PRP)
    offset = command.prp1 & PAGE_BYTES - 1
    first = min(length, PAGE_BYTES - offset)
    yield command.prp1, first
    length -= first
    if not length:
        return
    if length <= PAGE_BYTES:
        yield command.prp2, length
        return
    at = command.prp2
    for _ in range(MOST_PAGES):
        if at & 7:
            raise NvmeError(INVALID_PRP)
        entries = memory.view(at, PAGE_BYTES - (at & PAGE_BYTES - 1)).cast("Q")
        last = len(entries) - 1
        for index, entry in enumerate(entries):
            if entry & PAGE_BYTES - 1 and not (index == last and length > PAGE_BYTES):
                raise NvmeError(INVALID_PRP)
            if index == last and length > PAGE_BYTES:
                at = entry
                break
            yield entry, min(length, PAGE_BYTES)
            length -= PAGE_BYTES
            if length <= 0:
                return
    raise NvmeError(INVALID_PRP)
