"""The suite that every format's images pass: subclass `ImageConformance` in a dozen lines.

::

    class TestDynamic(ImageConformance):
        format = "vdi"
        options = {"block_size": "1M"}
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk import formats
from vdisk.block import codecs
from vdisk.block.device import BlockDevice
from vdisk.block.extent import Kind
from vdisk.errors import OptionError, StorageError, VdiskError
from vdisk.formats.image import Image
from vdisk.storage.staging import Staging

Operation = tuple[str, int, int, int]
"""(what, offset, length, seed of the bytes); offset and length are cut to the disk."""


def operations(most: int = 25) -> st.SearchStrategy[list[Operation]]:
    """Runs of writes, zeros, discards, flushes and reopenings, at any offset and length."""
    lengths = st.one_of(st.sampled_from([1, 511, 512, 513, 4096, 65536]), st.integers(1, 200_000))
    return st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "write", "zero", "unmap", "flush", "reopen", "read"]),
            st.integers(0, 1 << 30),
            lengths,
            st.integers(0, 1 << 30),
        ),
        max_size=most,
    )


def hash_of_files(folder: Path) -> str:
    """One digest of all the files in a folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def check_map(device: BlockDevice, content: bytes | bytearray) -> None:
    """The map leaves no gap, and every extent's bytes are where it says they are."""
    position = 0
    for extent in device.map():
        assert extent.start == position
        assert extent.length > 0
        wanted = content[extent.start : extent.end]
        assert extent.kind is not Kind.UNALLOCATED
        if extent.kind is Kind.ZERO:
            assert not any(wanted), f"{extent} is said to be zero"
        elif extent.kind is Kind.DATA:
            assert extent.storage is not None
            found = extent.storage.read(extent.host, extent.length)
            assert found.ljust(extent.length, b"\0") == wanted, f"{extent} does not hold the guest's bytes"
        else:
            assert extent.encoded is not None
            assert extent.storage is not None
            assert extent.encoded.unit_start <= extent.start
            assert extent.end <= extent.encoded.unit_start + extent.encoded.unit_length
        position = extent.end
    assert position == device.size


def lay_out(
    path: Path, format_name: str, options: Mapping[str, Any], content: bytes, *, compress: bool = False
) -> None:
    """Make an image of `content` with the format's `Writer` and nothing else: unit by unit, leaving zeros out."""
    with Staging(path) as staging:
        writer = formats.find_format(format_name).writer_class()(staging, len(content), options, compress=compress)
        for start in range(0, len(content), writer.unit_bytes):
            unit = content[start : start + writer.unit_bytes]
            if not any(unit):
                continue
            if writer.codec is not None:
                payload = codecs.encode(writer.codec, unit.ljust(writer.unit_bytes, b"\0"), writer.level)
                if len(payload) < writer.unit_bytes or writer.must_encode:
                    storage, host, framed = writer.place_encoded(start, payload)
                    storage.write(host, framed)
                    continue
            for place in writer.place(start, len(unit)):
                place.storage.write(place.host, unit[place.offset - start :][: place.length])
        writer.finish()
        staging.commit(flush=False)


class ImageConformance:
    """What holds for an image of any format. A subclass says which, and how it is made."""

    format: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    compress: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    size: ClassVar[int] = (3 << 20) + 5 * 512
    """An odd number of sectors: the last cluster is a partial one."""
    is_writable: ClassVar[bool] = True

    def make(self, folder: Path, content: bytes | None = None, *, size: int | None = None) -> Path:
        """A new image in `folder`; with `content`, one that holds it."""
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / f"disk{self.suffix or '.' + self.format}"
        if content is None:
            formats.create(path, self.size if size is None else size, format=self.format, options=self.options)
            return path
        lay_out(path, self.format, self.options, content, compress=self.compress)
        return path

    def open(self, path: Path, *, writable: bool = False) -> Image:
        return formats.open(path, format=self.format, writable=writable)

    def content(self, seed: int = 1) -> bytes:
        """A disk's bytes: data, zeros and repetition in stretches of all lengths."""
        maker = random.Random(seed)
        content = bytearray()
        while len(content) < self.size:
            length = min(maker.choice([512, 4096, 70_000, 200_000]), self.size - len(content))
            content += maker.choice(
                [bytes(length), maker.randbytes(length), (b"vdisk %d " % maker.randrange(99) * length)[:length]]
            )
        return bytes(content)

    def test_a_new_image_reads_as_zeros(self, tmp_path: Path) -> None:
        with self.open(self.make(tmp_path / "i")) as disk:
            assert disk.size == self.size
            assert disk.read(0, disk.size) == bytes(self.size)
            check_map(disk, bytes(self.size))

    def test_its_mark_is_recognised(self, tmp_path: Path) -> None:
        path = self.make(tmp_path / "i")
        with formats.open(path) as disk:
            assert disk.format_name == self.format

    def test_a_converted_disk_reads_the_same(self, tmp_path: Path) -> None:
        content = self.content()
        with self.open(self.make(tmp_path / "i", content)) as disk:
            assert disk.size == self.size
            assert disk.read(0, disk.size) == content
            check_map(disk, content)
            maker = random.Random(2)
            for _ in range(200):
                offset = maker.randrange(disk.size)
                length = min(maker.choice([1, 512, 4096, 100_000]), disk.size - offset)
                assert disk.read(offset, length) == content[offset : offset + length]

    def test_reading_in_threads_gives_what_one_thread_gives(self, tmp_path: Path) -> None:
        content = self.content(3)
        with self.open(self.make(tmp_path / "i", content)) as disk, ThreadPoolExecutor(4) as pool:
            starts = random.Random(4).sample(range(0, disk.size - 5000, 500), 200)
            for start, found in zip(starts, pool.map(lambda s: disk.read(s, 5000), starts), strict=True):
                assert found == content[start : start + 5000]

    def test_a_range_outside_the_disk_is_refused(self, tmp_path: Path) -> None:
        with self.open(self.make(tmp_path / "i")) as disk:
            for offset, length in ((disk.size, 1), (disk.size - 1, 2), (-1, 1), (0, -1), (1 << 70, 1)):
                with pytest.raises(OptionError):
                    disk.read(offset, length)
            assert disk.read(disk.size, 0) == b""

    def test_opened_for_reading_no_byte_changes(self, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        path = self.make(folder, self.content())
        before = hash_of_files(folder)
        with self.open(path) as disk:
            disk.read(0, disk.size)
            list(disk.map())
            disk.describe()
            for change in (
                lambda: disk.write(0, b"x"),
                lambda: disk.write_zeroes(0, 512),
                lambda: disk.discard(0, 512),
            ):
                with pytest.raises(StorageError, match="read-only"):
                    change()
            disk.flush()
        assert hash_of_files(folder) == before

    def test_opened_for_writing_and_not_written_no_byte_changes(self, tmp_path: Path) -> None:
        if not self.is_writable:
            return
        folder = tmp_path / "i"
        path = self.make(folder, self.content())
        before = hash_of_files(folder)
        self.open(path, writable=True).close()
        assert hash_of_files(folder) == before

    @given(ops=operations(), starts_full=st.booleans())
    def test_random_operations_agree_with_a_model(
        self, tmp_path_factory: pytest.TempPathFactory, ops: list[Operation], starts_full: bool
    ) -> None:
        if not self.is_writable:
            return
        content = self.content() if starts_full else None
        path = self.make(tmp_path_factory.mktemp("model") / "i", content)
        model = bytearray(content or bytes(self.size))
        disk = self.open(path, writable=True)
        try:
            for what, offset, length, seed in ops:
                offset %= self.size
                length = min(length, self.size - offset)
                if what == "write":
                    data = random.Random(seed).randbytes(length)
                    disk.write(offset, data)
                    model[offset : offset + length] = data
                elif what in ("zero", "unmap"):
                    disk.write_zeroes(offset, length, unmap=what == "unmap")
                    model[offset : offset + length] = bytes(length)
                elif what == "read":
                    assert disk.read(offset, length) == model[offset : offset + length]
                elif what == "flush":
                    disk.flush()
                else:
                    disk.close()
                    disk = self.open(path, writable=True)
            assert disk.read(0, disk.size) == model
            check_map(disk, model)
        finally:
            disk.close()
        with self.open(path) as disk:
            assert disk.read(0, disk.size) == model
            check_map(disk, model)

    def test_a_discarded_range_reads_as_zeros_or_as_before(self, tmp_path: Path) -> None:
        if not self.is_writable:
            return
        content = self.content()
        path = self.make(tmp_path / "i", content)
        with self.open(path, writable=True) as disk:
            disk.discard(1000, 2 << 20)
            found = disk.read(0, disk.size)
        with self.open(path) as disk:
            assert disk.read(0, disk.size) == found
        assert found[:1000] == content[:1000]
        assert found[1000 + (2 << 20) :] == content[1000 + (2 << 20) :]
        for start in range(0, len(found), 512):
            part = found[start : start + 512]
            assert part == content[start : start + 512] or not any(part)

    def damaged(self, folder: Path) -> Iterator[bytes]:
        """The image's main file, damaged in many ways."""
        whole = self.make(folder / "whole", self.content()).read_bytes()
        maker = random.Random(5)
        for length in (0, 1, 4, 63, 511, 512, 513, 1024, 4096, 65536, len(whole) // 2, len(whole) - 1):
            yield whole[: min(length, max(0, len(whole) - 1))]
        for _ in range(60):
            changed = bytearray(whole)
            at = maker.choice([maker.randrange(min(len(whole), 512)), maker.randrange(len(whole))])
            width = min(maker.choice([1, 2, 4, 8]), len(whole) - at)
            changed[at : at + width] = maker.choice([b"\xff" * width, bytes(width), maker.randbytes(width)])
            yield bytes(changed)

    def test_a_damaged_image_is_read_or_refused_in_one_line(self, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        path = self.make(folder, self.content())
        for damaged in self.damaged(tmp_path):
            path.write_bytes(damaged)
            try:
                with self.open(path) as disk:
                    disk.describe()
                    for start in range(0, min(disk.size, 8 << 20), 1 << 20):
                        disk.read(start, min(1 << 20, disk.size - start))
            except VdiskError as error:
                assert "\n" not in str(error)
                assert path.name in str(error)
