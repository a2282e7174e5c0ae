"""The data structures that an NVMe controller describes itself with (NVM Express 1.4, chapter 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.hv.devices.dma import SECTOR_BYTES

VERSION = 0x00010300
PAGE_BYTES = 4096
LARGEST_TRANSFER_LOG2_PAGES = 8
ASYNC_EVENTS = 4
_IO_SIZES = (6 << 4 | 6, 4 << 4 | 4)
"""Entry sizes, 2**6 and 2**4 bytes, as largest and smallest."""
_HAS_DSM, _HAS_WRITE_ZEROES = 1 << 2, 1 << 3


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the controller says it is."""

    vendor_id: int
    subsystem_vendor_id: int
    model: str
    serial: str
    firmware: str

    @property
    def subsystem_name(self) -> str:
        """The NVMe qualified name."""
        return f"nqn.2014-08.org.nvmexpress:{self.vendor_id:04x}{self.subsystem_vendor_id:04x}{self.serial}"


def _text(value: str, length: int) -> bytes:
    return value.encode("ascii", "replace")[:length].ljust(length)


def identify_controller(identity: Identity, *, writable: bool) -> bytes:
    """CNS 01h, 4096 bytes."""
    data = bytearray(PAGE_BYTES)
    struct.pack_into("<HH", data, 0, identity.vendor_id, identity.subsystem_vendor_id)
    data[4:24] = _text(identity.serial, 20)
    data[24:64] = _text(identity.model, 40)
    data[64:72] = _text(identity.firmware, 8)
    data[72] = 6  # arbitration burst
    data[77] = LARGEST_TRANSFER_LOG2_PAGES
    struct.pack_into("<I", data, 80, VERSION)
    data[111] = 1  # an I/O controller
    data[258] = 3  # abort limit
    data[259] = ASYNC_EVENTS - 1
    data[260] = 0x03  # one firmware slot, read-only
    struct.pack_into("<HH", data, 266, 343, 373)  # temperature thresholds, kelvin
    data[512], data[513] = _IO_SIZES
    struct.pack_into("<I", data, 516, 1)  # one namespace
    struct.pack_into("<H", data, 520, _HAS_DSM | _HAS_WRITE_ZEROES if writable else 0)
    data[525] = 1  # a volatile write cache
    data[768:1024] = identity.subsystem_name.encode()[:255].ljust(256, b"\0")
    struct.pack_into("<H", data, 2048, 2500)  # power state 0: 25 W
    return bytes(data)


def identify_namespace(blocks: int, *, writable: bool) -> bytes:
    """CNS 00h for the one namespace, 4096 bytes: 512-byte blocks, no metadata."""
    data = bytearray(PAGE_BYTES)
    struct.pack_into("<QQQ", data, 0, blocks, blocks, blocks)
    data[24] = 0x01 if writable else 0  # thin provisioning
    if not writable:
        data[99] = 0x01  # write-protected
    struct.pack_into("<I", data, 128, (SECTOR_BYTES.bit_length() - 1) << 16)
    return bytes(data)


def namespace_list(first_above: int) -> bytes:
    """CNS 02h: the active namespaces above a number."""
    return struct.pack("<I", 1 if first_above < 1 else 0).ljust(PAGE_BYTES, b"\0")


def namespace_descriptors(identity: Identity) -> bytes:
    """CNS 03h: a UUID that stays the same for the same serial number."""
    import uuid

    unique = uuid.uuid5(uuid.NAMESPACE_OID, identity.subsystem_name)
    return (bytes((3, 16, 0, 0)) + unique.bytes).ljust(PAGE_BYTES, b"\0")


def health_log() -> bytes:
    """Log page 02h: all well, 30 degrees Celsius."""
    data = bytearray(512)
    struct.pack_into("<BHBBB", data, 0, 0, 303, 100, 10, 0)
    return bytes(data)


def firmware_log(identity: Identity) -> bytes:
    """Log page 03h: one slot, and it is active."""
    return (bytes((1,)) + bytes(7) + _text(identity.firmware, 8)).ljust(512, b"\0")
