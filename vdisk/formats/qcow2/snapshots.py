"""Internal snapshots: listed, read as disks of their own, made, gone back to, deleted.

Follows QEMU docs/interop/qcow2, "Snapshots". The order of writes leaves leaks at worst when it is cut short: counts
go up before a table names a cluster, tables are switched by one write of the header, and counts go down last.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Encoded, Extent
from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.qcow2 import structs
from vdisk.formats.qcow2.header import DATA_FILE, MAX_L1_BYTES, Header
from vdisk.formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ClusterMap
from vdisk.formats.qcow2.words import store_big_endian
from vdisk.storage.base import Buffer, Storage

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2Image

MAX_TABLE_BYTES = 64 << 20
_MAX_EXTRA_BYTES = 1024


@dataclass(slots=True)
class Snapshot:
    """An entry of the snapshot table. Sizes are bytes."""

    id: str
    name: str
    l1_offset: int
    l1_entries: int
    disk_bytes: int
    date_seconds: int = 0
    date_nanoseconds: int = 0
    vm_clock_nanoseconds: int = 0
    vm_state_bytes: int = 0
    extra: bytes = field(default=b"", repr=False)
    """The extra data as it stands in the file, preserved."""

    def describe(self) -> dict[str, Any]:
        """With the keys of `qemu-img info --output=json`."""
        found: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "vm-state-size": self.vm_state_bytes,
            "date-sec": self.date_seconds,
            "date-nsec": self.date_nanoseconds,
            "vm-clock-sec": self.vm_clock_nanoseconds // 1_000_000_000,
            "vm-clock-nsec": self.vm_clock_nanoseconds % 1_000_000_000,
        }
        if len(self.extra) >= 24:
            count = int.from_bytes(self.extra[16:24], "big")
            if count != (1 << 64) - 1:
                found["icount"] = count
        return found

    def to_bytes(self) -> bytes:
        """The entry as it stands in the table."""
        identity, name = self.id.encode("utf-8", "surrogateescape"), self.name.encode("utf-8", "surrogateescape")
        raw: bytes = structs.SnapshotHead.build(
            {
                "l1_offset": self.l1_offset,
                "l1_entries": self.l1_entries,
                "id_bytes": len(identity),
                "name_bytes": len(name),
                "date_seconds": self.date_seconds,
                "date_nanoseconds": self.date_nanoseconds,
                "vm_clock_nanoseconds": self.vm_clock_nanoseconds,
                "vm_state_bytes": min(self.vm_state_bytes, (1 << 32) - 1),
                "extra_bytes": len(self.extra),
            }
        )
        raw += self.extra + identity + name
        return raw + bytes(-len(raw) % 8)


def read_snapshots(storage: Storage, header: Header) -> list[Snapshot]:
    """The snapshot table, every entry checked."""
    if not header.snapshot_count:
        return []
    file = storage.name
    raw = storage.read(header.snapshots_offset, MAX_TABLE_BYTES)
    head = structs.SnapshotHead.sizeof()
    found, at = [], 0
    for number in range(header.snapshot_count):
        where = f"snapshot {number + 1}"
        fields = parse(structs.SnapshotHead, raw[at : at + head], file, where)
        at += head
        length = fields.extra_bytes + fields.id_bytes + fields.name_bytes
        if fields.extra_bytes > _MAX_EXTRA_BYTES or at + length > len(raw):
            raise Corrupt(file, where, expected="an entry inside the file", found=f"{length} bytes at {at}")
        extra = raw[at : at + fields.extra_bytes]
        at += fields.extra_bytes
        identity = raw[at : at + fields.id_bytes].decode("utf-8", "surrogateescape")
        name = raw[at + fields.id_bytes : at + fields.id_bytes + fields.name_bytes].decode("utf-8", "surrogateescape")
        at += -(-(fields.id_bytes + fields.name_bytes + fields.extra_bytes) // 8) * 8 - fields.extra_bytes
        disk_bytes, vm_state_bytes = header.disk_bytes, fields.vm_state_bytes
        if len(extra) >= 8:
            vm_state_bytes = int.from_bytes(extra[:8], "big")
        if len(extra) >= 16:
            disk_bytes = int.from_bytes(extra[8:16], "big")
        snapshot = Snapshot(
            identity, name, fields.l1_offset, fields.l1_entries, disk_bytes,
            fields.date_seconds, fields.date_nanoseconds, fields.vm_clock_nanoseconds, vm_state_bytes, extra,
        )  # fmt: skip
        _check_snapshot(file, header, snapshot, where)
        found.append(snapshot)
    return found


def _check_snapshot(file: str, header: Header, snapshot: Snapshot, where: str) -> None:
    needed = -(-snapshot.disk_bytes // (header.l2_entries << header.cluster_bits))
    if not needed <= snapshot.l1_entries <= MAX_L1_BYTES // 8 or snapshot.disk_bytes >= 1 << 63:
        raise Corrupt(file, f"{where}: l1_size", expected=f"{needed} to {MAX_L1_BYTES // 8}", found=snapshot.l1_entries)
    if snapshot.l1_offset % header.cluster_bytes:
        raise Corrupt(
            file,
            f"{where}: l1_table_offset",
            expected=f"a multiple of {header.cluster_bytes}",
            found=snapshot.l1_offset,
        )


def table_bytes(snapshots: Iterable[Snapshot]) -> bytes:
    """The snapshot table as it stands in a file."""
    return b"".join(snapshot.to_bytes() for snapshot in snapshots)


def find_snapshot(file: str, snapshots: list[Snapshot], wanted: str) -> Snapshot:
    """The snapshot of that name, or else of that ID; `OptionError` where there is none."""
    for snapshot in snapshots:
        if snapshot.name == wanted:
            return snapshot
    for snapshot in snapshots:
        if snapshot.id == wanted:
            return snapshot
    raise OptionError(f"{file}: has no snapshot {wanted!r}")


class SnapshotDevice(BlockDevice):
    """A snapshot's disk: read-only, with the size it had then. It borrows the files of its image."""

    def __init__(self, image: Qcow2Image, snapshot: Snapshot) -> None:
        super().__init__(
            f"{image.name}@{snapshot.name}", snapshot.disk_bytes, block_size=image.block_size, backing=image.backing
        )
        self.snapshot = snapshot
        self._image = image
        self._map = map_of(image, snapshot)

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return self._map.extents(offset, length)

    def _decode(self, encoded: Encoded, data: memoryview) -> Buffer:
        return self._image._decode(encoded, data)

    def _close(self) -> None:
        self.backing = None  # it is the image's


def map_of(image: Qcow2Image, snapshot: Snapshot) -> ClusterMap:
    """The tables of a snapshot."""
    return ClusterMap(image.storage, image.tables.data, image.header, snapshot.l1_offset, snapshot.l1_entries)


# Changing -------------------------------------------------------------------------------------------------------


def create_snapshot(image: Qcow2Image, name: str) -> Snapshot:
    """Keep the disk as it is now under `name`; returns the new snapshot."""
    with image.changing():
        _refuse(image)
        snapshots = image.snapshots()
        if not name or len(name.encode()) > 1023:
            raise OptionError(f"{image.name}: a snapshot's name has 1 to 1023 bytes")
        if any(snapshot.name == name for snapshot in snapshots):
            raise OptionError(f"{image.name}: has a snapshot {name!r} already")
        editor, header = image.editor, image.header
        editor.flush()
        _count_tree(image, image.tables, 1, only_try=True)
        # Without the flag a cluster is merely copied when it is written: safe before its count goes up.
        _set_copied(image, lambda clusters: clusters < 0)
        l1_offset = _write_new(image, store_big_endian(image.tables.l1))
        _count_tree(image, image.tables, 1)
        now = time.time_ns()
        number = 1 + max((int(snapshot.id) for snapshot in snapshots if snapshot.id.isdigit()), default=0)
        extra = b"" if header.version < 3 else bytes(8) + header.disk_bytes.to_bytes(8, "big") + bytes(8)
        snapshot = Snapshot(
            str(number), name, l1_offset, header.l1_entries, header.disk_bytes,
            now // 1_000_000_000, now % 1_000_000_000, extra=extra,
        )  # fmt: skip
        _switch_table(image, [*snapshots, snapshot])
        return snapshot


def delete_snapshot(image: Qcow2Image, name: str) -> None:
    """Forget the snapshot of that name, or else ID; what only it held becomes free."""
    with image.changing():
        snapshots = image.snapshots()
        snapshot = find_snapshot(image.name, snapshots, name)
        editor = image.editor
        editor.flush()
        tree = map_of(image, snapshot)
        _count_tree(image, tree, -1, only_try=True)
        _switch_table(image, [other for other in snapshots if other is not snapshot])
        _count_tree(image, tree, -1)
        editor.release(snapshot.l1_offset, -(-snapshot.l1_entries * 8 // image.header.cluster_bytes))
        editor.flush()
        image.storage.flush()
        _mark_copied(image)


def apply_snapshot(image: Qcow2Image, name: str) -> None:
    """Go back to the snapshot of that name, or else ID: the disk is as it was then, in length too."""
    with image.changing():
        snapshot = find_snapshot(image.name, image.snapshots(), name)
        header = image.header
        if header.version < 3 and snapshot.disk_bytes != header.disk_bytes:
            raise Unsupported(image.name, "qcow2", "going back to a snapshot of another size in version 2")
        editor = image.editor
        editor.flush()
        old_map, old_place = image.tables, (header.l1_offset, header.l1_entries)
        tree = map_of(image, snapshot)
        _count_tree(image, tree, 1, only_try=True)
        _count_tree(image, old_map, -1, only_try=True)
        _count_tree(image, tree, 1)
        # The flags of a snapshot's tables need not be true; those of the active ones must be.
        write_copied(image, tree, lambda clusters: clusters < 0, write_l1=False)
        l1_offset = _write_new(image, store_big_endian(tree.l1))
        editor.refcounts.write_back()
        image.storage.flush()
        header.l1_offset = l1_offset
        header.l1_entries, header.disk_bytes = len(tree.l1), snapshot.disk_bytes
        header.write_fields(image.storage)
        image.storage.flush()
        _count_tree(image, old_map, -1)
        editor.release(old_place[0], -(-old_place[1] * 8 // header.cluster_bytes))
        editor.flush()
        image.storage.flush()
        image.reload()
        image.size = header.disk_bytes
        _mark_copied(image)
        image.everything_changed()


def _refuse(image: Qcow2Image) -> None:
    header = image.header
    if header.incompatible & DATA_FILE:
        raise Unsupported(image.name, "qcow2", "internal snapshots with an external data file")
    if header.refcount_bits == 1:
        raise Unsupported(image.name, "qcow2", "internal snapshots with reference counts of one bit")


def _count_tree(image: Qcow2Image, tree: ClusterMap, amount: int, *, only_try: bool = False) -> None:
    """Change the counts of all that an L1 table leads to."""
    from vdisk.formats.qcow2.references import tree_of

    refcounts = image.editor.refcounts
    for _, _, clusters in tree_of(tree):
        if only_try and amount > 0 and len(clusters) and int(refcounts.get_many(clusters).max()) >= refcounts.largest:
            bits = image.header.refcount_bits
            raise OptionError(f"{image.name}: reference counts of {bits} bits go no higher: vdisk amend can widen them")
        refcounts.add_many(clusters, amount, only_try=only_try)


def _write_new(image: Qcow2Image, data: bytes) -> int:
    """Write `data` to new clusters; returns their offset. Their counts are not written yet."""
    header = image.header
    clusters = max(1, -(-len(data) // header.cluster_bytes))
    offset = image.editor.refcounts.allocate(clusters) << header.cluster_bits
    image.storage.write(offset, data.ljust(clusters << header.cluster_bits, b"\0"))
    return offset


def _switch_table(image: Qcow2Image, snapshots: list[Snapshot]) -> None:
    """Put a new snapshot table in the place of the old one."""
    header, editor = image.header, image.editor
    old_offset, old_bytes = header.snapshots_offset, len(table_bytes(image.snapshots()))
    data = table_bytes(snapshots)
    if len(data) > MAX_TABLE_BYTES or len(snapshots) > 65536:
        raise OptionError(f"{image.name}: has no room for more snapshots")
    offset = _write_new(image, data) if snapshots else 0
    editor.refcounts.write_back()
    image.storage.flush()
    header.snapshots_offset, header.snapshot_count = offset, len(snapshots)
    header.write_fields(image.storage)
    image.storage.flush()
    if old_bytes:
        editor.release(old_offset, -(-old_bytes // header.cluster_bytes))
        editor.flush()


def _mark_copied(image: Qcow2Image) -> None:
    """Set the flag of what is now used once only."""
    refcounts = image.editor.refcounts
    _set_copied(image, lambda clusters: refcounts.get_many(clusters) == 1)


def _set_copied(image: Qcow2Image, is_alone: Any) -> None:
    write_copied(image, image.tables, is_alone, write_l1=True)


def write_copied(image: Qcow2Image, tree: ClusterMap, is_alone: Any, *, write_l1: bool) -> None:
    """Set the flag COPIED where `is_alone` says so of an array of clusters, and clear it elsewhere."""
    import numpy

    from vdisk.formats.qcow2.references import entries_of, tree_of

    bits, storage = tree.cluster_bits, image.storage
    flag = numpy.uint64(COPIED)
    for l1_index, table, _ in tree_of(tree):
        entries = entries_of(table, tree.words)
        named = numpy.flatnonzero(
            ((entries & numpy.uint64(COMPRESSED)) == 0) & ((entries & numpy.uint64(OFFSET_MASK)) != 0)
        )
        clusters = ((entries[named] & numpy.uint64(OFFSET_MASK)) >> numpy.uint64(bits)).astype(numpy.int64)
        wanted = entries.copy()
        wanted[named] = (wanted[named] & ~flag) | numpy.where(is_alone(clusters), flag, numpy.uint64(0))
        if (wanted != entries).any():
            changed = numpy.frombuffer(table, numpy.uint64).copy()
            changed[:: tree.words] = wanted
            new: array[int] = array("Q", changed.tobytes())
            storage.write(tree.l1[l1_index] & OFFSET_MASK, store_big_endian(new))
            if l1_index in tree.cache:
                tree.cache[l1_index] = new
    storage.flush()
    hosts = numpy.asarray(tree.l1) & numpy.uint64(OFFSET_MASK)
    alone = is_alone((hosts >> numpy.uint64(bits)).astype(numpy.int64))
    wanted_l1 = hosts | numpy.where(alone & (hosts != 0), flag, numpy.uint64(0))
    if (wanted_l1 != numpy.asarray(tree.l1)).any():
        tree.l1[:] = array("Q", wanted_l1.tobytes())
        if write_l1:
            storage.write(image.header.l1_offset, store_big_endian(tree.l1))
            storage.flush()
