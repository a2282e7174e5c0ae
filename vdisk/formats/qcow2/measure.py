"""`measure`: how much a qcow2 would take, before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Kind
from vdisk.errors import OptionError
from vdisk.formats.options import parse_options
from vdisk.formats.qcow2.header import MAX_L1_BYTES

_LUKS_BYTES = 4096 + 8 * 258048


def measure(source: BlockDevice | int, options: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Bytes of a new image's file, keyed as `qemu-img measure` has them: "required" at most for the source's content
    uncompressed (or for an empty disk of so many bytes), "fully-allocated" once every cluster has been written.
    """
    from vdisk.formats.qcow2.create import Qcow2Writer

    chosen = parse_options("qcow2", Qcow2Writer.OPTIONS, options or {})
    cluster, bits = chosen["cluster_size"], chosen["refcount_bits"]
    entry = 16 if chosen["extended_l2"] else 8
    size = source if isinstance(source, int) else source.size
    aligned = -(-size // cluster) * cluster
    per_table = cluster // entry
    entries = -(-(aligned // cluster) // per_table) * per_table
    l1_entries = entries * entry // cluster
    if l1_entries * 8 > MAX_L1_BYTES:
        raise OptionError(f"qcow2: size: clusters of {cluster} do not allow {size} bytes")
    l1_bytes = -(-l1_entries // (cluster // 8)) * cluster
    metadata = cluster + entries * entry + l1_bytes
    metadata += refcount_bytes((metadata + aligned) // cluster, cluster, bits)
    if chosen["encrypt.format"]:
        metadata += -(-_LUKS_BYTES // cluster) * cluster
    if chosen["preallocation"] in ("full", "falloc"):
        used = aligned
    else:
        used = 0 if isinstance(source, int) else _used(source, cluster)
    if chosen["data_file"]:
        used = aligned = 0
    return {"required": metadata + used, "fully-allocated": metadata + aligned}


def refcount_bytes(clusters: int, cluster_bytes: int, bits: int) -> int:
    """Bytes of the refcount table and blocks that count `clusters` and themselves."""
    blocks = table = 0
    while True:
        wanted = -(-(clusters + table + blocks) * bits // (cluster_bytes * 8))
        wanted_table = -(-wanted * 8 // cluster_bytes)
        if (wanted, wanted_table) == (blocks, table):
            return (blocks + table) * cluster_bytes
        blocks, table = wanted, wanted_table


def _used(source: BlockDevice, cluster: int) -> int:
    """Bytes of the clusters that hold anything but known zeros."""
    used = end = 0
    for extent in source.map():
        if extent.kind is not Kind.ZERO:
            first = max(end, extent.start // cluster * cluster)
            end = max(end, -(-extent.end // cluster) * cluster)
            used += max(0, end - first)
    return used
