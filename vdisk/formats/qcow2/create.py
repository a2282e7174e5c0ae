"""`Qcow2Writer`: lays out a qcow2 in one pass: header, data as it comes, then all tables at once."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from vdisk.errors import OptionError, StorageError
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.qcow2 import structs
from vdisk.formats.qcow2.header import (
    COMPRESSION_TYPE,
    DATA_FILE,
    EXTENDED_L2,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_DATA_FILE,
    EXTENSION_FEATURE_NAMES,
    EXTENSION_LUKS,
    LAZY_REFCOUNTS,
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MAX_REFCOUNT_TABLE_BYTES,
    MIN_CLUSTER_BITS,
    MIN_SUBCLUSTERS_BITS,
    RAW_DATA_FILE,
    Header,
    feature_name_table,
    qemu_name,
)
from vdisk.formats.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COMPRESSED, COPIED, ZERO_FLAG
from vdisk.formats.qcow2.words import pack_counts, store_big_endian
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.file import FileStorage
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
        Option("extended_l2", "bool", "32 subclusters a cluster: small writes into large clusters.", False),
        Option("data_file", "text", "Name of a file in the same folder that is to hold the guest's data."),
        Option("data_file_raw", "bool", "Keep the data file a raw image of the disk.", False),
        Option(
            "preallocation",
            "choice",
            "Room for all of the disk from the start.",
            "off",
            ("off", "metadata", "falloc", "full"),
        ),
        Option("encrypt.format", "choice", "Encrypt the disk.", None, ("luks",)),
        Option("encrypt.secret", "text", "Where its secret is: file:PATH, or env:NAME of a variable."),
        Option("encrypt.hash-alg", "choice", "Hash of the key's derivation.", "sha256", ("sha1", "sha256", "sha512")),
        Option("encrypt.iterations", "int", "Rounds of the key's derivation.", 600_000),
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
        self._words = self._header.l2_entry_bytes // 8
        self._storage = staging.create()
        self._data: Storage = self._storage
        """Where clusters are written: the file, its encrypting view, or the data file."""
        if self.options["data_file"]:
            self._data = staging.create(self.options["data_file"])
        if self.options["encrypt.format"]:
            self._add_encryption()

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
            ("extended_l2", options["extended_l2"]),
            ("data_file", options["data_file"]),
            ("encrypt.format", options["encrypt.format"]),
        ):
            if version == 2 and wrong:
                raise OptionError(f"qcow2: {name}: needs compat=1.1")
        level = options["compression_level"]
        if level is not None and not 1 <= level <= (22 if zstd else 9):
            raise OptionError(f"qcow2: compression_level: expected 1 to {22 if zstd else 9}, found {level}")
        self._check_combination(cluster_bits)
        incompatible = COMPRESSION_TYPE if zstd else 0
        incompatible |= EXTENDED_L2 if options["extended_l2"] else 0
        incompatible |= DATA_FILE if options["data_file"] else 0
        header = Header(
            version,
            cluster_bits,
            self.size,
            l1_entries=0,
            l1_offset=0,
            refcount_table_offset=0,
            refcount_table_clusters=0,
            incompatible=incompatible,
            compatible=LAZY_REFCOUNTS if options["lazy_refcounts"] else 0,
            autoclear=RAW_DATA_FILE if options["data_file_raw"] else 0,
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
        if options["data_file"]:
            header.extensions.append((EXTENSION_DATA_FILE, options["data_file"].encode("utf-8", "surrogateescape")))
        if version == 3 and cluster_bytes >= 4096:
            header.extensions.append((EXTENSION_FEATURE_NAMES, feature_name_table()))
        return header

    def _check_combination(self, cluster_bits: int) -> None:
        """Options that do not go together are an `OptionError`."""
        options = self.options
        data_file, name = options["data_file"], "qcow2"
        if options["extended_l2"] and cluster_bits < MIN_SUBCLUSTERS_BITS:
            raise OptionError(f"{name}: extended_l2: needs cluster_size of 16K or more")
        if options["data_file_raw"] and not data_file:
            raise OptionError(f"{name}: data_file_raw: needs data_file")
        if options["data_file_raw"] and self.backing is not None:
            raise OptionError(f"{name}: data_file_raw: a raw data file cannot have a backing file behind it")
        if data_file and (self.compress or "/" in data_file or "\\" in data_file):
            what = "cannot hold compressed clusters" if self.compress else "expected a file name without a folder"
            raise OptionError(f"{name}: data_file: {what}")
        if options["preallocation"] != "off" and self.backing is not None:
            raise OptionError(f"{name}: preallocation: would hide the backing file")
        if options["encrypt.format"]:
            if self.compress or options["preallocation"] != "off":
                raise OptionError(f"{name}: encrypt.format: goes neither with compression nor with preallocation")
            if not options["encrypt.secret"]:
                raise OptionError(f"{name}: encrypt.secret: say where the secret is: file:PATH or env:NAME")
            if not 1000 <= options["encrypt.iterations"] <= 100_000_000:
                raise OptionError(f"{name}: encrypt.iterations: expected 1000 to 100000000")

    def _add_encryption(self) -> None:
        """A LUKS header in the clusters behind the first."""
        from vdisk.formats.qcow2.encryption import CryptStorage, XtsSectors, need_cryptography, secret_from
        from vdisk.formats.qcow2.luks import make_luks

        options = self.options
        need_cryptography(self._storage.name)
        luks, master = make_luks(
            secret_from(options["encrypt.secret"]),
            hash_name=options["encrypt.hash-alg"],
            iterations=options["encrypt.iterations"],
        )
        self._storage.write(self._end, luks)
        place = structs.LuksExtension.build({"offset": self._end, "length": len(luks)})
        self._header.crypt_method = 2
        self._header.extensions.insert(0, (EXTENSION_LUKS, place))
        self._end += -(-len(luks) // self.unit_bytes) * self.unit_bytes
        self._data = CryptStorage(self._data, XtsSectors(master))

    def _set(self, first_cluster: int, count: int, at: int, step: int, bitmap: int) -> None:
        """Entries of a run of guest clusters: `at`, and `step` more for each that follows."""
        entries, words = self._header.l2_entries, self._words
        while count:
            table_index, index = divmod(first_cluster, entries)
            part = min(count, entries - index)
            table = self._l2.get(table_index)
            if table is None:
                table = self._l2[table_index] = array("Q", bytes(self.unit_bytes))
            run = array("Q", range(at, at + part * step, step)) if step else array("Q", (at,)) * part
            table[index * words : (index + part) * words : words] = run
            if words == 2:
                table[index * 2 + 1 : (index + part) * 2 : 2] = array("Q", (bitmap,)) * part
            at += part * step
            first_cluster += part
            count -= part

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        unit = self.unit_bytes
        count = -(-length // unit)
        if self.options["data_file"]:
            host = offset
        else:
            host = -(-self._end // unit) * unit
            self._end = host + count * unit
        self._set(offset // unit, count, host | COPIED, unit, ALL_ALLOCATED)
        return (Placement(offset, length, self._data, host),)

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
        self._set(offset // unit, 1, COMPRESSED | more_sectors << (62 - (bits - 8)) | host, 0, 0)
        self._end = host + length
        return self._storage, host, payload

    def zero(self, offset: int, length: int) -> None:
        unit = self.unit_bytes
        count = -(-length // unit)
        if self._header.version == 3:
            self._set(offset // unit, count, ZERO_FLAG if self._words == 1 else 0, 0, ALL_ZERO)
            return
        for place in self.place(offset, count * unit):  # version 2 has no mark for zeros: real ones it is
            place.storage.zero(place.host, place.length)

    def _preallocate(self) -> None:
        """Give every cluster that has none a place, in order; they read as zeros."""
        unit, how = self.unit_bytes, self.options["preallocation"]
        first, count, end = 0, 0, -(-self.size // unit)
        places: list[Placement] = []
        entries, words = self._header.l2_entries, self._words
        for cluster in range(end + 1):
            table = self._l2.get(cluster // entries) if cluster < end else None
            if cluster < end and (table is None or not any(table[cluster % entries * words :][:words])):
                count += 1
                continue
            if count:
                places += self.place(first * unit, count * unit)
            first, count = cluster + 1, 0
        for place in places:
            storage, length = place.storage, min(place.length, self.size - place.offset)
            if how == "full":
                storage.zero(place.host, length, unmap=False)
            elif how == "falloc" and isinstance(storage, FileStorage) and hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(storage.file_descriptor, place.host, length)
                except OSError as error:
                    raise StorageError(storage.name, "allocate", error) from error

    def finish(self) -> None:
        header, unit, storage = self._header, self.unit_bytes, self._storage
        if self.options["preallocation"] != "off":
            self._preallocate()
        if self.options["data_file"]:
            self._data.truncate(self.size)
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
        if table_clusters * unit > MAX_REFCOUNT_TABLE_BYTES:
            raise OptionError(
                f"qcow2: size: {total} clusters of {unit} bytes are more than its refcount table can count"
            )
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
