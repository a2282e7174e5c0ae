"""The OVF descriptor: what a package says of its files, disks and machine; read (any version), and written (1.0)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from vdisk.errors import Corrupt, Unsupported

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LONGEST_DESCRIPTOR_BYTES = 8 << 20
STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

_UNITS = {"": 0, "byte": 0, "bytes": 0, "kilobytes": 10, "megabytes": 20, "gigabytes": 30, "terabytes": 40}


@dataclass(slots=True)
class FileReference:
    """A file of the package."""

    id: str
    name: str
    size_bytes: int | None = None
    compression: str = ""
    chunk_bytes: int | None = None


@dataclass(slots=True)
class DiskEntry:
    """A virtual disk of the package."""

    id: str
    capacity_bytes: int
    format: str
    """URI that names the format."""
    file: FileReference | None = None
    """None for a disk that starts empty."""
    parent: str | None = None
    populated_bytes: int | None = None


@dataclass(slots=True)
class Envelope:
    """What a descriptor says, as far as disks go."""

    name: str = ""
    files: list[FileReference] = field(default_factory=list)
    disks: list[DiskEntry] = field(default_factory=list)


def parse(raw: bytes, file: str) -> Envelope:
    """The descriptor in `raw`. Raises `Corrupt` or `Unsupported`, naming `file`."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(raw, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Corrupt(file, "OVF descriptor", f"cannot be read: {error or type(error).__name__}") from error
    if _local(root.tag) != "Envelope":
        raise Corrupt(file, "OVF descriptor", expected="an Envelope", found=_local(root.tag))
    envelope = Envelope()
    for element in root.iter():
        match _local(element.tag):
            case "File":
                envelope.files.append(_file(element, file))
            case "VirtualSystem" if not envelope.name:
                envelope.name = _attribute(element, "id") or ""
    by_id = {reference.id: reference for reference in envelope.files}
    for element in root.iter():
        if _local(element.tag) == "Disk" and _attribute(element, "diskId") is not None:
            envelope.disks.append(_disk(element, by_id, file))
    return envelope


def _local(tag: Any) -> str:
    return str(tag).rpartition("}")[2]


def _attribute(element: Element, name: str) -> str | None:
    """An attribute, whatever its namespace."""
    return next((value for key, value in element.attrib.items() if _local(key) == name), None)


def _required(element: Element, name: str, file: str) -> str:
    value = _attribute(element, name)
    if value is None:
        raise Corrupt(file, f"OVF descriptor: {_local(element.tag)}", f"{name} is missing")
    return value


def _count(text: str | None, what: str, file: str) -> int | None:
    if text is None:
        return None
    if not text.strip().isdecimal() or len(text) > 20:
        raise Corrupt(file, f"OVF descriptor: {what}", expected="a number", found=text)
    return int(text)


def _file(element: Element, file: str) -> FileReference:
    return FileReference(
        _required(element, "id", file),
        _required(element, "href", file),
        _count(_attribute(element, "size"), "File: size", file),
        (_attribute(element, "compression") or "").lower(),
        _count(_attribute(element, "chunkSize"), "File: chunkSize", file),
    )


def _disk(element: Element, files: dict[str, FileReference], file: str) -> DiskEntry:
    identifier = _required(element, "diskId", file)
    capacity = _attribute(element, "capacity") or "0"
    if capacity.startswith("${"):
        raise Unsupported(file, "ova", "a disk's capacity by property")
    number = _count(capacity, f"disk {identifier}: capacity", file)
    assert number is not None
    unit = _unit_bytes(_attribute(element, "capacityAllocationUnits") or "", file)
    reference = _attribute(element, "fileRef")
    if reference is not None and reference not in files:
        raise Corrupt(file, f"OVF descriptor: disk {identifier}: fileRef", expected="a file's id", found=reference)
    return DiskEntry(
        identifier,
        number * unit,
        _attribute(element, "format") or "",
        None if reference is None else files[reference],
        _attribute(element, "parentRef"),
        _count(_attribute(element, "populatedSize"), f"disk {identifier}: populatedSize", file),
    )


def _unit_bytes(text: str, file: str) -> int:
    """Bytes of a unit: "byte * 2^30", or a word of the older descriptors."""
    words = text.lower().replace(" ", "")
    if words in _UNITS:
        return 1 << _UNITS[words]
    if words.startswith("byte*2^") and words[7:].isdecimal() and int(words[7:][:3]) <= 60:
        return 1 << int(words[7:][:3])
    raise Unsupported(file, "ova", f"capacity units {text[:40]!r}")


# Writing -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Machine:
    """The virtual machine around a new package's disk."""

    name: str
    cpus: int
    memory_mib: int
    hardware_version: str
    adapter_type: str
    """'ide', 'lsilogic', 'buslogic' or 'pvscsi'."""
    os_id: int
    os_type: str
    """VMware's name of the guest system."""
    firmware: str
    """'bios' or 'efi'."""
    network: str
    """Name of the network; empty for a machine without."""


def build(machine: Machine, disk_file: str, file_bytes: int, disk_bytes: int, populated_bytes: int) -> str:
    """An OVF 1.0 descriptor of a machine with one streamOptimized disk."""
    items = [
        _item(1, 3, "virtual CPUs", allocation="hertz * 10^6", quantity=machine.cpus),
        _item(2, 4, "memory", allocation="byte * 2^20", quantity=machine.memory_mib),
        _controller(machine.adapter_type),
        _item(4, 17, "disk 1", on_parent=0, host="ovf:/disk/vmdisk1", parent=3),
    ]
    network_section = ""
    if machine.network:
        items.append(_item(5, 10, "ethernet 1", connection=machine.network, subtype="E1000"))
        network_section = f"""  <NetworkSection>
    <Info>The networks of the machine</Info>
    <Network ovf:name={quoteattr(machine.network)}>
      <Description>{escape(machine.network)}</Description>
    </Network>
  </NetworkSection>
"""
    efi = '      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>\n' * (machine.firmware == "efi")
    name = escape(machine.name)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" \
xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" \
xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References>
    <File ovf:href={quoteattr(disk_file)} ovf:id="file1" ovf:size="{file_bytes}"/>
  </References>
  <DiskSection>
    <Info>The disks of the machine</Info>
    <Disk ovf:capacity="{disk_bytes}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk1" ovf:fileRef="file1" \
ovf:format="{STREAM_OPTIMIZED}" ovf:populatedSize="{populated_bytes}"/>
  </DiskSection>
{network_section}  <VirtualSystem ovf:id={quoteattr(machine.name)}>
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="{machine.os_id}" vmw:osType={quoteattr(machine.os_type)}>
      <Info>The guest's operating system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>The machine's hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-{int(machine.hardware_version):02d}</vssd:VirtualSystemType>
      </System>
{"".join(items)}{efi}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def _controller(adapter_type: str) -> str:
    match adapter_type:
        case "ide":
            return _item(3, 5, "IDE controller 0", address=0)
        case "pvscsi":
            return _item(3, 6, "SCSI controller 0", address=0, subtype="VirtualSCSI")
        case _:
            return _item(3, 6, "SCSI controller 0", address=0, subtype=adapter_type)


def _item(
    instance: int,
    kind: int,
    name: str,
    *,
    address: int | None = None,
    on_parent: int | None = None,
    allocation: str | None = None,
    connection: str | None = None,
    host: str | None = None,
    parent: int | None = None,
    subtype: str | None = None,
    quantity: int | None = None,
) -> str:
    """An Item; its elements stand in the order of the alphabet, as the schema wants them."""
    fields: list[tuple[str, object]] = [
        ("Address", address),
        ("AddressOnParent", on_parent),
        ("AllocationUnits", allocation),
        ("AutomaticAllocation", None if connection is None else "true"),
        ("Connection", connection),
        ("ElementName", name),
        ("HostResource", host),
        ("InstanceID", instance),
        ("Parent", parent),
        ("ResourceSubType", subtype),
        ("ResourceType", kind),
        ("VirtualQuantity", quantity),
    ]
    lines = [f"        <rasd:{tag}>{escape(str(value))}</rasd:{tag}>\n" for tag, value in fields if value is not None]
    return "      <Item>\n" + "".join(lines) + "      </Item>\n"
