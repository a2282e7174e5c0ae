"""Counting anew: every reference that an image's metadata makes to its host clusters, and what is wrong with the
tables.

Tables are walked with numpy, each L2 table once however many L1 entries name it. The counts take four bytes a cluster
of the file; what the file cannot hold is not counted.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy

from vdisk.errors import ImageError, Unsupported
from vdisk.formats.check import CheckReport, Finding, Severity
from vdisk.formats.qcow2.bitmaps import directory_place, read_bitmaps, table_of
from vdisk.formats.qcow2.header import CORRUPT
from vdisk.formats.qcow2.references import Clusters, compressed_clusters, entries_of, range_of
from vdisk.formats.qcow2.snapshots import map_of, table_bytes
from vdisk.formats.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COMPRESSED, COPIED, OFFSET_MASK, ClusterMap
from vdisk.storage.file import FileStorage

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2Image

_L1_RESERVED = ~(OFFSET_MASK | COPIED) & (1 << 64) - 1
_MOST_CLUSTERS = 1 << 26
_MOST_EACH = 200
"""Findings of one kind that are told one by one."""


def u64(number: int) -> numpy.uint64:
    """`number` as numpy's unsigned word: mixed with plain integers, words would become floats."""
    return numpy.uint64(number)


class Recount:
    """The references of one image, counted; `report` gets what is wrong with the tables."""

    def __init__(self, image: Qcow2Image, report: CheckReport, *, with_refcounts: bool = True) -> None:
        """`with_refcounts` counts the refcount table and its blocks too: leave them out to build new ones."""
        self.image = image
        self.header = image.header
        self.report = report
        self.storage = image.storage
        self.bits = image.header.cluster_bits
        self.cluster_bytes = image.header.cluster_bytes
        self.file_bytes = self.storage.size
        self.file_clusters = -(-self.file_bytes // self.cluster_bytes)
        self._bound_memory()
        self.counts = numpy.zeros(self.file_clusters + 1, numpy.uint32)
        self.tables: dict[int, int] = {}
        """L2 tables by offset: how many L1 entries name each."""
        self.bad_l1: list[tuple[ClusterMap, int, int]] = []
        """(map, L1 index, entry that should stand there)."""
        self.bad_l2: dict[int, array[int]] = {}
        """L2 tables by offset, as they should be."""
        self.structural = 0
        """Corruptions of the tables, apart from counts and flags."""
        self.metadata: list[tuple[str, Clusters]] = []
        self.allocated = self.compressed = self.fragmented = 0
        self._count(with_refcounts)

    def _bound_memory(self) -> None:
        storage = self.storage
        held = storage.allocated_bytes if isinstance(storage, FileStorage) else self.file_bytes
        if self.file_clusters > max(_MOST_CLUSTERS, 4 * held // self.cluster_bytes):
            raise Unsupported(
                self.image.name, "qcow2", f"checking a file of {self.file_clusters} clusters, mostly holes"
            )

    # Findings --------------------------------------------------------------------------------------------------

    def corrupt(self, where: str, message: str, fix: str | None, count: int = 1) -> None:
        """Note a corruption of the tables."""
        self.structural += count
        self.report.add(Finding(Severity.CORRUPTION, where, message, fix), count)

    def _tell(self, at: Any, table: str, message: str, fix: str | None) -> None:
        """Note the entries of a table whose indexes are in `at`."""
        for index in at[:_MOST_EACH].tolist():
            self.corrupt(f"{table} entry {index}", message, fix)
        if len(at) > _MOST_EACH:
            self.corrupt(table, f"{message} ({len(at) - _MOST_EACH} more entries)", fix, len(at) - _MOST_EACH)

    # Counting --------------------------------------------------------------------------------------------------

    def add(self, clusters: Clusters, amount: int = 1) -> None:
        """Count references; those past the end of the file have been told of, or cannot be counted."""
        clusters = clusters[clusters < self.file_clusters]
        if not len(clusters):
            return
        low = int(clusters.min())
        span = int(clusters.max()) - low + 1
        if span <= 4 * len(clusters) + 1024:
            counted = numpy.bincount(clusters - low, minlength=span)
            self.counts[low : low + span] += (counted * amount).astype(numpy.uint32)
        else:
            unique, times = numpy.unique(clusters, return_counts=True)
            self.counts[unique] += (times * amount).astype(numpy.uint32)

    def _add_metadata(self, what: str, offset: int, length: int) -> None:
        clusters = range_of(offset, length, self.bits)
        self.add(clusters)
        self.metadata.append((what, clusters))
        if offset + length > self.file_clusters * self.cluster_bytes:
            self.corrupt(what, f"lies past the end of the file, at {offset}", None)

    def _count(self, with_refcounts: bool) -> None:
        header, image = self.header, self.image
        if header.incompatible & CORRUPT:
            self.corrupt("header", "the corrupt bit is set", "clear it once all else is mended")
        self._add_metadata("header", 0, self.cluster_bytes)
        if with_refcounts:
            self._count_refcounts()
        self._count_map("L1", image.tables, header.l1_offset, header.l1_entries)
        snapshots = image.snapshots()
        if snapshots:
            self._add_metadata("snapshot table", header.snapshots_offset, len(table_bytes(snapshots)))
        for snapshot in snapshots:
            name = f"snapshot {snapshot.id} L1"
            try:
                tree = map_of(image, snapshot)
            except ImageError as error:
                self.corrupt(name, f"cannot be read: {error}", None)
                continue
            self._count_map(name, tree, snapshot.l1_offset, snapshot.l1_entries)
        self._count_tables()
        self._count_bitmaps()
        if header.crypt_method == 2:
            from vdisk.formats.qcow2.luks import luks_place

            self._add_metadata("LUKS header", *luks_place(image.name, header))
        self._seek_overlaps()

    def _count_refcounts(self) -> None:
        from vdisk.formats.qcow2.refcounts import Refcounts

        header = self.header
        self._add_metadata(
            "refcount table", header.refcount_table_offset, header.refcount_table_clusters * self.cluster_bytes
        )
        table = numpy.asarray(Refcounts(self.storage, header).table)
        wrong = self.wrong_blocks(table)
        self._tell(numpy.flatnonzero(wrong), "refcount table", "is no offset of a cluster in the file", "count anew")
        good = table[~wrong & (table != 0)]
        clusters = (good >> u64(self.bits)).astype(numpy.int64)
        self.add(clusters)
        self.metadata.append(("refcount block", clusters))

    def wrong_blocks(self, table: Any) -> Any:
        """Which entries of the refcount table cannot be right."""
        mask = u64(self.cluster_bytes - 1)
        return ((table & mask) != 0) | (table >= u64(self.file_clusters * self.cluster_bytes))

    def _count_map(self, what: str, tree: ClusterMap, offset: int, entries: int) -> None:
        """An L1 table's own clusters, and the L2 tables that it names."""
        if entries:
            self._add_metadata(what, offset, entries * 8)
        l1 = numpy.asarray(tree.l1)
        reserved = (l1 & u64(_L1_RESERVED)) != 0
        hosts = l1 & u64(OFFSET_MASK)
        lost = ((hosts & u64(self.cluster_bytes - 1)) != 0) | (hosts + u64(self.cluster_bytes) > u64(self.file_bytes))
        lost &= hosts != 0
        self._tell(numpy.flatnonzero(reserved), what, "has reserved bits set", "clear the bits")
        self._tell(numpy.flatnonzero(lost), what, "names no L2 table inside the file", "clear the entry")
        for index in numpy.flatnonzero(reserved | lost).tolist():
            self.bad_l1.append((tree, index, 0 if lost[index] else int(l1[index]) & (OFFSET_MASK | COPIED)))
        good = hosts[~lost & (hosts != 0)].tolist()
        for host in good:
            self.tables[host] = self.tables.get(host, 0) + 1

    def _count_tables(self) -> None:
        """What the L2 tables refer to."""
        image = self.image
        bits = self.bits
        owners: dict[int, tuple[int, bool]] = {}
        for l1_index, entry in enumerate(image.tables.l1):
            owners.setdefault(entry & OFFSET_MASK, (l1_index, True))
        hosts = numpy.fromiter(self.tables.keys(), numpy.int64, len(self.tables)) >> bits
        times = numpy.fromiter(self.tables.values(), numpy.int64, len(self.tables))
        for amount in numpy.unique(times).tolist():
            self.add(hosts[times == amount], amount)
        for host, amount in self.tables.items():
            table = self.read_table(host)
            l1_index, is_active = owners.get(host, (0, False))
            self._check_table(host, table, l1_index if is_active else None, amount)

    def read_table(self, host: int) -> array[int]:
        """The L2 table at a host offset that has been checked."""
        from vdisk.formats.qcow2.words import load_big_endian

        return load_big_endian(self.storage.read(host, self.cluster_bytes), "Q")

    def _check_table(self, host: int, table: array[int], l1_index: int | None, amount: int) -> None:
        cluster_map, header = self.image.tables, self.header
        words, name = cluster_map.words, f"L2 table at {host}"
        entries = entries_of(table, words)
        if not entries.any() and words == 1:
            return
        compressed = (entries & u64(COMPRESSED)) != 0
        known = OFFSET_MASK | COPIED | (1 if words == 1 and header.version >= 3 else 0)
        reserved = ~compressed & ((entries & u64(~known & (1 << 64) - 1)) != 0)
        offsets = numpy.where(compressed, u64(0), entries & u64(OFFSET_MASK))
        if cluster_map.has_data_file:
            misplaced = compressed
            if l1_index is not None:
                guest = numpy.arange(len(entries), dtype=numpy.uint64) + u64(l1_index << cluster_map.l2_bits)
                named = (entries & u64(OFFSET_MASK | COPIED)) != 0
                misplaced = compressed | (named & (offsets != guest << u64(self.bits)))
            self._tell(numpy.flatnonzero(misplaced), name, "does not name the guest's offset in the data file", None)
            lost = numpy.zeros(len(entries), bool)
        else:
            lost = (offsets & u64(self.cluster_bytes - 1)) != 0
            lost |= offsets >= u64(self.file_clusters * self.cluster_bytes)
            lost |= compressed & ((entries & u64((1 << cluster_map.size_shift) - 1)) >= u64(self.file_bytes))
        self._tell(numpy.flatnonzero(reserved), name, "has reserved bits set", "clear the bits")
        self._tell(numpy.flatnonzero(lost), name, "names no cluster inside the file", "let it read as zeros")
        flagged = compressed & ((entries & u64(COPIED)) != 0)
        self._tell(numpy.flatnonzero(flagged), name, "is compressed and has the flag COPIED", "clear the flag")
        wrong_bits = self._wrong_bitmaps(table, compressed, offsets) if words == 2 else None
        if wrong_bits is not None:
            self._tell(numpy.flatnonzero(wrong_bits), name, "has subclusters allocated and zero, or in no cluster",
                       "let the data show")  # fmt: skip
        if reserved.any() or lost.any() or flagged.any() or (wrong_bits is not None and wrong_bits.any()):
            self.bad_l2[host] = self._mended(table, known, lost, flagged | reserved)
        counted = offsets[~lost & (offsets != 0)]
        if not cluster_map.has_data_file:
            self.add((counted >> u64(self.bits)).astype(numpy.int64), amount)
        if compressed.any() and not cluster_map.has_data_file:
            self.add(compressed_clusters(table, cluster_map), amount)
        if l1_index is not None:
            self._gather(offsets, compressed, entries)

    def _wrong_bitmaps(self, table: array[int], compressed: Any, offsets: Any) -> Any:
        bitmaps = numpy.frombuffer(table, numpy.uint64)[1::2]
        allocated, zero = bitmaps & u64(ALL_ALLOCATED), bitmaps >> u64(32)
        wrong = (allocated & zero) != 0
        if not self.image.tables.has_data_file:
            wrong |= (allocated != 0) & (offsets == 0)
        return wrong & ~compressed

    def _mended(self, table: array[int], known: int, lost: Any, to_mask: Any) -> array[int]:
        """The table without what is wrong with it; what cannot be had reads as zeros."""
        words = self.image.tables.words
        mended = numpy.frombuffer(table, numpy.uint64).copy()
        entries = mended[::words]
        compressed = (entries & u64(COMPRESSED)) != 0
        masked = numpy.where(compressed, entries & u64((1 << 63) - 1), entries & u64(known))
        entries[:] = numpy.where(to_mask, masked, entries)
        entries[:] = numpy.where(lost, u64(self.image.tables.zero_flag), entries)
        if words == 2:
            bitmaps = mended[1::2]
            allocated, zero = bitmaps & u64(ALL_ALLOCATED), bitmaps >> u64(32)
            gone = ~compressed & (entries & u64(OFFSET_MASK) == 0) & (allocated != 0)
            if self.image.tables.has_data_file:
                gone &= False
            zero = numpy.where(gone, zero | allocated, zero & ~allocated)
            allocated = numpy.where(gone, u64(0), allocated)
            bitmaps[:] = numpy.where(compressed, bitmaps, allocated | zero << u64(32))
            bitmaps[:] = numpy.where(compressed & lost, u64(ALL_ZERO), bitmaps)
        return array("Q", mended.tobytes())

    def _gather(self, offsets: Any, compressed: Any, entries: Any) -> None:
        """Figures as qemu-img check prints them."""
        named = offsets != 0
        if self.image.tables.has_data_file:
            named = ~compressed & ((entries & u64(OFFSET_MASK | COPIED)) != 0)
        self.compressed += int(compressed.sum())
        self.allocated += int(named.sum()) + int(compressed.sum())
        hosts = offsets[named]
        jumps = int((numpy.diff(hosts) != u64(self.cluster_bytes)).sum()) if len(hosts) > 1 else 0
        self.fragmented += jumps + int(compressed.sum())

    def _count_bitmaps(self) -> None:
        image = self.image
        try:
            offset, length, count = directory_place(image)
            if not count:
                return
            self._add_metadata("bitmap directory", offset, length)
            for bitmap in read_bitmaps(image):
                table = numpy.asarray(table_of(image, bitmap)) & u64(OFFSET_MASK)
                self._add_metadata(f"bitmap {bitmap.name} table", bitmap.table_offset, bitmap.table_entries * 8)
                self.add((table[table != 0] >> u64(self.bits)).astype(numpy.int64))
        except ImageError as error:
            self.corrupt("bitmaps", f"cannot be read: {error}", None)

    def _seek_overlaps(self) -> None:
        """Metadata that something else is said to lie on."""
        self.overlapped: set[str] = set()
        hosts = numpy.fromiter(self.tables.keys(), numpy.int64, len(self.tables)) >> self.bits
        times = numpy.fromiter(self.tables.values(), numpy.int64, len(self.tables))
        self.metadata.append(("L2 table", hosts))
        for what, clusters in self.metadata:
            inside = clusters < self.file_clusters
            expected = times[inside] if what == "L2 table" else 1
            shared = clusters[inside][self.counts[clusters[inside]] != expected]
            for cluster in shared[:_MOST_EACH].tolist():
                self.overlapped.add(what)
                self.corrupt(
                    f"{what} at {cluster << self.bits}", "something else lies there too", "let neither be overwritten"
                )
