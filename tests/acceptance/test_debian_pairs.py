"""A real operating system's disk, from every format to every format, compressed and not, judged by qemu-img."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vdisk
from tests.debian import debian_disk  # noqa: F401 (a fixture)
from tests.peers import qemu_check, qemu_compare

KINDS: dict[str, tuple[str, dict[str, str], bool]] = {
    "raw": ("raw", {}, False),
    "qcow2": ("qcow2", {}, False),
    "vmdk": ("vmdk", {}, False),
    "vdi": ("vdi", {}, False),
    "vhd": ("vhd", {}, False),
    "qcow2-zlib": ("qcow2", {}, True),
    "qcow2-zstd": ("qcow2", {"compression_type": "zstd"}, True),
    "vmdk-stream": ("vmdk", {"subformat": "streamOptimized"}, False),
}
QEMU_NAMES = {"vhd": "vpc"}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is room for three disks, else on the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 6 << 30:
        with tempfile.TemporaryDirectory(dir=memory, prefix="vdisk-") as folder:
            yield Path(folder)
    else:
        yield tmp_path


def make(folder: Path, kind: str, source: Path) -> Path:
    name, options, compress = KINDS[kind]
    target = folder / f"{kind}.{name}"
    vdisk.convert(source, target, target_format=name, options=options, compress=compress)
    return target


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_the_disk_goes_from_one_format_to_all(kind: str, debian_disk: Path, scratch: Path) -> None:  # noqa: F811
    source = debian_disk if kind == "raw" else make(scratch, kind, debian_disk)
    (scratch / "to").mkdir()
    for other in KINDS:
        target = make(scratch / "to", other, source)
        name = QEMU_NAMES.get(KINDS[other][0], KINDS[other][0])
        qemu_compare(target, debian_disk, formats=(name, "raw"))
        if name in ("qcow2", "vdi"):
            qemu_check(target, format=name)
        for file in (scratch / "to").iterdir():
            file.unlink()
