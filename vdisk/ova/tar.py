"""The members of a tar file, and where their bytes lie: POSIX ustar and pax, GNU's long names and large sizes.

Nothing is unpacked, and no header makes us take memory or time beyond a small limit.
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.storage.base import Storage

BLOCK_BYTES = 512
RECORD_BYTES = 10240
"""A tar file's length is a multiple of it."""

_MOST_MEMBERS = 10_000
_LONGEST_EXTENSION_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_LARGEST_OCTAL = (1 << 33) - 1


class Member(NamedTuple):
    """A plain file in the archive. Offsets and lengths are bytes."""

    name: str
    offset: int
    length: int


def read_members(storage: Storage) -> list[Member]:
    """Every plain file, in order. Raises `Corrupt` or `Unsupported`, naming the archive."""
    members: list[Member] = []
    offset, size, file = 0, storage.size, storage.name
    long_name: str | None = None
    extended: dict[str, str] = {}
    for _ in range(4 * _MOST_MEMBERS):
        header = storage.read(offset, BLOCK_BYTES)
        if len(header) < BLOCK_BYTES or not any(header):
            return members
        if not _has_checksum(header):
            raise Corrupt(file, f"tar header at {offset}", "its checksum is wrong")
        length = _number(header[124:136], file, offset)
        kind = header[156:157]
        data = offset + BLOCK_BYTES
        if kind in (b"L", b"x"):
            if length > _LONGEST_EXTENSION_BYTES:
                raise Corrupt(file, f"tar header at {offset}: size", expected="at most 1 MiB", found=length)
            raw = storage.read(data, length)
            if kind == b"L":
                long_name = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                extended = _pax(raw, file, offset)
        elif kind == b"S":
            raise Unsupported(file, "ova", "sparse members")
        else:
            if "size" in extended and extended["size"].isdecimal():
                length = int(extended["size"][:20])
            name = extended.get("path") or long_name or _name(header)
            if data + length > size:
                raise Corrupt(
                    file, f"tar member {name!r}", expected=f"{length} bytes at {data}", found=f"a file of {size}"
                )
            if kind in _REGULAR:
                members.append(Member(name.removeprefix("./"), data, length))
            long_name, extended = None, {}
        offset = data + -(-length // BLOCK_BYTES) * BLOCK_BYTES
        if len(members) > _MOST_MEMBERS:
            break
    raise Unsupported(file, "ova", f"archives of more than {_MOST_MEMBERS} members")


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with `head` is a tar file, as far as its first header tells."""
    return len(head) >= BLOCK_BYTES and any(head[:100]) and _has_checksum(head[:BLOCK_BYTES])


def _has_checksum(header: bytes) -> bool:
    text = header[148:156].strip(b" \0")
    try:
        return int(text, 8) == sum(header) - sum(header[148:156]) + 8 * 32
    except ValueError:
        return False


def _number(field: bytes, file: str, offset: int) -> int:
    """Octal digits, or GNU's 96-bit number where the top bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    else:
        try:
            value = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            value = -1
    if not 0 <= value < 1 << 62:
        raise Corrupt(file, f"tar header at {offset}: size", expected="a number", found=field)
    return value


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _pax(raw: bytes, file: str, offset: int) -> dict[str, str]:
    """Records of "length keyword=value"."""
    found: dict[str, str] = {}
    while raw:
        digits = raw.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = raw[len(digits) + 1 : length]
        if not record.endswith(b"\n") or b"=" not in record:
            raise Corrupt(file, f"tar header at {offset}", "a pax record that cannot be read")
        keyword, _, value = record[:-1].partition(b"=")
        found[keyword.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        raw = raw[length:]
    return found


def member_header(name: str, length: int, mtime: int) -> bytes:
    """The 512 bytes before a plain file's: ustar; GNU's large number where 8 GiB and more call for it."""
    encoded = name.encode()
    if len(encoded) > 100:
        raise OptionError(f"ova: a name of more than 100 bytes does not fit an archive: {name!r}")
    large = length > _LARGEST_OCTAL
    size = (length | 0x80 << 88).to_bytes(12, "big") if large else b"%011o\0" % length
    header = bytearray(BLOCK_BYTES)
    header[0 : len(encoded)] = encoded
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:136] = size
    header[136:148] = b"%011o\0" % mtime
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar  \0" if large else b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(length: int) -> int:
    """Bytes behind a member of `length`."""
    return -length % BLOCK_BYTES
