"""Compressed units: one stream, its end, and what follows it."""

from __future__ import annotations

import random
import zlib
from types import ModuleType

import pytest

from vdisk.block import codecs

UNIT = b"".join(b"line %d\n" % (number * number) for number in range(6000))[:65536]
NOISE = random.Random(3).randbytes(65536)


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Both libraries that may serve."""
    module = pytest.importorskip("isal.isal_zlib") if request.param == "isal" else zlib
    monkeypatch.setattr(codecs, "_fast_zlib", lambda: module)
    return module


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("unit", [UNIT, NOISE, bytes(65536)], ids=["text", "noise", "zeros"])
def test_a_unit_comes_back(codec: str, unit: bytes, library: ModuleType) -> None:
    assert codecs.decode(codec, codecs.encode(codec, unit), 65536) == unit


@pytest.mark.parametrize("codec", ["deflate", "zlib"])
@pytest.mark.parametrize("unit", [UNIT, NOISE, bytes(65536)], ids=["text", "noise", "zeros"])
def test_a_stream_is_told_from_what_follows_it(codec: str, unit: bytes, library: ModuleType) -> None:
    stream = codecs.encode(codec, unit)
    assert codecs.decode_whole(codec, stream + b"\0padding" * 40, 65536) == (unit, len(stream))


@pytest.mark.parametrize("codec", ["deflate", "zlib"])
def test_a_stream_that_goes_on_has_no_known_end(codec: str, library: ModuleType) -> None:
    stream = codecs.encode(codec, UNIT + b"more")
    assert codecs.decode_whole(codec, stream, 65536) == (UNIT, None)


@pytest.mark.parametrize("codec", ["deflate", "zlib"])
def test_a_stream_cut_off_is_damaged(codec: str, library: ModuleType) -> None:
    stream = codecs.encode(codec, UNIT)
    with pytest.raises(ValueError, match=codec):
        codecs.decode_whole(codec, stream[: len(stream) // 2], 65536)


def test_a_wrong_checksum_is_damage(library: ModuleType) -> None:
    stream = bytearray(codecs.encode("zlib", UNIT))
    stream[-1] ^= 1
    with pytest.raises(ValueError, match="zlib"):
        codecs.decode_whole("zlib", bytes(stream), 65536)


def test_deflate_is_rewrapped_as_zlib_and_back(library: ModuleType) -> None:
    deflated = codecs.encode("deflate", UNIT)
    wrapped = codecs.zlib_of_deflate(deflated, UNIT)
    assert zlib.decompress(wrapped) == UNIT
    assert codecs.deflate_of_zlib(wrapped) == deflated
    assert codecs.deflate_of_zlib(zlib.compress(UNIT)) is None  # its window is larger than a qcow2 reader's
