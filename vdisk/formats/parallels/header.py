"""The header of an expandable image, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from vdisk.errors import Corrupt, NotThisFormat, Unsupported
from vdisk.formats.parallels import structs
from vdisk.formats.parallels.structs import SECTOR_BYTES
from vdisk.formats.parse import parse
from vdisk.storage.base import MAX_OFFSET, Storage


@dataclass(slots=True)
class Header:
    """Fields as they are stored, and what follows from them."""

    magic: bytes
    heads: int
    cylinders: int
    cluster_sectors: int
    bat_entries: int
    disk_sectors: int
    in_use: int = 0
    """`IN_USE`, or what the program that closed it writes: the specification's `CLOSED`, Parallels 17 has "pd17"."""
    data_sector: int = 0
    flags: int = 0
    extension_sector: int = 0

    @property
    def is_version_2(self) -> bool:
        """BAT entries count clusters, not sectors."""
        return self.magic == structs.MAGIC_CLUSTERS

    @property
    def cluster_bytes(self) -> int:
        """Bytes of a cluster; in old images not a power of two."""
        return self.cluster_sectors * SECTOR_BYTES

    @property
    def disk_bytes(self) -> int:
        """Length of the disk."""
        return self.disk_sectors * SECTOR_BYTES

    @property
    def entry_bytes(self) -> int:
        """Bytes of the file that a BAT entry counts one for."""
        return self.cluster_bytes if self.is_version_2 else SECTOR_BYTES

    @property
    def bat_end(self) -> int:
        """Offset behind the BAT."""
        return structs.HEADER_BYTES + 4 * self.bat_entries

    @property
    def data_offset(self) -> int:
        """Where the data area begins: stated, or (version 1) the sector behind the BAT."""
        if self.data_sector:
            return self.data_sector * SECTOR_BYTES
        return -(-self.bat_end // SECTOR_BYTES) * SECTOR_BYTES

    @property
    def extension_offset(self) -> int:
        """Where the format extension lies; 0 when there is none."""
        return self.extension_sector * SECTOR_BYTES

    def set_disk_sectors(self, sectors: int) -> None:
        """Give the disk another length, with the geometry and the table that it takes."""
        self.disk_sectors = sectors
        self.bat_entries = -(-sectors // self.cluster_sectors)
        self.heads = structs.HEADS
        self.cylinders = min(-(-sectors // (structs.HEADS * structs.SECTORS_PER_TRACK)), 0xFFFFFFFF)

    def to_bytes(self) -> bytes:
        """The 64 bytes of it."""
        data: bytes = structs.HEADER.build(
            {
                "magic": self.magic,
                "version": structs.VERSION,
                "heads": self.heads,
                "cylinders": self.cylinders,
                "cluster_sectors": self.cluster_sectors,
                "bat_entries": self.bat_entries,
                "disk_sectors": self.disk_sectors,
                "in_use": self.in_use,
                "data_sector": self.data_sector,
                "flags": self.flags,
                "extension_sector": self.extension_sector,
            }
        )
        return data

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """The header of the image in `storage`."""
        file = storage.name
        data = storage.read(0, structs.HEADER_BYTES)
        if data[:16] not in (structs.MAGIC_SECTORS, structs.MAGIC_CLUSTERS):
            raise NotThisFormat(file, "magic", expected=structs.MAGIC_CLUSTERS, found=data[:16])
        raw = parse(structs.HEADER, data, file, "header")
        if raw.version != structs.VERSION:
            raise Unsupported(file, "parallels", f"version {raw.version}")
        header = cls(
            raw.magic,
            raw.heads,
            raw.cylinders,
            raw.cluster_sectors,
            raw.bat_entries,
            raw.disk_sectors,
            raw.in_use,
            raw.data_sector,
            raw.flags,
            raw.extension_sector,
        )
        if not header.is_version_2:
            header.disk_sectors &= 0xFFFFFFFF  # the upper half means nothing in version 1
        header._check(storage)
        return header

    def _check(self, storage: Storage) -> None:
        file = storage.name
        if not 0 < self.cluster_bytes <= structs.MAX_CLUSTER_BYTES:
            most = structs.MAX_CLUSTER_BYTES // SECTOR_BYTES
            raise Corrupt(file, "cluster size", expected=f"1 to {most} sectors", found=self.cluster_sectors)
        if self.disk_bytes > MAX_OFFSET:
            raise Corrupt(file, "disk size", expected="less than 8 EiB", found=f"{self.disk_sectors} sectors")
        needed = -(-self.disk_sectors // self.cluster_sectors)
        if self.bat_entries < needed:
            raise Corrupt(file, "BAT entries", expected=f"at least {needed} for the disk", found=self.bat_entries)
        if self.bat_entries > structs.MAX_ENTRIES:
            raise Unsupported(file, "parallels", f"a BAT of {self.bat_entries} entries")
        if self.data_offset < self.bat_end:
            raise Corrupt(file, "data offset", expected=f"at least {self.bat_end}", found=self.data_offset)
        if self.data_offset > -(-storage.size // self.cluster_bytes) * self.cluster_bytes:
            where = f"an offset in the file of {storage.size} bytes"
            raise Corrupt(file, "data offset", expected=where, found=self.data_offset)
        if self.is_version_2 and (self.data_sector == 0 or self.data_sector % self.cluster_sectors):
            raise Corrupt(
                file, "data offset", expected=f"a multiple of {self.cluster_sectors} sectors", found=self.data_sector
            )
        if self.extension_offset > MAX_OFFSET:
            raise Corrupt(file, "extension offset", expected="an offset in the file", found=self.extension_sector)
