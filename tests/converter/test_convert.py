"""Conversions keep every byte, leave zeros out, and leave nothing behind when they fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest

import vdisk
from tests.memory import peak_bytes_of
from tests.peers import qemu_check, qemu_compare, qemu_img
from tests.signalled import signalled
from vdisk import formats
from vdisk.converter.plan import Action, make_plan
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError, VdiskError
from vdisk.formats.image import Backing
from vdisk.inspect.compare import compare
from vdisk.storage.file import FileStorage
from vdisk.storage.staging import Staging

SIZE = (9 << 20) + 3 * 512

# One name, format and options for each kind of target.
TARGETS = {
    "raw": ("raw", {}, False),
    "qcow2": ("qcow2", {}, False),
    "qcow2-small": ("qcow2", {"cluster_size": "4K", "compat": "0.10"}, False),
    "qcow2-zlib": ("qcow2", {}, True),
    "qcow2-zstd": ("qcow2", {"compression_type": "zstd", "cluster_size": "128K"}, True),
    "vmdk": ("vmdk", {}, False),
    "vmdk-flat": ("vmdk", {"subformat": "monolithicFlat"}, False),
    "vmdk-split": ("vmdk", {"subformat": "twoGbMaxExtentSparse"}, False),
    "vmdk-split-flat": ("vmdk", {"subformat": "twoGbMaxExtentFlat"}, False),
    "vmdk-stream": ("vmdk", {"subformat": "streamOptimized"}, False),
    "vdi": ("vdi", {}, False),
    "vdi-static": ("vdi", {"static": "on"}, False),
    "vhd": ("vhd", {}, False),
    "vhd-fixed": ("vhd", {"subformat": "fixed"}, False),
}


def some_content(seed: int, size: int = SIZE) -> bytes:
    maker = random.Random(seed)
    content = bytearray()
    while len(content) < size:
        length = maker.choice([512, 5000, 65536, 700_000])
        content += maker.choice(
            [bytes(length), maker.randbytes(length), (b"line %d\n" % maker.randrange(999)) * (length // 8)]
        )
    return bytes(content[:size])


def make(folder: Path, kind: str, source: Path) -> Path:
    name, options, compress = TARGETS[kind]
    target = folder / f"{kind}.{name}"
    vdisk.convert(source, target, target_format=name, options=options, compress=compress)
    return target


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "disk.raw"
    path.write_bytes(some_content(1))
    return path


@pytest.fixture(scope="module", params=TARGETS)
def source(request: pytest.FixtureRequest, raw: Path) -> Path:
    """The same disk in each kind of image."""
    return make(raw.parent, request.param, raw)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_pair_keeps_every_byte(source: Path, kind: str, raw: Path, tmp_path: Path) -> None:
    target = make(tmp_path, kind, source)
    with formats.open(target) as disk:
        assert disk.size == SIZE
        assert disk.read(0, SIZE) == raw.read_bytes()


@pytest.mark.peer
def test_qemu_reads_each_kind_the_same(source: Path, raw: Path) -> None:
    name = {"vhd": "vpc"}.get(source.suffix[1:], source.suffix[1:])
    qemu_compare(source, raw, formats=(name, "raw"), same_size=True)
    if name in ("qcow2", "vdi"):
        qemu_check(source, format=name)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vdi", "vmdk", "vhd"])
def test_zeros_stay_out_of_the_target(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "zeros.raw"
    path.write_bytes(bytes(32 << 20) + b"end!" * 128)
    target = make(tmp_path, kind, path)
    with FileStorage(target) as storage:
        assert storage.allocated_bytes < 3 << 20


@pytest.mark.parametrize(("one", "other"), list(product(["qcow2-zlib", "vmdk-stream"], repeat=2)))
def test_compressed_units_of_one_size_are_passed_on(one: str, other: str, raw: Path, tmp_path: Path) -> None:
    first = make(tmp_path, one, raw)
    name, options, compress = TARGETS[other]
    second = tmp_path / f"second.{name}"
    done = vdisk.convert(first, second, target_format=name, options=options, compress=compress)
    assert done.passed_bytes > done.size_bytes // 4
    with formats.open(second) as disk:
        assert disk.read(0, SIZE) == raw.read_bytes()


def damage_a_unit(path: Path) -> None:
    """Spoil a compressed unit in the midst of an image."""
    with formats.open(path) as disk:
        damaged = next(e.encoded.host for e in disk.map(5 << 20) if e.encoded is not None)
    with path.open("r+b") as file:
        file.seek(damaged + 20)
        file.write(b"\xff" * 40)


def test_a_damaged_compressed_unit_is_not_passed_on(raw: Path, tmp_path: Path) -> None:
    first = make(tmp_path, "qcow2-zlib", raw)
    damage_a_unit(first)
    with pytest.raises(Corrupt, match="compressed data at"):
        vdisk.convert(first, tmp_path / "second.qcow2", compress=True)
    assert not (tmp_path / "second.qcow2").exists()


def test_with_a_backing_file_only_differences_are_stored(raw: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    content = bytearray(raw.read_bytes())
    vdisk.convert(raw, base)
    content[100_000:100_010] = b"difference"
    content[3 << 20 : 4 << 20] = bytes(1 << 20)
    changed, overlay = tmp_path / "changed.raw", tmp_path / "overlay.qcow2"
    changed.write_bytes(content)
    vdisk.convert(changed, overlay, backing="base.qcow2", backing_format="qcow2")
    with formats.open(overlay) as disk:
        assert disk.read(0, SIZE) == content
        own = sum(extent.length for extent in disk.map() if extent.depth == 0 and extent.is_present)
        assert own <= (1 << 20) + 3 * 65536


@pytest.mark.peer
def test_an_overlay_is_sound_to_qemu(raw: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(some_content(2, 4 << 20))  # shorter than the disk
    overlay = tmp_path / "overlay.qcow2"
    vdisk.convert(raw, overlay, backing="base.raw", backing_format="raw")
    qemu_check(overlay)
    qemu_compare(overlay, raw)


def test_an_overlay_is_flattened(raw: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.vdi"
    vdisk.convert(raw, base)
    top = tmp_path / "top.qcow2"
    with formats.open_backing(top, "base.vdi", "vdi") as device:
        formats.create(top, SIZE, backing=Backing("base.vdi", "vdi", device))
    with formats.open(top, writable=True) as disk:
        disk.write(12345, b"on top")
    flat = tmp_path / "flat.raw"
    vdisk.convert(top, flat)
    assert flat.read_bytes() == raw.read_bytes()[:12345] + b"on top" + raw.read_bytes()[12351:]


def compare_paths(one: Path, other: Path) -> bool:
    """Whether two images hold the same disk."""
    with formats.open(one) as a, formats.open(other) as b:
        return a.read(0, a.size) == b.read(0, b.size)


class TestFailure:
    def test_the_old_target_survives_a_source_that_breaks(self, raw: Path, tmp_path: Path) -> None:
        source = make(tmp_path, "qcow2-zlib", raw)
        damage_a_unit(source)
        target = tmp_path / "target.raw"
        target.write_bytes(b"old")
        with pytest.raises(VdiskError):
            vdisk.convert(source, target)
        assert target.read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "target.raw"]

    @pytest.mark.parametrize("kind", ["vmdk-flat", "vmdk-split", "vmdk-split-flat"])
    def test_an_image_of_several_files_is_replaced_at_once(
        self, kind: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The old descriptor once found the new extents, for they took the place of the old ones before it went."""
        name, options, _ = TARGETS[kind]
        old = tmp_path / "old.raw"
        old.write_bytes(some_content(7))
        target = tmp_path / f"target.{name}"
        seen = []
        real = os.replace

        def replace(source: Path, final: Path) -> None:
            with formats.open(target, force_share=True) as disk:
                seen.append(disk.read(0, disk.size) == old.read_bytes())
            real(source, final)

        vdisk.convert(old, target, options=options)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            vdisk.convert(raw, target, options=options)
        assert seen == [True, True]
        for _ in range(2):
            assert compare_paths(raw, target)
            extents = {path.name for path in tmp_path.glob("target*")} - {target.name}
            assert len(extents) == 1, "the old extents are gone"
            vdisk.convert(raw, target, options=options)

    def test_an_interrupt_before_the_last_rename_leaves_no_extent(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "target.vmdk"
        before = set(tmp_path.iterdir())
        real = os.replace

        def replace(source: Path, final: Path) -> None:
            if final == target:
                raise KeyboardInterrupt
            real(source, final)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            vdisk.convert(raw, target, options={"subformat": "monolithicFlat"})
        assert set(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("kind", ["raw", "vmdk-flat"])
    def test_an_interrupt_behind_the_last_rename_takes_nothing_away(
        self, kind: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, options, _ = TARGETS[kind]
        target = tmp_path / f"target.{name}"
        vdisk.convert(raw, target, options=options)
        count = len(list(tmp_path.iterdir()))
        real = os.replace

        def replace(source: Path, final: Path) -> None:
            real(source, final)
            if final == target:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                vdisk.convert(raw, target, options=options)
        assert compare_paths(raw, target)
        assert len(list(tmp_path.iterdir())) == count, "the old extents are gone"

    def test_no_other_file_of_an_image_replaces_one_that_stands_there(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "target.qcow2"
        vdisk.convert(raw, target, options={"data_file": "data"})
        with pytest.raises(OptionError, match=r"exists, and may be a part of target\.qcow2"):
            vdisk.convert(raw, target, options={"data_file": "data"})
        assert compare_paths(raw, target)

    def test_a_full_file_system_is_one_line(self, raw: Path, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip("only root can mount a small file system")
        try:
            with pytest.raises(StorageError, match="No space left on device"):
                vdisk.convert(raw, small / "disk.qcow2")
            assert list(small.iterdir()) == []
        finally:
            subprocess.run(["umount", small], check=True)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_leaves_no_temporary_file(self, tmp_path: Path, number: int) -> None:
        source = tmp_path / "disk.raw"
        with source.open("wb") as file:
            for _ in range(64):
                file.write(random.randbytes(1 << 20))
        target = tmp_path / "disk.qcow2"
        target.write_bytes(b"old")
        arguments = ("convert", "-c", "-o", "compression_level=9", source, target)
        ended = signalled(number, lambda: list(tmp_path.glob(".disk*")), *arguments)
        assert ended == (128 + number, "vdisk: interrupted")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.qcow2", "disk.raw"]
        assert target.read_bytes() == b"old"

    def test_a_file_of_the_source_is_no_target(self, raw: Path, tmp_path: Path) -> None:
        copy = tmp_path / "disk.raw"
        copy.write_bytes(raw.read_bytes())
        (tmp_path / "link.raw").symlink_to("disk.raw")
        for target in (copy, tmp_path / "link.raw"):
            with pytest.raises(OptionError, match="is a file of the source"):
                vdisk.convert(copy, target)
        assert copy.read_bytes() == raw.read_bytes()

    def test_an_extent_of_the_target_does_not_replace_the_source(self, raw: Path, tmp_path: Path) -> None:
        source = tmp_path / "disk-flat.vmdk"
        source.write_bytes(raw.read_bytes())
        with pytest.raises(OptionError, match="is a file of the source"):
            vdisk.convert(source, tmp_path / "disk.vmdk", source_format="raw", options={"subformat": "monolithicFlat"})
        assert source.read_bytes() == raw.read_bytes()

    def test_a_backing_file_outside_is_refused(self, raw: Path, tmp_path: Path) -> None:
        with pytest.raises(PolicyError):
            vdisk.convert(raw, tmp_path / "over.qcow2", backing=str(raw), backing_format="raw")


class TestPlan:
    def test_what_isnt_there_is_never_walked(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.raw"
        with path.open("wb") as file:
            file.truncate(8 << 40)
            file.seek(5 << 40)
            file.write(b"alone")
        with formats.open(path) as disk, Staging(tmp_path / "t.qcow2") as staging:
            writer = formats.find_format("qcow2").writer_class()(staging, disk.size, {})
            plan = make_plan(disk, writer)
            assert [step.action for step in plan] == [Action.SKIP, Action.READ, Action.SKIP]
            assert plan.work_bytes == 65536

    def test_steps_cover_the_disk_without_a_gap(self, source: Path, tmp_path: Path) -> None:
        with formats.open(source) as disk, Staging(tmp_path / "t.qcow2") as staging:
            writer = formats.find_format("qcow2").writer_class()(staging, disk.size, {}, compress=True)
            position = 0
            for step in make_plan(disk, writer):
                assert step.start == position
                assert step.start % writer.unit_bytes == 0
                position += step.length
            assert position == disk.size

    def test_a_dry_run_leaves_no_file(self, raw: Path, tmp_path: Path) -> None:
        done = vdisk.convert(raw, tmp_path / "t.qcow2", dry_run=True)
        assert done.read_bytes + done.skipped_bytes == SIZE
        assert done.written_bytes == 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "raw"])  # VHD ends at 2040 GiB
def test_eight_tebibytes_of_nothing_go_fast_and_small(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "huge.qcow2"
    formats.create(path, "8T")
    with formats.open(path, writable=True) as disk:
        disk.write(7 << 40, b"alone")
    target = make(tmp_path, kind, path)
    with formats.open(path) as one, formats.open(target) as other:
        assert compare(one, other).identical


def test_progress_goes_up_to_the_total(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    vdisk.convert(raw, tmp_path / "t.vdi", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_the_peak_of_memory_does_not_grow_with_the_disk(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    with source.open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
    code = """
import sys, vdisk
vdisk.convert(sys.argv[1], sys.argv[2], compress=sys.argv[3] == "c")
"""
    for compress in ("c", "-"):
        assert peak_bytes_of(code, source, tmp_path / f"{compress}.qcow2", compress) < 200 << 20


@pytest.mark.peer
def test_a_sparse_source_of_qemus_with_every_kind_of_cluster(tmp_path: Path) -> None:
    raw, path = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(some_content(9))
    qemu_img("convert", "-c", "-O", "qcow2", raw, path)
    for kind in TARGETS:
        target = make(tmp_path, kind, path)
        with formats.open(target) as disk:
            assert disk.read(0, SIZE) == raw.read_bytes(), kind
        target.unlink()
