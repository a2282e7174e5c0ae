"""Checking an image against a recount, and mending it.

What a repair does, in this order: entries that lead nowhere are cleared, so that they read as zeros; reference counts
are written anew to a new place and the header switched to them; flags COPIED are set by the new counts; the dirty and
corrupt bits go. A kill in between leaves the image no worse than it was. `leaks` alone only lowers counts in place,
and only where the tables are sound: behind a broken table may hang what seems unused.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from vdisk.errors import OptionError, StorageError, VdiskError
from vdisk.formats.check import CheckReport, Finding, Repair, Severity
from vdisk.formats.qcow2.header import CORRUPT, DIRTY, MAX_REFCOUNT_TABLE_BYTES
from vdisk.formats.qcow2.words import TYPECODES, pack_counts, store_big_endian, unpack_counts

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2Image
    from vdisk.formats.qcow2.recount import Recount

_MOST_EACH = 500


def check(image: Qcow2Image, repair: Repair, *, dry_run: bool) -> CheckReport:
    """`Image.check` for qcow2."""
    from vdisk.formats.qcow2.recount import Recount

    acts = repair is not Repair.NONE and not dry_run
    if acts and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    if image._editor is not None:
        image._editor.flush()
    report = CheckReport()
    found = Recount(image, report)
    wrong = _Comparison(image, found, report)
    _compare_flags(image, found, report)
    _figures(image, found, report)
    if not acts:
        return report
    if repair is Repair.ALL and report.corruptions:
        _mend(image, found)
    elif found.structural == 0:
        _lower_counts(image, found, wrong)
        if repair is Repair.ALL and image.header.incompatible & DIRTY:
            _write_bits(image)
    _mark_fixed(report, repair, found.structural == 0)
    image.reload()
    return report


def _mark_fixed(report: CheckReport, repair: Repair, is_sound: bool) -> None:
    """Say of the findings which were mended, and count them."""
    fixed: list[Finding] = []
    unmended = 0
    for finding in report.findings:
        is_leak = finding.severity is Severity.LEAK
        mended = finding.fix is not None and (repair is Repair.ALL or (is_leak and is_sound))
        unmended += not mended and not is_leak
        fixed.append(finding._replace(is_fixed=mended))
    report.findings[:] = fixed
    if repair is Repair.ALL:
        report.leaks_fixed = report.leaks
        report.corruptions_fixed = report.corruptions - unmended
    elif is_sound:
        report.leaks_fixed = report.leaks


class _Comparison:
    """The counts in the file against the recount, block by block."""

    def __init__(self, image: Qcow2Image, found: Recount, report: CheckReport) -> None:
        import numpy

        from vdisk.formats.qcow2.refcounts import Refcounts

        self.leaky_blocks: list[int] = []
        self.last_used = 0
        refcounts = Refcounts(image.storage, image.header)
        entries = refcounts.block_entries
        bad = found.wrong_blocks(numpy.asarray(refcounts.table))
        used_blocks = -(-found.file_clusters // entries)
        for block_index in range(max(used_blocks, len(refcounts.table))):
            host = refcounts.table[block_index] if block_index < len(refcounts.table) else 0
            first = block_index * entries
            wanted = found.counts[first : min(first + entries, found.file_clusters)]
            if not host or bad[block_index]:
                if wanted.any():
                    self._tell(report, first, numpy.zeros(len(wanted), numpy.int64), wanted, image)
                continue
            raw = image.storage.read(host, image.header.cluster_bytes).ljust(image.header.cluster_bytes, b"\0")
            stored = numpy.asarray(unpack_counts(raw, image.header.refcount_bits))
            if len(wanted) < len(stored):
                wanted = numpy.concatenate((wanted, numpy.zeros(len(stored) - len(wanted), wanted.dtype)))
            in_use = numpy.flatnonzero(stored)
            if len(in_use):
                self.last_used = max(self.last_used, first + int(in_use[-1]) + 1)
            if self._tell(report, first, stored, wanted, image):
                self.leaky_blocks.append(block_index)

    def _tell(self, report: CheckReport, first: int, stored: Any, wanted: Any, image: Qcow2Image) -> bool:
        """Note the clusters whose counts differ; whether there are leaks among them."""
        import numpy

        differs = numpy.flatnonzero(stored != wanted)
        if not len(differs):
            return False
        has_leaks = False
        bits = image.header.cluster_bits
        for is_leak, severity, what in (
            (True, Severity.LEAK, "leaked"),
            (False, Severity.CORRUPTION, "counted too low"),
        ):
            which = differs[(stored[differs] > wanted[differs]) == is_leak]
            has_leaks |= is_leak and len(which) > 0
            for at in which[:_MOST_EACH].tolist():
                message = f"{what}: expected {int(wanted[at])}, found {int(stored[at])}"
                report.add(
                    Finding(severity, f"refcount of the cluster at {(first + at) << bits}", message, "count anew")
                )
            rest = len(which) - _MOST_EACH
            if rest > 0:
                where = f"refcounts of clusters behind {(first + int(which[_MOST_EACH - 1])) << bits}"
                report.add(Finding(severity, where, f"{rest} clusters {what}", "count anew"), rest)
        return has_leaks


def _compare_flags(image: Qcow2Image, found: Recount, report: CheckReport) -> None:
    """The flag COPIED in the active tables: said of a shared cluster it would let a snapshot be overwritten."""
    import numpy

    from vdisk.formats.qcow2.recount import u64
    from vdisk.formats.qcow2.references import entries_of
    from vdisk.formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK

    limit = found.file_clusters

    def compare(entries: Any, where: str) -> None:
        hosts = (entries & u64(OFFSET_MASK)) >> u64(found.bits)
        named = (hosts != 0) & (hosts < u64(limit)) & ((entries & u64(COMPRESSED)) == 0)
        at = numpy.flatnonzero(named)
        is_alone = found.counts[hosts[at].astype(numpy.int64)] == 1
        is_flagged = (entries[at] & u64(COPIED)) != 0
        for severity, which, message in (
            (Severity.CORRUPTION, at[is_flagged & ~is_alone], "has the flag COPIED and is shared"),
            (Severity.LEAK, at[~is_flagged & is_alone], "lacks the flag COPIED: it would be copied for nothing"),
        ):
            for index in which[:_MOST_EACH].tolist():
                report.add(Finding(severity, f"{where} entry {index}", message, "set the flag by the count"))
            if len(which) > _MOST_EACH:
                more = len(which) - _MOST_EACH
                report.add(Finding(severity, where, f"{more} more entries: {message}", "set the flags"), more)

    compare(numpy.asarray(image.tables.l1), "L1")
    if image.tables.has_data_file:
        return
    done: set[int] = set()
    for entry in image.tables.l1:
        host = entry & OFFSET_MASK
        if host in found.tables and host not in done:
            done.add(host)
            compare(entries_of(found.read_table(host), image.tables.words), f"L2 table at {host}")


def _figures(image: Qcow2Image, found: Recount, report: CheckReport) -> None:
    import numpy

    report.total_clusters = -(-image.header.disk_bytes // image.header.cluster_bytes)
    report.allocated_clusters = found.allocated
    report.compressed_clusters = found.compressed
    report.fragmented_clusters = found.fragmented
    used = numpy.flatnonzero(found.counts)
    report.image_end_offset = (int(used[-1]) + 1 if len(used) else 0) << found.bits


# Mending ---------------------------------------------------------------------------------------------------------


def _mend(image: Qcow2Image, found: Recount) -> None:
    from vdisk.formats.qcow2.recount import Recount

    _mend_tables(image, found)
    if "L1" in found.overlapped:
        _move_l1(image)
    image.reload()
    # Counted again: what was cleared refers to nothing any more, and the old counts' own clusters are not kept.
    counted = Recount(image, CheckReport(), with_refcounts=False)
    write_refcounts(image, counted.counts[: counted.file_clusters], image.header.refcount_order)
    _write_flags(image, counted)


def _mend_tables(image: Qcow2Image, found: Recount) -> None:
    """Write the L1 entries and L2 tables that were found wrong as they should be."""
    storage = image.storage
    for host, table in found.bad_l2.items():
        storage.write(host, store_big_endian(table))
    for tree, index, entry in found.bad_l1:
        storage.write(tree.l1_offset + 8 * index, entry.to_bytes(8, "big"))
    storage.flush()


def _move_l1(image: Qcow2Image) -> None:
    """Write the active L1 table to the end of the file, away from what lies on it."""
    header, storage = image.header, image.storage
    offset = -(-storage.size // header.cluster_bytes) * header.cluster_bytes
    data = storage.read(header.l1_offset, header.l1_entries * 8)
    storage.write(offset, data.ljust(-(-len(data) // header.cluster_bytes) * header.cluster_bytes, b"\0"))
    storage.flush()
    header.l1_offset = offset
    header.write_fields(storage)
    storage.flush()


def write_refcounts(image: Qcow2Image, counts: Any, order: int) -> None:
    """Write a new refcount table with blocks behind the end of the file, and switch the header to it.

    `counts` are those of the file's clusters, without the old table and blocks. The dirty and corrupt bits go in the
    same write of the header. `OptionError` when a count does not fit the width.
    """
    import numpy

    header, storage = image.header, image.storage
    bits, cluster_bytes = 1 << order, header.cluster_bytes
    largest = int(counts.max()) if len(counts) else 0
    if largest >= 1 << bits:
        raise OptionError(f"{image.name}: a cluster is used {largest} times, too often for counts of {bits} bits")
    entries = cluster_bytes * 8 // bits
    start = -(-storage.size // cluster_bytes)
    used = {
        index for index in range(-(-len(counts) // entries)) if counts[index * entries : (index + 1) * entries].any()
    }
    blocks, table_clusters = set(used), 0
    while True:  # the blocks and the table are counted too
        end = start + table_clusters + len(blocks)
        wanted = used | set(range(start // entries, -(-end // entries)))
        wanted_table = -(-(max(wanted) + 1) * 8 // cluster_bytes)
        if wanted == blocks and wanted_table == table_clusters:
            break
        blocks, table_clusters = wanted, max(wanted_table, table_clusters)
    if table_clusters * cluster_bytes > MAX_REFCOUNT_TABLE_BYTES:
        raise OptionError(f"{image.name}: counts of {bits} bits would need a refcount table beyond its limit")
    end = start + table_clusters + len(blocks)
    table = array("Q", bytes(table_clusters * cluster_bytes))
    typecode = TYPECODES.get(bits, "B")
    for number, block_index in enumerate(sorted(blocks)):
        first = block_index * entries
        block = numpy.zeros(entries, f"u{array(typecode).itemsize}")
        known = counts[first : first + entries]
        block[: len(known)] = known
        block[max(start - first, 0) : max(end - first, 0)] = 1
        host = (start + table_clusters + number) * cluster_bytes
        storage.write(host, pack_counts(array(typecode, block.tobytes()), bits))
        table[block_index] = host
    storage.write(start * cluster_bytes, store_big_endian(table))
    storage.flush()
    header.refcount_table_offset, header.refcount_table_clusters = start * cluster_bytes, table_clusters
    header.refcount_order = order
    _write_bits(image)


def _write_bits(image: Qcow2Image) -> None:
    image.header.incompatible &= ~(DIRTY | CORRUPT)
    image.header.write_fields(image.storage)
    image.storage.flush()


def _write_flags(image: Qcow2Image, counted: Recount) -> None:
    from vdisk.formats.qcow2.snapshots import write_copied

    if image.tables.has_data_file:
        return
    limit = counted.file_clusters

    def is_alone(clusters: Any) -> Any:
        return counted.counts[clusters.clip(0, limit)] == 1

    write_copied(image, image.tables, is_alone, write_l1=True)


def _lower_counts(image: Qcow2Image, found: Recount, wrong: _Comparison) -> None:
    """Take leaks away where they stand, and mend flags that are merely missing."""
    import numpy

    from vdisk.formats.qcow2.refcounts import Refcounts

    refcounts = Refcounts(image.storage, image.header)
    bits, entries = image.header.refcount_bits, refcounts.block_entries
    for block_index in wrong.leaky_blocks:
        host = refcounts.table[block_index]
        raw = image.storage.read(host, image.header.cluster_bytes).ljust(image.header.cluster_bytes, b"\0")
        stored = numpy.asarray(unpack_counts(raw, bits))
        wanted = numpy.zeros(entries, stored.dtype)
        known = found.counts[block_index * entries : min((block_index + 1) * entries, found.file_clusters)]
        wanted[: len(known)] = numpy.minimum(known, numpy.uint64((1 << bits) - 1)).astype(stored.dtype)
        lowered = numpy.minimum(stored, wanted)
        image.storage.write(host, pack_counts(array(TYPECODES.get(bits, "B"), lowered.tobytes()), bits))
    image.storage.flush()
    _write_flags(image, found)


def rebuild_dirty(image: Qcow2Image) -> None:
    """Count anew an image whose dirty bit says that its counts may be wrong: before the first write to it."""
    from vdisk.formats.qcow2.recount import Recount

    found = Recount(image, CheckReport(), with_refcounts=False)
    if found.structural:
        raise VdiskError(f"{image.name}: is dirty, and its tables are damaged: vdisk check --repair all")
    write_refcounts(image, found.counts[: found.file_clusters], image.header.refcount_order)
    _write_flags(image, found)
    image.reload()
