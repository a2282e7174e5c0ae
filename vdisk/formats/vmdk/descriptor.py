"""The descriptor: the text that says what a virtual disk is made of, alone in a file or inside a sparse extent.

"Virtual Disk Format 5.0", section "The Descriptor File". Lines that aren't understood stay as they are when the text
is changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.vmdk.structs import SECTOR_BYTES

NO_PARENT = 0xFFFFFFFF
"""The parentCID of a disk that has none."""

LONGEST_DESCRIPTOR_BYTES = 8 << 20
"""Room for the extent lines of a disk of 62 TB in files of 2 GiB, twice over."""

ACCESSES = ("RW", "RDONLY", "NOACCESS")
EXTENT_TYPES = ("SPARSE", "FLAT", "ZERO", "VMFS", "VMFSSPARSE", "VMFSRDM", "VMFSRAW", "SESPARSE")

_OPENING = "# Disk DescriptorFile"
_EXTENT_LINE = re.compile(
    r"(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d+)\s+(?P<type>[A-Z]+)"
    r"(?:\s+\"(?P<name>[^\"]*)\")?(?:\s+(?P<offset>\d+))?(?:\s+.*)?",
    re.IGNORECASE,
)
_ACCESS_WORD = re.compile(r"(RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"([A-Za-z][\w.:\-]*)\s*=\s*(.*)")
_MOST_DIGITS = 20
_ENCODINGS = {
    "utf-8": "utf-8",
    "windows-1252": "cp1252",
    "windows-1250": "cp1250",
    "windows-1251": "cp1251",
    "windows-932": "cp932",
    "windows-936": "gbk",
    "windows-949": "cp949",
    "windows-950": "cp950",
    "big5": "big5",
    "gbk": "gbk",
    "gb2312": "gb2312",
    "shift_jis": "shift_jis",
    "euc-kr": "euc_kr",
    "iso-8859-1": "latin-1",
    "us-ascii": "ascii",
}


class ExtentLine(NamedTuple):
    """One extent of the disk, in the order of guest offsets."""

    access: str
    """'RW', 'RDONLY' or 'NOACCESS'."""
    sectors: int
    type: str
    """One of `EXTENT_TYPES`."""
    name: str | None = None
    """The file, as it is named; relative to the descriptor's folder."""
    offset_sectors: int | None = None
    """Where the extent begins in a flat file."""

    def __str__(self) -> str:
        parts = [self.access, str(self.sectors), self.type]
        if self.name is not None:
            parts.append(f'"{self.name}"')
        if self.offset_sectors is not None:
            parts.append(str(self.offset_sectors))
        return " ".join(parts)


@dataclass(slots=True)
class Descriptor:
    """A parsed descriptor. `lines` is the text; the other fields are what was found in it."""

    lines: list[str]
    encoding: str = "utf-8"
    cid: int = NO_PARENT
    parent_cid: int = NO_PARENT
    create_type: str = ""
    parent_name: str | None = None
    """parentFileNameHint."""
    extents: list[ExtentLine] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """All `name = value` lines, names in lower case, quotes taken off; the first of several counts."""
    ddb: dict[str, str] = field(default_factory=dict)
    """The disk data base: names as they are written, without "ddb."."""

    @classmethod
    def parse(cls, raw: bytes, file: str) -> Self:
        """Parse the bytes of a descriptor, up to the first NUL. Raises `Corrupt` or `Unsupported`, naming `file`."""
        raw = raw.split(b"\0", 1)[0].removeprefix(b"\xef\xbb\xbf")
        encoding = _encoding_of(raw)
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
            text = raw.decode(encoding)
        found = cls(re.split(r"\r?\n", text), encoding)
        for number, line in enumerate(found.lines, 1):
            found._take(line.strip(), number, file)
        found._check(file)
        return found

    def _take(self, line: str, number: int, file: str) -> None:
        if not line or line.startswith("#"):
            return
        if _ACCESS_WORD.match(line):
            self.extents.append(_parse_extent(line, number, file))
            return
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment is not None:
            name, value = assignment.groups()
            value = value.strip().strip('"')
            if name.lower() not in self.values and name.lower().startswith("ddb."):
                self.ddb[name[4:]] = value
            self.values.setdefault(name.lower(), value)

    def _check(self, file: str) -> None:
        version = self.values.get("version", "1")
        if version not in ("1", "2", "3"):
            raise Unsupported(file, "vmdk", f"descriptor version {version[:20]}")
        if "encryption.keysafe" in self.values or "encryption.data" in self.values:
            raise Unsupported(file, "vmdk", "encrypted disks")
        self.create_type = self.values.get("createtype", "")
        self.cid = self._hexadecimal("CID", file)
        self.parent_cid = self._hexadecimal("parentCID", file)
        self.parent_name = self.values.get("parentfilenamehint") or None

    def _hexadecimal(self, name: str, file: str) -> int:
        text = self.values.get(name.lower(), "ffffffff")
        if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
            raise Corrupt(file, f"descriptor: {name}", expected="8 hexadecimal digits", found=text)
        return int(text, 16)

    @property
    def has_parent(self) -> bool:
        """Whether the disk is a delta on another."""
        return self.parent_cid != NO_PARENT

    @property
    def sectors(self) -> int:
        """Length of the disk by its extent lines."""
        return sum(extent.sectors for extent in self.extents)

    def set(self, name: str, value: str, *, quoted: bool = True, after: str | None = None) -> None:
        """Set `name=value` where it stands, else in a new line behind that of `after` (or before the extents)."""
        is_ddb = name.lower().startswith("ddb.")
        shown = f'"{value}"' if quoted else value
        line = f"{name} = {shown}" if is_ddb else f"{name}={shown}"
        at = self._find(name)
        if at is not None:
            self.lines[at] = line
        else:
            place = self._find(after) if after is not None else None
            if place is not None:
                place += 1
            elif is_ddb:
                place = len(self.lines) - (1 if self.lines and not self.lines[-1].strip() else 0)
            else:
                place = next((i for i, text in enumerate(self.lines) if _ACCESS_WORD.match(text.strip())), 1)
            self.lines.insert(place, line)
        self.values[name.lower()] = value

    def set_ddb(self, name: str, value: str) -> None:
        """Set an entry of the disk data base; `name` is without "ddb."."""
        self.ddb[name] = value
        self.set(f"ddb.{name}", value)

    def remove(self, name: str) -> None:
        """Take the line that sets `name` out."""
        at = self._find(name)
        if at is not None:
            del self.lines[at]
        self.values.pop(name.lower(), None)

    def set_cid(self, cid: int) -> None:
        """Set the content's identifier."""
        self.cid = cid
        self.set("CID", f"{cid:08x}", quoted=False)

    def set_parent(self, cid: int, name: str | None) -> None:
        """Name another parent, or none (`NO_PARENT`, None)."""
        if name is not None:
            check_name(name)
        self.parent_cid, self.parent_name = cid, name
        self.set("parentCID", f"{cid:08x}", quoted=False, after="CID")
        if name is None:
            self.remove("parentFileNameHint")
        else:
            self.set("parentFileNameHint", name, after="createType")

    def replace_extents(self, extents: list[ExtentLine]) -> None:
        """Put other extent lines where the old ones stood."""
        places = [i for i, text in enumerate(self.lines) if _ACCESS_WORD.match(text.strip())]
        first = places[0] if places else len(self.lines)
        kept = [text for i, text in enumerate(self.lines) if i not in set(places)]
        self.lines = kept[:first] + [str(extent) for extent in extents] + kept[first:]
        self.extents = list(extents)

    def _find(self, name: str) -> int | None:
        for at, line in enumerate(self.lines):
            match = _ASSIGNMENT.fullmatch(line.strip())
            if match is not None and match.group(1).lower() == name.lower():
                return at
        return None

    def to_bytes(self) -> bytes:
        """The text, in its encoding; lines end with a newline alone."""
        text = "\n".join(self.lines)
        try:
            return text.encode(self.encoding)
        except UnicodeEncodeError:
            self.encoding = "utf-8"
            self.set("encoding", "UTF-8", after="version")
            return "\n".join(self.lines).encode()


def _encoding_of(raw: bytes) -> str:
    match = re.search(rb"^\s*encoding\s*=\s*\"?([\w\-]+)", raw, re.MULTILINE | re.IGNORECASE)
    return _ENCODINGS.get(match.group(1).decode("ascii").lower(), "utf-8") if match else "utf-8"


def _parse_extent(line: str, number: int, file: str) -> ExtentLine:
    match = _EXTENT_LINE.fullmatch(line)
    if match is None:
        raise Corrupt(file, f"descriptor line {number}", expected="an extent", found=line)
    kind = match["type"].upper()
    if kind not in EXTENT_TYPES:
        raise Unsupported(file, "vmdk", f"extents of type {kind[:20]}")
    if max(len(match["sectors"]), len(match["offset"] or "")) > _MOST_DIGITS:  # int() refuses the longest by itself
        raise Corrupt(file, f"descriptor line {number}", expected="numbers less than 2^54", found=line)
    sectors = int(match["sectors"])
    offset = None if match["offset"] is None else int(match["offset"])
    for what, value in (("sectors", sectors), ("offset", offset or 0)):
        if value >= 1 << 54:
            raise Corrupt(file, f"descriptor line {number}: {what}", expected="less than 2^54", found=value)
    if kind != "ZERO" and match["name"] is None:
        raise Corrupt(file, f"descriptor line {number}", expected="a file name in quotes", found=line)
    if kind == "FLAT" and offset is None:
        raise Corrupt(file, f"descriptor line {number}", expected="an offset behind the name", found=line)
    return ExtentLine(match["access"].upper(), sectors, kind, match["name"], offset)


def check_name(name: str) -> None:
    """Refuse a file name that a descriptor cannot hold."""
    if '"' in name or not name.isprintable():
        raise OptionError(f"vmdk: a descriptor cannot hold the file name {name!r}")


def geometry(sectors: int, adapter_type: str) -> tuple[int, int, int]:
    """Cylinders, heads and sectors a track of a new disk: 16 heads for IDE, 255 for SCSI, 63 sectors."""
    heads = 16 if adapter_type == "ide" else 255
    return sectors // (63 * heads), heads, 63


def new_descriptor(
    create_type: str,
    extents: list[ExtentLine],
    *,
    cid: int,
    parent_cid: int = NO_PARENT,
    parent_name: str | None = None,
    ddb: dict[str, str],
) -> Descriptor:
    """The descriptor of a new disk; `ddb` are the lines of its data base, names without "ddb."."""
    for extent in extents:
        if extent.name is not None:
            check_name(extent.name)
    lines = [
        _OPENING,
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid:08x}",
        f"parentCID={parent_cid:08x}",
        f'createType="{create_type}"',
    ]
    if parent_name is not None:
        check_name(parent_name)
        lines.append(f'parentFileNameHint="{parent_name}"')
    lines += ["", "# Extent description", *map(str, extents), "", "# The Disk Data Base", "#DDB", ""]
    lines += [f'ddb.{name} = "{value}"' for name, value in ddb.items()]
    return Descriptor.parse(("\n".join(lines) + "\n").encode(), "<new>")


def sectors_for(raw: bytes) -> int:
    """Sectors that a descriptor takes inside a sparse extent: 20 as everyone reserves, more where it is longer."""
    return max(20, -(-len(raw) // SECTOR_BYTES))
