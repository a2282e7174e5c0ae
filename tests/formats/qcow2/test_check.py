"""Check and repair: what is broken is found, told, and mended without losing what can be reached."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.qcow2.test_matrix import SIZE, scribble, some_content
from tests.formats.qcow2.test_snapshots import open_qcow2
from tests.memory import peak_bytes_of
from tests.peers import qemu_check, qemu_compare, qemu_img, qemu_io, run
from vdisk import formats
from vdisk.errors import Corrupt, StorageError
from vdisk.formats.check import Repair, Severity
from vdisk.formats.qcow2.snapshots import create_snapshot
from vdisk.storage.file import FileStorage


def put(path: Path, offset: int, value: int, width: int = 8) -> None:
    """Overwrite a big-endian number in a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(width, "big"))


def get(path: Path, offset: int, width: int = 8) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(width), "big")


def make(folder: Path, seed: int = 1, **options: str) -> tuple[Path, bytearray]:
    path, content = folder / "a.qcow2", some_content(seed)
    lay_out(path, "qcow2", {"cluster_size": "4K", **options}, bytes(content))
    return path, content


def places(path: Path) -> tuple[int, int, int]:
    """Offsets of the L1 table, the first refcount block and the first L2 table."""
    l1, table = get(path, 40), get(path, 48)
    return l1, get(path, table), get(path, l1) & ((1 << 56) - 512)


def mended(path: Path, content: bytes | bytearray, folder: Path, repair: Repair = Repair.ALL) -> None:
    """After the repair ours and qemu's check find nothing, and the disk reads the same."""
    with open_qcow2(path, writable=True) as disk:
        report = disk.check(repair)
        assert report.exit_status == 0, [finding for finding in report.findings if not finding.is_fixed]
        assert all(finding.is_fixed for finding in report.findings)
        assert disk.check().findings == []
        assert disk.read(0, SIZE) == content
        # And it can be written.
        model = bytearray(content)
        scribble(disk, model, 77, 10)
    qemu_check(path)
    raw = folder / "mended.raw"
    raw.write_bytes(model)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_leaks_are_told_and_taken_away(tmp_path: Path) -> None:
    path, content = make(tmp_path)
    _, block, _ = places(path)
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(3 * 4096))
    for cluster in range(end // 4096, end // 4096 + 3):
        put(path, block + 2 * cluster, 1, 2)
    with open_qcow2(path) as disk:
        report = disk.check()
        assert (report.leaks, report.corruptions, report.exit_status) == (3, 0, 3)
        assert report.findings[0].severity is Severity.LEAK
        with pytest.raises(StorageError, match="read-only"):
            disk.check(Repair.LEAKS)
    before = path.read_bytes()
    with open_qcow2(path, writable=True) as disk:
        assert disk.check(Repair.LEAKS, dry_run=True).findings[0].fix is not None
    assert path.read_bytes() == before
    mended(path, content, tmp_path, Repair.LEAKS)


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, {"refcount_bits": "1"}, {"refcount_bits": "64"}, {"cluster_size": "64K"}])
def test_lost_counts_are_rebuilt(options: dict[str, str], tmp_path: Path) -> None:
    path, content = make(tmp_path, 2, **options)
    _, block, _ = places(path)
    with path.open("r+b") as file:  # half of the counts, and with them those of the header and the tables
        file.seek(block)
        file.write(bytes(int(options.get("cluster_size", "4K")[:-1]) * 512))
    with open_qcow2(path, writable=True) as disk:
        assert disk.check().exit_status == 2
        with pytest.raises(Corrupt, match="check --repair all"):
            disk.write(0, b"x")
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_a_lost_refcount_table_is_rebuilt(tmp_path: Path) -> None:
    path, content = make(tmp_path, 3)
    table = get(path, 48)
    put(path, table, 0x123456789ABCDE00)
    with open_qcow2(path) as disk:
        assert any("refcount table entry 0" in finding.where for finding in disk.check().findings)
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_entries_that_lead_nowhere_read_as_zeros(tmp_path: Path) -> None:
    path, content = make(tmp_path, 4)
    _, _, l2 = places(path)
    first = content.index(b"text") // 4096
    put(path, l2 + 8 * first, 1 << 63 | 1 << 40)  # far past the end of the file
    put(path, l2 + 8 * (first + 1), 1 << 63 | get(path, l2 + 8 * (first + 1)) | 0x800)  # inside a cluster
    put(path, l2 + 8 * (first + 2), get(path, l2 + 8 * (first + 2)) | 1 << 60)  # a reserved bit
    content[first * 4096 : (first + 2) * 4096] = bytes(8192)
    with open_qcow2(path) as disk:
        told = {finding.where: finding.message for finding in disk.check().findings}
        assert told[f"L2 table at {l2} entry {first}"] == "names no cluster inside the file"
        assert told[f"L2 table at {l2} entry {first + 2}"] == "has reserved bits set"
        with pytest.raises(Corrupt, match="expected an offset of a cluster"):
            disk.read(first * 4096, 8192)
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_a_lost_l2_table_leaves_zeros_and_the_rest_whole(tmp_path: Path) -> None:
    path, content = make(tmp_path, 5)
    l1, _, _ = places(path)
    put(path, l1 + 8, 1 << 63 | 1 << 45)
    content[2 << 20 : 4 << 20] = bytes(2 << 20)
    with open_qcow2(path) as disk:
        report = disk.check()
        assert report.findings[0].message == "names no L2 table inside the file"
    with open_qcow2(path, writable=True) as disk:
        report = disk.check(Repair.LEAKS)  # what hung behind it seems unused: not to be freed by the way
        assert report.leaks > 0
        assert report.leaks_fixed == 0
        assert report.exit_status == 2
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_a_cluster_that_two_share_is_no_longer_overwritten(tmp_path: Path) -> None:
    path, content = make(tmp_path, 6)
    _, _, l2 = places(path)
    first = content.index(b"text") // 4096 + 1
    put(path, l2 + 8 * first, get(path, l2 + 8 * (first - 1)))
    content[first * 4096 : (first + 1) * 4096] = content[(first - 1) * 4096 : first * 4096]
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_data_on_top_of_metadata_is_parted_from_it(tmp_path: Path) -> None:
    path, content = make(tmp_path, 7)
    l1, _, l2 = places(path)
    first = content.index(b"text") // 4096
    whole = path.read_bytes()
    for number, host in enumerate((l1, l2, get(path, 48))):
        path.write_bytes(whole)
        put(path, l2 + 8 * first, 1 << 63 | host)
        with open_qcow2(path) as disk:
            assert any("something else lies there too" in finding.message for finding in disk.check().findings)
        with open_qcow2(path, writable=True) as disk:
            assert disk.check(Repair.ALL).exit_status == 0
            assert disk.check().corruptions == (1 if host == l2 else 0), number  # it stays there, and is safe
            before = bytearray(disk.read(0, SIZE))
            disk.write(first * 4096, b"new")
            before[first * 4096 : first * 4096 + 3] = b"new"
            disk.flush()
            disk.check(Repair.ALL)
            assert disk.check().findings == []
            assert disk.read(0, SIZE) == before
        qemu_check(path)


@pytest.mark.peer
def test_flags_are_set_by_the_counts(tmp_path: Path) -> None:
    path, content = make(tmp_path, 8)
    with open_qcow2(path, writable=True) as disk:
        create_snapshot(disk, "s")
    _, _, l2 = places(path)
    for number in range(10):
        put(path, l2 + 8 * number, get(path, l2 + 8 * number) ^ (1 << 63))
    with open_qcow2(path) as disk:
        assert disk.check().exit_status == 2
    mended(path, content, tmp_path)


@pytest.mark.peer
def test_the_dirty_bit_makes_the_next_writer_count_anew(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, SIZE)
    # qemu-io is killed before it can write the counts.
    run("qemu-io", "-c", "write -P 5 1M 1M", "-c", "write -P 6 3M 700k", "-c", "flush", "-c", "sigraise 9", path,
        codes=(-9, 137))  # fmt: skip
    assert get(path, 72) & 1, "qemu left no dirty bit"
    content = bytearray(SIZE)
    content[1 << 20 : 2 << 20] = b"\x05" * (1 << 20)
    content[3 << 20 : (3 << 20) + 700 * 1024] = b"\x06" * (700 * 1024)
    before = path.read_bytes()
    with open_qcow2(path, writable=True) as disk:
        assert disk.describe().is_dirty
        assert disk.read(0, SIZE) == content
        assert disk.check().corruptions > 0
    assert path.read_bytes() == before
    with open_qcow2(path, writable=True) as disk:
        scribble(disk, content, 10)
        assert not disk.describe().is_dirty
        assert disk.check().findings == []
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)


@pytest.mark.peer
def test_the_corrupt_bit_forbids_writing_until_it_is_mended(tmp_path: Path) -> None:
    path, content = make(tmp_path, 9)
    put(path, 72, 2)
    with open_qcow2(path, writable=True) as disk:
        assert disk.read(0, SIZE) == content
        with pytest.raises(Corrupt, match="corrupt bit"):
            disk.write(0, b"x")
    mended(path, content, tmp_path)
    assert get(path, 72) == 0


@pytest.mark.peer
def test_figures_are_those_of_qemu(tmp_path: Path) -> None:
    import json

    for number, (options, compress) in enumerate(
        [({}, False), ({"cluster_size": "64K"}, True), ({"extended_l2": "on"}, False)]
    ):
        path = tmp_path / f"{number}.qcow2"
        lay_out(path, "qcow2", options, bytes(some_content(20)), compress=compress)
        qemu_io(path, "write 100k 300k", "write 2M 64k", "discard 1M 1M")
        said = json.loads(qemu_img("check", "--output=json", path))
        with open_qcow2(path) as disk:
            report = disk.check()
        assert report.findings == []
        for ours, theirs in (
            (report.image_end_offset, "image-end-offset"),
            (report.total_clusters, "total-clusters"),
            (report.allocated_clusters, "allocated-clusters"),
            (report.fragmented_clusters, "fragmented-clusters"),
            (report.compressed_clusters, "compressed-clusters"),
        ):
            assert ours == said.get(theirs, 0), theirs


@pytest.mark.peer
def test_random_damage_is_told_and_mended(tmp_path: Path) -> None:
    """Whatever the damage: the check ends, the repair leaves an image that both programs call sound."""
    path, _ = make(tmp_path, 11)
    whole = path.read_bytes()
    maker = random.Random(12)
    l1, block, l2 = places(path)
    table = get(path, 48)
    mended_count = 0
    for _ in range(60):
        path.write_bytes(whole)
        for _ in range(maker.randrange(1, 4)):
            start, length = maker.choice([(l1, 24), (block, 3000), (l2, 4096), (table, 8)])
            value = maker.choice([0, (1 << 64) - 1, maker.randrange(1 << 64), maker.randrange(2000) * 4096 | 1 << 63])
            put(path, start + maker.randrange(length // 8) * 8, value)
        with formats.open(path, writable=True) as disk:
            found = disk.check()
            report = disk.check(Repair.ALL)
            assert report.corruptions == found.corruptions
            for _ in range(3):  # what lies on metadata comes free when it is written
                if not disk.check().findings:
                    break
                for start in range(0, SIZE, 1 << 20):
                    length = min(1 << 20, SIZE - start)
                    try:
                        disk.write(start, disk.read(start, length))
                    except Corrupt:  # what looked like a compressed cluster is none
                        disk.write_zeroes(start, length)
                disk.flush()
                disk.check(Repair.ALL)
            assert disk.check().findings == []
        mended_count += found.corruptions > 0
        qemu_check(path)
    assert mended_count > 30


def test_a_full_tebibyte_is_checked_in_bounded_memory(tmp_path: Path) -> None:
    """Tables of 1 TiB in a sparse file: 16 Mi clusters. Run apart, so that its peak memory is its own."""
    path = tmp_path / "big.qcow2"
    cluster, size = 65536, 1 << 40
    l2_count = size // cluster // 8192
    start = 1 + 1 + 32 + 1  # header, refcount table, blocks' first, L1
    blocks = -(-(size // cluster + l2_count + 2000) // 32768)
    at = [1]  # refcount table
    block_at = 2
    l1_at = block_at + blocks
    l2_at = l1_at + 1
    data_at = l2_at + l2_count
    total = data_at + size // cluster
    assert start
    with path.open("wb") as file:
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII8x", b"QFI\xfb", 3, 0, 0, 16, size, 0, l2_count, l1_at * cluster, at[0] * cluster, 1,
            0, 0, 0, 0, 0, 4, 112,
        )  # fmt: skip
        file.write(header)
        file.seek(cluster)
        file.write(b"".join(struct.pack(">Q", (block_at + n) * cluster) for n in range(blocks)))
        for n in range(blocks):
            file.seek((block_at + n) * cluster)
            count = max(0, min(32768, total - n * 32768))
            file.write(b"\0\1" * count)
        file.seek(l1_at * cluster)
        file.write(b"".join(struct.pack(">Q", (l2_at + n) * cluster | 1 << 63) for n in range(l2_count)))
        import numpy

        for n in range(l2_count):
            file.seek((l2_at + n) * cluster)
            first = (data_at + n * 8192) * cluster | 1 << 63
            file.write((numpy.arange(8192, dtype=numpy.uint64) * cluster + numpy.uint64(first)).astype(">u8").tobytes())
        file.truncate(total * cluster)
    code = f"""
from vdisk import formats
with formats.open({str(path)!r}) as disk:
    report = disk.check()
    assert report.findings == [], report.findings[:3]
    assert report.allocated_clusters == {size // cluster}
    assert sum(1 for _ in disk.map()) == 1
"""
    peak_bytes = peak_bytes_of(code)
    path.unlink()
    assert peak_bytes < 400 << 20


def test_a_read_error_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose table cannot be read just now was taken for lost, and its clusters for free."""
    path, _ = make(tmp_path)
    with open_qcow2(path, writable=True) as disk:
        create_snapshot(disk, "one")
        table = disk.snapshots()[0].l1_offset
    real = FileStorage.read

    def read(storage: FileStorage, offset: int, length: int) -> bytes:
        if offset == table:
            raise StorageError(storage.name, f"read at {offset}", "Input/output error")
        return real(storage, offset, length)

    with open_qcow2(path, writable=True) as disk:
        monkeypatch.setattr(FileStorage, "read", read)
        with pytest.raises(StorageError, match="Input/output error"):
            disk.check(Repair.ALL)
