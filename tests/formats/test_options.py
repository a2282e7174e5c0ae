"""Sizes and `-o` options, as people write them."""

from __future__ import annotations

import pytest

from vdisk.errors import OptionError
from vdisk.formats.options import Option, parse_options, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64K", 65536), ("64k", 65536), ("10G", 10 << 30), ("1MiB", 1 << 20), ("1.5G", 3 << 29),
     ("1MB", 1 << 20), ("2T", 2 << 40), ("7b", 7), (4096, 4096), ("1E", 1 << 60)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "0x10", "1.0001K", "9E", "1 2", "ten", -5])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(OptionError, match="size: expected"):
        parse_size(text)


OPTIONS = (
    Option("cluster_size", "size", "Bytes of a cluster.", 65536),
    Option("compat", "choice", "Version.", "1.1", ("0.10", "1.1")),
    Option("lazy", "bool", "Lazy.", False),
    Option("bits", "int", "Bits."),
)


def test_given_values_and_defaults() -> None:
    values = parse_options("f", OPTIONS, {"cluster_size": "4K", "lazy": "ON", "bits": "7"})
    assert values == {"cluster_size": 4096, "compat": "1.1", "lazy": True, "bits": 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"nope": "1"}, "unknown option 'nope'; its options are: cluster_size, compat, lazy, bits"),
     ({"compat": "2"}, "compat: expected one of 0.10, 1.1"), ({"lazy": "maybe"}, "lazy: expected on or off"),
     ({"bits": "x"}, "bits: expected a whole number"), ({"cluster_size": "x"}, "cluster_size: expected a size")],
)  # fmt: skip
def test_wrong_ones_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options("f", OPTIONS, given)
