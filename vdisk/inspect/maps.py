"""`map_of`: a disk's extents as plain data, with the keys of `qemu-img map --output=json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vdisk.block.extent import Extent, Kind
from vdisk.formats.image import Image


def map_of(image: Image, offset: int = 0, length: int | None = None) -> Iterator[dict[str, Any]]:
    """One dict an extent: start, length, depth, present, zero, data, compressed, and the offset in the file, if any.

    `filename` is told for bytes that lie in another file than the image's first.
    """
    last: dict[str, Any] | None = None
    for extent in image.map(offset, length):
        row = _row(image, extent)
        if last is not None and _continues(last, row):
            last["length"] += row["length"]
            continue
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield last


def _row(image: Image, extent: Extent) -> dict[str, Any]:
    row: dict[str, Any] = {
        "start": extent.start,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.is_present,
        "zero": extent.kind is Kind.ZERO,
        "data": extent.kind in (Kind.DATA, Kind.ENCODED),
        "compressed": extent.kind is Kind.ENCODED,
    }
    if extent.storage is not None and extent.kind is not Kind.ENCODED:
        row["offset"] = extent.host
        if extent.storage.name != image.name:
            row["filename"] = extent.storage.name
    return row


def _continues(last: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether two rows tell the same of neighbours: compressed clusters are many extents and one row."""
    for key in ("depth", "present", "zero", "data", "compressed", "filename"):
        if last.get(key) != row.get(key):
            return False
    if "offset" in last or "offset" in row:
        return "offset" in last and "offset" in row and last["offset"] + last["length"] == row["offset"]
    return True
