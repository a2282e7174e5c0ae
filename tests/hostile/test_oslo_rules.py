"""What oslo.utils' format_inspector refuses, strict mode refuses: cases for each of its rules.

That program was run on all of them (June 2026): it refuses `REFUSED` and takes `HONEST`, but for what is said below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.vmdk.handmade import descriptor, header
from tests.hostile.making import qcow2
from tests.hostile.test_strict import put
from vdisk import formats
from vdisk.errors import VdiskError

SIGNATURE = b"\x55\xaa"
ORDINARY = (0x80, b"\x20\x21\0", 0x83, b"\xfe\xff\xff", 2048, 4096)
PROTECTIVE = (0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, 4095)
NOTHING = (0, b"\0\0\0", 0, b"\0\0\0", 0, 0)


def disk(*entries: tuple[int, bytes, int, bytes, int, int], boot: bytes = b"", at_iso: bytes = b"") -> bytes:
    """A raw disk with a partition table of these entries."""
    table = b"".join(struct.pack("<B3sB3sII", *entry) for entry in entries).ljust(64, b"\0")
    sector = boot.ljust(446, b"\0") + table + SIGNATURE
    return put(sector, 0x8001, at_iso)


def protective(**changes: int | bytes) -> tuple[int, bytes, int, bytes, int, int]:
    flag, start, kind, end, first, count = PROTECTIVE
    named = {"flag": flag, "start": start, "kind": kind, "end": end, "first": first, "count": count} | changes
    return tuple(named.values())  # type: ignore[return-value]


def sparse(text: str | bytes | None = None, *, at: tuple[int, int] = (1, 20), version: int = 1) -> bytes:
    """A monolithicSparse with a descriptor of our choice and no grain."""
    if text is None:
        text = descriptor('RW 128 SPARSE "image"', create_type="monolithicSparse")
    data = text.encode() if isinstance(text, str) else text
    head = header(version=version, capacity=128, descriptor=at, directory=21, overhead=128)
    tables = struct.pack("<I", 22).ljust(512, b"\0") + bytes(2048)
    return (head.ljust(512, b"\0") + data.ljust(20 * 512, b"\0") + tables).ljust(65536, b"\0")


def saying(old: str, new: str) -> bytes:
    """The same, where the descriptor says `new` for `old`."""
    text = descriptor('RW 128 SPARSE "image"', create_type="monolithicSparse")
    assert old in text
    return sparse(text.replace(old, new))


def stream(folder: Path, at: int, patch: bytes) -> bytes:
    """A streamOptimized VMDK, which ends in a footer, with `patch` at an offset counted from its end."""
    path = folder / "stream.vmdk"
    lay_out(path, "vmdk", {"subformat": "streamOptimized"}, b"x" * 65536)
    data = bytearray(path.read_bytes())
    data[len(data) + at : len(data) + at + len(patch)] = patch
    return bytes(data)


def vhdx(folder: Path, at: int = 0, patch: bytes = b"") -> bytes:
    path = folder / "disk.vhdx"
    lay_out(path, "vhdx", {}, b"x" * 65536)
    return put(path.read_bytes(), at, patch)


LUKS = b"LUKS\xba\xbe"

REFUSED: dict[str, bytes | Callable[[Path], bytes]] = {
    # qcow2
    "qcow2: backing file": qcow2(backing="base"),
    "qcow2: a backing file's place alone": qcow2(backing_name_offset=512),
    "qcow2: data file": qcow2(incompatible=4),
    "qcow2, version 2: what would be the mark of a data file": qcow2(version=2, raw_extensions=b"\0" * 7 + b"\4"),
    "qcow2: features past bit 3": qcow2(incompatible=1 << 4),
    "qcow2: features in the highest byte": qcow2(incompatible=1 << 63),
    "qcow2: version 4": qcow2(version=4),
    "qcow2: version 1": qcow2(version=1),
    "qcow2: version 0": qcow2(version=0),
    # QED is banned
    "QED": b"QED\0".ljust(65536, b"\0"),
    # VMDK
    "vmdk: version": sparse(version=4),
    "vmdk: descriptor elsewhere": sparse(at=(2, 19)),
    "vmdk: no descriptor": sparse(at=(0, 0)),
    "vmdk: a descriptor longer than the file": sparse(at=(1, 512)),
    "vmdk: create type": saying("monolithicSparse", "monolithicFlat"),
    "vmdk: no create type": saying('createType="monolithicSparse"', "foo=1"),
    "vmdk: create type without quotes": saying('"monolithicSparse"', "monolithicSparse"),
    "vmdk: another create type in a comment before": saying("version=1", '# createType="custom"\nversion=1'),
    "vmdk: an endless create type": saying("monolithicSparse", "monolithicSparse" + "x" * 64),
    "vmdk: a line of no kind": saying("#DDB", "what is this"),
    "vmdk: a name with a space": saying("#DDB", "some name=1"),
    "vmdk: a folder in an extent's name": saying('"image"', '"./image"'),
    "vmdk: no extent": saying('RW 128 SPARSE "image"', ""),
    "vmdk: not ASCII": saying("image", "\u017e"),
    "vmdk: a second extent": saying('"image"', '"image"\nRW 128 FLAT "/etc/passwd" 0'),
    "vmdk: flat descriptor": descriptor('RW 1 FLAT "x" 0', create_type="monolithicFlat").encode().ljust(65536),
    "vmdk: text without an opening line": b'# x\nfoo=1\ncreateType="monolithicFlat"\nRW 1 FLAT "x" 0\n'.ljust(65536),
    # its footer
    "vmdk: the footer's signature": lambda folder: stream(folder, -1024, b"COWD"),
    "vmdk: the footer's version": lambda folder: stream(folder, -1020, b"\x02"),
    "vmdk: the footer's descriptor elsewhere": lambda folder: stream(folder, -1024 + 28, b"\x02"),
    "vmdk: the footer's descriptor longer": lambda folder: stream(folder, -1024 + 36, b"\xff"),
    "vmdk: a footer of a footer": lambda folder: stream(folder, -1024 + 56, b"\xff" * 8),
    "vmdk: the footer's marker": lambda folder: stream(folder, -1536 + 12, b"\x02"),
    "vmdk: something in the footer's marker": lambda folder: stream(folder, -1536 + 100, b"x"),
    "vmdk: the end-of-stream marker": lambda folder: stream(folder, -512 + 12, b"\x01"),
    "vmdk: something in the end-of-stream marker": lambda folder: stream(folder, -1, b"x"),
    # VHDX: it reads the first region table alone, and takes these but for the metadata's signature
    "vhdx: the first region table's signature": lambda folder: vhdx(folder, 192 << 10, b"REGI"),
    "vhdx: the first region table's count": lambda folder: vhdx(folder, (192 << 10) + 8, b"\0\x08"),
    "vhdx: metadata signature": lambda folder: vhdx(folder, vhdx(folder).index(b"metadata"), b"METADATA"),
    "vhdx: metadata entries": lambda folder: vhdx(folder, vhdx(folder).index(b"metadata") + 10, b"\0\x08"),
    # Partition tables
    "mbr: boot flag": disk((0x81, *ORDINARY[1:])),
    "mbr: boot flag of an empty entry": disk(ORDINARY, (1, *NOTHING[1:])),
    "mbr: no partition": disk(),
    "gpt: protective entry's start": disk(protective(start=b"\0\x01\0")),
    "gpt: protective entry's sector": disk(protective(first=2)),
    "gpt: protective entry is not the first": disk(NOTHING, PROTECTIVE),
    "gpt: a partition beside the protective one": disk(PROTECTIVE, ORDINARY),
    "fat: of a floppy": disk(boot=bytes(0x10) + b"\x02" + bytes(4) + b"\xf0"),
    # LUKS
    "luks: version 2": put(LUKS + b"\0\x02", 0, b""),
    "luks: half a header": (LUKS + b"\0\x01").ljust(512, b"\0"),
    # Two at once
    "iso and partition table": disk(ORDINARY, at_iso=b"CD001"),
    "udf and partition table": disk(ORDINARY, at_iso=b"NSR02"),
    "luks and iso": put(LUKS + b"\0\x01", 0x8001, b"CD001"),
    "luks and partition table": disk(ORDINARY, boot=LUKS + b"\0\x01"),
    "qcow2 and udf": put(qcow2(), 0x8001, b"NSR03"),
    "qcow2 and a boot sector's signature alone": put(qcow2(), 510, SIGNATURE),
    "vmdk and iso": put(sparse(), 0x8001, b"CD001"),
    "vmdk and a boot sector's signature": put(sparse(), 510, SIGNATURE),
    "vdi and iso": lambda folder: put(_vdi(folder), 0x8001, b"CD001"),
    "vhdx and iso": lambda folder: vhdx(folder, 0x8001, b"CD001"),
    "vhd and iso": lambda folder: put(_vhd(folder), 0x8001, b"CD001"),
    "vhd and vdi": lambda folder: put(_vhd(folder), 64, b"\x7f\x10\xda\xbe"),
}


def _vdi(folder: Path) -> bytes:
    lay_out(folder / "disk.vdi", "vdi", {}, b"x" * 65536)
    return (folder / "disk.vdi").read_bytes()


def _vhd(folder: Path) -> bytes:
    lay_out(folder / "disk.vhd", "vhd", {}, b"x" * 65536)
    return (folder / "disk.vhd").read_bytes()


HONEST: dict[str, bytes | Callable[[Path], bytes]] = {
    "qcow2": qcow2(),
    "qcow2, version 2": qcow2(version=2),
    "vmdk": sparse(),
    "stream": lambda folder: stream(folder, 0, b""),
    "vhdx": vhdx,
    "vdi": _vdi,
    "vhd": _vhd,
    "mbr": disk(ORDINARY),
    "mbr, four partitions": disk(ORDINARY, *[(0, *ORDINARY[1:])] * 3),
    "gpt": put(disk(PROTECTIVE), 512, b"EFI PART"),
    "fat": disk(boot=bytes(0x10) + b"\x02" + bytes(4) + b"\xf8"),
    "iso": put(b"", 0x8001, b"CD001"),
    "luks": put(LUKS + b"\0\x01", 0, b""),
    "nothing": bytes(65536),
}


def laid(case: bytes | Callable[[Path], bytes], folder: Path) -> Path:
    path = folder / "image"
    path.write_bytes(case if isinstance(case, bytes) else case(folder))
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    path = laid(REFUSED[name], tmp_path)
    with pytest.raises(VdiskError) as refused:
        formats.open(path, strict=True)
    assert "\n" not in str(refused.value)
    with pytest.raises(VdiskError):  # to say that it is raw makes nothing better
        formats.open(path, strict=True, format="raw")


@pytest.mark.parametrize("name", HONEST)
def test_taken(name: str, tmp_path: Path) -> None:
    formats.open(laid(HONEST[name], tmp_path), strict=True).close()
