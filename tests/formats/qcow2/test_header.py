"""What the header says is kept, refused by name, or cleared, as the specification has it."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.qcow2.test_check import get, put
from tests.formats.qcow2.test_matrix import SIZE, some_content
from tests.formats.qcow2.test_snapshots import open_qcow2
from tests.peers import qemu_check, qemu_img
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, PolicyError, Unsupported
from vdisk.formats.image import Backing
from vdisk.formats.qcow2.header import EXTENSION_FEATURE_NAMES, Header
from vdisk.storage.file import FileStorage


def header_of(path: Path) -> Header:
    with FileStorage(path) as storage:
        return Header.read(storage)


@pytest.mark.peer
def test_the_first_cluster_is_what_qemu_writes(tmp_path: Path) -> None:
    """Field by field and name by name; the places of the tables differ."""
    for number, options in enumerate([{}, {"compression_type": "zstd"}, {"extended_l2": "on"}, {"refcount_bits": "8"}]):
        ours, theirs = tmp_path / f"{number}.qcow2", tmp_path / f"{number}.qemu.qcow2"
        formats.create(ours, SIZE, options=options)
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        qemu_img("create", "-q", "-f", "qcow2", *flags, theirs, SIZE)
        one, other = header_of(ours), header_of(theirs)
        for field in ("l1_offset", "refcount_table_offset"):
            setattr(one, field, getattr(other, field))
        assert one == other


@pytest.mark.peer
def test_unknown_extensions_outlive_every_change(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, "1M")
    with FileStorage(path, writable=True) as storage:
        header = Header.read(storage)
        header.extensions.insert(0, (0x12345678, b"of a later program"))
        header.compatible |= 1 << 40
        header.autoclear |= 1 << 50
        header.write_whole(storage)
    qemu_check(path)
    with open_qcow2(path, writable=True) as disk:
        assert header_of(path).autoclear == 1 << 50
        disk.write(0, b"x")
        disk.set_backing(None, None)
        disk.resize(2 << 20)
    header = header_of(path)
    assert header.extension(0x12345678) == b"of a later program"
    assert header.compatible == 1 << 40, "a compatible bit stays"
    assert header.autoclear == 0, "an unknown autoclear bit goes with the first write"
    qemu_check(path)


def test_an_unknown_incompatible_bit_is_refused_by_the_name_the_image_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, "1M")
    put(path, 72, 1 << 41)
    with pytest.raises(Unsupported, match="incompatible feature bit 41"):
        formats.open(path)
    with FileStorage(path, writable=True) as storage:
        put(path, 72, 0)
        header = Header.read(storage)
        table = header.extension(EXTENSION_FEATURE_NAMES)
        assert table is not None
        header.set_extension(EXTENSION_FEATURE_NAMES, table + bytes([0, 41]) + b"quantum clusters".ljust(46, b"\0"))
        header.incompatible = 1 << 41
        header.write_whole(storage)
    with pytest.raises(Unsupported, match="quantum clusters"):
        formats.open(path)


@pytest.mark.parametrize(
    ("offset", "width", "value", "what"),
    [
        (4, 4, 7, "version 7"),
        (20, 4, 8, "cluster_bits"),
        (20, 4, 22, "cluster_bits"),
        (24, 8, 1 << 63, "size"),
        (24, 8, 1 << 50, "l1_size"),
        (36, 4, 0, "l1_size"),
        (36, 4, 1 << 31, "l1_size"),
        (40, 8, 0x10001, "l1_table_offset"),
        (40, 8, 1 << 40, "L1 table"),
        (48, 8, 0x123, "refcount_table_offset"),
        (56, 4, 1 << 30, "refcount_table_clusters"),
        (60, 4, 1 << 30, "nb_snapshots"),
        (96, 4, 7, "refcount_order"),
        (100, 4, 103, "header_length"),
        (104, 1, 1, "compression_type"),
        (32, 4, 9, "encryption method 9"),
        (16, 4, 2000, "backing_file"),
    ],
)
def test_a_wrong_number_is_told_by_its_field(offset: int, width: int, value: int, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, "1M")
    if what == "backing_file":
        put(path, 8, 0x200)
    put(path, offset, value, width)
    with pytest.raises((Corrupt, Unsupported), match=what):
        formats.open(path, format="qcow2")


def test_the_format_of_a_backing_file_is_never_guessed(tmp_path: Path) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "a.qcow2"
    base.write_bytes(b"QFI\xfb".ljust(1 << 20, b"\0"))
    with formats.open(base, format="raw") as device:
        formats.create(path, "1M", backing=Backing("base.raw", "raw", device))
    with open_qcow2(path) as disk:
        assert disk.read(0, 4) == b"QFI\xfb"
    with open_qcow2(path, writable=True) as disk:
        disk.set_backing("base.raw", None)
    with pytest.raises(PolicyError, match="not guessed"):
        open_qcow2(path)
    with formats.open(path, backing_format="raw") as disk:
        assert disk.read(0, 4) == b"QFI\xfb"


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for options, what in (
        ({"compat": "0.10", "extended_l2": "on"}, "needs compat=1.1"),
        ({"compat": "0.10", "compression_type": "zstd"}, "needs compat=1.1"),
        ({"extended_l2": "on", "cluster_size": "8K"}, "16K or more"),
        ({"data_file_raw": "on"}, "needs data_file"),
        ({"data_file": "../x"}, "without a folder"),
        ({"cluster_size": "100000"}, "power of two"),
        ({"cluster_size": "4M"}, "power of two"),
        ({"refcount_bits": "12"}, "power of two"),
        ({"encrypt.format": "luks"}, "say where the secret is"),
        ({"compression_level": "10"}, "1 to 9"),
    ):
        with pytest.raises(OptionError, match=what):
            formats.create(tmp_path / "a.qcow2", "1M", options=options)
    with pytest.raises(OptionError, match="allow at most"):
        formats.create(tmp_path / "a.qcow2", "1P", options={"cluster_size": "512"})
    assert list(tmp_path.iterdir()) == []


def test_compressed_clusters_may_straddle_lie_at_odd_places_and_end_with_the_file(tmp_path: Path) -> None:
    """Back to back as qemu packs them, over the edges of host clusters, the last one up to the file's last byte."""
    content = bytes(some_content(70))
    path = tmp_path / "a.qcow2"
    lay_out(path, "qcow2", {"cluster_size": "4K"}, content, compress=True)
    l2 = get(path, get(path, 40)) & ((1 << 56) - 512)
    entries = [get(path, l2 + 8 * n) for n in range(512)]
    hosts = [entry & ((1 << 58) - 1) for entry in entries if entry >> 62 == 1]
    assert any(host % 2 for host in hosts)
    assert any(
        (entry & ((1 << 58) - 1)) % 4096 + ((entry >> 58 & 15) + 1) * 512 - entry % 512 > 4096 for entry in entries
        if entry >> 62 == 1
    ), "none straddles two host clusters"  # fmt: skip
    with formats.open(path) as disk:
        assert disk.read(0, SIZE) == content
    # The first compressed cluster anew, at the very end of the file, its last sector past it.
    number = next(n for n, entry in enumerate(entries) if entry >> 62 == 1)
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(content[number * 4096 : (number + 1) * 4096]) + packer.flush()
    end = path.stat().st_size + 7
    with path.open("ab") as file:
        file.write(bytes(7) + packed)
    sectors = (end + len(packed) - 1) // 512 - end // 512
    put(path, l2 + 8 * number, 1 << 62 | sectors << 58 | end)
    assert path.stat().st_size % 512
    with formats.open(path) as disk:
        assert disk.read(0, SIZE) == content


def test_several_zstd_frames_are_one_cluster(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "a.qcow2"
    content = bytes(range(256)) * 256
    lay_out(path, "qcow2", {"compression_type": "zstd"}, content, compress=True)
    l2 = get(path, get(path, 40)) & ((1 << 56) - 512)
    end = path.stat().st_size
    packed = b"".join(zstandard.compress(content[at : at + 10_000]) for at in range(0, len(content), 10_000))
    with path.open("ab") as file:
        file.write(packed)
    put(path, l2, 1 << 62 | (len(packed) - 1) // 512 << 54 | end)
    with formats.open(path) as disk:
        assert disk.read(0, len(content)) == content
