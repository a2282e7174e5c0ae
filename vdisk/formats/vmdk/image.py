"""`VmdkImage`: a disk of one or several extents, alone or as a delta on a parent."""

from __future__ import annotations

import bisect
import os
import secrets
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Self

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent
from vdisk.block.filters import Window
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError, Unsupported
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.gate import Gate
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.vmdk.assemble import Part, Source, assemble, read_source
from vdisk.formats.vmdk.descriptor import NO_PARENT
from vdisk.formats.vmdk.sesparse import SeSparseExtent
from vdisk.formats.vmdk.sparse import SparseExtent
from vdisk.storage.base import Storage

_INITIAL_CID = 0xFFFFFFFE


def new_cid(*others: int) -> int:
    """A content identifier that is none of `others`, nor one that means something of its own."""
    while True:
        cid = secrets.randbits(32)
        if cid not in (0, NO_PARENT, _INITIAL_CID, *others):
            return cid


class VmdkImage(Image):
    """The extents of a disk one behind the other; each is a device that reads and writes its own part."""

    format_name = "vmdk"

    def __init__(
        self, source: Source, parts: list[Part], gate: Gate, *, writable: bool, backing: BlockDevice | None
    ) -> None:
        block_bytes = max((part.device.block_size for part in parts), default=512)
        size = parts[-1].end if parts else 0
        super().__init__(source.storage.name, size, writable=writable, block_size=block_bytes, backing=backing)
        self.source = source
        self.descriptor = source.descriptor
        self.parts = parts
        self.gate = gate
        self.parts_changed()

    def parts_changed(self) -> None:
        """Take note of other parts, or of other lengths of them."""
        self._starts = [part.start for part in self.parts]
        self._only = self.parts[0].device if len(self.parts) == 1 else None

    def attach_backing(self) -> None:
        """Put the parent behind parts that are new or longer."""
        behind = _Behind(self.backing, len(self.parts) == 1)
        for part in self.parts:
            if isinstance(part.device, SparseExtent):
                part.device.backing = behind(part.start, part.length)

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        parent: Image | None = None
        try:
            source = read_source(storage)
            descriptor = source.descriptor
            if request.writable and descriptor is not None and descriptor.values.get("changetrackpath"):
                # A change that the tracking file does not know of would be missing from the next backup.
                raise Unsupported(storage.name, "vmdk", "writing to a disk whose changes are tracked (changeTrackPath)")
            if descriptor is not None and descriptor.has_parent and request.with_backing:
                parent = _open_parent(source, request.gate)
            behind = _Behind(parent, descriptor is None or len(descriptor.extents) == 1)
            parts = assemble(source, request.gate, behind, writable=request.writable)
            can_write = request.writable and any(part.device.writable for part in parts)
            return cls(source, parts, request.gate, writable=can_write, backing=parent)
        except BaseException:
            storage.close()
            if parent is not None:
                parent.close()
            raise

    # What it says of itself ------------------------------------------------------------------------------------

    @property
    def cid(self) -> int | None:
        """The content's identifier; None for an extent file opened without its descriptor."""
        return None if self.descriptor is None else self.descriptor.cid

    @property
    def create_type(self) -> str:
        """The descriptor's createType; without a descriptor, what the extent's kind suggests."""
        if self.descriptor is not None:
            return self.descriptor.create_type
        if self.source.is_sesparse:
            return "seSparse"
        layout = self.source.layout
        if layout is None or layout.kind == "cowd":
            return "vmfsSparse"
        return "streamOptimized" if layout.is_compressed else "monolithicSparse"

    def describe(self) -> Description:
        descriptor = self.descriptor
        sparse = [part.device for part in self.parts if isinstance(part.device, SparseExtent)]
        specific: dict[str, Any] = {
            "cid": NO_PARENT if descriptor is None else descriptor.cid,
            "parent-cid": NO_PARENT if descriptor is None else descriptor.parent_cid,
            "create-type": self.create_type,
            "extents": [self._describe_part(part) for part in self.parts],
        }
        if descriptor is not None and descriptor.ddb:
            specific["ddb"] = dict(descriptor.ddb)
        notes = list(self.source.notes)
        is_unclean = any(extent.layout.unclean_shutdown for extent in sparse)
        if is_unclean:
            notes.append("was not closed cleanly by the program that wrote it last")
        if descriptor is None:
            notes.append("an extent file on its own: its descriptor would say what else belongs to the disk")
        has_parent = descriptor is not None and descriptor.has_parent
        return Description(
            cluster_size=self.block_size if any(_has_grains(part.device) for part in self.parts) else None,
            is_compressed=bool(sparse) and all(extent.layout.is_compressed for extent in sparse),
            is_dirty=is_unclean,
            backing_name=descriptor.parent_name if descriptor is not None and has_parent else None,
            backing_format="vmdk" if has_parent else None,
            specific=specific,
            notes=notes,
            children=[
                part.storage.name
                for part in self.parts
                if part.storage is not None and part.storage is not self.source.storage
            ],
        )

    def _describe_part(self, part: Part) -> dict[str, Any]:
        is_own = part.storage is self.source.storage
        found: dict[str, Any] = {
            "filename": "" if part.storage is None else part.storage.name,
            "format": "" if is_own or part.line is None else part.line.type,
            "virtual-size": part.length,
        }
        if isinstance(part.device, SparseExtent) and part.device.layout.is_compressed:
            found["compressed"] = True
        if _has_grains(part.device):
            found["cluster-size"] = part.device.block_size
        if part.line is not None and part.line.access != "RW":
            found["access"] = part.line.access
        return found

    # Reading ---------------------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return self._resolve(offset, length, 0)

    def _read(self, offset: int, length: int) -> bytes:
        if self._only is not None:
            return self._only._read(offset, length)
        pieces = self._pieces(offset, length)
        return b"".join(part.device._read(start - part.start, end - start) for part, start, end in pieces)

    def _readinto(self, offset: int, view: memoryview) -> None:
        if self._only is not None:
            self._only._readinto(offset, view)
            return
        for part, start, end in self._pieces(offset, len(view)):
            part.device._readinto(start - part.start, view[start - offset : end - offset])

    def _resolve(self, offset: int, length: int, depth: int) -> Iterator[Extent]:
        for part, start, end in self._pieces(offset, length):
            shift = part.start
            for extent in part.device._resolve(start - shift, end - start, depth):
                layer = self if extent.layer is part.device else extent.layer
                encoded = extent.encoded
                if encoded is not None and shift:
                    encoded = encoded._replace(unit_start=encoded.unit_start + shift)
                yield extent._replace(start=extent.start + shift, layer=layer, encoded=encoded)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
        """(part, start, end) for every part that the range touches; offsets are the disk's."""
        end = offset + length
        number = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            part = self.parts[number]
            stop = min(end, part.end)
            if offset < stop:
                yield part, offset, stop
                offset = stop
            number += 1

    # Writing ---------------------------------------------------------------------------------------------------

    def _begin_write(self) -> None:
        """A disk that was written is another one to its deltas: it gets a new CID, before the first byte changes."""
        descriptor = self.descriptor
        if descriptor is not None:
            descriptor.set_cid(new_cid(descriptor.cid, descriptor.parent_cid))
            # VMware's long identifier ends in the CID; VirtualBox has one of its own.
            if "longContentID" in descriptor.ddb:
                descriptor.set_ddb("longContentID", f"{secrets.token_hex(12)}{descriptor.cid:08x}")
            if "uuid.modification" in descriptor.ddb:
                descriptor.set_ddb("uuid.modification", str(uuid.uuid4()))
            self.write_descriptor()

    def write_descriptor(self) -> None:
        """Bring the changed descriptor to its file."""
        source = self.source
        assert source.descriptor is not None
        raw = source.descriptor.to_bytes()
        room = source.descriptor_room
        if room is None:
            source.storage.write(0, raw)
            if source.storage.size != len(raw):
                source.storage.truncate(len(raw))
        else:
            if len(raw) > room:
                raise StorageError(self.name, "write", f"the descriptor has room for {room} bytes and needs {len(raw)}")
            source.storage.write(source.descriptor_offset, raw.ljust(room, b"\0"))
        source.storage.flush()

    def _write(self, offset: int, view: memoryview) -> None:
        for part, start, end in self._pieces(offset, len(view)):
            self._check_access(part)
            part.device.write(start - part.start, view[start - offset : end - offset])

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        for part, start, end in self._pieces(offset, length):
            self._check_access(part)
            part.device.write_zeroes(start - part.start, end - start, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        for part, start, end in self._pieces(offset, length):
            if part.device.writable:
                part.device.discard(start - part.start, end - start)

    def _check_access(self, part: Part) -> None:
        if not part.device.writable:
            number = self.parts.index(part) + 1
            raise StorageError(self.name, "write", f"extent {number} is RDONLY")

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.vmdk.check import check_image

        with self.changing():
            if self.writable:
                self.flush()  # the tables in the file are judged and mended; what waits in memory would be lost
            return check_image(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.vmdk.resize import resize_image

        with self.changing():
            resize_image(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        descriptor = self.descriptor
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        if descriptor is None:
            raise Unsupported(self.name, "vmdk", "a parent of an extent file without a descriptor")
        if name is None:
            descriptor.set_parent(NO_PARENT, None)
        else:
            if format not in (None, "vmdk"):
                raise OptionError(f"{self.name}: the parent of a VMDK is a VMDK, not {format}")
            if not all(_has_grains(part.device) for part in self.parts):
                raise OptionError(f"{self.name}: only sparse extents let a parent show through")
            descriptor.set_parent(parent_cid(self.gate, name), name)
        with self.changing():
            self.write_descriptor()

    @property
    def is_broken(self) -> bool:
        return self._is_broken or any(part.device.is_broken for part in self.parts)

    def break_off(self) -> None:
        super().break_off()
        for part in self.parts:
            part.device.break_off()

    def _flush(self) -> None:
        for part in self.parts:
            part.device.flush()

    def _close(self) -> None:
        try:
            for part in self.parts:
                part.device.close()
        finally:
            self.source.storage.close()


class _Behind:
    """What a parent has behind a stretch of the disk. The parent is closed with the image that owns it."""

    def __init__(self, parent: BlockDevice | None, is_alone: bool) -> None:
        self.parent = parent
        self.is_alone = is_alone

    def __call__(self, start: int, length: int) -> BlockDevice | None:
        parent = self.parent
        if parent is None or self.is_alone or start >= parent.size:
            return parent if self.is_alone else None
        return Window(parent, start, min(length, parent.size - start))


def _has_grains(device: BlockDevice) -> bool:
    return isinstance(device, SparseExtent | SeSparseExtent)


def _open_parent(source: Source, gate: Gate) -> Image:
    """The disk behind a delta, whose content must be the one that the delta was made on."""
    from vdisk import formats

    descriptor = source.descriptor
    assert descriptor is not None
    name, file = descriptor.parent_name, source.storage.name
    if name is None:
        raise Corrupt(file, "parentFileNameHint", expected="the parent's name", found="nothing")
    field = "parentFileNameHint"
    try:
        parent = formats.open_behind(gate, field, name, "vmdk")
    except (PolicyError, StorageError):
        # A chain that was moved still knows where it lay: look beside the image.
        beside = os.path.basename(name.replace("\\", "/"))
        if gate.image is None or beside == name or not (gate.image.parent / beside).is_file():
            raise
        parent = formats.open_behind(gate, field, beside, "vmdk")
        source.notes.append(f"the parent {name!r} was found beside the image")
    assert isinstance(parent, VmdkImage)
    if parent.cid != descriptor.parent_cid:
        found = "none" if parent.cid is None else f"{parent.cid:08x}"
        parent.close()
        raise Corrupt(
            file,
            "parentCID",
            f"expected the CID {descriptor.parent_cid:08x} in {name!r}, found {found}: the parent was written after "
            "this delta was made (`rebase --unsafe` takes it all the same)",
        )
    return parent


def parent_cid(gate: Gate, name: str) -> int:
    """The CID of the disk that `gate` finds under `name`, which is to be a parent."""
    from vdisk import formats

    with formats.open_behind(gate, "parentFileNameHint", name, "vmdk") as parent:
        assert isinstance(parent, VmdkImage)
        if parent.cid is None:
            raise OptionError(f"{parent.name}: an extent file without a descriptor cannot be a parent")
        return parent.cid
