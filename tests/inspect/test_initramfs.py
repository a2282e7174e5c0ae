"""Names in an initramfs: every compression, archives one behind the other, and damage of any kind."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

import pytest

from tests.inspect.guests import COMPRESSIONS, cpio, initramfs
from vdisk.inspect import initramfs as reader
from vdisk.inspect.initramfs import names_in
from vdisk.inspect.tree import Unreadable


def pieces(data: bytes, step: int = 100_000) -> Iterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_every_compression_behind_plain_microcode(compression: str, step: int) -> None:
    names = list(names_in(pieces(initramfs("virtio_blk", compression=compression), step)))
    assert names[0] == "kernel"
    assert names[-1].endswith("/drivers/virtio_blk.ko.xz")
    assert len(names) == 6


def test_several_compressed_archives_and_zeros_between() -> None:
    parts = [COMPRESSIONS[kind](cpio([kind])) + bytes(1024) for kind in ("gzip", "gzip", "none", "xz", "zstd", "lz4")]
    assert list(names_in(pieces(b"".join(parts)))) == ["gzip", "gzip", "none", "xz", "zstd", "lz4"]


def test_one_archive_over_several_frames() -> None:
    whole = cpio([f"file{number}" for number in range(50)])
    split = COMPRESSIONS["gzip"](whole[:3001]) + COMPRESSIONS["gzip"](whole[3001:])
    assert len(list(names_in(pieces(split)))) == 50


def test_lzo_and_what_is_unknown_are_named() -> None:
    with pytest.raises(Unreadable, match="compressed by LZO is not looked into"):
        list(names_in([b"\x89LZO\x00\r\n\x1a\n" + bytes(100)]))
    with pytest.raises(Unreadable, match=r"what begins with b'hello '"):
        list(names_in([b"hello world"]))
    with pytest.raises(Unreadable, match="no cpio archive"):
        list(names_in([zlib.compress(b"no archive", wbits=31)]))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_cut_one_says_so(compression: str) -> None:
    whole = initramfs("ahci", "nvme", compression=compression).rstrip(b"\0")
    early = len(cpio(["kernel", "kernel/x86", "kernel/x86/microcode/GenuineIntel.bin"], b"microcode" * 100))
    for length in range(early + 1, len(whole) - 30, 11):  # every length of the compressed part
        with pytest.raises(Unreadable):
            list(names_in(pieces(whole[:length])))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damage_is_told_or_harmless(compression: str) -> None:
    whole, chance = initramfs("ahci", compression=compression), random.Random(compression)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 5, 50))):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        try:
            assert len(list(names_in(pieces(bytes(damaged))))) < 1000
        except Unreadable as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "none"])
def test_a_small_one_that_unpacks_to_much_is_left(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MOST_UNPACKED_BYTES", 16 << 20)
    bomb = COMPRESSIONS[compression](cpio(["bomb"], bytes(40 << 20)))
    with pytest.raises(Unreadable, match="unpacks to more than"):
        list(names_in(pieces(bomb)))


def test_files_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MOST_FILES", 10)
    with pytest.raises(Unreadable, match="more than 10 files"):
        list(names_in([cpio([str(number) for number in range(11)])]))
