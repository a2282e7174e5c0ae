"""`SparseLayout`: where a sparse extent keeps its tables, read from a hosted or a COWD header and checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.vmdk import structs
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Storage

LARGEST_GRAIN_SECTORS = 1 << 15
LARGEST_TABLE_ENTRIES = 1 << 16
LARGEST_DIRECTORY_ENTRIES = 1 << 25
"""128 MiB of directory: 64 TiB in grains of 4 KiB."""

_FOOTER_BYTES = 3 * SECTOR_BYTES


@dataclass(slots=True)
class SparseLayout:
    """What a header says. `_sector` fields are offsets in the file, `_sectors` are lengths; a sector has 512 bytes."""

    kind: str
    """'hosted' or 'cowd'."""
    version: int
    capacity_sectors: int
    grain_sectors: int
    entries_per_table: int
    directory_sector: int
    redundant_directory_sector: int | None = None
    overhead_sectors: int = 0
    descriptor_sector: int = 0
    descriptor_sectors: int = 0
    has_zero_grains: bool = False
    is_compressed: bool = False
    has_markers: bool = False
    has_footer: bool = False
    unclean_shutdown: bool = False
    free_sector: int = 0
    """COWD: the first sector that is free."""
    directory_is_lost: bool = False
    """The grain directory lies outside the file, and the redundant one is to serve."""
    notes: list[str] = field(default_factory=list)

    @property
    def capacity_bytes(self) -> int:
        """Length of the extent, as the guest sees it."""
        return self.capacity_sectors * SECTOR_BYTES

    @property
    def grain_bytes(self) -> int:
        """The unit of allocation."""
        return self.grain_sectors * SECTOR_BYTES

    @property
    def table_sectors(self) -> int:
        """Length of one grain table."""
        return -(-self.entries_per_table * 4 // SECTOR_BYTES)

    @property
    def directory_entries(self) -> int:
        """How many grain tables the capacity calls for."""
        return -(-self.capacity_sectors // (self.grain_sectors * self.entries_per_table))

    def holds_directory(self, sector: int, file_bytes: int) -> bool:
        """Whether a grain directory at `sector` lies inside the file."""
        return sector > 0 and sector * SECTOR_BYTES + 4 * self.directory_entries <= file_bytes

    @property
    def directory_sectors(self) -> int:
        """Length of the grain directory."""
        return -(-self.directory_entries * 4 // SECTOR_BYTES)


def read_hosted(storage: Storage) -> SparseLayout:
    """The layout of a hosted sparse extent; where its header says so, that of its footer."""
    name = storage.name
    raw = storage.read(0, SECTOR_BYTES)
    if raw[:4] != structs.HOSTED_MAGIC:
        raise NotThisFormat(name, "magic", expected="KDMV", found=raw[:4])
    header = parse(structs.HostedHeader, raw, name, "header")
    has_footer = header.directory_sector == structs.GD_AT_END
    where = "header"
    if has_footer:
        where = "footer"
        header = parse(structs.HostedHeader, _footer(storage), name, where)
        if header.directory_sector == structs.GD_AT_END:
            raise Corrupt(name, "footer: gdOffset", expected="the grain directory's sector", found="all ones")
    if header.version not in (1, 2, 3):
        raise Unsupported(name, "vmdk", f"sparse extents of version {header.version}")
    if header.flags & structs.FLAG_NEWLINES and header.newlines != structs.NEWLINES:
        raise Corrupt(
            name,
            f"{where}: newline characters",
            expected=structs.NEWLINES,
            found=bytes(header.newlines),
        )
    is_compressed = bool(header.flags & structs.FLAG_COMPRESSED)
    if is_compressed and header.compression != structs.COMPRESSION_DEFLATE:
        raise Unsupported(name, "vmdk", f"compression algorithm {header.compression}")
    layout = SparseLayout(
        "hosted",
        header.version,
        header.capacity_sectors,
        header.grain_sectors,
        header.entries_per_table,
        header.directory_sector,
        header.redundant_directory_sector if header.flags & structs.FLAG_REDUNDANT_TABLES else None,
        header.overhead_sectors,
        header.descriptor_sector,
        header.descriptor_sectors,
        bool(header.flags & structs.FLAG_ZERO_GRAINS),
        is_compressed,
        bool(header.flags & structs.FLAG_MARKERS),
        has_footer,
        bool(header.unclean_shutdown),
    )
    if layout.redundant_directory_sector in (0, structs.GD_AT_END):
        layout.redundant_directory_sector = None
    _check(layout, storage, where)
    return layout


def _footer(storage: Storage) -> bytes:
    """The header's copy at the end of a stream, between its marker and the end-of-stream marker."""
    tail = storage.read(max(0, storage.size - _FOOTER_BYTES), _FOOTER_BYTES)
    if len(tail) == _FOOTER_BYTES:
        marker = parse(structs.Marker, tail[:16], storage.name, "footer marker")
        if (marker.length, marker.type) == (0, structs.MARKER_FOOTER) and tail[512:516] == structs.HOSTED_MAGIC:
            return tail[512:1024]
    raise Corrupt(
        storage.name,
        "footer",
        "the header refers to a footer, and the file does not end with one: it may be cut short",
    )


def read_cowd(storage: Storage) -> SparseLayout:
    """The layout of a COWD (vmfsSparse) extent."""
    name = storage.name
    raw = storage.read(0, structs.CowdHeader.sizeof())
    if raw[:4] != structs.COWD_MAGIC:
        raise NotThisFormat(name, "magic", expected="COWD", found=raw[:4])
    header = parse(structs.CowdHeader, raw, name, "header")
    if header.version != 1:
        raise Unsupported(name, "vmdk", f"COWD extents of version {header.version}")
    layout = SparseLayout(
        "cowd",
        header.version,
        header.capacity_sectors,
        header.grain_sectors,
        structs.COWD_ENTRIES_PER_TABLE,
        header.directory_sector,
        unclean_shutdown=bool(header.unclean_shutdown),
        free_sector=header.free_sector,
    )
    _check(layout, storage, "header")
    if header.directory_entries < layout.directory_entries:
        raise Corrupt(
            name,
            "header: numGDEntries",
            expected=f"at least {layout.directory_entries}",
            found=header.directory_entries,
        )
    return layout


def _check(layout: SparseLayout, storage: Storage, where: str) -> None:
    """Every number within what a file can mean, before any is used."""
    name = storage.name

    def expect(holds: bool, what: str, expected: object, found: object) -> None:
        if not holds:
            raise Corrupt(name, f"{where}: {what}", expected=expected, found=found)

    grain, entries = layout.grain_sectors, layout.entries_per_table
    smallest = 1 if layout.kind == "cowd" else 2
    expect(
        smallest <= grain <= LARGEST_GRAIN_SECTORS and grain & (grain - 1) == 0,
        "grainSize",
        f"a power of two from {smallest} to {LARGEST_GRAIN_SECTORS}",
        grain,
    )
    expect(1 <= entries <= LARGEST_TABLE_ENTRIES, "numGTEsPerGT", f"1 to {LARGEST_TABLE_ENTRIES}", entries)
    expect(layout.capacity_sectors < 1 << 53, "capacity", "less than 2^53 sectors", layout.capacity_sectors)
    if layout.capacity_sectors == 0:
        return
    count = layout.directory_entries
    expect(count <= LARGEST_DIRECTORY_ENTRIES, "capacity", f"at most {LARGEST_DIRECTORY_ENTRIES} grain tables", count)
    layout.directory_is_lost = not layout.holds_directory(layout.directory_sector, storage.size)
    if layout.directory_is_lost:
        redundant = layout.redundant_directory_sector
        expect(
            redundant is not None and layout.holds_directory(redundant, storage.size),
            "gdOffset",
            f"a grain directory of {count} entries inside the file of {storage.size} bytes",
            f"sector {layout.directory_sector}",
        )
        layout.notes.append("the grain directory lies outside the file: the redundant one is used")
