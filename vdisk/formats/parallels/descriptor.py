"""DiskDescriptor.xml, the file that holds a bundle together (QEMU docs/interop/prl-xml)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parallels.structs import HEADS, SECTORS_PER_TRACK
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

DESCRIPTOR_NAME = "DiskDescriptor.xml"
TOP_GUID = UUID("5fbaabe3-6958-40ff-92a7-860e329aab41")
"""The layer that the guest writes to, where the descriptor does not name another."""
NO_GUID = UUID(int=0)
PLAIN = "Plain"
EXPANDING = "Compressed"

_MAX_BYTES = 1 << 20
_MAX_SECTORS = 1 << 53
_MOST_IMAGES = 4096
_MOST_LAYERS = 64


@dataclass(slots=True)
class ImageFile:
    """One file: one layer of one storage."""

    guid: UUID
    kind: str
    name: str


@dataclass(slots=True)
class StorageArea:
    """A stretch of the disk, in sectors, and the files that hold it, a layer each."""

    start: int
    end: int
    cluster_sectors: int
    images: dict[UUID, ImageFile]


@dataclass(slots=True)
class Descriptor:
    """What the file says that matters here."""

    disk_sectors: int
    areas: list[StorageArea]
    """Ascending, without a gap."""
    layers: list[UUID]
    """The top one first, the root last."""
    parents: dict[UUID, UUID] = field(default_factory=dict)
    """Of every layer, those of snapshots that are not behind the top one too; `NO_GUID` of a root."""
    name: str = ""

    def chain(self, file: str, guid: UUID) -> list[UUID]:
        """The layers that make up the disk as layer `guid` has it, that one first; checked."""
        return _chain(file, guid, self.parents, self.areas)


def read_descriptor(storage: Storage) -> tuple[Descriptor, Element]:
    """The descriptor, checked, and the XML it came from, for what is to be changed in it."""
    file = storage.name
    if storage.size > _MAX_BYTES:
        raise Corrupt(file, "descriptor", expected=f"at most {_MAX_BYTES} bytes", found=storage.size)
    root = _parse(file, storage.read(0, _MAX_BYTES))
    if root.tag != "Parallels_disk_image":
        raise NotThisFormat(file, "descriptor", expected="Parallels_disk_image", found=root.tag)
    if root.get("Version") != "1.0":
        raise Unsupported(file, "parallels", f"descriptor version {root.get('Version')}")
    parameters = _child(file, root, "Disk_Parameters")
    disk_sectors = _number(file, parameters, "Disk_size")
    if (parameters.findtext("Padding") or "0").strip() != "0":
        raise Unsupported(file, "parallels", "padding")
    engine = parameters.findtext("Encryption/Engine")
    if engine and engine.strip() and _guid(file, "Encryption/Engine", engine) != NO_GUID:
        raise Unsupported(file, "parallels", "encryption")
    areas = [_area(file, element) for element in _child(file, root, "StorageData").findall("Storage")]
    areas.sort(key=lambda area: area.start)
    _check_areas(file, areas, disk_sectors)
    top, parents = _shots(file, root.find("Snapshots"), areas)
    name = parameters.findtext("Name") or ""
    return Descriptor(disk_sectors, areas, _chain(file, top, parents, areas), parents, name), root


def _parse(file: str, data: bytes) -> Element:
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise Corrupt(file, "descriptor", f"is not the XML it should be: {str(error).splitlines()[0]}") from error
    return root


def _child(file: str, element: Element, name: str) -> Element:
    found = element.find(name)
    if found is None:
        raise Corrupt(file, element.tag, f"has no element {name}")
    return found


def _text(file: str, element: Element, name: str) -> str:
    text = element.findtext(name)
    if text is None or not text.strip():
        raise Corrupt(file, element.tag, f"has no element {name}")
    return text.strip()


def _number(file: str, element: Element, name: str) -> int:
    text = _text(file, element, name)
    if not (text.isascii() and text.isdigit()) or len(text) > 16 or int(text) > _MAX_SECTORS:
        raise Corrupt(file, name, expected="a number of sectors", found=text)
    return int(text)


def _guid(file: str, what: str, text: str) -> UUID:
    try:
        return UUID(text.strip())
    except ValueError as error:
        raise Corrupt(file, what, expected="a GUID", found=text) from error


def _area(file: str, element: Element) -> StorageArea:
    images: dict[UUID, ImageFile] = {}
    for found in element.findall("Image"):
        guid = _guid(file, "Image GUID", _text(file, found, "GUID"))
        kind = _text(file, found, "Type")
        if kind not in (PLAIN, EXPANDING):
            raise Unsupported(file, "parallels", f"image type {kind}")
        if guid in images:
            raise Corrupt(file, "Image GUID", f"{{{guid}}} stands twice in one storage")
        images[guid] = ImageFile(guid, kind, _text(file, found, "File"))
    cluster_sectors = _number(file, element, "Blocksize") if element.find("Blocksize") is not None else 0
    return StorageArea(_number(file, element, "Start"), _number(file, element, "End"), cluster_sectors, images)


def _check_areas(file: str, areas: list[StorageArea], disk_sectors: int) -> None:
    if sum(len(area.images) for area in areas) > _MOST_IMAGES:
        raise Corrupt(file, "StorageData", f"names more than {_MOST_IMAGES} files")
    at = 0
    for area in areas:
        if area.start != at or area.end < at:
            raise Corrupt(file, "Storage Start", expected=at, found=f"{area.start} to {area.end}")
        at = area.end
    if at != disk_sectors:
        raise Corrupt(file, "Storage End", expected=f"{disk_sectors}, the disk's size", found=at)


def _shots(file: str, snapshots: Element | None, areas: list[StorageArea]) -> tuple[UUID, dict[UUID, UUID]]:
    """The top layer, and each layer's parent."""
    parents: dict[UUID, UUID] = {}
    top = TOP_GUID
    if snapshots is not None:
        for shot in snapshots.findall("Shot"):
            guid = _guid(file, "Shot GUID", _text(file, shot, "GUID"))
            if guid in parents:
                raise Corrupt(file, "Shot GUID", f"{{{guid}}} stands there twice")
            parents[guid] = _guid(file, "Shot ParentGUID", _text(file, shot, "ParentGUID"))
        stated = snapshots.findtext("TopGUID")
        if stated and stated.strip():
            top = _guid(file, "TopGUID", stated)
    if not parents:  # no snapshot was ever taken
        guids = {guid for area in areas for guid in area.images}
        if len(guids) == 1:
            top = guids.pop()
        parents[top] = NO_GUID
    return top, parents


def _chain(file: str, guid: UUID, parents: dict[UUID, UUID], areas: list[StorageArea]) -> list[UUID]:
    layers: list[UUID] = []
    while guid != NO_GUID:
        if guid not in parents:
            raise Corrupt(file, "Snapshots", f"there is no Shot of {{{guid}}}")
        if guid in layers or len(layers) >= _MOST_LAYERS:
            raise Corrupt(file, "Snapshots", f"the chain of parents has a circle, or more than {_MOST_LAYERS} layers")
        layers.append(guid)
        guid = parents[guid]
    for area in areas:
        for guid in layers:
            if guid not in area.images:
                raise Corrupt(file, "Storage", f"has no Image of {{{guid}}}")
        for guid in layers[:-1]:
            if area.images[guid].kind == PLAIN:
                raise Corrupt(file, "Image Type", expected=f"{EXPANDING}, as it lies over another", found=PLAIN)
    return layers


def build_descriptor(disk_sectors: int, cluster_sectors: int, image: ImageFile, name: str) -> bytes:
    """A descriptor of one file."""
    from xml.sax.saxutils import escape

    cylinders, heads, sectors = geometry_of(disk_sectors)
    return f"""<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
    <Disk_Parameters>
        <Disk_size>{disk_sectors}</Disk_size>
        <Cylinders>{cylinders}</Cylinders>
        <PhysicalSectorSize>512</PhysicalSectorSize>
        <LogicSectorSize>512</LogicSectorSize>
        <Heads>{heads}</Heads>
        <Sectors>{sectors}</Sectors>
        <Padding>0</Padding>
        <Encryption>
            <Engine>{{{NO_GUID}}}</Engine>
            <Data></Data>
            <Salt></Salt>
        </Encryption>
        <UID>{{{uuid4()}}}</UID>
        <Name>{escape(name)}</Name>
        <Miscellaneous>
            <CompatLevel>level2</CompatLevel>
            <Bootable>1</Bootable>
            <SuspendState>0</SuspendState>
        </Miscellaneous>
    </Disk_Parameters>
    <StorageData>
        <Storage>
            <Start>0</Start>
            <End>{disk_sectors}</End>
            <Blocksize>{cluster_sectors}</Blocksize>
            <Image>
                <GUID>{{{image.guid}}}</GUID>
                <Type>{image.kind}</Type>
                <File>{escape(image.name)}</File>
            </Image>
        </Storage>
    </StorageData>
    <Snapshots>
        <Shot>
            <GUID>{{{image.guid}}}</GUID>
            <ParentGUID>{{{NO_GUID}}}</ParentGUID>
        </Shot>
    </Snapshots>
</Parallels_disk_image>
""".encode()


def resized_descriptor(root: Element, disk_sectors: int) -> bytes:
    """The same XML for a disk of another length; what is not known here stays."""
    from xml.etree.ElementTree import tostring

    parameters = root.find("Disk_Parameters")
    storage_data = root.find("StorageData")
    assert parameters is not None
    assert storage_data is not None
    last = max(storage_data.findall("Storage"), key=lambda element: int(element.findtext("Start") or 0))
    cylinders, heads, sectors = geometry_of(disk_sectors)
    for element, name, value in (
        (parameters, "Disk_size", disk_sectors),
        (parameters, "Cylinders", cylinders),
        (parameters, "Heads", heads),
        (parameters, "Sectors", sectors),
        (last, "End", disk_sectors),
    ):
        found = element.find(name)
        if found is not None:
            found.text = str(value)
    data: bytes = tostring(root, encoding="UTF-8", xml_declaration=True)
    return data + b"\n"


def geometry_of(disk_sectors: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors) whose product is the disk's size, as the format demands."""
    sectors = math.gcd(disk_sectors, SECTORS_PER_TRACK) or SECTORS_PER_TRACK
    heads = math.gcd(disk_sectors // sectors, HEADS) or HEADS
    return disk_sectors // sectors // heads, heads, sectors
