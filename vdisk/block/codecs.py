"""Compression of clusters and grains: deflate without a header, zlib and zstd, by libraries.

isal deflates several times as fast as zlib, and libdeflate inflates a unit whose length is known faster than either;
zlib serves where they have no wheel. Every function is safe to call from several threads and lets go of the
interpreter lock while it works.
"""

from __future__ import annotations

import functools
import threading
import zlib
from types import ModuleType
from typing import Any

CODECS = ("deflate", "zlib", "zstd")

DEFLATE_WINDOW_BITS = 12
"""qcow2 readers inflate with a window of 4 KiB: a larger one does not decode elsewhere."""

_per_thread = threading.local()


@functools.cache
def _fast_zlib() -> ModuleType:
    """isal's twin of the zlib module, or zlib itself."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


@functools.cache
def _fast_inflate() -> ModuleType | None:
    """libdeflate, which wants to know how much a stream decodes to."""
    try:
        import deflate
    except ImportError:
        return None
    return deflate


def decode(codec: str, data: bytes | memoryview, length: int) -> bytes | bytearray:
    """The first `length` bytes that `data` decodes to; what follows the stream is ignored.

    Raises ValueError when the stream is damaged or ends early. Never makes more than `length` bytes, however
    much the stream would expand to.
    """
    if codec == "zstd":
        return _decode_zstd(data, length)
    library = _fast_inflate()
    if library is not None:
        inflate = library.deflate_decompress if codec == "deflate" else library.zlib_decompress
        try:
            unit: bytearray = inflate(data, length)
            if len(unit) == length:
                return unit
        except library.DeflateError:
            pass  # damaged, which the other library can name; or longer, which it can cut
    return decode_whole(codec, data, length)[0]


def _decode_zstd(data: bytes | memoryview, length: int) -> bytes:
    """One or several zstd frames, up to `length` bytes."""
    import zstandard

    decoder = getattr(_per_thread, "zstd_decoder", None)
    if decoder is None:
        decoder = _per_thread.zstd_decoder = zstandard.ZstdDecompressor()
    try:
        with decoder.stream_reader(data, read_across_frames=True) as reader:
            unit: bytes = reader.read(length)
            while 0 < len(unit) < length:
                more = reader.read(length - len(unit))
                if not more:
                    break
                unit += more
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error
    if len(unit) != length:
        raise ValueError(f"zstd: expected {length} bytes, the stream ends after {len(unit)}")
    return unit


def encode(codec: str, data: bytes | memoryview, level: int | None = None) -> bytes:
    """Compress one unit. `level` is the codec's own; without it, the fast one that this project measured best.

    'deflate' keeps to a window of 4 KiB.
    """
    if codec == "zstd":
        return _encode_zstd(data, 3 if level is None else level)
    window_bits = -DEFLATE_WINDOW_BITS if codec == "deflate" else 15
    fast = _fast_zlib()
    compressor: Any
    if fast is not zlib and (level is None or level <= 3):
        compressor = fast.compressobj(2 if level is None else level, fast.DEFLATED, window_bits)
    else:
        compressor = zlib.compressobj(6 if level is None else level, zlib.DEFLATED, window_bits)
    head: bytes = compressor.compress(data)
    tail: bytes = compressor.flush()
    return head + tail


def _encode_zstd(data: bytes | memoryview, level: int) -> bytes:
    import zstandard

    encoders: dict[int, Any] = _per_thread.__dict__.setdefault("zstd_encoders", {})
    encoder = encoders.get(level)
    if encoder is None:
        encoder = encoders[level] = zstandard.ZstdCompressor(level=level)
    unit: bytes = encoder.compress(data)
    return unit


ZLIB_HEADER = b"\x48\x89"
"""A zlib stream's first two bytes for a window of 4 KiB and fast compression (RFC 1950)."""


def decode_whole(codec: str, data: bytes | memoryview, length: int) -> tuple[bytes, int | None]:
    """Decode as `decode` does, and say how many bytes of `data` the stream takes: what follows is not its own.

    None where that is not known (zstd), or the stream goes on after `length` bytes.
    """
    if codec == "zstd":
        return _decode_zstd(data, length), None
    fast = _fast_zlib()
    stream = fast.decompressobj(wbits={"deflate": -15, "zlib": 15}[codec])
    try:
        unit: bytes = stream.decompress(data, length)
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except (zlib.error, fast.error) as error:
        raise ValueError(f"{codec}: {error}") from error
    if len(unit) != length:
        raise ValueError(f"{codec}: expected {length} bytes, the stream ends after {len(unit)}")
    return unit, None if more or not stream.eof else len(data) - len(stream.unused_data)


def zlib_of_deflate(deflated: bytes, unit: bytes) -> bytes:
    """A deflate stream of `unit` in zlib's wrapping."""
    checksum: int = _fast_zlib().adler32(unit)
    return ZLIB_HEADER + deflated + checksum.to_bytes(4, "big")


def deflate_of_zlib(stream: bytes) -> bytes | None:
    """The deflate stream inside a zlib stream that is whole, or None when its window is above 4 KiB."""
    window_bits = (stream[0] >> 4) + 8
    return None if window_bits > DEFLATE_WINDOW_BITS else stream[2:-4]
