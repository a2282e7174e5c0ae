"""`BundleImage`: a bundle (.hdd), one or several files to a layer, one or several layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Self
from uuid import UUID

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Extent, Kind, coalesce
from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.gate import Gate
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.parallels.descriptor import PLAIN, Descriptor, read_descriptor
from vdisk.formats.parallels.hds import HdsImage
from vdisk.formats.parallels.image import ParallelsImage
from vdisk.formats.parallels.structs import SECTOR_BYTES
from vdisk.formats.raw.image import RawImage
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


class Part(NamedTuple):
    """A file of a layer, and the stretch of the disk that it holds."""

    start: int
    end: int
    image: StorageDevice


class BundleLayer(BlockDevice):
    """The files of one snapshot, end to end; the layer it was taken on is its backing device."""

    def __init__(self, name: str, size: int, parts: list[Part], *, writable: bool) -> None:
        super().__init__(
            name, size, writable=writable, block_size=max((p.image.block_size for p in parts), default=512)
        )
        self.parts = parts

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
        """(part, offset in its file, length) of what a range covers."""
        end = offset + length
        for part in self.parts:
            start, stop = max(offset, part.start), min(end, part.end)
            if start < stop:
                yield part, start - part.start, stop - start

    def _walk(self, offset: int, length: int, *, finely: bool) -> Iterator[Extent]:
        for part, start, count in self._pieces(offset, length):
            image = part.image
            inside = max(0, min(count, image.size - start))
            if inside:
                # The hooks of a part are this layer's own: they ask one layer, where the public methods ask a chain.
                extents = image._survey(start, inside) if finely else image._extents(start, inside)
                for extent in extents:
                    yield extent._replace(start=extent.start + part.start)
            if inside < count:
                yield Extent(part.start + start + inside, count - inside, Kind.UNALLOCATED)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return coalesce(self._walk(offset, length, finely=False))

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        return self._walk(offset, length, finely=True)

    def _begin_write(self) -> None:
        for part in self.parts:
            if part.image.size < part.end - part.start:
                raise Corrupt(
                    part.image.name, "disk size", expected=f"{part.end - part.start} bytes", found=part.image.size
                )
            if part.start % self.block_size:
                raise Unsupported(self.name, "parallels", "writing to a disk that is split inside a cluster")
        for part in self.parts:
            part.image._begin_write()

    def _place(self, offset: int, data: memoryview) -> None:
        at = 0
        for part, start, count in self._pieces(offset, len(data)):
            part.image._place(start, data[at : at + count])
            at += count

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        # Each part can, or none does: what is unallocated shows the layer below in all of them alike.
        done = [part.image._zero(start, count, unmap) for part, start, count in self._pieces(offset, length)]
        return all(done)

    def _discard(self, offset: int, length: int) -> None:
        for part, start, count in self._pieces(offset, length):
            part.image._discard(start, count)

    def break_off(self) -> None:
        super().break_off()
        self._each(lambda image: image.break_off())

    def _flush(self) -> None:
        self._each(lambda image: image._flush())

    def _close(self) -> None:
        self._each(lambda image: image._close())

    def _each(self, action: Callable[[StorageDevice], None]) -> None:
        """Do it for all parts, and raise the first error only then."""
        with ExitStack() as stack:
            for part in reversed(self.parts):
                stack.callback(action, part.image)


class BundleImage(BundleLayer, ParallelsImage):
    """A bundle, opened by its descriptor: the top layer, those below as its chain of backing devices."""

    descriptor: Descriptor
    xml: Element
    descriptor_storage: Storage
    gate: Gate

    @classmethod
    def open_kind(cls, storage: Storage, request: OpenRequest) -> Self:
        opened: list[BlockDevice] = []
        try:
            descriptor, xml = read_descriptor(storage)
            top, *below = descriptor.layers
            parts = _open_parts(request.gate, descriptor, top, writable=request.writable, is_root=not below)
            opened += [part.image for part in parts]
            image = cls(storage.name, descriptor.disk_sectors * SECTOR_BYTES, parts, writable=request.writable)
            image.descriptor, image.xml, image.descriptor_storage = descriptor, xml, storage
            image.gate = request.gate
            if below and request.with_backing:
                image.backing = _open_layers(storage.name, request.gate, descriptor, below)
        except BaseException:
            for device in opened:
                device.close()
            storage.close()
            raise
        return image

    def open_snapshot(self, name: str) -> BlockDevice:
        """The disk as the snapshot of that GUID has it; read-only, with files of its own that the caller closes."""
        try:
            guid = UUID(name)
        except ValueError:
            guid = None
        if guid is None or guid not in self.descriptor.parents:
            known = ", ".join(f"{{{guid}}}" for guid in self._snapshots()) or "none"
            raise OptionError(f"{self.name}: snapshot: {name!r} is none of its snapshots: {known}")
        return _open_layers(self.name, self.gate, self.descriptor, self.descriptor.chain(self.name, guid))

    def _snapshots(self) -> list[UUID]:
        return [guid for guid in self.descriptor.parents if guid != self.descriptor.layers[0]]

    def describe(self) -> Description:
        descriptor = self.descriptor
        children = [part.image.name for part in self.parts]
        layer = self.backing
        while isinstance(layer, BundleLayer):
            children += [part.image.name for part in layer.parts]
            layer = layer.backing
        said = [part.image.describe() for part in self.parts if isinstance(part.image, Image)]
        kinds = {area.images[descriptor.layers[0]].kind for area in descriptor.areas}
        return Description(
            is_dirty=any(one.is_dirty for one in said),
            specific={
                "subformat": "plain" if kinds == {PLAIN} else "expanding",
                "name": descriptor.name,
                "storages": [[area.start, area.end] for area in descriptor.areas],
                "layers": [f"{{{guid}}}" for guid in descriptor.layers],
            },
            snapshots=[{"id": f"{{{guid}}}", "name": f"{{{guid}}}"} for guid in self._snapshots()],
            notes=[note for one in said for note in one.notes],
            children=children,
        )

    def start_change(self) -> None:
        """What the first write does."""
        self._start_change()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self.descriptor_storage.close()


def _open_layers(file: str, gate: Gate, descriptor: Descriptor, guids: list[UUID]) -> BundleLayer:
    """Layers as a chain of backing devices, read-only; the first is given back."""
    layers: list[BundleLayer] = []
    try:
        for guid in guids:
            parts = _open_parts(gate, descriptor, guid, writable=False, is_root=guid == guids[-1])
            size = descriptor.disk_sectors * SECTOR_BYTES
            layers.append(BundleLayer(f"{file} {{{guid}}}", size, parts, writable=False))
    except BaseException:
        for layer in layers:
            layer.close()
        raise
    for layer, below in pairwise(layers):
        layer.backing = below
    return layers[0]


def _open_parts(gate: Gate, descriptor: Descriptor, guid: UUID, *, writable: bool, is_root: bool) -> list[Part]:
    """The files of one layer."""
    parts: list[Part] = []
    try:
        for area in descriptor.areas:
            file = area.images[guid]
            storage = gate.open("Image File", file.name, writable=writable)
            image: StorageDevice
            if file.kind == PLAIN:
                image = RawImage(storage, storage.size, writable=writable)
            else:
                image = HdsImage.open_part(storage, writable=writable, shows_parent=not is_root)
            parts.append(Part(area.start * SECTOR_BYTES, area.end * SECTOR_BYTES, image))
            if file.kind != PLAIN and area.cluster_sectors:
                _check_cluster(image, area.cluster_sectors)
    except BaseException:
        for part in parts:
            part.image.close()
        raise
    return parts


def _check_cluster(image: StorageDevice, cluster_sectors: int) -> None:
    assert isinstance(image, HdsImage)
    if image.header.cluster_sectors != cluster_sectors:
        found = f"{image.header.cluster_sectors} sectors"
        raise Corrupt(image.name, "cluster size", expected=f"{cluster_sectors} sectors, as its bundle has", found=found)
