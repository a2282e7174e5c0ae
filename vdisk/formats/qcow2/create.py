"""`Qcow2Writer`: lays out a qcow2 in one pass: header, data as it comes, then all tables at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.qcow2.header import (
    COMPRESSION_TYPE,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_FEATURE_NAMES,
    LAZY_REFCOUNTS,
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MIN_CLUSTER_BITS,
    Header,
    feature_name_table,
)
from vdisk.formats.qcow2.image import COMPRESSED, COPIED, ZERO_FLAG
from vdisk.formats.qcow2.refcounts import pack_counts, store_big_endian
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.staging import Staging


class Qcow2Writer(Writer):
    """Clusters in the order in which they are placed; compressed ones back to back, as qemu-img packs them."""

    FORMAT_NAME = "qcow2"
    CAN_COMPRESS = True
    CAN_BACK = True
    OPTIONS = (
        Option("compat", "choice", "Version: 0.10 for QEMU before 1.1.", "1.1", ("0.10", "1.1", "v2", "v3")),
        Option("cluster_size", "size", "Bytes of a cluster, 512 to 2M.", 65536),
        Option("refcount_bits", "int", "Width of a reference count, 1 to 64.", 16),
        Option("compression_type", "choice", "How clusters are compressed.", "zlib", ("zlib", "zstd")),
        Option("compression_level", "int", "Effort of the compression: zlib 1-9, zstd 1-22."),
        Option("lazy_refcounts", "bool", "Let who writes put off reference counts.", False),
    )

    def __init__(
        self,
        staging: Staging,
        size: int,
        options: Mapping[str, Any],
        *,
        compress: bool = False,
        backing: Backing | None = None,
    ) -> None:
        super().__init__(staging, size, options, compress=compress, backing=backing)
        self.size = -(-size // 512) * 512
        self._header = self._new_header()
        self.unit_bytes = self._header.cluster_bytes
        if compress:
            self.codec = self._header.codec
            self.level = self.options["compression_level"]
        self._l2: dict[int, array[int]] = {}
        self._shared: dict[int, int] = {}
        """Host clusters that several compressed clusters lie in: how many."""
        self._end = self.unit_bytes  # the header's cluster comes first
        self._storage = staging.create()

    def _new_header(self) -> Header:
        """The header but for the places of the tables, which are known at the end."""
        options = self.options
        version = 2 if options["compat"] in ("0.10", "v2") else 3
        cluster_bytes = options["cluster_size"]
        cluster_bits = cluster_bytes.bit_length() - 1
        if cluster_bytes != 1 << cluster_bits or not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
            raise OptionError(f"qcow2: cluster_size: expected a power of two from 512 to 2M, found {cluster_bytes}")
        refcount_bits = options["refcount_bits"]
        if refcount_bits not in (1, 2, 4, 8, 16, 32, 64):
            raise OptionError(f"qcow2: refcount_bits: expected a power of two from 1 to 64, found {refcount_bits}")
        zstd = options["compression_type"] == "zstd"
        for name, wrong in (
            ("refcount_bits", refcount_bits != 16),
            ("compression_type", zstd),
            ("lazy_refcounts", options["lazy_refcounts"]),
        ):
            if version == 2 and wrong:
                raise OptionError(f"qcow2: {name}: needs compat=1.1")
        level = options["compression_level"]
        if level is not None and not 1 <= level <= (22 if zstd else 9):
            raise OptionError(f"qcow2: compression_level: expected 1 to {22 if zstd else 9}, found {level}")
        header = Header(
            version,
            cluster_bits,
            self.size,
            l1_entries=0,
            l1_offset=0,
            refcount_table_offset=0,
            refcount_table_clusters=0,
            incompatible=COMPRESSION_TYPE if zstd else 0,
            compatible=LAZY_REFCOUNTS if options["lazy_refcounts"] else 0,
            refcount_order=refcount_bits.bit_length() - 1,
            compression_type=int(zstd),
            backing_name=None if self.backing is None else self.backing.name,
        )
        header.l1_entries = header.l1_entries_needed
        if header.l1_entries * 8 > MAX_L1_BYTES:
            largest = (MAX_L1_BYTES // 8) * (header.l2_entries << cluster_bits)
            raise OptionError(f"qcow2: size: clusters of {cluster_bytes} allow at most {largest}, found {self.size}")
        if self.backing is not None:
            header.extensions.append((EXTENSION_BACKING_FORMAT, qemu_name(self.backing.format).encode()))
        if version == 3 and cluster_bytes >= 4096:
            header.extensions.append((EXTENSION_FEATURE_NAMES, feature_name_table()))
        return header

    def _entries(self, first_cluster: int, count: int) -> Iterator[tuple[array[int], int, int]]:
        """(table, first index, count) for a run of guest clusters."""
        entries = self._header.l2_entries
        while count:
            table_index, index = divmod(first_cluster, entries)
            part = min(count, entries - index)
            table = self._l2.get(table_index)
            if table is None:
                table = self._l2[table_index] = array("Q", bytes(self.unit_bytes))
            yield table, index, part
            first_cluster += part
            count -= part

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        unit = self.unit_bytes
        host = -(-self._end // unit) * unit
        count = -(-length // unit)
        at = host | COPIED
        for table, index, part in self._entries(offset // unit, count):
            table[index : index + part] = array("Q", range(at, at + part * unit, unit))
            at += part * unit
        self._end = host + count * unit
        return (Placement(offset, length, self._storage, host),)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        unit, bits = self.unit_bytes, self._header.cluster_bits
        host, length = self._end, len(payload)
        most = (1 << self._header.refcount_bits) - 1
        if host % unit and self._shared.get(host // unit, 1) >= most:
            host = -(-host // unit) * unit  # this host cluster can be counted no further
        first, last = host // unit, (host + length - 1) // unit
        for cluster in range(first, last + 1):
            self._shared[cluster] = self._shared.get(cluster, 0) + 1
        more_sectors = (host + length - 1) // 512 - host // 512
        for table, index, _ in self._entries(offset // unit, 1):
            table[index] = COMPRESSED | more_sectors << (62 - (bits - 8)) | host
        self._end = host + length
        return self._storage, host, payload

    def zero(self, offset: int, length: int) -> None:
        unit = self.unit_bytes
        count = -(-length // unit)
        if self._header.version == 3:
            for table, index, part in self._entries(offset // unit, count):
                table[index : index + part] = array("Q", (ZERO_FLAG,)) * part
            return
        for place in self.place(offset, count * unit):  # version 2 has no mark for zeros: real ones it is
            place.storage.zero(place.host, place.length)

    def finish(self) -> None:
        header, unit, storage = self._header, self.unit_bytes, self._storage
        l1 = array("Q", bytes(8 * header.l1_entries))
        at = -(-self._end // unit) * unit
        for table_index in sorted(self._l2):
            storage.write(at, store_big_endian(self._l2[table_index]))
            l1[table_index] = at | COPIED
            at += unit
        header.l1_offset = at if l1 else 0
        if l1:
            storage.write(at, store_big_endian(l1))
            at += -(-len(l1) * 8 // unit) * unit
        end = self._write_refcounts(at)
        storage.truncate(end)
        storage.write(0, header.to_bytes(storage.name))

    def _write_refcounts(self, at: int) -> int:
        """The refcount table and its blocks, from `at` on; returns where the file ends."""
        header, unit, storage = self._header, self.unit_bytes, self._storage
        block_entries = unit * 8 // header.refcount_bits
        used, blocks, table_clusters = at // unit, 0, 0
        while True:  # the table and the blocks are counted too
            total = used + blocks + table_clusters
            wanted = -(-total // block_entries)
            wanted_table = -(-wanted * 8 // unit)
            if (wanted, wanted_table) == (blocks, table_clusters):
                break
            blocks, table_clusters = wanted, wanted_table
        total = used + blocks + table_clusters
        header.refcount_table_offset, header.refcount_table_clusters = at, table_clusters
        blocks_at = at + table_clusters * unit
        table = array("Q", range(blocks_at, blocks_at + blocks * unit, unit))
        storage.write(at, store_big_endian(table).ljust(table_clusters * unit, b"\0"))
        typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}.get(header.refcount_bits, "B")
        several = sorted((cluster, count) for cluster, count in self._shared.items() if count > 1)
        position = 0
        for number in range(blocks):
            first = number * block_entries
            counts = array(typecode, (1,)) * min(block_entries, total - first)
            counts.extend(array(typecode, bytes(counts.itemsize * (block_entries - len(counts)))))
            while position < len(several) and several[position][0] < first + block_entries:
                counts[several[position][0] - first] = several[position][1]
                position += 1
            storage.write(blocks_at + number * unit, pack_counts(counts, header.refcount_bits))
        return blocks_at + blocks * unit


def qemu_name(format: str) -> str:
    """QEMU's name of a format, as it stands in an image."""
    return {"vhd": "vpc"}.get(format, format)
