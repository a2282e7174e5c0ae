"""The format extension: features in a cluster of their own. A writer keeps some of them and drops the others."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from vdisk.errors import Unsupported
from vdisk.formats.parallels import structs
from vdisk.formats.parse import parse


class Feature(NamedTuple):
    """One section of the extension."""

    magic: int
    flags: int
    data: bytes

    @property
    def name(self) -> str:
        """What people call it."""
        return "dirty bitmap" if self.magic == structs.DIRTY_BITMAP else f"{self.magic:#018x}"


def read_features(file: str, cluster: bytes) -> list[Feature] | None:
    """The features in the extension's cluster; None when it is damaged."""
    head_bytes: int = structs.EXTENSION_HEADER.sizeof()
    section_bytes: int = structs.FEATURE_HEADER.sizeof()
    if len(cluster) < head_bytes + section_bytes:
        return None
    head = parse(structs.EXTENSION_HEADER, cluster[:head_bytes], file, "format extension")
    if head.magic != structs.EXTENSION_MAGIC or head.checksum != _checksum(cluster[head_bytes:]):
        return None
    features: list[Feature] = []
    at = head_bytes
    while at + section_bytes <= len(cluster):
        raw = parse(structs.FEATURE_HEADER, cluster[at : at + section_bytes], file, "format extension")
        if raw.magic == 0:
            return features
        data = cluster[at + section_bytes : at + section_bytes + raw.data_bytes]
        if len(data) < raw.data_bytes:
            return None
        features.append(Feature(raw.magic, raw.flags, data))
        at += section_bytes + -(-raw.data_bytes // 8) * 8
    return None


def kept_by_a_writer(file: str, features: list[Feature]) -> list[Feature]:
    """Those that stay when the disk is written; `Unsupported` when one forbids writing.

    A dirty bitmap says what changed since a backup: nobody keeps it up to date here, so it goes.
    """
    for feature in features:
        if feature.flags & structs.NECESSARY:
            raise Unsupported(file, "parallels", f"writing with the necessary feature {feature.name}")
    return [f for f in features if f.flags & structs.TRANSIT and f.magic != structs.DIRTY_BITMAP]


def build_extension(features: list[Feature], cluster_bytes: int) -> bytes:
    """The extension's cluster."""
    body = b""
    for feature in features:
        body += structs.FEATURE_HEADER.build(
            {"magic": feature.magic, "flags": feature.flags, "data_bytes": len(feature.data), "unused": 0}
        )
        body += feature.data.ljust(-(-len(feature.data) // 8) * 8, b"\0")
    body = body.ljust(cluster_bytes - structs.EXTENSION_HEADER.sizeof(), b"\0")
    head: bytes = structs.EXTENSION_HEADER.build({"magic": structs.EXTENSION_MAGIC, "checksum": _checksum(body)})
    return head + body


def _checksum(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()
