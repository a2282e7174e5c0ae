"""From the file that was opened to the parts of the disk: descriptors found, extent files opened through the gate."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from vdisk.block.device import BlockDevice
from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.gate import Gate
from vdisk.formats.vmdk import probe, structs
from vdisk.formats.vmdk.descriptor import LONGEST_DESCRIPTOR_BYTES, Descriptor, ExtentLine
from vdisk.formats.vmdk.flat import FlatExtent, ZeroExtent
from vdisk.formats.vmdk.header import SparseLayout, read_cowd, read_hosted
from vdisk.formats.vmdk.sesparse import SeSparseExtent
from vdisk.formats.vmdk.sparse import SparseExtent
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Storage

MOST_EXTENTS = 1 << 16

BackingFor = Callable[[int, int], BlockDevice | None]
"""Gives what lies behind the guest bytes [start, start + length)."""


@dataclass(slots=True)
class Part:
    """One extent in its place on the disk. Offsets and lengths are bytes."""

    start: int
    length: int
    device: BlockDevice
    line: ExtentLine | None
    """Its line in the descriptor; None for an extent file that was opened without one."""
    storage: Storage | None
    """The file that holds it."""

    @property
    def end(self) -> int:
        """The guest offset behind its last byte."""
        return self.start + self.length


@dataclass(slots=True)
class Source:
    """What the opened file turned out to be."""

    storage: Storage
    descriptor: Descriptor | None
    descriptor_offset: int = 0
    descriptor_room: int | None = None
    """Bytes that the descriptor may take inside a sparse extent; None in a file of its own."""
    layout: SparseLayout | None = None
    """The sparse extent in the same file."""
    is_sesparse: bool = False
    notes: list[str] = field(default_factory=list)


def read_source(storage: Storage) -> Source:
    """Look at the head of a file: a descriptor, or an extent with or without one inside."""
    name = storage.name
    head = storage.read(0, 8)
    if head[:4] == structs.HOSTED_MAGIC:
        layout = read_hosted(storage)
        if not layout.descriptor_sector:
            return Source(storage, None, layout=layout)
        offset = layout.descriptor_sector * SECTOR_BYTES
        room = layout.descriptor_sectors * SECTOR_BYTES
        if room > LONGEST_DESCRIPTOR_BYTES or offset >= storage.size:
            raise Corrupt(
                name,
                "header: descriptorOffset, descriptorSize",
                expected=f"at most {LONGEST_DESCRIPTOR_BYTES} bytes inside the file",
                found=f"{room} bytes at {offset}",
            )
        descriptor = Descriptor.parse(storage.read(offset, room), name)
        if not descriptor.extents:
            raise Corrupt(name, "embedded descriptor", expected="an extent", found="none")
        return Source(storage, descriptor, offset, room, layout)
    if head[:4] == structs.COWD_MAGIC:
        return Source(storage, None, layout=read_cowd(storage))
    if head == structs.SESPARSE_MAGIC.to_bytes(8, "little"):
        return Source(storage, None, is_sesparse=True)
    return Source(storage, _read_text(storage))


def _read_text(storage: Storage) -> Descriptor:
    head = storage.read(0, 4096)
    if not probe(head, b"", storage.size):
        raise NotThisFormat(storage.name, "magic", expected="KDMV, COWD or a descriptor", found=head[:8])
    if storage.size > LONGEST_DESCRIPTOR_BYTES:
        raise Corrupt(
            storage.name, "descriptor", expected=f"at most {LONGEST_DESCRIPTOR_BYTES} bytes", found=storage.size
        )
    descriptor = Descriptor.parse(storage.read(0, storage.size), storage.name)
    if not descriptor.extents:
        raise Corrupt(storage.name, "descriptor", expected="an extent", found="none")
    return descriptor


def assemble(source: Source, gate: Gate, backing_for: BackingFor, *, writable: bool) -> list[Part]:
    """Open every extent. On failure the extent files opened so far are closed; the source's storage is not."""
    storage, layout, descriptor = source.storage, source.layout, source.descriptor
    if source.is_sesparse:
        _refuse_writing(storage, writable, "seSparse extents")
        device: BlockDevice = SeSparseExtent(storage, backing=backing_for(0, -1))
        return [Part(0, device.size, device, None, storage)]
    if descriptor is None:
        assert layout is not None
        device = _sparse(storage, layout, backing_for(0, layout.capacity_bytes), writable)
        return [Part(0, device.size, device, None, storage)]
    if len(descriptor.extents) > MOST_EXTENTS:
        raise Unsupported(storage.name, "vmdk", f"disks of more than {MOST_EXTENTS} extents")
    own = None if layout is None or layout.capacity_sectors == 0 else _own_line(source)
    # A file that any line writes to is held once, for writing, whichever line comes first.
    written_names = {line.name for line in descriptor.extents if writable and line.access == "RW"}
    parts: list[Part] = []
    start = 0
    try:
        for number, line in enumerate(descriptor.extents):
            length = line.sectors * SECTOR_BYTES
            if number == own:
                assert layout is not None
                if len(descriptor.extents) == 1:
                    length = layout.capacity_bytes
                    if layout.is_compressed:  # VMware calls them RDONLY, but that is not why
                        _refuse_writing(storage, writable, "streamOptimized images")
                can_write = writable and line.access == "RW"
                device = _sparse(storage, layout, backing_for(start, length), can_write)
                used: Storage | None = storage
            else:
                device, used = _open_extent(
                    line, number, gate, source, start, backing_for, writable=writable, written_names=written_names
                )
            parts.append(Part(start, length, device, line, used))
            if device.size < length:
                raise Corrupt(
                    storage.name, f"extent {number + 1}: capacity", expected=f"at least {length}", found=device.size
                )
            start += length
    except BaseException:
        for part in parts:
            if part.storage is not storage:
                part.device.close()
        raise
    return parts


def _own_line(source: Source) -> int | None:
    """Which line of an embedded descriptor is about the very file it lies in."""
    assert source.descriptor is not None
    lines = source.descriptor.extents
    sparse = [number for number, line in enumerate(lines) if line.type in ("SPARSE", "VMFSSPARSE")]
    own_name = posixpath.basename(source.storage.name.replace("\\", "/"))
    for number in sparse:
        if posixpath.basename((lines[number].name or "").replace("\\", "/")) == own_name:
            return number
    if not sparse:
        raise Corrupt(source.storage.name, "embedded descriptor", expected="a SPARSE extent", found=str(lines[0]))
    if len(lines) == 1:
        source.notes.append(f"the descriptor calls the file {lines[0].name!r}: it was renamed")
    return sparse[0]


def _open_extent(
    line: ExtentLine,
    number: int,
    gate: Gate,
    source: Source,
    start: int,
    backing_for: BackingFor,
    *,
    writable: bool,
    written_names: Set[str | None],
) -> tuple[BlockDevice, Storage | None]:
    length = line.sectors * SECTOR_BYTES
    what = f"extent {number + 1}"
    if line.type == "ZERO":
        return ZeroExtent(source.storage.name, length, f"{what} is of type ZERO"), None
    if line.access == "NOACCESS":
        source.notes.append(f"{what} is NOACCESS: its {length} bytes read as zeros")
        return ZeroExtent(source.storage.name, length, f"{what} is NOACCESS"), None
    assert line.name is not None
    can_write = writable and line.access == "RW"
    storage = gate.open(what, line.name, writable=line.name in written_names)
    try:
        if line.type in ("SPARSE", "VMFSSPARSE"):
            is_cowd = storage.read(0, 4) == structs.COWD_MAGIC
            layout = read_cowd(storage) if is_cowd else read_hosted(storage)
            return _sparse(storage, layout, backing_for(start, length), can_write), storage
        if line.type == "SESPARSE":
            _refuse_writing(storage, can_write, "seSparse extents")
            return SeSparseExtent(storage, backing=backing_for(start, length)), storage
        offset = (line.offset_sectors or 0) * SECTOR_BYTES
        return FlatExtent(storage, offset, length, writable=can_write), storage
    except BaseException:
        storage.close()
        raise


def _sparse(storage: Storage, layout: SparseLayout, backing: BlockDevice | None, writable: bool) -> SparseExtent:
    if layout.is_compressed:
        _refuse_writing(storage, writable, "streamOptimized images")
    return SparseExtent(storage, layout, writable=writable, backing=backing)


def _refuse_writing(storage: Storage, writable: bool, what: str) -> None:
    if writable:
        raise Unsupported(storage.name, "vmdk", f"writing to {what}")
