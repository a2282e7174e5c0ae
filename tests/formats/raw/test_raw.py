"""Raw images pass the suite, and show the holes of their file."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.image import ImageConformance
from vdisk import formats
from vdisk.block.extent import Kind


class TestRaw(ImageConformance):
    format = "raw"


def test_a_hole_of_the_file_is_mapped_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.seek(8 << 20)
        file.write(b"x" * 4096)
    with formats.open(path) as disk:
        kinds = [(extent.kind, extent.start) for extent in disk.map()]
    assert kinds == [(Kind.ZERO, 0), (Kind.DATA, 8 << 20)]


def test_an_odd_length_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"seven b")
    with formats.open(path) as disk:
        assert disk.read(0, disk.size) == b"seven b"
