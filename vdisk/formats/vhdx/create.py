"""`VhdxWriter`: lays out a new VHDX file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from vdisk.errors import OptionError
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.header import Header, Region, build_region_table
from vdisk.formats.vhdx.image import VhdxImage
from vdisk.formats.vhdx.metadata import Metadata, build_metadata
from vdisk.formats.vhdx.parent import make_locator
from vdisk.formats.vhdx.structs import FULLY_PRESENT, MIB, NO_GUID, PARTIALLY_PRESENT, ZERO
from vdisk.formats.vhdx.tables import table_of
from vdisk.storage.staging import Staging

_CREATOR = "vdisk"
_BAT_ENTRIES_AIMED_AT = 1 << 17
"""As many as fill the smallest BAT region, of 1 MiB."""
_LARGEST_CHOSEN_BLOCK_BYTES = 32 * MIB
_PIECE_ENTRIES = 1 << 17
_BITMAP_BYTES = MIB


class VhdxWriter(Writer):
    """Blocks in the order in which they come; what is not placed of a block stays a hole in the file."""

    FORMAT_NAME = "vhdx"
    CAN_BACK = True
    OPTIONS = (
        Option(
            "subformat", "choice", "dynamic: blocks as they are written; fixed: all", "dynamic", ("dynamic", "fixed")
        ),
        Option("block_size", "size", "power of two from 1M to 256M; by default 1M, more for disks above 128 GiB"),
        Option("log_size", "size", "multiple of 1M", MIB),
        Option("logical_sector_size", "size", "512 or 4096", 512),
        Option("physical_sector_size", "size", "512 or 4096 (default: 4096, or the backing file's)"),
        # MS-VHDX leaves open what a block that is not present reads as; one marked as zeros reads as zeros.
        Option("block_state_zero", "bool", "mark blocks that are not there as zeros, as qemu-img does", True),
    )
    unit_bytes = 64 << 10

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
        sector = chosen["logical_sector_size"]
        for name in ("logical_sector_size", "physical_sector_size"):
            if chosen[name] not in (None, 512, 4096):
                raise OptionError(f"vhdx: option {name}: expected 512 or 4096, found {chosen[name]}")
        if chosen["log_size"] % MIB or not MIB <= chosen["log_size"] <= 256 * MIB:
            raise OptionError(
                f"vhdx: option log_size: expected a multiple of 1M up to 256M, found {chosen['log_size']}"
            )
        disk_bytes = -(-size // sector) * sector
        if disk_bytes > structs.MAX_DISK_BYTES:
            raise OptionError(f"vhdx: size: expected at most 64 TiB, found {size}")
        self._is_fixed = chosen["subformat"] == "fixed"
        self._metadata = Metadata(
            block_bytes=self._block_bytes(disk_bytes),
            disk_bytes=disk_bytes,
            logical_sector_bytes=sector,
            physical_sector_bytes=chosen["physical_sector_size"] or 4096,
            leaves_blocks_allocated=self._is_fixed,
            page_83_data=uuid4(),
        )
        if backing is not None:
            self._set_parent(backing)
        metadata = self._metadata
        self._log = Region("log", structs.HEADER_SECTION_BYTES, chosen["log_size"])
        self._metadata_region = Region("metadata", self._log.end, MIB)
        bat_bytes = max(MIB, -(-metadata.bat_entries * 8 // MIB) * MIB)
        self._bat = Region("BAT", self._metadata_region.end, bat_bytes)
        self._next = self._bat.end
        self._host_by_block: dict[int, int] = {}
        self._present: dict[int, bytearray] = {}
        """Of a differencing file's blocks: a byte each for its units, not zero when the file has it."""
        self._zero_blocks: set[int] = set()
        self._storage = staging.create()

    def _block_bytes(self, disk_bytes: int) -> int:
        block = self.options["block_size"]
        if not block:
            block = structs.MIN_BLOCK_BYTES
            while disk_bytes > block * _BAT_ENTRIES_AIMED_AT and block < _LARGEST_CHOSEN_BLOCK_BYTES:
                block *= 2
        if block & (block - 1) or not structs.MIN_BLOCK_BYTES <= block <= structs.MAX_BLOCK_BYTES:
            raise OptionError(f"vhdx: option block_size: expected a power of two from 1M to 256M, found {block}")
        return int(block)

    def _set_parent(self, backing: Backing) -> None:
        parent = backing.device
        if not isinstance(parent, VhdxImage):
            raise OptionError(f"vhdx: backing file: expected a VHDX file, found {backing.format}")
        if self._is_fixed:
            raise OptionError("vhdx: a fixed disk cannot have a backing file")
        if parent.metadata.logical_sector_bytes != self._metadata.logical_sector_bytes:
            raise OptionError(
                f"vhdx: option logical_sector_size: expected that of the backing file, "
                f"{parent.metadata.logical_sector_bytes}, found {self._metadata.logical_sector_bytes}"
            )
        # What describes the disk, and not the file, comes from the parent (2.6.1.2).
        self._metadata.page_83_data = parent.metadata.page_83_data
        if self.options["physical_sector_size"] is None:
            self._metadata.physical_sector_bytes = parent.metadata.physical_sector_bytes
        self._metadata.others = [i for i in parent.metadata.others if i.flags & structs.IS_VIRTUAL_DISK_ITEM]
        self._metadata.has_parent = True
        self._metadata.locator = make_locator(backing.name, parent.data_write_guid)

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        block_bytes = self._metadata.block_bytes
        if self._is_fixed:
            return (Placement(offset, length, self._storage, self._bat.end + offset),)
        placements: list[Placement] = []
        end = offset + length
        while offset < end:
            block, inside = divmod(offset, block_bytes)
            part = min(end - offset, block_bytes - inside)
            host = self._host_of(block) + inside
            if self._metadata.has_parent:
                self._mark(block, inside, part)
            if placements and placements[-1].host + placements[-1].length == host:
                placements[-1] = placements[-1]._replace(length=placements[-1].length + part)
            else:
                placements.append(Placement(offset, part, self._storage, host))
            offset += part
        return placements

    def zero(self, offset: int, length: int) -> None:
        block_bytes, end = self._metadata.block_bytes, offset + length
        while offset < end:
            block, inside = divmod(offset, block_bytes)
            part = min(end - offset, block_bytes - inside)
            is_whole = part == min(block_bytes, self._metadata.disk_bytes - block * block_bytes)
            if is_whole and block not in self._host_by_block:
                self._zero_blocks.add(block)
            else:  # a hole in the file, which the bitmap says is the file's own
                self._host_of(block)
                self._mark(block, inside, part)
            offset += part

    def _host_of(self, block: int) -> int:
        host = self._host_by_block.get(block)
        if host is None:
            host = self._host_by_block[block] = self._next
            self._next += self._metadata.block_bytes
        return host

    def _mark(self, block: int, inside: int, length: int) -> None:
        units = self._present.setdefault(block, bytearray(self._metadata.block_bytes // self.unit_bytes))
        first, last = inside // self.unit_bytes, -(-(inside + length) // self.unit_bytes)
        units[first:last] = b"\1" * (last - first)

    def finish(self) -> None:
        storage, metadata = self._storage, self._metadata
        if self._is_fixed:
            self._next = self._bat.end + metadata.block_count * metadata.block_bytes
        storage.write(0, structs.FILE_SIGNATURE + _CREATOR.encode("utf-16-le"))
        header = Header(0, uuid4(), uuid4(), NO_GUID, self._log.offset, self._log.length)
        for offset in structs.HEADER_OFFSETS:
            header.sequence_number += 1
            storage.write(offset, header.to_bytes())
        regions = build_region_table(self._bat, self._metadata_region)
        for offset in structs.REGION_OFFSETS:
            storage.write(offset, regions)
        storage.write(self._metadata_region.offset, build_metadata(metadata))
        self._write_bat()
        storage.truncate(self._next)

    def _write_bat(self) -> None:
        """Write the table in pieces; a piece without an entry stays a hole."""
        metadata, chunk_blocks = self._metadata, self._metadata.chunk_blocks
        absent = ZERO if self.options["block_state_zero"] and not metadata.has_parent else 0
        entries = self._entries()
        fills_all = self._is_fixed or bool(absent)
        pieces = (
            range(-(-metadata.bat_entries // _PIECE_ENTRIES))
            if fills_all
            else sorted({index // _PIECE_ENTRIES for index in entries})
        )
        by_piece: dict[int, list[int]] = {}
        for index in entries:
            by_piece.setdefault(index // _PIECE_ENTRIES, []).append(index)
        for piece in pieces:
            start = piece * _PIECE_ENTRIES
            count = min(_PIECE_ENTRIES, metadata.bat_entries - start)
            if self._is_fixed:
                table = array("Q", (self._fixed_entry(start + at, chunk_blocks) for at in range(count)))
            else:
                table = array("Q", [absent]) * count
                if absent:
                    for at in range(chunk_blocks - start % (chunk_blocks + 1), count, chunk_blocks + 1):
                        if at >= 0:
                            table[at] = 0
                for index in by_piece.get(piece, ()):
                    table[index - start] = entries[index]
            self._storage.write(self._bat.offset + start * 8, table_of(table))

    def _fixed_entry(self, index: int, chunk_blocks: int) -> int:
        chunk, inside = divmod(index, chunk_blocks + 1)
        if inside == chunk_blocks:
            return 0
        return (self._bat.end + (chunk * chunk_blocks + inside) * self._metadata.block_bytes) | FULLY_PRESENT

    def _entries(self) -> dict[int, int]:
        """The entries that are not like all others, by their index in the BAT; writes the sector bitmaps."""
        metadata = self._metadata
        chunk_blocks = metadata.chunk_blocks
        entries: dict[int, int] = {}
        bitmap_by_chunk: dict[int, int] = {}
        for block, host in self._host_by_block.items():
            index = block + block // chunk_blocks
            entries[index] = host | FULLY_PRESENT
            units = self._present.get(block)
            in_disk = -(
                -min(metadata.block_bytes, metadata.disk_bytes - block * metadata.block_bytes) // self.unit_bytes
            )
            if units is None or all(units[:in_disk]):
                continue
            entries[index] = host | PARTIALLY_PRESENT
            chunk, place = divmod(block, chunk_blocks)
            if chunk not in bitmap_by_chunk:
                bitmap_by_chunk[chunk] = self._next
                entries[(chunk + 1) * (chunk_blocks + 1) - 1] = self._next | structs.BITMAP_PRESENT
                self._next += _BITMAP_BYTES
            bits_of_unit = self.unit_bytes // metadata.logical_sector_bytes // 8
            bitmap = b"".join((b"\xff" if unit else b"\0") * bits_of_unit for unit in units)
            self._storage.write(bitmap_by_chunk[chunk] + place * len(bitmap), bitmap)
        for block in self._zero_blocks:
            entries[block + block // chunk_blocks] = ZERO
        return entries
