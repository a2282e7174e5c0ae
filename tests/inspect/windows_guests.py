"""Small Windows systems made here: registry hives, and disks of NTFS with a tree of files on them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import peers
from tests.inspect.guests import START, Files, disk_of, lay_out, put

NO_OFFSET = 0xFFFFFFFF
_NTFS = 7


class HiveWriter:
    """A hive of keys (dictionaries) and values: a number is a REG_DWORD, a text a REG_SZ (msuhanov's regf.md)."""

    def __init__(self) -> None:
        self._cells = bytearray()

    def write(self, tree: Mapping[str, Any], *, sequences: tuple[int, int] = (1, 1)) -> bytes:
        root = self._key("ROOT", tree, 0, is_root=True)
        length = -(-(len(self._cells) + 32) // 4096) * 4096
        rest = length - 32 - len(self._cells)
        if rest:
            self._cells += struct.pack("<i", rest) + bytes(rest - 4)
        head = struct.pack("<4sIIQIIIIIII", b"regf", *sequences, 0, 1, 5, 0, 1, root, length, 1).ljust(508, b"\0")
        checksum = 0
        for (word,) in struct.iter_unpack("<I", head):
            checksum ^= word
        block = (head + struct.pack("<I", checksum)).ljust(4096, b"\0")
        return block + struct.pack("<4sII20x", b"hbin", 0, length) + bytes(self._cells)

    def _cell(self, data: bytes) -> int:
        length = -(-(len(data) + 4) // 8) * 8
        offset = 32 + len(self._cells)
        self._cells += struct.pack("<i", -length) + data.ljust(length - 4, b"\0")
        return offset

    def _key(self, name: str, tree: Mapping[str, Any], parent: int, *, is_root: bool = False) -> int:
        at = self._cell(bytes(76 + len(name)))
        keys = {
            one: value for one, value in sorted(tree.items(), key=lambda row: row[0].upper()) if isinstance(value, dict)
        }
        values = {one: value for one, value in tree.items() if not isinstance(value, dict)}
        key_list = NO_OFFSET
        if keys:
            offsets = [(self._key(one, value, at), one) for one, value in keys.items()]
            key_list = self._cell(
                struct.pack("<2sH", b"lf", len(keys))
                + b"".join(struct.pack("<I4s", offset, one[:4].encode()) for offset, one in offsets)
            )
        value_list = NO_OFFSET
        if values:
            value_list = self._cell(b"".join(struct.pack("<I", self._value(*row)) for row in values.items()))
        head = struct.pack(
            "<2sHQIIIIIIIIIIIIIIIHH", b"nk", 0x2C if is_root else 0x20, 0, 0, parent, len(keys), 0, key_list, NO_OFFSET,
            len(values), value_list, NO_OFFSET, NO_OFFSET, 0, 0, 0, 0, 0, len(name), 0,
        )  # fmt: skip
        self._cells[at - 32 + 4 : at - 32 + 4 + 76 + len(name)] = head + name.encode()
        return at

    def _value(self, name: str, value: int | str) -> int:
        if isinstance(value, int):
            kind, size, data = 4, 4 | 1 << 31, value
        else:
            content = (value + "\0").encode("utf-16-le")
            kind, size, data = 1, len(content), self._cell(content)
        return self._cell(struct.pack("<2sHIIIHH", b"vk", len(name), size, data, kind, 1, 0) + name.encode())


def hive(tree: Mapping[str, Any], **how: Any) -> bytes:
    """The bytes of a hive."""
    return HiveWriter().write(tree, **how)


def windows(
    boot: tuple[str, ...] = ("storahci", "stornvme"),
    other: tuple[str, ...] = ("atapi", "intelide"),
    *,
    agents: tuple[str, ...] = (),
    name: str = "Windows Server 2022 Standard",
    build: str = "20348",
    sequences: tuple[int, int] = (7, 7),
    **files: bytes,
) -> dict[str, bytes | str]:
    """A Windows of a few files that starts with the drivers `boot` and has `other`; `files` by path, "/" as "__"."""
    services: dict[str, Any] = {
        **{one: {"Start": 0, "ImagePath": rf"\SystemRoot\System32\drivers\{one}.sys"} for one in boot},
        **{one: {"Start": 0, "StartOverride": {"0": 3}, "ImagePath": rf"System32\drivers\{one}.sys"} for one in other},
        **{one: {"Start": 2} for one in agents},
        "Tcpip": {"Start": 1},
    }
    system = {
        "Select": {"Current": 2, "Default": 2},
        "ControlSet001": {"Services": {}},
        "ControlSet002": {
            "Services": services,
            "Control": {"Session Manager": {"Environment": {"PROCESSOR_ARCHITECTURE": "AMD64"}}},
        },
    }
    version = {"ProductName": name, "CurrentBuildNumber": build}
    return {
        "Windows/System32/config/SYSTEM": hive(system, sequences=sequences),
        "Windows/System32/config/SOFTWARE": hive({"Microsoft": {"Windows NT": {"CurrentVersion": version}}}),
        "Windows/System32/ntoskrnl.exe": b"MZ" * 50_000,
        **{f"Windows/System32/drivers/{one}.sys": b"MZ" * 5000 for one in (*boot, *other)},
        "pagefile.sys": bytes(1 << 20),
        **{path.replace("__", "/"): data for path, data in files.items()},
    }


def ntfs_disk(path: Path, files: Files, *, size: int = 24 << 20) -> Path:
    """A disk with the tree in one NTFS partition."""
    volume, point = path.with_name(path.name + "-ntfs"), path.with_name(path.name + "-mounted")
    with volume.open("wb") as file:
        file.truncate(size - START)
    peers.run("mkntfs", "-q", "-F", "-f", "-p", START // 512, "-H", 16, "-S", 63, volume)
    point.mkdir()
    peers.run("ntfs-3g", volume, point)
    try:
        lay_out(files, point)
    finally:
        subprocess.run(["umount", point], check=True)
    disk_of(path, size, _NTFS)
    put(volume, path, START)
    return path
