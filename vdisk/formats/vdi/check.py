"""Checking a VDI, and mending it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Fault, Repair, Severity, mend_faults
from vdisk.formats.vdi.header import FREE, NULL_UUID, ZERO

if TYPE_CHECKING:
    from vdisk.formats.vdi.image import VdiImage

_COPY_BYTES = 1 << 20
_BATCH_BLOCKS = 64


def check(image: VdiImage, repair: Repair, *, dry_run: bool) -> CheckReport:
    """Hold the header and the table against one another and the file.

    A number of blocks in use that is too high, and slots that no block has, are leaks; one that is too low lets
    VirtualBox and QEMU give a slot out twice.
    """
    if repair is not Repair.NONE and not dry_run and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    report = CheckReport(total_clusters=len(image.table))
    report.allocated_clusters = len(image.table) - image.table.count(FREE) - image.table.count(ZERO)
    allowed = Repair.NONE if dry_run else repair
    steps = [step(image) for step in (_uuids, _entries, _count, _slots)]
    mend_faults(report, steps, allowed, begin=lambda: image.begin_session(of_data=False), settle=image.settle)
    report.image_end_offset = min(int(image.places().ends.max()), image.storage.size)
    return report


def _uuids(image: VdiImage) -> Iterator[Fault]:
    header = image.header
    for name in ("uuid", "modification_uuid"):
        if getattr(header, name) == NULL_UUID:

            def mend(name: str = name) -> None:
                setattr(header, name, uuid.uuid4())
                header.write(image.storage)

            message = "is null, which VirtualBox refuses"
            yield Fault(Severity.CORRUPTION, name.replace("_", " "), message, "a new one", mend)
    if header.has_parent and header.parent_uuid == NULL_UUID:
        yield Fault(Severity.CORRUPTION, "parent UUID", "is null in a differencing image")


def _entries(image: VdiImage) -> Iterator[Fault]:
    """Entries that name no place in the file, or another block's."""
    size = image.storage.size
    for name, offset, block in image.places().beyond_end():

        def clear(block: int = block) -> None:
            image.set_entry(block, ZERO)

        is_block = block >= 0
        message = f"expected a place in the file of {size} bytes, found {offset}"
        yield Fault(
            Severity.CORRUPTION,
            _entry(name),
            message,
            "reads as zeros" if is_block else None,
            clear if is_block else None,
        )
    for overlap in image.places().overlaps():
        if overlap.offset >= size:
            continue
        message = f"shares the file's offset {overlap.offset} with {_entry(overlap.one)}"
        block = overlap.other_block if overlap.other_block >= 0 else overlap.one_block
        if block < 0:
            yield Fault(Severity.CORRUPTION, _entry(overlap.other), message)
            continue

        def separate(block: int = block) -> None:
            copy_block(image, block, image.take_slot())

        fix = f"block {block} gets a copy of its own"
        yield Fault(Severity.CORRUPTION, _entry(overlap.other), message, fix, separate)
    used = image.used_slots()
    end = image.header.data_offset + (int(used[-1]) + 1 if len(used) else 0) * image.header.stride_bytes
    if len(used) and end > image.storage.size:
        message = f"ends {end - image.storage.size} bytes before its last block does"
        fix = "what is missing reads as zeros"
        yield Fault(Severity.CORRUPTION, "file", message, fix, lambda: image.lengthen(end))


def _entry(name: str) -> str:
    """A VDI's table is called the block map."""
    return name.replace("BAT entry of block", "block map entry")


def _count(image: VdiImage) -> Iterator[Fault]:
    used = len(image.table) - image.table.count(FREE) - image.table.count(ZERO)
    stated = image.header.allocated_count
    if stated != used:
        severity = Severity.CORRUPTION if stated < used else Severity.LEAK
        message = f"expected {used}, as the block map has it, found {stated}"
        yield Fault(severity, "blocks allocated", message, "set right", image.write_count)


def _slots(image: VdiImage) -> Iterator[Fault]:
    """Slots that no block has, and what follows the last block."""
    used = image.used_slots()
    slots = int(used[-1]) + 1 if len(used) else 0
    holes = slots - len(used)
    end = image.header.data_offset + slots * image.header.stride_bytes
    if holes:
        where, message = "data area", f"{holes} of the first {slots} slots belong to no block"
        fix = "the last blocks move there"
    elif image.storage.size > end:
        where, message = f"offsets {end} to {image.storage.size}", "nothing refers to them"
        fix = "cut off"
    else:
        return
    if any(image.places().overlaps()):  # blocks that share a slot must be told apart before one moves
        yield Fault(Severity.LEAK, where, message)
    else:
        yield Fault(Severity.LEAK, where, message, fix, lambda: compact(image))


def copy_block(image: VdiImage, block: int, slot: int) -> None:
    """Let a block lie in `slot`, which is free, with what it reads as now and with its prefix."""
    header = image.header
    stride = header.stride_bytes
    old = header.data_offset + image.table[block] * stride
    new = header.data_offset + slot * stride
    for at in range(0, stride, _COPY_BYTES):
        data = image.storage.read(old + at, min(_COPY_BYTES, stride - at))
        if any(data):
            image.storage.write(new + at, data)
    image.set_entry(block, slot)


def compact(image: VdiImage) -> None:
    """Move the last blocks into slots that none has, and cut the file off behind the last one.

    No two blocks may have the same slot.
    """
    import numpy

    image.settle()
    image.find_slots()
    used = image.used_slots()
    movable = used[used >= len(used)]  # there are as many holes in front of them
    entries = numpy.asarray(image.table, numpy.uint32)
    blocks = numpy.flatnonzero(numpy.isin(entries, movable))
    moving = blocks[numpy.argsort(entries[blocks])[::-1]].tolist()
    del entries  # the table's own memory
    for number, block in enumerate(moving[: image.hole_count], 1):
        copy_block(image, block, image.take_slot())
        if number % _BATCH_BLOCKS == 0:
            image.settle()
    image.settle()
    image.find_slots()
    image.cut_file()
    image.storage.flush()
