"""`VmdkWriter`: lays out every subformat that is written.

The disk is cut into extents; each is laid out by an `ExtentWriter` (`layout.py` for sparse and flat files, `stream.py`
for streamOptimized), which knows only offsets from its own start.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdisk.errors import ImageError, OptionError
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vmdk.assemble import read_source
from vdisk.formats.vmdk.descriptor import ExtentLine, geometry, new_descriptor
from vdisk.formats.vmdk.image import VmdkImage, new_cid
from vdisk.formats.vmdk.layout import CowdWriter, ExtentWriter, FlatWriter, HostedWriter
from vdisk.formats.vmdk.stream import StreamWriter
from vdisk.formats.vmdk.structs import SECTOR_BYTES
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.file import FileStorage
from vdisk.storage.staging import Staging

DEFAULT_SUBFORMAT = "monolithicSparse"
SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
    "vmfs",
    "vmfsSparse",
)
ADAPTER_TYPES = ("ide", "lsilogic", "buslogic", "legacyESX", "pvscsi")

SPLIT_SECTORS = 4192256
"""An extent of the twoGbMaxExtent kinds, as VMware cuts them: 2047 MiB, so that tables keep the file under 2 GiB."""
_LARGEST_DISK_BYTES = 1 << 53
_CAN_BACK = ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse")


class VmdkWriter(Writer):
    """Extents in order, their files named after the target."""

    FORMAT_NAME = "vmdk"
    CAN_COMPRESS = True
    CAN_BACK = True
    OPTIONS = (
        Option(
            "subformat",
            "choice",
            f"What the disk is made of; {DEFAULT_SUBFORMAT} without it, streamOptimized when compressing.",
            None,
            SUBFORMATS,
        ),
        Option("adapter_type", "choice", "The disk's controller.", "ide", ADAPTER_TYPES),
        Option("hwversion", "text", "Version of the virtual machine's hardware; 4 without it.", None),
        Option("toolsversion", "text", "Version of VMware Tools in the guest.", "2147483647"),
        Option("compat6", "bool", "Hardware version 6, as qemu-img has it.", False),
        Option("zeroed_grain", "bool", "Mark grains of zeros in the tables (header version 2).", False),
        Option("uuid", "text", "ddb.uuid of the disk.", None),
        Option("geometry", "text", "CYLINDERS/HEADS/SECTORS; counted from the size without it.", None),
        Option("ddb", "text", "More ddb entries, NAME:VALUE separated by semicolons.", None),
        Option("compression_level", "int", "Of deflate, 1 to 9.", None),
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
        if size > _LARGEST_DISK_BYTES:
            raise OptionError(f"vmdk: size: expected at most {_LARGEST_DISK_BYTES} bytes, found {size}")
        self.size = -(-size // SECTOR_BYTES) * SECTOR_BYTES  # a disk of whole sectors
        self.subformat = self._subformat()
        self.adapter_type = self.options["adapter_type"]
        self.level = self.options["compression_level"]
        if self.level is not None and not 1 <= self.level <= 9:
            raise OptionError(f"vmdk: option compression_level: expected 1 to 9, found {self.level}")
        self._descriptor_storage: Storage | None = None
        self._has_own_descriptor = self.subformat not in ("monolithicSparse", "streamOptimized")
        if self._has_own_descriptor:
            self._descriptor_storage = staging.create()
        lines = self._extent_lines()
        self._descriptor = new_descriptor(self.subformat, lines, ddb=self._ddb(), **self._identity())
        self._extents = [self._extent_writer(line) for line in lines]
        self._extent_bytes = lines[0].sectors * SECTOR_BYTES or 1
        self.unit_bytes = self._extents[0].unit_bytes
        if self.subformat == "streamOptimized":
            self.codec = "zlib"
            self.must_encode = True
            self.ascends = True

    # Choices ---------------------------------------------------------------------------------------------------

    def _subformat(self) -> str:
        chosen: str | None = self.options["subformat"]
        if chosen is None:
            return "streamOptimized" if self.compress else DEFAULT_SUBFORMAT
        if self.compress and chosen != "streamOptimized":
            raise OptionError(f"vmdk: {chosen} cannot be compressed; subformat=streamOptimized can")
        if self.backing is not None and chosen not in _CAN_BACK:
            raise OptionError(f"vmdk: {chosen} cannot have a backing file; {', '.join(_CAN_BACK)} can")
        if self.options["zeroed_grain"] and chosen not in ("monolithicSparse", "twoGbMaxExtentSparse"):
            raise OptionError(f"vmdk: {chosen} has no zeroed grains")
        return chosen

    def _identity(self) -> dict[str, Any]:
        if self.backing is None:
            return {"cid": new_cid()}
        device = self.backing.device
        if self.backing.format != "vmdk" or not isinstance(device, VmdkImage):
            raise OptionError(f"vmdk: the parent of a VMDK is a VMDK, not {self.backing.format}")
        if device.cid is None:
            raise OptionError(f"{device.name}: an extent file without a descriptor cannot be a parent")
        return {"cid": new_cid(device.cid), "parent_cid": device.cid, "parent_name": self.backing.name}

    def _ddb(self) -> dict[str, str]:
        options = self.options
        hardware = options["hwversion"]
        if options["compat6"]:
            if hardware not in (None, "6"):
                raise OptionError("vmdk: compat6 sets hwversion to 6: leave one of them out")
            hardware = "6"
        ddb = {"virtualHWVersion": hardware or "4"}
        cylinders, heads, sectors = self._geometry()
        ddb |= {"geometry.cylinders": str(cylinders), "geometry.heads": str(heads), "geometry.sectors": str(sectors)}
        ddb |= {"adapterType": self.adapter_type, "toolsVersion": options["toolsversion"]}
        if options["uuid"] is not None:
            ddb["uuid"] = _ddb_uuid(options["uuid"])
        for item in filter(None, (options["ddb"] or "").split(";")):
            name, colon, value = item.partition(":")
            name = name.strip().removeprefix("ddb.")
            if not colon or not re.fullmatch(r"[A-Za-z][\w.\-]*", name):
                raise OptionError(f"vmdk: option ddb: expected NAME:VALUE, found {item!r}")
            ddb[name] = value.strip()
        for name, value in ddb.items():
            if '"' in value or not value.isprintable():
                raise OptionError(f"vmdk: ddb.{name}: a descriptor cannot hold {value!r}")
        return ddb

    def _geometry(self) -> tuple[int, int, int]:
        text = self.options["geometry"]
        if text is None:
            return geometry(self.size // SECTOR_BYTES, self.adapter_type)
        match = re.fullmatch(r"(\d{1,10})/(\d{1,5})/(\d{1,5})", text)
        if match is None:
            raise OptionError(f"vmdk: option geometry: expected CYLINDERS/HEADS/SECTORS, found {text!r}")
        cylinders, heads, sectors = map(int, match.groups())
        return cylinders, heads, sectors

    # Extents ---------------------------------------------------------------------------------------------------

    def _extent_lines(self) -> list[ExtentLine]:
        """Lines whose files have names that are free: an older image's descriptor would find the new extents else.

        Of that image, the extents that were so named are removed in the end.
        """
        target = self.staging.target
        lines = self._lines_named(target.stem)
        if not self._has_own_descriptor or not target.exists():
            return lines
        pattern = rf"{re.escape(target.stem)}(-\d+)?-(flat|delta|[fs]\d{{3}}){re.escape(target.suffix)}"
        for name in _extent_names(target):
            if re.fullmatch(pattern, name):
                self.staging.retire(name)
        numbers = itertools.count(1)
        while any(target.with_name(line.name).exists() for line in lines if line.name is not None):
            lines = self._lines_named(f"{target.stem}-{next(numbers)}")
        return lines

    def _lines_named(self, stem: str) -> list[ExtentLine]:
        target, sectors = self.staging.target, self.size // SECTOR_BYTES
        suffix = target.suffix
        match self.subformat:
            case "monolithicFlat":
                return [ExtentLine("RW", sectors, "FLAT", f"{stem}-flat{suffix}", 0)]
            case "vmfs":
                return [ExtentLine("RW", sectors, "VMFS", f"{stem}-flat{suffix}")]
            case "vmfsSparse":
                return [ExtentLine("RW", sectors, "VMFSSPARSE", f"{stem}-delta{suffix}")]
            case "twoGbMaxExtentFlat" | "twoGbMaxExtentSparse":
                is_flat = self.subformat.endswith("Flat")
                lines = []
                for number, start in enumerate(range(0, max(sectors, 1), SPLIT_SECTORS), 1):
                    length = min(SPLIT_SECTORS, sectors - start)
                    name = f"{stem}-{'f' if is_flat else 's'}{number:03d}{suffix}"
                    lines.append(
                        ExtentLine("RW", length, "FLAT" if is_flat else "SPARSE", name, 0 if is_flat else None)
                    )
                return lines
            case _:
                return [ExtentLine("RW", sectors, "SPARSE", target.name)]

    def _extent_writer(self, line: ExtentLine) -> ExtentWriter:
        storage = self.staging.create(line.name if self._has_own_descriptor else None)
        if line.type in ("FLAT", "VMFS"):
            return FlatWriter(storage, line.sectors)
        if line.type == "VMFSSPARSE":
            return CowdWriter(storage, line.sectors)
        descriptor = b"" if self._has_own_descriptor else self._descriptor.to_bytes()
        if self.subformat == "streamOptimized":
            return StreamWriter(storage, line.sectors, descriptor)
        return HostedWriter(storage, line.sectors, descriptor, has_zero_grains=self.options["zeroed_grain"])

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[ExtentWriter, int, int, int]]:
        """(extent, its start, offset in it, length) for every extent that the range touches."""
        end = offset + length
        while offset < end:
            number = offset // self._extent_bytes
            start = number * self._extent_bytes
            count = min(end, start + self._extent_bytes) - offset
            yield self._extents[number], start, offset - start, count
            offset += count

    # Writer ----------------------------------------------------------------------------------------------------

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        for extent, start, inside, count in self._pieces(offset, length):
            for piece, piece_length, host in extent.place(inside, count):
                yield Placement(start + piece, piece_length, extent.storage, host)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        stream = self._extents[0]
        assert isinstance(stream, StreamWriter)
        host, framed = stream.place_encoded(offset, payload)
        return stream.storage, host, framed

    def zero(self, offset: int, length: int) -> None:
        for extent, _, inside, count in self._pieces(offset, length):
            extent.zero(inside, count)

    def finish(self) -> None:
        for extent in self._extents:
            extent.finish()
        if self._descriptor_storage is not None:
            self._descriptor_storage.write(0, self._descriptor.to_bytes())


def _extent_names(path: Path) -> list[str]:
    """The files that a descriptor at `path` names; none where there is none that can be read."""
    try:
        with FileStorage(path) as storage:
            descriptor = read_source(storage).descriptor
    except ImageError:  # not a VMDK
        return []
    return [] if descriptor is None else [line.name for line in descriptor.extents if line.name is not None]


def _ddb_uuid(text: str) -> str:
    """A UUID as descriptors have it: 16 bytes in hexadecimal, a dash in the middle."""
    try:
        digits = uuid.UUID(re.sub(r"[\s\-]", "", text)).hex
    except ValueError:
        raise OptionError(f"vmdk: option uuid: expected a UUID, found {text!r}") from None
    pairs = [digits[i : i + 2] for i in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])
