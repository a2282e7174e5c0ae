"""Small images made by hand, so that every byte of them can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.hostile.fields import fields_of
from vdisk.formats.qcow2 import structs as qcow2_structs

CLUSTER = 4096
BACKING_FORMAT = 0xE2792ACA
DATA_FILE = 0x44415441
ALLOCATED = 1 << 63

_V2 = {field.name: field for field in fields_of(qcow2_structs.HeaderV2)}
_V3 = {field.name: field._replace(offset=field.offset + 72) for field in fields_of(qcow2_structs.HeaderV3)}
QCOW2_FIELDS = _V2 | _V3


def qcow2(
    *,
    size: int = 64 << 10,
    version: int = 3,
    backing: str | bytes | None = None,
    backing_format: str | None = "raw",
    extensions: Sequence[tuple[int, bytes]] = (),
    raw_extensions: bytes | None = None,
    l1: Sequence[int] | None = None,
    l2: Mapping[int, int] | None = None,
    body: bytes = b"",
    **fields: int,
) -> bytes:
    """A qcow2 of 4 KiB clusters: header, refcount table (1), block (2), L1 (3), L2 (4), then `body` from cluster 5.

    `l2` are entries of the one L2 table, `fields` go into the header last, whatever they break.
    """
    name = backing.encode() if isinstance(backing, str) else backing or b""
    raw = bytearray(5 * CLUSTER)
    struct.pack_into(">4sIQIIQIIQQIIQ", raw, 0, b"QFI\xfb", version, 0, len(name), 12, size, 0, 1, 3 * CLUSTER,
                     CLUSTER, 1, 0, 0)  # fmt: skip
    at = 72
    if version >= 3:
        struct.pack_into(">QQQII", raw, 72, 0, 0, 0, 4, 104)
        at = 104
    listed = list(extensions)
    if backing is not None and backing_format is not None:
        listed.insert(0, (BACKING_FORMAT, backing_format.encode()))
    packed = b"".join(
        struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in listed
    ) + bytes(8)
    if raw_extensions is not None:
        packed = raw_extensions
    raw[at : at + len(packed)] = packed
    if name:
        at += len(packed)
        struct.pack_into(">Q", raw, 8, at)
        raw[at : at + len(name)] = name
    struct.pack_into(">Q", raw, CLUSTER, 2 * CLUSTER)
    clusters = 5 + -(-len(body) // CLUSTER)
    struct.pack_into(f">{clusters}H", raw, 2 * CLUSTER, *[1] * clusters)
    entries = [ALLOCATED | 4 * CLUSTER] if l1 is None else list(l1)
    struct.pack_into(f">{len(entries)}Q", raw, 3 * CLUSTER, *entries)
    for index, entry in (l2 or {}).items():
        struct.pack_into(">Q", raw, 4 * CLUSTER + 8 * index, entry)
    for field, value in fields.items():
        QCOW2_FIELDS[field].put(raw, 0, value)
    return bytes(raw[: 5 * CLUSTER]) + body.ljust(-(-len(body) // CLUSTER) * CLUSTER, b"\0")


def bundle(folder: Path, images: str, size: int, more: str = "") -> Path:
    """A Parallels bundle with the given <Image> elements in its one <Storage>."""
    folder.mkdir(exist_ok=True)
    (folder / "DiskDescriptor.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><Parallels_disk_image Version="1.0">'
        f"<Disk_Parameters><Disk_size>{size // 512}</Disk_size><Cylinders>1</Cylinders><Heads>1</Heads>"
        f"<Sectors>1</Sectors><Padding>0</Padding></Disk_Parameters><StorageData><Storage><Start>0</Start>"
        f"<End>{size // 512}</End><Blocksize>2048</Blocksize>{images}</Storage></StorageData>"
        f"<Snapshots>{more}</Snapshots></Parallels_disk_image>"
    )
    return folder


def bundle_image(name: str, kind: str = "Plain", guid: str = "5fbaabe3-6958-40ff-92a7-860e329aab41") -> str:
    """An <Image> element."""
    return f"<Image><GUID>{{{guid}}}</GUID><Type>{kind}</Type><File>{name}</File></Image>"
