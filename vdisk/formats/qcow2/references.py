"""Which host clusters the tables refer to, as numpy arrays of cluster indexes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy

from vdisk.formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ClusterMap

Clusters = numpy.ndarray[Any, numpy.dtype[numpy.int64]]


def entries_of(table: array[int], words: int) -> numpy.ndarray[Any, numpy.dtype[numpy.uint64]]:
    """A view of an L2 table's descriptors, without the bitmaps."""
    return numpy.frombuffer(table, numpy.uint64)[::words]


def data_clusters(table: array[int], cluster_map: ClusterMap) -> Clusters:
    """Host clusters of an L2 table's uncompressed entries, in the order of the table; the empty ones are left out."""
    entries = entries_of(table, cluster_map.words)
    hosts = entries[(entries & numpy.uint64(COMPRESSED)) == 0] & numpy.uint64(OFFSET_MASK)
    found: Clusters = (hosts[hosts != 0] >> numpy.uint64(cluster_map.cluster_bits)).astype(numpy.int64)
    return found


def compressed_clusters(table: array[int], cluster_map: ClusterMap) -> Clusters:
    """Host clusters that an L2 table's compressed entries touch: one for each entry and cluster."""
    entries = entries_of(table, cluster_map.words)
    entries = entries[(entries & numpy.uint64(COMPRESSED)) != 0] & numpy.uint64(~(COMPRESSED | COPIED) & (1 << 64) - 1)
    if not len(entries):
        return numpy.zeros(0, numpy.int64)
    shift = numpy.uint64(cluster_map.size_shift)
    hosts = (entries & numpy.uint64((1 << cluster_map.size_shift) - 1)).astype(numpy.int64)
    sectors = (entries >> shift).astype(numpy.int64) + 1
    first = hosts >> cluster_map.cluster_bits
    last = ((hosts & ~511) + sectors * 512 - 1) >> cluster_map.cluster_bits
    found = [first[first + more <= last] + more for more in range(int((last - first).max()) + 1)]
    return numpy.concatenate(found)


def all_clusters(table: array[int], cluster_map: ClusterMap) -> Clusters:
    """Every reference that an L2 table makes."""
    return numpy.concatenate((data_clusters(table, cluster_map), compressed_clusters(table, cluster_map)))


def range_of(offset: int, length: int, cluster_bits: int) -> Clusters:
    """The clusters in which `length` bytes from `offset` lie."""
    if not length:
        return numpy.zeros(0, numpy.int64)
    return numpy.arange(offset >> cluster_bits, ((offset + length - 1) >> cluster_bits) + 1, dtype=numpy.int64)


def tree_of(cluster_map: ClusterMap) -> Iterator[tuple[int, array[int], Clusters]]:
    """(L1 index, L2 table, its references and its own cluster) for each L2 table of a map."""
    for l1_index, entry in enumerate(cluster_map.l1):
        host = entry & OFFSET_MASK
        if not host and l1_index not in cluster_map.cache:
            continue
        table = cluster_map.cache.get(l1_index)
        if table is None:
            table = cluster_map.read_table(l1_index)
        own = numpy.array([host >> cluster_map.cluster_bits], numpy.int64)
        yield l1_index, table, numpy.concatenate((all_clusters(table, cluster_map), own))
