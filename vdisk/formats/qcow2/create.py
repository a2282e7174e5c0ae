"""`Qcow2Writer`: lays out a qcow2 in one pass: header, data as it comes, then all tables at once."""

from __future__ import annotations

import os
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
    MIN_CLUSTER_BITS,
    MIN_SUBCLUSTERS_BITS,
    RAW_DATA_FILE,
    Header,
    feature_name_table,
    qemu_name,
)
from vdisk.formats.qcow2.layout import Layout
from vdisk.formats.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COMPRESSED, COPIED, ZERO_FLAG
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.file import FileStorage
from vdisk.storage.staging import Staging


class Qcow2Writer(Writer):
    """Clusters in the order in which they are placed; compressed ones back to back, as qemu-img packs them."""

    FORMAT_NAME = "qcow2"
    CAN_COMPRESS = True
    CAN_BACK = True
    CAN_LENGTHEN = True
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
        self._words = self._header.l2_entry_bytes // 8
        self._storage = staging.create()
        self._layout = Layout(self._storage, self._header)
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
        self._fit_l1(header)
        if self.backing is not None:
            header.extensions.append((EXTENSION_BACKING_FORMAT, qemu_name(self.backing.format).encode()))
        if options["data_file"]:
            header.extensions.append((EXTENSION_DATA_FILE, options["data_file"].encode("utf-8", "surrogateescape")))
        if version == 3 and cluster_bytes >= 4096:
            header.extensions.append((EXTENSION_FEATURE_NAMES, feature_name_table()))
        return header

    def _fit_l1(self, header: Header) -> None:
        header.l1_entries = header.l1_entries_needed
        if header.l1_entries * 8 > MAX_L1_BYTES:
            unit = header.cluster_bytes
            largest = (MAX_L1_BYTES // 8) * (header.l2_entries * unit)
            raise OptionError(f"qcow2: size: clusters of {unit} allow at most {largest}, found {self.size}")

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
        offset = self._layout.clusters(-(-len(luks) // self.unit_bytes))
        self._storage.write(offset, luks)
        place = structs.LuksExtension.build({"offset": offset, "length": len(luks)})
        self._header.crypt_method = 2
        self._header.extensions.insert(0, (EXTENSION_LUKS, place))
        self.holes_are_zeros = False
        self.resumes = False
        self._data = CryptStorage(self._data, XtsSectors(master))

    def lengthen(self, size: int) -> None:
        self.size = self._header.disk_bytes = max(self.size, -(-size // 512) * 512)
        self._fit_l1(self._header)
        self._layout.lengthen()

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        unit = self.unit_bytes
        count = -(-length // unit)
        host = offset if self.options["data_file"] else self._layout.clusters(count)
        self._layout.map(offset // unit, count, host | COPIED, unit, ALL_ALLOCATED)
        return (Placement(offset, length, self._data, host),)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        length = len(payload)
        host = self._layout.packed(length)
        more_sectors = (host + length - 1) // 512 - host // 512
        entry = COMPRESSED | more_sectors << (62 - (self._header.cluster_bits - 8)) | host
        self._layout.map(offset // self.unit_bytes, 1, entry, 0, 0)
        return self._storage, host, payload

    def zero(self, offset: int, length: int) -> None:
        unit = self.unit_bytes
        count = -(-length // unit)
        if self._header.version == 3:
            self._layout.map(offset // unit, count, ZERO_FLAG if self._words == 1 else 0, 0, ALL_ZERO)
            return
        for place in self.place(offset, count * unit):  # version 2 has no mark for zeros: real ones it is
            place.storage.zero(place.host, place.length)

    def _preallocate(self) -> None:
        """Give every cluster that has none a place, in order; they read as zeros."""
        unit, how = self.unit_bytes, self.options["preallocation"]
        entries, words, end = self._header.l2_entries, self._words, -(-self.size // self.unit_bytes)
        places: list[Placement] = []
        for start in range(0, end, entries):
            count = min(entries, end - start)
            table = self._layout.table(start // entries)
            taken = [] if table is None else [n for n in range(count) if any(table[n * words : (n + 1) * words])]
            free_from = 0
            for number in (*taken, count):
                if number > free_from:
                    places += self.place((start + free_from) * unit, (number - free_from) * unit)
                free_from = number + 1
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
        if self.options["preallocation"] != "off":
            self._preallocate()
        if self.options["data_file"]:
            self._data.truncate(self.size)
        self._layout.finish()
        self._storage.write(0, self._header.to_bytes(self._storage.name))
