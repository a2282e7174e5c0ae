"""The loops of the block device: chains, copy-up, compressed units, windows."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.image import check_map
from vdisk.block import codecs
from vdisk.block.device import BlockDevice, StorageDevice
from vdisk.block.extent import Encoded, Extent, Kind, coalesce
from vdisk.block.filters import ReadOnly, Window
from vdisk.block.overlay import Overlay
from vdisk.errors import Corrupt, OptionError, StorageError
from vdisk.storage.memory import MemoryStorage


class Plain(StorageDevice):
    """A disk in memory."""

    def __init__(self, content: bytes, *, writable: bool = True) -> None:
        super().__init__(MemoryStorage(content), len(content), writable=writable)

    def _extents(self, offset: int, length: int) -> tuple[Extent, ...]:
        return (Extent(offset, length, Kind.DATA, self.storage, offset),)


class Packed(StorageDevice):
    """Units of 4 KiB, each compressed, one behind the other."""

    def __init__(self, content: bytes, codec: str = "deflate") -> None:
        storage = MemoryStorage()
        self.units = []
        for start in range(0, len(content), 4096):
            payload = codecs.encode(codec, content[start : start + 4096])
            self.units.append((storage.size, len(payload)))
            storage.write(storage.size, payload)
        super().__init__(storage, len(content), writable=False)
        self.codec = codec

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            unit = offset // 4096
            stop = min(end, (unit + 1) * 4096)
            host, host_length = self.units[unit]
            encoded = Encoded(self.codec, host, host_length, unit * 4096, 4096)
            yield Extent(offset, stop - offset, Kind.ENCODED, self.storage, encoded=encoded)
            offset = stop


CONTENT = random.Random(1).randbytes(70_000)


@given(
    st.lists(st.tuples(st.sampled_from("wzdr"), st.integers(0, 69_999), st.integers(1, 30_000)), max_size=30),
    st.sampled_from([512, 4096, 65536]),
)
def test_an_overlay_keeps_changes_and_leaves_its_base(ops: list[tuple[str, int, int]], block_size: int) -> None:
    base = Plain(CONTENT, writable=False)
    model = bytearray(CONTENT)
    with Overlay(base, block_size=block_size) as overlay:
        for what, offset, length in ops:
            length = min(length, len(model) - offset)
            if what == "w":
                data = random.Random(offset).randbytes(length)
                overlay.write(offset, data)
                model[offset : offset + length] = data
            elif what == "z":
                overlay.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            elif what == "r":
                assert overlay.read(offset, length) == model[offset : offset + length]
        assert overlay.read(0, overlay.size) == model
        check_map(overlay, model)
        assert base.read(0, base.size) == CONTENT


def test_a_chain_of_three_reads_the_topmost_that_holds_something() -> None:
    middle = Overlay(Plain(b"a" * 8192), block_size=512)
    top = Overlay(middle, block_size=512)
    middle.write(512, b"b" * 1024)
    top.write(1024, b"c" * 512)
    assert top.read(0, 2048) == b"a" * 512 + b"b" * 512 + b"c" * 512 + b"a" * 512
    assert [(e.start, e.length, e.depth) for e in top.map()] == [
        (0, 512, 2), (512, 512, 1), (1024, 512, 0), (1536, 6656, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("base_size", [0, 1, 512, 5000, 9000])
def test_beyond_the_end_of_a_shorter_base_there_are_zeros(base_size: int) -> None:
    with Overlay(Plain(b"x" * base_size), size=8192, block_size=4096) as overlay:
        wanted = (b"x" * base_size)[:8192].ljust(8192, b"\0")
        assert overlay.read(0, 8192) == wanted
        check_map(overlay, wanted)
        overlay.write(base_size // 2, b"!")
        assert overlay.read(0, 8192) == wanted[: base_size // 2] + b"!" + wanted[base_size // 2 + 1 :]


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_compressed_units_are_read_at_any_offset(codec: str) -> None:
    content = (b"some text " * 5000)[:40_960]
    with Packed(content, codec) as disk:
        for offset, length in ((0, 40_960), (1, 1), (4095, 2), (5000, 20_000), (40_959, 1)):
            assert disk.read(offset, length) == content[offset : offset + length]


def test_damage_in_a_compressed_unit_names_its_place() -> None:
    disk = Packed(b"some text " * 4096)
    disk.storage.write(disk.units[2][0], b"\xff" * 10)
    assert disk.read(0, 8192) == (b"some text " * 4096)[:8192]
    with pytest.raises(Corrupt, match=f"compressed data at {disk.units[2][0]}"):
        disk.read(8192, 1)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_a_bomb_is_decoded_to_its_unit_and_no_further(codec: str) -> None:
    bomb = codecs.encode(codec, bytes(64 << 20))
    assert codecs.decode(codec, bomb, 4096) == bytes(4096)


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("damage", [b"", b"\0", b"\xff" * 100, b"x"])
def test_what_is_no_stream_is_a_value_error(codec: str, damage: bytes) -> None:
    with pytest.raises(ValueError, match=codec):
        codecs.decode(codec, damage, 4096)


def test_several_zstd_frames_are_one_unit() -> None:
    data = b"".join(codecs.encode("zstd", bytes([n]) * 1000) for n in range(4))
    assert codecs.decode("zstd", data + b"\0" * 512, 4000) == b"".join(bytes([n]) * 1000 for n in range(4))


def test_a_window_shows_its_part_and_no_more() -> None:
    inner = Plain(CONTENT)
    window = Window(inner, 1000, 5000)
    assert window.read(0, 5000) == CONTENT[1000:6000]
    window.write(10, b"through")
    assert inner.read(1010, 7) == b"through"
    check_map(window, inner.read(1000, 5000))
    with pytest.raises(OptionError):
        window.read(4999, 2)
    with pytest.raises(OptionError):
        Window(inner, 69_000, 1001)


def test_a_window_on_compressed_units_maps_them() -> None:
    content = b"text " * 8192
    check_map(Window(Packed(content), 3000, 9000), content[3000:12000])
    assert Window(Packed(content), 3000, 9000).read(0, 9000) == content[3000:12000]


def test_read_only_refuses_every_change() -> None:
    disk = ReadOnly(Plain(CONTENT))
    assert disk.read(5, 5) == CONTENT[5:10]
    for change in (lambda: disk.write(0, b"x"), lambda: disk.write_zeroes(0, 1), lambda: disk.discard(0, 512)):
        with pytest.raises(StorageError, match="read-only"):
            change()


def test_as_a_file_it_seeks_reads_and_ends() -> None:
    file = Plain(CONTENT).as_file()
    assert file.read(4) == CONTENT[:4]
    assert file.seek(-4, io.SEEK_END) == len(CONTENT) - 4
    assert file.read() == CONTENT[-4:]
    assert file.read(1) == b""
    file.seek(100)
    assert file.write(b"abc") == 3
    file.seek(100)
    assert io.BufferedReader(file).read(3) == b"abc"
    file.seek(0, io.SEEK_END)
    with pytest.raises(OSError, match="the disk ends here"):
        file.write(b"x")


def test_a_closed_device_refuses_and_closes_twice() -> None:
    disk: BlockDevice = Plain(CONTENT)
    disk.close()
    disk.close()


def test_neighbours_join_when_the_storage_continues() -> None:
    a, b = MemoryStorage(), MemoryStorage()
    extents = [
        Extent(0, 10, Kind.DATA, a, 100),
        Extent(10, 10, Kind.DATA, a, 110),
        Extent(20, 10, Kind.DATA, b, 120),
        Extent(30, 10, Kind.ZERO),
        Extent(40, 10, Kind.ZERO),
    ]
    assert [(e.start, e.length) for e in coalesce(extents)] == [(0, 20), (20, 10), (30, 20)]


def test_an_open_map_of_a_large_write_is_cut_on_block_edges() -> None:
    size = (9 << 20) + 4096
    with Overlay(Plain(bytes(size)), block_size=1 << 20) as overlay:
        data = random.Random(2).randbytes(size - 1000)
        overlay.write(500, data)
        assert overlay.read(0, size) == bytes(500) + data + bytes(500)


class Stumbling(Plain):
    """Nothing in it may be overwritten; the second block that is placed finds no room, or an interrupt comes."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__(bytes(8192))
        self.failure = failure
        self.placed: list[int] = []
        self.flushed: list[list[int]] = []

    def _extents(self, offset: int, length: int) -> tuple[Extent, ...]:
        return (Extent(offset, length, Kind.DATA, self.storage, offset, in_place=False),)

    def _place(self, offset: int, data: memoryview) -> None:
        self.placed.append(offset)
        if len(self.placed) == 2:
            raise self.failure

    def _flush(self) -> None:
        self.flushed.append(list(self.placed))


@pytest.mark.parametrize("failure", [StorageError("disk", "write", "No space left on device"), KeyboardInterrupt()])
def test_what_a_failed_write_left_half_done_is_not_flushed(failure: BaseException) -> None:
    disk = Stumbling(failure)
    disk.write(0, b"x" * 512)
    disk.flush()
    with pytest.raises(type(failure)):
        disk.write(512, b"x" * 512)
    for again in (lambda: disk.write(0, b"y" * 512), disk.flush, lambda: disk.discard(0, 512)):
        with pytest.raises(StorageError, match="an earlier change failed"):
            again()
    assert disk.read(0, 1) == b"\0"
    disk.close()
    assert disk.flushed == [[0]]


def test_a_write_that_is_refused_breaks_nothing() -> None:
    disk = Stumbling(StorageError("disk", "write", "never"))
    with pytest.raises(OptionError):
        disk.write(8192, b"x")
    disk.write(0, b"x" * 512)
    disk.close()
    assert disk.flushed == [[0]]
