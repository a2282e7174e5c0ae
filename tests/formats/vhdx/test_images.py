"""VHDX images of every kind pass the suite for all formats."""

from __future__ import annotations

from tests.conformance.image import ImageConformance


class TestDynamic(ImageConformance):
    format = "vhdx"


class TestLargeBlocks(ImageConformance):
    format = "vhdx"
    options = {"block_size": "8M", "log_size": "2M"}


class TestFixed(ImageConformance):
    format = "vhdx"
    options = {"subformat": "fixed"}


class TestSectorsOf4096(ImageConformance):
    format = "vhdx"
    options = {"logical_sector_size": "4096"}
    size = (3 << 20) + 5 * 4096
