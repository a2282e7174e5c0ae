"""`Qcow2Image`: versions 2 and 3 of QEMU's copy-on-write images (QEMU docs/interop/qcow2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Encoded, Extent
from vdisk.errors import Corrupt, PolicyError, Unsupported
from vdisk.formats import open_behind
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.image import Description, Image, OpenRequest
from vdisk.formats.qcow2.editor import MapEditor
from vdisk.formats.qcow2.header import (
    BITMAPS,
    CORRUPT,
    DATA_FILE,
    DIRTY,
    EXTENSION_BITMAPS,
    LAZY_REFCOUNTS,
    RAW_DATA_FILE,
    Header,
)
from vdisk.formats.qcow2.refcounts import Refcounts
from vdisk.formats.qcow2.tables import AES_CODEC, ClusterMap
from vdisk.storage.base import Buffer, Storage

if TYPE_CHECKING:
    from vdisk.formats.qcow2.bitmaps import BitmapTracker
    from vdisk.formats.qcow2.encryption import Encryption
    from vdisk.formats.qcow2.snapshots import Snapshot, SnapshotDevice


class Qcow2Image(StorageDevice, Image):
    """An image with all that version 3 has: subclusters, a data file, encryption, snapshots, bitmaps.

    Metadata changes stay in memory until `flush`; `MapEditor` has the order in which they are written. Its parts are
    public for the modules that maintain an image: `header`, `tables`, `editor`.
    """

    format_name = "qcow2"

    def __init__(
        self,
        storage: Storage,
        header: Header,
        *,
        writable: bool,
        backing: BlockDevice | None,
        data_file: Storage | None = None,
        encryption: Encryption | None = None,
    ) -> None:
        block_size = header.cluster_bytes // (32 if header.has_subclusters else 1)
        super().__init__(storage, header.disk_bytes, writable=writable, block_size=block_size, backing=backing)
        self.header = header
        self.data_file = data_file
        self.encryption = encryption
        data = data_file if data_file is not None else storage
        if encryption is not None:
            data = encryption.view(data)
        self.tables = ClusterMap(storage, data, header, header.l1_offset, header.l1_entries)
        self._editor: MapEditor | None = None
        self._tracker: BitmapTracker | None = None

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        opened: list[BlockDevice | Storage] = [storage]
        try:
            header = Header.read(storage)
            encryption: Encryption | None = None
            if header.crypt_method:
                from vdisk.formats.qcow2.encryption import open_encryption

                if request.writable and header.crypt_method == 1:
                    raise Unsupported(storage.name, "qcow2", "writing under AES encryption (LUKS has taken its place)")
                encryption = open_encryption(storage, header, request.secret)
            data_file: Storage | None = None
            if header.incompatible & DATA_FILE:
                data_name = header.data_file_name
                if data_name is None:
                    raise Corrupt(storage.name, "external data file", "the image does not name it")
                data_file = request.gate.open("data file", data_name, writable=request.writable)
                opened.append(data_file)
            backing: BlockDevice | None = None
            if header.backing_name is not None and request.with_backing:
                backing = _open_backing(header.backing_name, header.backing_format, storage, request)
                opened.append(backing)
            return cls(
                storage, header, writable=request.writable, backing=backing, data_file=data_file, encryption=encryption
            )
        except BaseException:
            for what in opened:
                what.close()
            raise

    def describe(self) -> Description:
        from vdisk.formats.qcow2.bitmaps import describe_bitmaps
        from vdisk.formats.qcow2.snapshots import read_snapshots

        header = self.header
        specific: dict[str, Any] = {"compat": "1.1" if header.version >= 3 else "0.10"}
        specific["compression-type"] = {"deflate": "zlib"}.get(header.codec, header.codec)
        if header.version >= 3:
            specific["lazy-refcounts"] = bool(header.compatible & LAZY_REFCOUNTS)
            if header.extension(EXTENSION_BITMAPS) is not None and header.autoclear & BITMAPS:
                specific["bitmaps"] = describe_bitmaps(self)
        specific["refcount-bits"] = header.refcount_bits
        if self.encryption is not None:
            specific["encrypt"] = self.encryption.describe()
        if header.incompatible & DATA_FILE:
            specific["data-file"] = header.data_file_name
            specific["data-file-raw"] = bool(header.autoclear & RAW_DATA_FILE)
        if header.version >= 3:
            specific["corrupt"] = bool(header.incompatible & CORRUPT)
            specific["extended-l2"] = header.has_subclusters
        notes = []
        if header.extension(EXTENSION_BITMAPS) is not None and not header.autoclear & BITMAPS:
            notes.append("its bitmaps are out of date: the image was written by a program that does not know them")
        return Description(
            cluster_size=header.cluster_bytes,
            is_encrypted=bool(header.crypt_method),
            is_dirty=bool(header.incompatible & DIRTY),
            backing_name=header.backing_name,
            backing_format=header.backing_format,
            snapshots=[snapshot.describe() for snapshot in read_snapshots(self.storage, header)],
            specific=specific,
            notes=notes,
            children=[] if self.data_file is None else [str(getattr(self.data_file, "path", self.data_file.name))],
        )

    # Reading ---------------------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return self.tables.extents(offset, length)

    def _decode(self, encoded: Encoded, data: memoryview) -> Buffer:
        if encoded.codec != AES_CODEC:
            return super()._decode(encoded, data)
        assert self.encryption is not None
        whole = len(data) // 512 * 512
        return self.encryption.decrypt(encoded.unit_start, bytes(data[:whole])).ljust(encoded.unit_length, b"\0")

    def snapshots(self) -> list[Snapshot]:
        """The internal snapshots, oldest first."""
        from vdisk.formats.qcow2.snapshots import read_snapshots

        return read_snapshots(self.storage, self.header)

    def open_snapshot(self, name: str) -> SnapshotDevice:
        """The disk as it was when the snapshot of that name, or else ID, was made; read-only, with its own size.

        It reads through this image, which must stay open as long.
        """
        from vdisk.formats.qcow2.snapshots import SnapshotDevice, find_snapshot

        return SnapshotDevice(self, find_snapshot(self.name, self.snapshots(), name))

    # Writing ---------------------------------------------------------------------------------------------------

    @property
    def editor(self) -> MapEditor:
        """What changes the tables; asking for it begins to write. Callers hold the device's lock."""
        self._start_change()
        assert self._editor is not None
        return self._editor

    def _begin_write(self) -> None:
        header = self.header
        if header.incompatible & CORRUPT:
            raise Corrupt(self.name, "corrupt bit", "is set: mend it with vdisk check --repair all, or only read it")
        if header.incompatible & DIRTY:
            from vdisk.formats.qcow2.repair import rebuild_dirty

            rebuild_dirty(self)
        refcounts = Refcounts(self.storage, header)
        for what, offset in (
            ("header", 0),
            ("L1 table", header.l1_offset),
            ("refcount table", header.refcount_table_offset),
        ):
            if refcounts.get(offset >> header.cluster_bits) == 0 and (what != "L1 table" or header.l1_entries):
                raise Corrupt(
                    self.name, f"refcount of the {what}", "expected 1, found 0; vdisk check --repair all counts anew"
                )
        self._editor = MapEditor(self.storage, header, self.tables, refcounts, self._readinto)
        self._begin_bitmaps()

    def _begin_bitmaps(self) -> None:
        """Autoclear bits go, but for those that this image keeps true: the raw data file, and bitmaps it tracks."""
        header = self.header
        kept = header.autoclear & RAW_DATA_FILE
        if header.autoclear & BITMAPS:
            self.start_tracking()
            kept |= BITMAPS
        if header.autoclear != kept:
            header.autoclear = kept
            header.write_fields(self.storage)
            self.storage.flush()

    def start_tracking(self) -> None:
        """Let the recording bitmaps take note of writes; they count as out of date until `stop_tracking`."""
        if self.header.autoclear & BITMAPS:
            from vdisk.formats.qcow2.bitmaps import begin_tracking

            self._tracker = begin_tracking(self)

    def stop_tracking(self) -> None:
        """Store the recording bitmaps; nothing else may be unwritten."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.store()

    def everything_changed(self) -> None:
        """The disk has other content, and maybe another length: the bitmaps follow."""
        if self._tracker is not None:
            self._tracker.resize(self.size)
            self._tracker.mark(0, self.size)

    def _write(self, offset: int, view: memoryview) -> None:
        if self._tracker is not None:
            self._tracker.mark(offset, len(view))
        super()._write(offset, view)

    def _write_step(self, offset: int, view: memoryview) -> None:
        assert self._editor is not None
        with self.changing():
            is_done = self._editor.place_part(offset, view)
        if not is_done:
            super()._write_step(offset, view)

    def _place(self, offset: int, data: memoryview) -> None:
        assert self._editor is not None
        self._editor.place(offset, data)

    def _zero(self, offset: int, length: int, unmap: bool) -> bool:
        assert self._editor is not None
        if self._needs_marks and self.header.version < 3:
            return False
        if self._tracker is not None:
            self._tracker.mark(offset, length)
        self._editor.zero(offset, length, marks=self._needs_marks, unmap=unmap)
        return True

    def _discard(self, offset: int, length: int) -> None:
        if not self._needs_marks or self.header.version >= 3:
            self._zero(offset, length, True)

    @property
    def _needs_marks(self) -> bool:
        """Whether what holds nothing may show something else than zeros."""
        return self.header.backing_name is not None

    def _flush(self) -> None:
        if self._editor is not None:
            self._editor.flush()

    def _close(self) -> None:
        try:
            if not self.is_broken:
                with self.changing():
                    self.stop_tracking()
        finally:
            if self.data_file is not None:
                self.data_file.close()
            self.storage.close()

    # Maintenance -----------------------------------------------------------------------------------------------

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.qcow2.repair import check

        with self.changing():
            return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.qcow2.maintain import resize

        with self.changing():
            resize(self, size, shrink=shrink)

    def set_backing(self, name: str | None, format: str | None) -> None:
        from vdisk.formats.qcow2.maintain import set_backing

        with self.changing():
            set_backing(self, name, format)

    def reload(self) -> None:
        """Read the tables anew, after a change behind the map's back; nothing may be unwritten."""
        header = self.header
        self.tables = ClusterMap(self.storage, self.tables.data, header, header.l1_offset, header.l1_entries)
        self._decoded.clear()
        self._decoded_bytes = 0
        if self._editor is not None:
            self._editor = MapEditor(self.storage, header, self.tables, Refcounts(self.storage, header), self._readinto)


def _open_backing(name: str, format: str | None, storage: Storage, request: OpenRequest) -> BlockDevice:
    """The image behind this one; its format is never guessed."""
    format = format or request.backing_format
    if format is None:
        raise PolicyError(
            storage.name, "backing format", name, "the image does not name it, and it is not guessed",
            "name it with --backing-format",
        )  # fmt: skip
    return open_behind(request.gate, "backing file", name, format, secret=request.secret)
