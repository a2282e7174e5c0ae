"""Parallels images of every kind pass the suite for all formats."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.image import ImageConformance


class TestExpanding(ImageConformance):
    format = "parallels"
    options = {"cluster_size": "64K"}
    suffix = ".hds"


class TestVersion1WithOldClusters(ImageConformance):
    """Old programs made clusters of 63 sectors."""

    format = "parallels"
    options = {"version": "1", "cluster_size": str(63 * 512)}
    suffix = ".hds"


class TestBundle(ImageConformance):
    format = "parallels"
    suffix = ".hdd"

    def test_a_damaged_image_is_read_or_refused_in_one_line(self, tmp_path: Path) -> None:
        """Its files are damaged one by one in test_bundle."""


class TestPlainBundle(ImageConformance):
    format = "parallels"
    suffix = ".hdd"
    options = {"subformat": "plain"}

    def test_a_damaged_image_is_read_or_refused_in_one_line(self, tmp_path: Path) -> None:
        """A raw file has nothing to damage."""
