"""`ParallelsWriter`: lays out a new expandable image, by itself (.hds) or in a bundle (.hdd)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.blockmap import table_bytes
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.parallels import structs
from vdisk.formats.parallels.descriptor import (
    DESCRIPTOR_NAME,
    EXPANDING,
    PLAIN,
    TOP_GUID,
    ImageFile,
    build_descriptor,
)
from vdisk.formats.parallels.header import Header
from vdisk.formats.parallels.structs import SECTOR_BYTES
from vdisk.storage.staging import Staging

_MIB = 1 << 20


class ParallelsWriter(Writer):
    """Clusters in the order in which they come; what is not placed of one stays a hole in the file."""

    FORMAT_NAME = "parallels"
    OPTIONS = (
        Option("cluster_size", "size", "a multiple of 512, by default 1M", _MIB),
        Option("version", "choice", "2: WithouFreSpacExt; 1: WithoutFreeSpace, up to 2 TiB", "2", ("2", "1")),
        Option(
            "bundle", "bool", "a folder with DiskDescriptor.xml; by default when the target's name ends in .hdd", None
        ),
        Option("subformat", "choice", "of a bundle's file", "expanding", ("expanding", "plain")),
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
        chosen = self.options
        cluster_bytes: int = chosen["cluster_size"]
        if cluster_bytes % SECTOR_BYTES or not SECTOR_BYTES <= cluster_bytes <= structs.MAX_CLUSTER_BYTES:
            raise OptionError(
                f"parallels: option cluster_size: expected a multiple of 512 up to 256M, found {cluster_bytes}"
            )
        self.unit_bytes = min(cluster_bytes, 64 << 10) if cluster_bytes % (64 << 10) == 0 else cluster_bytes
        is_version_2 = chosen["version"] == "2"
        sectors = -(-size // SECTOR_BYTES)
        header = Header(
            structs.MAGIC_CLUSTERS if is_version_2 else structs.MAGIC_SECTORS, 0, 0, cluster_bytes // SECTOR_BYTES, 0, 0
        )
        header.set_disk_sectors(sectors)
        # Room for every cluster must have a number in 32 bits, and the table must be one that is read again.
        reached = header.bat_end + (header.bat_entries + 2) * cluster_bytes
        if header.bat_entries > structs.MAX_ENTRIES or reached // header.entry_bytes >= 1 << 32:
            raise OptionError(f"parallels: size: {size} is more than version {chosen['version']} can have")
        header.data_sector = -(-header.bat_end // cluster_bytes) * header.cluster_sectors
        self._header = header
        self._is_plain = chosen["subformat"] == "plain"
        is_bundle = chosen["bundle"]
        if is_bundle is None:
            is_bundle = staging.target.suffix.lower() == ".hdd"
        if self._is_plain and not is_bundle:
            raise OptionError("parallels: option subformat: a plain file stands in a bundle only")
        self._descriptor_file = None
        if is_bundle:
            staging.make_folder()
            name = f"{staging.target.name}.0.{{{TOP_GUID}}}.hds"
            self._image_file = ImageFile(TOP_GUID, PLAIN if self._is_plain else EXPANDING, name)
            self._descriptor_file = staging.create(DESCRIPTOR_NAME)
            self._storage = staging.create(name)
        else:
            self._storage = staging.create()
        self._next = header.data_offset
        self._table = array("I", bytes(4 * header.bat_entries))

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        if self._is_plain:
            return (Placement(offset, length, self._storage, offset),)
        cluster_bytes = self._header.cluster_bytes
        entry_bytes = self._header.entry_bytes
        placements: list[Placement] = []
        end = offset + length
        while offset < end:
            cluster, inside = divmod(offset, cluster_bytes)
            part = min(end - offset, cluster_bytes - inside)
            host = self._table[cluster] * entry_bytes
            if not host:
                host = self._next
                self._table[cluster] = host // entry_bytes
                self._next += cluster_bytes
            if placements and placements[-1].host + placements[-1].length == host + inside:
                placements[-1] = placements[-1]._replace(length=placements[-1].length + part)
            else:
                placements.append(Placement(offset, part, self._storage, host + inside))
            offset += part
        return placements

    def finish(self) -> None:
        header = self._header
        if self._is_plain:
            self._storage.truncate(header.disk_bytes)
        else:
            self._storage.write(0, header.to_bytes())
            if any(self._table):
                self._storage.write(structs.HEADER_BYTES, table_bytes(self._table))
            self._storage.truncate(self._next)
        if self._descriptor_file is not None:
            name = self.staging.target.stem
            self._descriptor_file.write(
                0, build_descriptor(header.disk_sectors, header.cluster_sectors, self._image_file, name)
            )
