"""Strict mode of `vdisk.formats.open`: an image is taken only if it is one thing, whole in one file, and plain.

The rules take in all that oslo.utils' format_inspector refuses (OpenStack's answer to CVE-2024-32498 and its kin).
They read the file's bytes themselves, before the format's own code does.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vdisk.errors import Corrupt, PolicyError, Unsupported
from vdisk.formats.marks import LUKS, OPTICAL, PARTITIONS, is_by_tail, marks_of
from vdisk.storage.base import Storage

if TYPE_CHECKING:
    from vdisk.formats import Format
    from vdisk.formats.image import Image

_OF_A_DISK = (PARTITIONS, OPTICAL, LUKS)
"""What begins a disk is at home in raw files and in fixed VHDs, whose bytes come first: one of these, and no more."""
_LUKS_HEADER_BYTES = 592
_ONE_FILE = "strict mode takes images that name no other"
_LONGEST_NAME_BYTES = 1023
_QCOW2_FIELDS = ((">I", 4), (">Q", 8), (">I", 16), (">Q", 72))
"""Version, the backing file name's offset and length, the incompatible features."""
_DATA_FILE = 1 << 2
_KNOWN_FEATURES = 0xF
"""Dirty, corrupt, data file, compression type."""
_WHOLE_VMDKS = ("monolithicSparse", "streamOptimized")
_SPARSE_HEADER = struct.Struct("<4sI20xQQ12xQ")
"""Signature, version, descriptorOffset, descriptorSize, gdOffset."""
_GD_AT_END = (1 << 64) - 1
_LONGEST_DESCRIPTOR_BYTES = (1 << 20) - 1
_ACCESSES = ("rw", "rdonly", "noaccess")
_REGION_TABLES = (192 << 10, 256 << 10)
_REGION_TABLE_BYTES = 64 << 10


def refuse_ambiguous(storage: Storage, row: Format, *, is_guess: bool) -> None:
    """`Corrupt` or `Unsupported` where the file could be taken for something else than `row`, or is not plain."""
    by_tail = is_by_tail(storage, row)
    marks = marks_of(storage)
    if row.name == "raw" or by_tail:
        of_disk = [mark for mark in marks if mark in _OF_A_DISK]
        if len(of_disk) == 1 or (of_disk == [PARTITIONS, OPTICAL] and _is_fat(storage)):
            marks = [mark for mark in marks if mark not in of_disk]
        _refuse(storage, row.name, marks)
        _check_disk(storage, of_disk)
    else:
        _refuse(storage, row.name, marks)
    if by_tail and is_guess:
        raise Corrupt(
            storage.name, "format", f"is {row.name} by a mark at its end alone, as any raw disk may be; name it with -f"
        )
    check = _RULES.get(row.name)
    if check is not None:
        check(storage)


def refuse_marks(storage: Storage, name: str) -> None:
    """`Corrupt` where a file of the kind `name`, which is none of our formats, carries any mark of a format or disk."""
    _refuse(storage, name, marks_of(storage))


def refuse_unsafe(image: Image) -> None:
    """`PolicyError` or `Unsupported` where an open image is not whole in its own file."""
    said = image.describe()
    if said.backing_name is not None:
        raise PolicyError(image.name, "backing file", said.backing_name, _ONE_FILE)
    kind = said.specific.get("create-type")
    if image.format_name == "vmdk" and kind not in _WHOLE_VMDKS:
        raise Unsupported(image.name, "vmdk", f"in strict mode, create type {kind}")


def _refuse(storage: Storage, name: str, marks: list[str]) -> None:
    others = [mark for mark in marks if mark != name]
    if others:
        raise Corrupt(
            storage.name,
            "format",
            expected=f"the marks of {name} alone",
            found=f"also those of {', '.join(others)}",
        )


# Raw disks ---------------------------------------------------------------------------------------------------------


def _is_fat(storage: Storage) -> bool:
    """A FAT volume's boot sector has the signature of a partition table, and no partitions."""
    head = storage.read(0, 512)
    return head[0x10:0x11] == b"\x02" and head[0x15:0x16] == b"\xf8"


def _check_disk(storage: Storage, marks: list[str]) -> None:
    head = storage.read(0, 512)
    if LUKS in marks and head[6:8] != b"\0\x01":
        raise Unsupported(storage.name, "LUKS", f"in strict mode, version {int.from_bytes(head[6:8], 'big')}")
    if LUKS in marks and storage.size < _LUKS_HEADER_BYTES:
        raise Corrupt(storage.name, "LUKS header", expected=f"{_LUKS_HEADER_BYTES} bytes", found=storage.size)
    if head[510:512] != b"\x55\xaa" or _is_fat(storage):
        return
    kinds = []
    for number in range(4):
        flag, start, kind, _, first, _ = struct.unpack_from("<B3sB3sII", head, 446 + 16 * number)
        kinds.append(kind)
        field = f"partition {number + 1}"
        if flag not in (0, 0x80):
            raise Corrupt(storage.name, f"{field}: boot flag", expected="0 or 0x80", found=flag)
        if kind == 0xEE and (start, first) != (b"\0\2\0", 1):
            where = f"sector {first}, CHS bytes {start.hex()}"
            raise Corrupt(storage.name, f"{field}: start", expected="that of a protective one", found=where)
    if not any(kinds):
        raise Corrupt(storage.name, "partition table", expected="a partition", found="none")
    if 0xEE in kinds and (kinds[0] == 0 or any(kinds[1:])):
        raise Corrupt(storage.name, "partition table", "has partitions beside the protective one of a GPT")


# Images ------------------------------------------------------------------------------------------------------------


def _check_qcow2(storage: Storage) -> None:
    head = storage.read(0, 80).ljust(80, b"\0")
    version, offset, length, features = (struct.unpack_from(kind, head, at)[0] for kind, at in _QCOW2_FIELDS)
    if offset:
        name = storage.read(offset, min(length, _LONGEST_NAME_BYTES)).decode("utf-8", "replace")
        raise PolicyError(storage.name, "backing file", name, _ONE_FILE)
    if features & _DATA_FILE:  # in version 2 something else stands there: a naive reader might not know
        raise Unsupported(storage.name, "qcow2", "in strict mode, a data file")
    if version >= 3 and features & ~_KNOWN_FEATURES:
        raise Unsupported(storage.name, "qcow2", f"in strict mode, incompatible features {features:#x}")


def _check_vmdk(storage: Storage) -> None:
    head = storage.read(0, 512)
    if head[:4] in (b"COWD", b"\xbe\xba\xfe\xca"):
        return  # not among the create types that `refuse_unsafe` takes
    if head[:4] != b"KDMV":
        _check_descriptor(storage.name, storage.read(0, _LONGEST_DESCRIPTOR_BYTES))
        return
    header = _SPARSE_HEADER.unpack_from(head.ljust(512, b"\0"))
    descriptor_sector, descriptor_sectors, directory_sector = header[2:]
    if descriptor_sector != 1:
        raise Corrupt(storage.name, "header: descriptorOffset", expected=1, found=descriptor_sector)
    if directory_sector == _GD_AT_END:
        _check_footer(storage, header)
    length = min(descriptor_sectors * 512, _LONGEST_DESCRIPTOR_BYTES)
    text = storage.read(512, length)
    if len(text) < length:
        raise Corrupt(storage.name, "header: descriptorSize", expected="less than the file's", found=descriptor_sectors)
    _check_descriptor(storage.name, text)


def _check_footer(storage: Storage, header: tuple[Any, ...]) -> None:
    """The footer takes the header's place: they must be of one mind, and the markers around it bare."""
    tail = storage.read(max(0, storage.size - 1536), 1536)
    if len(tail) < 1536:
        raise Corrupt(storage.name, "footer", expected="1536 bytes at the end", found=len(tail))
    footer = _SPARSE_HEADER.unpack_from(tail, 512)
    if footer[:4] != header[:4]:
        raise Corrupt(storage.name, "footer", "contradicts the header: signature, version or place of the descriptor")
    if footer[4] == _GD_AT_END:
        raise Corrupt(storage.name, "footer: gdOffset", "refers to another footer")
    if tail[8:512] != struct.pack("<II", 0, 3) + bytes(496):
        raise Corrupt(storage.name, "footer marker", "is not that of a footer alone")
    if any(tail[1024:]):
        raise Corrupt(storage.name, "end-of-stream marker", expected="zeros", found="something else")


def _check_descriptor(file: str, data: bytes) -> None:
    """Plain text, each line of a kind that is known, one create type, and extents without folders in their names."""
    data = data.split(b"\0", 1)[0]
    if not data.isascii():
        raise Unsupported(file, "vmdk", "in strict mode, a descriptor that is not ASCII")
    text = data.decode("ascii").lower()
    types = re.findall(r'createtype="([^"]*)"', text)
    if len(types) != 1 or text.count("createtype") != 1:
        raise Corrupt(file, "descriptor", expected='createType="..." once', found=f"{len(types)} times")
    extents = 0
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith(("#", "ddb")):
            continue
        name, equals, _ = line.partition("=")
        if equals and " " not in name:
            continue
        if line.split(" ")[0] not in _ACCESSES:
            raise Corrupt(file, f"descriptor line {number}", expected="one of a known kind", found=line)
        if "/" in line or "\\" in line:
            raise Corrupt(file, f"descriptor line {number}", expected="a file name without a folder", found=line)
        extents += 1
    if not extents:
        raise Corrupt(file, "descriptor", expected="an extent", found="none")


def _check_vhdx(storage: Storage) -> None:
    first, second = (storage.read(offset, _REGION_TABLE_BYTES) for offset in _REGION_TABLES)
    if first != second:
        raise Corrupt(storage.name, "region table", "its two copies differ: programs that read one see another disk")


_RULES: dict[str, Callable[[Storage], None]] = {
    "qcow2": _check_qcow2,
    "vmdk": _check_vmdk,
    "vhdx": _check_vhdx,
}
