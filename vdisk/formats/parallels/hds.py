"""`HdsImage`: one expandable image (.hds), by itself or as a part of a bundle."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, Self

from vdisk.block.extent import Extent, Kind
from vdisk.errors import Corrupt, StorageError
from vdisk.formats.blockmap import BlockMapImage, read_table, table_bytes
from vdisk.formats.holes import with_holes
from vdisk.formats.image import Description, OpenRequest
from vdisk.formats.parallels import structs
from vdisk.formats.parallels.extension import build_extension, kept_by_a_writer, read_features
from vdisk.formats.parallels.header import Header
from vdisk.formats.parallels.image import ParallelsImage
from vdisk.formats.parallels.structs import SECTOR_BYTES
from vdisk.formats.places import Part, Places, places_of
from vdisk.storage.base import Storage

_TABLE_PIECE_ENTRIES = 1 << 16


class HdsImage(BlockMapImage, ParallelsImage):
    """Clusters in any order behind a header and one table.

    There is no mark for zeros: in a bundle with snapshots, zeros over an older layer's data are written out. By
    itself the image allocates for a sector at a time, as a new cluster is zeros in the file.
    """

    _marks = (0, 0)

    def __init__(self, storage: Storage, header: Header, *, writable: bool, shows_parent: bool = False) -> None:
        """`shows_parent`: what is not allocated is an older layer's, which whoever made this looks after."""
        cluster_bytes = header.cluster_bytes
        block_size = cluster_bytes if shows_parent else SECTOR_BYTES
        super().__init__(storage, header.disk_bytes, writable=writable, block_size=block_size)
        self.header = header
        self.shows_parent = shows_parent
        self._block_bytes = cluster_bytes
        self._entry_step = 1 if header.is_version_2 else header.cluster_sectors
        self._table = read_table(storage, "BAT", structs.HEADER_BYTES, header.bat_entries)
        if header.flags & structs.EMPTY_IMAGE:
            self._table = array("I", bytes(4 * header.bat_entries))
        self._file_bytes = storage.size
        self._is_marked = False
        self._closed_mark = structs.CLOSED
        self._changed: set[int] = set()
        """Pieces of the table that are not in the file yet, by their first entry over 65536."""
        self._freed: list[int] = []
        self._free: list[int] = []
        """Offsets of clusters that nothing refers to; what they hold is unknown."""

    @classmethod
    def open_kind(cls, storage: Storage, request: OpenRequest) -> Self:
        return cls.open_part(storage, writable=request.writable)

    @classmethod
    def open_part(cls, storage: Storage, *, writable: bool, shows_parent: bool = False) -> Self:
        """Open an image by itself, or one whose unallocated clusters are an older layer's."""
        try:
            return cls(storage, Header.read(storage), writable=writable, shows_parent=shows_parent)
        except BaseException:
            storage.close()
            raise

    @property
    def is_dirty(self) -> bool:
        """Whether the file says that it was not closed."""
        return self.header.in_use == structs.IN_USE and not self._is_marked

    @property
    def table(self) -> array[int]:
        """The BAT's entries, an array of 32-bit numbers."""
        return self._table

    def describe(self) -> Description:
        header = self.header
        specific: dict[str, Any] = {
            "magic": header.magic.decode("ascii"),
            "cluster-size": header.cluster_bytes,
            "data-offset": header.data_offset,
        }
        if header.extension_sector:
            cluster = self.storage.read(header.extension_offset, header.cluster_bytes)
            features = read_features(self.name, cluster)
            specific["extension"] = ["damaged"] if features is None else [feature.name for feature in features]
        notes = ["it was not closed by the program that wrote it last"] if self.is_dirty else []
        # qemu-img info does not show a cluster size here, so it stands among the specifics.
        return Description(is_dirty=self.is_dirty, specific=specific, notes=notes)

    # Reading ---------------------------------------------------------------------------------------------------

    def _host_of(self, entry: int) -> int:
        return entry * self.header.entry_bytes

    def _extent(self, start: int, length: int, entry: int, inside: int) -> Extent:
        if entry == 0:
            return Extent(start, length, Kind.UNALLOCATED)
        host = entry * self.header.entry_bytes
        if host < self.header.data_offset or host + inside + length > self._file_bytes:
            raise Corrupt(
                self.name,
                f"BAT entry of cluster {start // self._block_bytes}",
                expected=f"an offset from {self.header.data_offset} in the file of {self._file_bytes} bytes",
                found=host,
            )
        return Extent(start, length, Kind.DATA, self.storage, host + inside)

    def _survey(self, offset: int, length: int) -> Iterator[Extent]:
        return with_holes(super()._survey(offset, length))

    # Writing ---------------------------------------------------------------------------------------------------

    def places(self) -> Places:
        """Who has which part of the file."""
        import numpy

        header = self.header
        parts = [Part("header and BAT", 0, header.data_offset)]
        if header.extension_sector:
            parts.append(Part("format extension", header.extension_offset, header.cluster_bytes))
        entries = numpy.asarray(self._table, numpy.uint32)
        clusters = numpy.flatnonzero(entries)
        starts = entries[clusters].astype(numpy.uint64) * numpy.uint64(header.entry_bytes)
        return places_of(parts, starts, clusters, header.cluster_bytes, self.storage.size)

    def _begin_write(self) -> None:
        places = self.places()
        places.refuse_overlaps(self.name)
        self.begin_session()
        self._free = places.gaps(self._block_bytes, self._block_bytes, self.header.data_offset)

    def begin_session(self) -> None:
        """Mark the file as in use; features that a writer has to drop go, and so does the flag of an empty image."""
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        header = self.header
        if header.extension_sector:
            self._trim_extension()
        if header.flags & structs.EMPTY_IMAGE:
            self.storage.write(structs.HEADER_BYTES, bytes(4 * header.bat_entries))
            self.storage.flush()
            header.flags &= ~structs.EMPTY_IMAGE
        if header.in_use not in (0, structs.IN_USE):
            self._closed_mark = header.in_use
        header.in_use = structs.IN_USE
        self._is_marked = True
        self.write_header()
        self.storage.flush()

    def _trim_extension(self) -> None:
        header = self.header
        cluster = self.storage.read(header.extension_offset, header.cluster_bytes)
        features = read_features(self.name, cluster)
        kept = kept_by_a_writer(self.name, features) if features is not None else []
        if not kept:
            header.extension_sector = 0
        elif kept != features:
            self.storage.write(header.extension_offset, build_extension(kept, header.cluster_bytes))

    def write_header(self) -> None:
        """Put the header in its place; it is within one sector, and so never torn."""
        self.storage.write(0, self.header.to_bytes())

    def set_entry(self, cluster: int, host: int) -> None:
        """Let a cluster lie at `host`, 0 for nowhere; lasting after `settle`."""
        entry = host // self.header.entry_bytes
        if entry >= 1 << 32:
            raise StorageError(self.name, "grow", f"its table cannot name the offset {host}")
        self._table[cluster] = entry
        self._changed.add(cluster // _TABLE_PIECE_ENTRIES)

    def host_of_cluster(self, cluster: int) -> int:
        """Where a cluster lies; 0 for nowhere."""
        return self._table[cluster] * self.header.entry_bytes

    def take_cluster(self) -> int:
        """The offset of a cluster's worth of zeros."""
        block_bytes = self._block_bytes
        if self._free:
            host = self._free.pop()
            self.storage.zero(host, block_bytes)
            return host
        origin = self.header.data_offset
        host = origin + -(-max(0, self.storage.size - origin) // block_bytes) * block_bytes
        self._file_bytes = host + block_bytes
        self.storage.truncate(self._file_bytes)
        return host

    def _place(self, offset: int, data: memoryview) -> None:
        block_bytes = self._block_bytes
        position, end = offset, offset + len(data)
        while position < end:
            cluster, inside = divmod(position, block_bytes)
            part = min(end - position, block_bytes - inside)
            host = self.host_of_cluster(cluster)
            if not host:
                host = self.take_cluster()
                self.set_entry(cluster, host)
            self.storage.write(host + inside, data[position - offset : position - offset + part])
            position += part

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        if self.shows_parent and any(e.kind is Kind.UNALLOCATED for e in BlockMapImage._survey(self, offset, length)):
            return False
        block_bytes = self._block_bytes
        for extent in list(BlockMapImage._survey(self, offset, length)):
            if extent.kind is not Kind.DATA:
                continue
            position = extent.start
            while position < extent.end:
                cluster, inside = divmod(position, block_bytes)
                part = min(extent.end - position, block_bytes - inside)
                host = self.host_of_cluster(cluster)
                is_whole = part == min(block_bytes, self.size - cluster * block_bytes)
                if is_whole and unmap and not self.shows_parent:
                    self.set_entry(cluster, 0)
                    self._freed.append(host)
                else:
                    self.storage.zero(host + inside, part, unmap=unmap)
                position += part
        return True

    def _discard(self, offset: int, length: int) -> None:
        if not self.shows_parent:
            self._zero(offset, length, True)

    def _flush(self) -> None:
        # The table may name a cluster only once its bytes are safe.
        self.storage.flush()
        if self._changed:
            for piece in sorted(self._changed):
                first = piece * _TABLE_PIECE_ENTRIES
                entries = self._table[first : first + _TABLE_PIECE_ENTRIES]
                self.storage.write(structs.HEADER_BYTES + 4 * first, table_bytes(entries))
            self.storage.flush()
            self._changed.clear()
        while self._freed:
            host = self._freed.pop()
            self.storage.zero(host, self._block_bytes)
            self._free.append(host)

    def settle(self) -> None:
        """Flush all that was changed: for `check` and `resize`, which change the table by themselves."""
        self._flush()

    def start_change(self) -> None:
        """What the first write does."""
        self._start_change()

    def take_size(self) -> None:
        """Follow a header that was changed."""
        self.size = self.header.disk_bytes
        self._table = read_table(self.storage, "BAT", structs.HEADER_BYTES, self.header.bat_entries)
        self.forget_free()

    def forget_free(self) -> None:
        """The file was cut or moved in part: no space in it is known to be free."""
        self._file_bytes = self.storage.size
        self._free.clear()

    def _close(self) -> None:
        try:
            if self._is_marked and not self.is_broken and not self._changed:
                self.storage.flush()
                self.header.in_use = self._closed_mark
                self.write_header()
        finally:
            self.storage.close()
