"""qcow2 images of every shape pass the suite."""

from __future__ import annotations

from tests.conformance.image import ImageConformance


class TestVersion3(ImageConformance):
    format = "qcow2"


class TestVersion2(ImageConformance):
    format = "qcow2"
    options = {"compat": "0.10"}


class TestTinyClusters(ImageConformance):
    format = "qcow2"
    options = {"cluster_size": "512", "refcount_bits": "1"}


class TestHugeClusters(ImageConformance):
    format = "qcow2"
    options = {"cluster_size": "2M", "refcount_bits": "64"}


class TestOddRefcounts(ImageConformance):
    format = "qcow2"
    options = {"cluster_size": "4K", "refcount_bits": "4"}


class TestCompressed(ImageConformance):
    format = "qcow2"
    compress = True


class TestCompressedZstd(ImageConformance):
    format = "qcow2"
    options = {"compression_type": "zstd", "cluster_size": "32K"}
    compress = True


class TestCompressedWithTinyRefcounts(ImageConformance):
    format = "qcow2"
    options = {"refcount_bits": "2", "cluster_size": "8K"}
    compress = True


class TestSubclusters(ImageConformance):
    format = "qcow2"
    options = {"extended_l2": "on", "cluster_size": "128K"}


class TestSmallSubclustersCompressed(ImageConformance):
    format = "qcow2"
    options = {"extended_l2": "on", "cluster_size": "16K", "compression_type": "zstd"}
    compress = True


class TestDataFile(ImageConformance):
    format = "qcow2"
    options = {"data_file": "disk.data"}


class TestRawDataFileWithSubclusters(ImageConformance):
    format = "qcow2"
    options = {"data_file": "disk.data", "data_file_raw": "on", "extended_l2": "on"}


class TestPreallocated(ImageConformance):
    format = "qcow2"
    options = {"preallocation": "metadata"}
