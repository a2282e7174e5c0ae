"""`Layout`: the tables of an image in the making, in bounded memory whatever its length.

L2 tables wait in memory and are written in bulk: when they have become many, and at the end. One that is asked for
again after it was written comes back from the file. Counts are kept only for host clusters that compressed data shares.
"""

from __future__ import annotations

from array import array

from vdisk.errors import OptionError
from vdisk.formats.qcow2.header import MAX_REFCOUNT_TABLE_BYTES, Header
from vdisk.formats.qcow2.tables import COPIED, OFFSET_MASK
from vdisk.formats.qcow2.words import TYPECODES, load_big_endian, pack_counts, store_big_endian
from vdisk.storage.base import Storage

_TABLES_KEPT_BYTES = 32 << 20


class Layout:
    """Gives host clusters out in order, and maps guest clusters to them."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._header = header
        self._unit = header.cluster_bytes
        self._words = header.l2_entry_bytes // 8
        self.end = self._unit
        """Offset behind all that is in use; the header's cluster comes first."""
        self._l1 = array("Q", bytes(8 * header.l1_entries))
        self._l2: dict[int, array[int]] = {}
        self._shares = array("H")
        """How many compressed clusters lie in each host cluster."""
        self._most_shares = min((1 << header.refcount_bits) - 1, 65535)

    # Room ------------------------------------------------------------------------------------------------------

    def clusters(self, count: int) -> int:
        """Offset of `count` new clusters in a row."""
        host = -(-self.end // self._unit) * self._unit
        self.end = host + count * self._unit
        return host

    def packed(self, length: int) -> int:
        """Offset of `length` bytes behind the last packed ones; clusters are shared as far as counts allow."""
        host = self.end
        if host % self._unit and self._shares_of(host // self._unit) >= self._most_shares:
            host = -(-host // self._unit) * self._unit
        last = (host + length - 1) // self._unit
        if last >= len(self._shares):
            self._shares.extend(array("H", bytes(2 * (last + 1 - len(self._shares)))))
        for cluster in range(host // self._unit, last + 1):
            self._shares[cluster] += 1
        self.end = host + length
        return host

    def _shares_of(self, cluster: int) -> int:
        return max(1, self._shares[cluster]) if cluster < len(self._shares) else 1

    def lengthen(self) -> None:
        """Make the L1 table as long as the header says by now."""
        self._l1.extend(array("Q", bytes(8 * (self._header.l1_entries - len(self._l1)))))

    # Tables ----------------------------------------------------------------------------------------------------

    def map(self, first_cluster: int, count: int, at: int, step: int, bitmap: int) -> None:
        """Entries of a run of guest clusters: `at`, and `step` more for each that follows."""
        entries, words = self._header.l2_entries, self._words
        while count:
            table_index, index = divmod(first_cluster, entries)
            part = min(count, entries - index)
            table = self.table(table_index)
            if table is None:
                if len(self._l2) * self._unit >= _TABLES_KEPT_BYTES:
                    self.write_tables()
                table = self._l2[table_index] = array("Q", bytes(self._unit))
            run = array("Q", range(at, at + part * step, step)) if step else array("Q", (at,)) * part
            table[index * words : (index + part) * words : words] = run
            if words == 2:
                table[index * 2 + 1 : (index + part) * 2 : 2] = array("Q", (bitmap,)) * part
            at += part * step
            first_cluster += part
            count -= part

    def table(self, table_index: int) -> array[int] | None:
        """An L2 table, to be changed; None where there is none yet."""
        table = self._l2.get(table_index)
        if table is None and self._l1[table_index]:
            raw = self._storage.read(self._l1[table_index] & OFFSET_MASK, self._unit)
            table = self._l2[table_index] = load_big_endian(raw, "Q")
        return table

    def write_tables(self) -> None:
        """Write the tables in memory, new ones to clusters in a row."""
        for table_index in sorted(self._l2):
            if not self._l1[table_index]:
                self._l1[table_index] = self.clusters(1) | COPIED
            self._storage.write(self._l1[table_index] & OFFSET_MASK, store_big_endian(self._l2[table_index]))
        self._l2.clear()

    def finish(self) -> None:
        """Write all tables, and into the header where they are; the file ends with the last refcount block."""
        header, unit, storage = self._header, self._unit, self._storage
        self.write_tables()
        if self._l1:
            header.l1_offset = self.clusters(-(-len(self._l1) * 8 // unit))
            storage.write(header.l1_offset, store_big_endian(self._l1))
        storage.truncate(self._write_refcounts(self.clusters(0)))

    def _write_refcounts(self, at: int) -> int:
        """The refcount table and its blocks, from `at` on; returns where the file ends."""
        header, unit, storage = self._header, self._unit, self._storage
        block_entries = unit * 8 // header.refcount_bits
        used, blocks, table_clusters = at // unit, 0, 0
        while True:  # the table and the blocks are counted too
            total = used + blocks + table_clusters
            wanted = -(-total // block_entries)
            wanted_table = -(-wanted * 8 // unit)
            if (wanted, wanted_table) == (blocks, table_clusters):
                break
            blocks, table_clusters = wanted, wanted_table
        if table_clusters * unit > MAX_REFCOUNT_TABLE_BYTES:
            raise OptionError(f"qcow2: size: a refcount table cannot count {total} clusters of {unit} bytes")
        header.refcount_table_offset, header.refcount_table_clusters = at, table_clusters
        blocks_at = at + table_clusters * unit
        table = array("Q", range(blocks_at, blocks_at + blocks * unit, unit))
        storage.write(at, store_big_endian(table).ljust(table_clusters * unit, b"\0"))
        typecode = TYPECODES.get(header.refcount_bits, "B")
        for number in range(blocks):
            first = number * block_entries
            counts = array(typecode, (1,)) * min(block_entries, total - first)
            for index, shares in enumerate(self._shares[first : first + len(counts)]):
                if shares > 1:
                    counts[index] = shares
            counts.extend(array(typecode, bytes(counts.itemsize * (block_entries - len(counts)))))
            storage.write(blocks_at + number * unit, pack_counts(counts, header.refcount_bits))
        return blocks_at + blocks * unit
