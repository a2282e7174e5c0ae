"""Arrays of big-endian words, as tables stand in a file, and reference counts of any width."""

from __future__ import annotations

import sys
from array import array

TYPECODES = {8: "B", 16: "H", 32: "I", 64: "Q"}


def load_big_endian(data: bytes | bytearray, typecode: str) -> array[int]:
    """An array of a file's big-endian words."""
    words = array(typecode)
    words.frombytes(data)
    if sys.byteorder == "little" and words.itemsize > 1:
        words.byteswap()
    return words


def store_big_endian(words: array[int]) -> bytes:
    """The words as they stand in a file."""
    if sys.byteorder == "little" and words.itemsize > 1:
        words = words[:]
        words.byteswap()
    return words.tobytes()


def unpack_counts(data: bytes, bits: int) -> array[int]:
    """A refcount block's counts; widths below a byte are least significant bits first."""
    if bits >= 8:
        return load_big_endian(data, TYPECODES[bits])
    import numpy

    packed = numpy.frombuffer(data, numpy.uint8)
    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)
    counts = (packed[:, None] >> shifts) & ((1 << bits) - 1)
    return array("B", counts.astype(numpy.uint8).tobytes())


def pack_counts(counts: array[int], bits: int) -> bytes:
    """`unpack_counts` backwards."""
    if bits >= 8:
        return store_big_endian(counts)
    import numpy

    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)
    rows = numpy.frombuffer(counts.tobytes(), numpy.uint8).reshape(-1, 8 // bits)
    packed: bytes = numpy.bitwise_or.reduce(rows << shifts, axis=1).astype(numpy.uint8).tobytes()
    return packed
