"""Shapes of images, sampled so that every pair of values occurs together in some shape."""

from __future__ import annotations

import itertools
import random
from typing import Any

AXES: dict[str, tuple[Any, ...]] = {
    "cluster_size": ("512", "4K", "16K", "64K", "2M"),
    "refcount_bits": ("1", "2", "8", "16", "32", "64"),
    "extended_l2": ("off", "on"),
    "data_file": (None, "kept", "raw"),
    "compress": (False, "zlib", "zstd"),
}


def is_possible(shape: dict[str, Any]) -> bool:
    """Whether qcow2 knows such an image."""
    if shape["extended_l2"] == "on" and shape["cluster_size"] in ("512", "4K"):
        return False
    return not (shape["data_file"] and shape["compress"])


def shapes(seed: int = 1) -> list[dict[str, Any]]:
    """Few shapes that together hold every possible pair of values."""
    maker = random.Random(seed)
    names = list(AXES)
    every = [
        shape
        for values in itertools.product(*AXES.values())
        if is_possible(shape := dict(zip(names, values, strict=True)))
    ]

    def pairs(shape: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {(a, shape[a], b, shape[b]) for a, b in itertools.combinations(names, 2)}

    wanted = set().union(*map(pairs, every))
    chosen = []
    while wanted:
        maker.shuffle(every)
        best = max(every, key=lambda shape: len(pairs(shape) & wanted))
        chosen.append(best)
        wanted -= pairs(best)
    return chosen


def options_of(shape: dict[str, Any], name: str) -> dict[str, str]:
    """The `Writer`'s options for a shape; `name` is that of the data file, where there is one."""
    options = {key: shape[key] for key in ("cluster_size", "refcount_bits", "extended_l2")}
    if shape["data_file"]:
        options["data_file"] = name
        options["data_file_raw"] = "on" if shape["data_file"] == "raw" else "off"
    if shape["compress"]:
        options["compression_type"] = shape["compress"]
    return options


def name_of(shape: dict[str, Any]) -> str:
    """Short, for the test's name."""
    return "-".join(str(value) for value in shape.values())
