"""The header and its extensions as a dataclass, checked field by field, and back to bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.qcow2 import structs
from vdisk.storage.base import Storage

# Incompatible features: who does not know one must not open the image.
DIRTY, CORRUPT, DATA_FILE, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
# Compatible, and autoclear ones.
LAZY_REFCOUNTS = 1
BITMAPS, RAW_DATA_FILE = 1, 2

_KNOWN_INCOMPATIBLE = {
    DIRTY: "dirty bit",
    CORRUPT: "corrupt bit",
    DATA_FILE: "external data file",
    COMPRESSION_TYPE: "compression type",
    EXTENDED_L2: "extended L2 entries",
}
_FEATURE_NAMES = (
    *((0, bit, name) for bit, name in enumerate(_KNOWN_INCOMPATIBLE.values())),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)

EXTENSION_END = 0
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_LUKS = 0x0537BE77
EXTENSION_DATA_FILE = 0x44415441

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MIN_SUBCLUSTERS_BITS = 14  # a subcluster is a sector at least
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_BACKING_NAME_BYTES = 1023

COMPRESSION_CODECS = {0: "deflate", 1: "zstd"}
CRYPT_NAMES = {1: "AES", 2: "LUKS"}


@dataclass(slots=True)
class Header:
    """What a qcow2 says of itself. Sizes and offsets are bytes."""

    version: int
    cluster_bits: int
    disk_bytes: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshot_count: int = 0
    snapshots_offset: int = 0
    crypt_method: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = 0
    backing_name: str | None = None
    backing_name_offset: int = 0
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    """(type, data), in the file's order, those that are not understood too; without the end mark."""
    header_bytes: int = 0
    tail: bytes = b""
    """Header fields behind the compression type that are not understood."""

    @property
    def cluster_bytes(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        """Width of a reference count."""
        return 1 << self.refcount_order

    @property
    def codec(self) -> str:
        """Codec of compressed clusters, as `vdisk.block.codecs` calls it."""
        return COMPRESSION_CODECS[self.compression_type]

    @property
    def has_subclusters(self) -> bool:
        """Extended L2 entries: 16 bytes each, with a bitmap of 32 subclusters."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entry_bytes(self) -> int:
        """Bytes of an L2 entry."""
        return 16 if self.has_subclusters else 8

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which fills a cluster."""
        return self.cluster_bytes // self.l2_entry_bytes

    @property
    def l1_entries_needed(self) -> int:
        """L1 entries that the disk's size asks for."""
        return -(-self.disk_bytes // (self.l2_entries << self.cluster_bits))

    def extension(self, kind: int) -> bytes | None:
        """Data of the extension of a type, or None."""
        return next((data for found, data in self.extensions if found == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Put data in the extension of a type, where it stands or first; None takes it away."""
        for index, (found, _) in enumerate(self.extensions):
            if found == kind:
                if data is None:
                    del self.extensions[index]
                else:
                    self.extensions[index] = (kind, data)
                return
        if data is not None:
            self.extensions.insert(0, (kind, data))

    @property
    def backing_format(self) -> str | None:
        """The format that the image names for its backing file."""
        data = self.extension(EXTENSION_BACKING_FORMAT)
        return None if data is None else data.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def data_file_name(self) -> str | None:
        """The file that holds the guest's clusters, as the image names it."""
        data = self.extension(EXTENSION_DATA_FILE)
        return None if not data else data.rstrip(b"\0").decode("utf-8", "surrogateescape")

    # Reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """The header of a file; every number is within what the file can mean."""
        name = storage.name
        raw = storage.read(0, 1 << 12)
        if raw[:4] != structs.MAGIC:
            raise NotThisFormat(name, "magic", expected="QFI\\xfb", found=raw[:4].hex() or "nothing")
        found = parse(structs.HeaderV2, raw, name, "header")
        if found.version not in (2, 3):
            raise Unsupported(name, "qcow2", f"version {found.version}")
        header = cls(
            found.version,
            found.cluster_bits,
            found.disk_bytes,
            found.l1_entries,
            found.l1_offset,
            found.refcount_table_offset,
            found.refcount_table_clusters,
            found.snapshot_count,
            found.snapshots_offset,
            found.crypt_method,
            header_bytes=72,
        )
        if found.version == 3:
            header._read_version_3(name, raw)
        header._check(name)
        header._read_extensions(storage, found.backing_name_offset)
        if found.backing_name_offset:
            header._read_backing_name(storage, found.backing_name_offset, found.backing_name_bytes)
        header._refuse_unknown(name)
        return header

    def _read_version_3(self, name: str, raw: bytes) -> None:
        more = parse(structs.HeaderV3, raw[72:], name, "header")
        self.incompatible, self.compatible, self.autoclear = more.incompatible, more.compatible, more.autoclear
        self.refcount_order, self.header_bytes = more.refcount_order, more.header_bytes
        if not 104 <= more.header_bytes <= len(raw) or more.header_bytes % 8:
            raise Corrupt(name, "header_length", expected="a multiple of 8 from 104 on", found=more.header_bytes)
        if more.header_bytes > 104:
            self.compression_type = raw[104]
            self.tail = raw[112 : more.header_bytes]

    def _check(self, name: str) -> None:
        def expect(holds: bool, field: str, expected: object, found: object) -> None:
            if not holds:
                raise Corrupt(name, field, expected=expected, found=found)

        bits = self.cluster_bits
        expect(MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS, "cluster_bits", "9 to 21", bits)
        cluster = self.cluster_bytes
        expect(self.header_bytes <= cluster, "header_length", f"at most a cluster, {cluster}", self.header_bytes)
        expect(self.refcount_order <= 6, "refcount_order", "0 to 6", self.refcount_order)
        expect(self.version == 3 or self.refcount_order == 4, "refcount_order", 4, self.refcount_order)
        expect(self.disk_bytes < 1 << 63, "size", "less than 8 EiB", self.disk_bytes)
        expect(self.l1_entries * 8 <= MAX_L1_BYTES, "l1_size", f"at most {MAX_L1_BYTES // 8}", self.l1_entries)
        expect(
            self.l1_entries >= self.l1_entries_needed, "l1_size", f"at least {self.l1_entries_needed}", self.l1_entries
        )
        for field_name, offset in (
            ("l1_table_offset", self.l1_offset),
            ("refcount_table_offset", self.refcount_table_offset),
            ("snapshots_offset", self.snapshots_offset),
        ):
            expect(offset % cluster == 0, field_name, f"a multiple of {cluster}", offset)
            expect(offset < 1 << 62, field_name, "less than 4 EiB", offset)
        table_bytes = self.refcount_table_clusters * cluster
        expect(
            table_bytes <= MAX_REFCOUNT_TABLE_BYTES,
            "refcount_table_clusters",
            f"at most {MAX_REFCOUNT_TABLE_BYTES // cluster}",
            self.refcount_table_clusters,
        )
        expect(self.snapshot_count <= 65536, "nb_snapshots", "at most 65536", self.snapshot_count)
        if self.has_subclusters:
            expect(bits >= MIN_SUBCLUSTERS_BITS, "cluster_bits", "14 or more with extended L2 entries", bits)
        if self.incompatible & DATA_FILE:
            expect(self.snapshot_count == 0, "nb_snapshots", "0 with a data file", self.snapshot_count)
        named = bool(self.incompatible & COMPRESSION_TYPE)
        expect(named == (self.compression_type != 0), "compression_type", "a type that agrees with its feature bit",
               self.compression_type)  # fmt: skip

    def _read_extensions(self, storage: Storage, limit: int) -> None:
        """Header extensions: up to the end mark, the backing file's name or the end of the first cluster."""
        name = storage.name
        end = limit if self.header_bytes <= limit <= self.cluster_bytes else self.cluster_bytes
        raw = storage.read(0, end)
        at = self.header_bytes
        while at + 8 <= len(raw):
            head = parse(structs.ExtensionHead, raw[at : at + 8], name, "header extension")
            if head.type == EXTENSION_END:
                return
            at += 8
            if at + head.length > len(raw):
                raise Corrupt(name, f"header extension {head.type:#x}", expected=f"at most {len(raw) - at} bytes",
                              found=head.length)  # fmt: skip
            self.extensions.append((head.type, raw[at : at + head.length]))
            at += -(-head.length // 8) * 8

    def _read_backing_name(self, storage: Storage, offset: int, length: int) -> None:
        name = storage.name
        if length > MAX_BACKING_NAME_BYTES:
            raise Corrupt(name, "backing_file_size", expected=f"at most {MAX_BACKING_NAME_BYTES}", found=length)
        raw = storage.read(offset, length)
        if len(raw) < length or offset + length > self.cluster_bytes:
            raise Corrupt(name, "backing_file_offset", expected="within the first cluster", found=offset)
        if raw:
            self.backing_name = raw.decode("utf-8", "surrogateescape")
            self.backing_name_offset = offset

    def _refuse_unknown(self, name: str) -> None:
        known = sum(_KNOWN_INCOMPATIBLE)
        for bit in range(64):
            if self.incompatible & ~known & (1 << bit):
                raise Unsupported(name, "qcow2", f"incompatible feature {self._feature_name(bit)}")
        if self.compression_type not in COMPRESSION_CODECS:
            raise Unsupported(name, "qcow2", f"compression type {self.compression_type}")
        if self.crypt_method not in (0, *CRYPT_NAMES):
            raise Unsupported(name, "qcow2", f"encryption method {self.crypt_method}")

    def _feature_name(self, bit: int) -> str:
        """An incompatible bit by the name that the image's own table gives it."""
        table = self.extension(EXTENSION_FEATURE_NAMES) or b""
        row = structs.FeatureName.sizeof()
        for at in range(0, len(table) - row + 1, row):
            if table[at] == 0 and table[at + 1] == bit:
                return table[at + 2 : at + row].split(b"\0")[0].decode("utf-8", "replace")
        return f"bit {bit}"

    # Writing ---------------------------------------------------------------------------------------------------

    def write_whole(self, storage: Storage) -> None:
        """Write the first cluster: fields, extensions, backing file's name; zeros behind them."""
        whole = self.to_bytes(storage.name)
        storage.write(0, whole.ljust(min(self.cluster_bytes, max(len(whole), 4096)), b"\0"))

    def write_fields(self, storage: Storage) -> None:
        """Write the fixed fields in place, up to the header's length: one sector, so all of them or none."""
        storage.write(0, self._fixed_fields()[:104])

    def to_bytes(self, file: str = "qcow2") -> bytes:
        """The first cluster: header, extensions, backing file's name. `Unsupported` when it does not hold them all."""
        self.header_bytes = 72 if self.version == 2 else max(self.header_bytes, 112 + len(self.tail))
        extensions = b"".join(
            structs.ExtensionHead.build({"type": kind, "length": len(data)}) + data + bytes(-len(data) % 8)
            for kind, data in self.extensions
        ) + bytes(8)
        name = self._name_bytes
        end = self.header_bytes + len(extensions) + len(name)
        if end > self.cluster_bytes and self.extension(EXTENSION_FEATURE_NAMES) is not None:
            self.set_extension(EXTENSION_FEATURE_NAMES, None)  # names for errors only: the first to make room
            return self.to_bytes(file)
        if end > self.cluster_bytes or len(name) > MAX_BACKING_NAME_BYTES:
            raise Unsupported(file, "qcow2", f"a header of more than {self.cluster_bytes} bytes")
        self.backing_name_offset = end - len(name) if name else 0
        return self._fixed_fields() + extensions + name

    @property
    def _name_bytes(self) -> bytes:
        return (self.backing_name or "").encode("utf-8", "surrogateescape")

    def _fixed_fields(self) -> bytes:
        """The header's `header_bytes`, without extensions."""
        raw: bytes = structs.HeaderV2.build(
            {
                "magic": structs.MAGIC,
                "version": self.version,
                "backing_name_offset": self.backing_name_offset,
                "backing_name_bytes": len(self._name_bytes),
                "cluster_bits": self.cluster_bits,
                "disk_bytes": self.disk_bytes,
                "crypt_method": self.crypt_method,
                "l1_entries": self.l1_entries,
                "l1_offset": self.l1_offset,
                "refcount_table_offset": self.refcount_table_offset,
                "refcount_table_clusters": self.refcount_table_clusters,
                "snapshot_count": self.snapshot_count,
                "snapshots_offset": self.snapshots_offset,
            }
        )
        if self.version == 3:
            raw += structs.HeaderV3.build(
                {
                    "incompatible": self.incompatible,
                    "compatible": self.compatible,
                    "autoclear": self.autoclear,
                    "refcount_order": self.refcount_order,
                    "header_bytes": self.header_bytes,
                }
            )
            if self.header_bytes > 104:
                raw += bytes([self.compression_type]) + bytes(7) + self.tail
        return raw


def feature_name_table() -> bytes:
    """The names of all feature bits that are known here, for those who do not know them."""
    return b"".join(
        structs.FeatureName.build({"kind": kind, "bit": bit, "name": name.encode().ljust(46, b"\0")})
        for kind, bit, name in _FEATURE_NAMES
    )


def qemu_name(format: str) -> str:
    """QEMU's name of a format, as it stands in an image."""
    return {"vhd": "vpc"}.get(format, format)
