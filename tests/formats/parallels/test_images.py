"""Parallels images of every kind pass the suite for all formats."""

from __future__ import annotations

import random
from pathlib import Path

from tests.conformance.image import ImageConformance
from vdisk.errors import VdiskError


class TestExpanding(ImageConformance):
    format = "parallels"
    options = {"cluster_size": "64K"}
    suffix = ".hds"


class TestVersion1WithOldClusters(ImageConformance):
    """Old programs made clusters of 63 sectors."""

    format = "parallels"
    options = {"version": "1", "cluster_size": str(63 * 512)}
    suffix = ".hds"


class BundleConformance(ImageConformance):
    """The image is a folder, of which each file is damaged in turn."""

    format = "parallels"
    suffix = ".hdd"

    def test_a_damaged_image_is_read_or_refused_in_one_line(self, tmp_path: Path) -> None:
        folder = self.make(tmp_path / "i", self.content())
        maker = random.Random(5)
        refused = 0
        for path in folder.iterdir():
            whole = path.read_bytes()
            for _ in range(60):
                damaged = bytearray(whole)
                at = maker.randrange(min(len(damaged), 2048))
                damaged[at : at + 4] = maker.choice([b"\xff" * 4, bytes(4), b"<<<<", b"9999", maker.randbytes(4)])
                path.write_bytes(damaged[: maker.choice([len(damaged), len(damaged), at])])
                try:
                    with self.open(folder) as disk:
                        disk.describe()
                        disk.read(0, min(disk.size, 8 << 20))
                except VdiskError as error:
                    refused += 1
                    assert "\n" not in str(error)
            path.write_bytes(whole)
        assert refused


class TestBundle(BundleConformance):
    pass


class TestPlainBundle(BundleConformance):
    options = {"subformat": "plain"}
