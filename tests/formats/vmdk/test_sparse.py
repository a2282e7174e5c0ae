"""Sparse extents as other programs make them: tables, markers, footers, zero grains, odd places."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.conformance.image import check_map
from tests.formats.vmdk.handmade import GRAIN, descriptor, header, sparse, stream
from tests.peers import real_image, sha256
from vdisk import formats
from vdisk.block.extent import Kind
from vdisk.errors import Corrupt, Unsupported, VdiskError

noise = random.Random(1).randbytes
CAPACITY = 128 * 600 + 37
"""Two tables, the last grain partial."""


def content_of(grains: dict[int, bytes], capacity: int = CAPACITY) -> bytes:
    content = bytearray(-(-capacity // 128) * GRAIN)
    for number, data in grains.items():
        content[number * GRAIN : number * GRAIN + len(data)] = data
    return bytes(content[: capacity * 512])


GRAINS = {0: noise(GRAIN), 1: noise(GRAIN), 511: noise(GRAIN), 512: noise(GRAIN), 600: noise(37 * 512)}


def test_grains_in_any_order_are_put_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.vmdk").write_bytes(sparse(GRAINS, CAPACITY))
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == content_of(GRAINS)
        check_map(disk, content_of(GRAINS))


@pytest.mark.parametrize("per_table", [64, 100, 512, 4096])
def test_tables_of_other_lengths_are_read_and_written(tmp_path: Path, per_table: int) -> None:
    (tmp_path / "a.vmdk").write_bytes(sparse(GRAINS, CAPACITY, per_table=per_table))
    content = bytearray(content_of(GRAINS))
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        assert disk.read(0, disk.size) == content
        disk.write(99 * GRAIN - 5, b"0123456789")
        content[99 * GRAIN - 5 : 99 * GRAIN + 5] = b"0123456789"
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("footer", [True, False])
@pytest.mark.parametrize("with_descriptor", [True, False])
def test_streams_with_and_without_markers_footer_and_descriptor(
    tmp_path: Path, markers: bool, footer: bool, with_descriptor: bool
) -> None:
    text = descriptor(f'RW {CAPACITY} SPARSE "old-name.vmdk"', create_type="streamOptimized") if with_descriptor else ""
    path = tmp_path / "a.vmdk"
    path.write_bytes(stream(GRAINS, CAPACITY, text=text, markers=markers, footer=footer))
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == content_of(GRAINS)
        check_map(disk, content_of(GRAINS))
        assert disk.describe().specific["create-type"] == "streamOptimized"
        for extent in disk.map():
            if extent.kind is Kind.ENCODED:
                assert extent.encoded is not None
                assert extent.encoded.codec == "zlib"
    with pytest.raises(Unsupported, match="writing to streamOptimized"):
        formats.open(path, writable=True)


def test_the_footer_counts_where_the_header_says_so(tmp_path: Path) -> None:
    raw = bytearray(stream(GRAINS, CAPACITY))
    raw[12:20] = struct.pack("<Q", 77)  # the header's capacity is not the footer's
    (tmp_path / "a.vmdk").write_bytes(raw)
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.size == CAPACITY * 512


def test_a_stream_cut_short_is_refused(tmp_path: Path) -> None:
    whole = stream(GRAINS, CAPACITY)
    for length in (len(whole) - 1, len(whole) - 512, len(whole) - 2048, len(whole) // 2, 600):
        (tmp_path / "a.vmdk").write_bytes(whole[:length])
        with pytest.raises(Corrupt, match="footer"):
            formats.open(tmp_path / "a.vmdk")


def test_entry_one_means_zeros_only_with_its_flag(tmp_path: Path) -> None:
    grains: dict[int, bytes | int] = {0: noise(GRAIN), 1: 1, 2: noise(GRAIN)}
    (tmp_path / "with.vmdk").write_bytes(sparse(grains, 128 * 3, flags=1 | 4, version=2))
    (tmp_path / "without.vmdk").write_bytes(sparse(grains, 128 * 3))
    with formats.open(tmp_path / "with.vmdk") as disk:
        assert disk.read(GRAIN, GRAIN) == bytes(GRAIN)
        assert [extent.kind for extent in disk.map()] == [Kind.DATA, Kind.ZERO, Kind.DATA]
    with formats.open(tmp_path / "without.vmdk") as disk:
        assert disk.read(0, GRAIN) == grains[0]
        with pytest.raises(Corrupt, match="grain table entry of guest offset 65536"):
            disk.read(GRAIN, 1)


def test_a_grain_past_the_end_of_the_file_is_not_read_as_zeros(tmp_path: Path) -> None:
    whole = sparse({0: noise(GRAIN), 1: noise(GRAIN)}, 256)
    (tmp_path / "a.vmdk").write_bytes(whole[:-512])
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(GRAIN, GRAIN)
        with pytest.raises(Corrupt, match="cut short"):
            disk.read(0, GRAIN)


def test_the_last_grain_may_end_with_the_disk(tmp_path: Path) -> None:
    data = noise(37 * 512)
    whole = sparse({1: data}, 128 + 37)
    (tmp_path / "a.vmdk").write_bytes(whole[: len(whole) - GRAIN + len(data)])
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        assert disk.read(GRAIN, len(data)) == data
        disk.write(0, b"first")
        disk.write(disk.size - 4, b"last")
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(GRAIN, len(data)) == data[:-4] + b"last"
        assert disk.read(0, 5) == b"first"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 4}, "version 4"),
        ({"grain": 0}, "grainSize"),
        ({"grain": 100}, "grainSize"),
        ({"grain": 1 << 60}, "grainSize"),
        ({"per_table": 0}, "numGTEsPerGT"),
        ({"per_table": 0xFFFFFFFF}, "numGTEsPerGT"),
        ({"capacity": 1 << 63}, "capacity"),
        ({"capacity": 1 << 52}, "capacity"),
        ({"directory": 1 << 50}, "gdOffset"),
        ({"directory": 0}, "gdOffset"),
        ({"newlines": b"\r\n \n"}, "newline characters"),
        ({"flags": 1 | 1 << 16, "compression": 7}, "compression algorithm 7"),
        ({"descriptor": (1 << 60, 20)}, "descriptorOffset"),
        ({"descriptor": (1, 1 << 60)}, "descriptorOffset"),
    ],
)
def test_a_header_that_cannot_be_right_is_named(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    fields = {"capacity": 256, **changes}
    raw = header(**fields).ljust(1 << 18, b"\0")  # type: ignore[arg-type]
    (tmp_path / "a.vmdk").write_bytes(raw)
    with pytest.raises(VdiskError, match=words):
        formats.open(tmp_path / "a.vmdk")


def test_a_missing_table_reads_as_zeros_and_is_made_when_written(tmp_path: Path) -> None:
    raw = bytearray(sparse(GRAINS, CAPACITY))
    raw[512 + 4 : 512 + 8] = bytes(4)  # the second directory entry
    (tmp_path / "a.vmdk").write_bytes(raw)
    content = bytearray(content_of({n: d for n, d in GRAINS.items() if n < 512}))
    with formats.open(tmp_path / "a.vmdk", writable=True) as disk:
        assert disk.read(0, disk.size) == content
        disk.write(555 * GRAIN + 3, b"new")
        content[555 * GRAIN + 3 : 555 * GRAIN + 6] = b"new"
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
    with formats.open(tmp_path / "a.vmdk") as disk:
        assert disk.read(0, disk.size) == content
        check_map(disk, content)


def test_more_tables_than_are_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    formats.create(path, "400G")
    maker = random.Random(5)
    wanted = {}
    with formats.open(path, writable=True) as disk:
        for number in range(0, 12_800, 3):  # of 12,800 tables 8,192 are kept
            offset = number * (32 << 20) + maker.randrange(30 << 20)
            if number % 300 == 0:
                wanted[offset] = maker.randbytes(1000)
                disk.write(offset, wanted[offset])
            else:
                assert not any(disk.read(offset, 1000))
        for offset, data in wanted.items():
            assert disk.read(offset, 1000) == data
    with formats.open(path) as disk:
        found = {extent.start for extent in disk.map() if extent.kind is Kind.DATA}
        for offset, data in wanted.items():
            assert disk.read(offset, 1000) == data
            assert offset // GRAIN * GRAIN in found


@pytest.mark.slow
def test_vmware_s_stream_of_version_3(tmp_path: Path) -> None:
    path = real_image("iotest-version3.vmdk", tmp_path)
    with pytest.raises(Unsupported, match="writing to streamOptimized"):
        formats.open(path, writable=True)
    with formats.open(path) as disk:
        assert disk.size == 17179869184
        whole = tmp_path / "whole.raw"
        with whole.open("wb") as file:
            for extent in disk.map():
                if extent.kind is not Kind.ZERO:
                    file.seek(extent.start)
                    file.write(disk.read(extent.start, extent.length))
            file.truncate(disk.size)
    assert sha256(whole) == "0859bb3397bc1d30fa979c80a289ce98bfd6c1141a64594d6f3cc8cd68218faf"


def test_esxi_s_sesparse_with_and_without_its_descriptor(tmp_path: Path) -> None:
    path = real_image("sesparse.vmdk", tmp_path)
    with formats.open(path) as disk:
        sectors = disk.size // 512
        assert disk.read(0, 16 << 20) == b"a" * (16 << 20)
        assert not any(disk.read(16 << 20, 1 << 20))
    (tmp_path / "disk.vmdk").write_text(descriptor(f'RW {sectors} SESPARSE "sesparse.vmdk"', create_type="seSparse"))
    with formats.open(tmp_path / "disk.vmdk") as disk:
        assert disk.read((16 << 20) - 1, 2) == b"a\0"
    with pytest.raises(Unsupported, match="writing to seSparse"):
        formats.open(tmp_path / "disk.vmdk", writable=True)
