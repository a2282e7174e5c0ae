"""Images of every VMDK subformat pass the suite that all formats share."""

from __future__ import annotations

from tests.conformance.image import ImageConformance


class TestMonolithicSparse(ImageConformance):
    format = "vmdk"


class TestZeroedGrains(ImageConformance):
    format = "vmdk"
    options = {"zeroed_grain": "on"}


class TestMonolithicFlat(ImageConformance):
    format = "vmdk"
    options = {"subformat": "monolithicFlat"}


class TestSplitSparse(ImageConformance):
    format = "vmdk"
    options = {"subformat": "twoGbMaxExtentSparse"}


class TestSplitFlat(ImageConformance):
    format = "vmdk"
    options = {"subformat": "twoGbMaxExtentFlat"}


class TestStreamOptimized(ImageConformance):
    format = "vmdk"
    options = {"subformat": "streamOptimized"}
    is_writable = False


class TestVmfs(ImageConformance):
    format = "vmdk"
    options = {"subformat": "vmfs"}


class TestVmfsSparse(ImageConformance):
    format = "vmdk"
    options = {"subformat": "vmfsSparse"}
