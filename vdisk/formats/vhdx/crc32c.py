"""CRC-32C (Castagnoli), the checksum of VHDX's headers, region tables and log.

What is summed is 4 to 64 KiB and mostly zeros: runs of zeros are stepped over by a matrix, the rest goes byte by byte
through a table. Long data is summed in lanes by numpy.
"""

from __future__ import annotations

import functools
import re
from typing import Any

_POLYNOMIAL = 0x82F63B78  # reflected
_LANE_BYTES = 1024
_LANES_FROM_BYTES = 128 << 10
_CHUNK_BYTES = 16 << 20
_ZERO_RUN = re.compile(rb"\0{64,}")

Matrix = tuple[int, ...]
"""A linear map of 32-bit states: what becomes of each single bit, the lowest first."""


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The CRC-32C of `data`."""
    view = memoryview(data)
    state = 0xFFFFFFFF
    for start in range(0, len(view), _CHUNK_BYTES):
        part = view[start : start + _CHUNK_BYTES]
        state = _advance_in_lanes(state, part) if len(part) >= _LANES_FROM_BYTES else _advance(state, part)
    return state ^ 0xFFFFFFFF


def _advance(state: int, data: memoryview) -> int:
    table = _table()
    position = 0
    for run in _ZERO_RUN.finditer(data):
        for byte in data[position : run.start()]:
            state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
        state = _over_zeros(state, run.end() - run.start())
        position = run.end()
    for byte in data[position:]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _advance_in_lanes(state: int, data: memoryview) -> int:
    """Sum lanes of 1 KiB beside one another, then string their sums together."""
    import numpy

    count = len(data) // _LANE_BYTES
    whole = count * _LANE_BYTES
    lanes = numpy.frombuffer(data[:whole], numpy.uint8).reshape(count, _LANE_BYTES).T
    table = numpy.array(_table(), numpy.uint32)
    sums: Any = numpy.zeros(count, numpy.uint32)
    for column in numpy.ascontiguousarray(lanes):
        sums = table[(sums ^ column) & 0xFF] ^ (sums >> 8)
    over_lane = _matrix_tables(_zeros_matrix(_LANE_BYTES))
    for lane_sum in sums.tolist():
        first, second, third, fourth = over_lane
        state = first[state & 0xFF] ^ second[state >> 8 & 0xFF] ^ third[state >> 16 & 0xFF] ^ fourth[state >> 24]
        state ^= lane_sum
    return _advance(state, data[whole:])


def _over_zeros(state: int, count: int) -> int:
    """The state after `count` zero bytes."""
    bit = 0
    while count:
        if count & 1:
            state = _times(_power_of_zeros(bit), state)
        count >>= 1
        bit += 1
    return state


def _zeros_matrix(count: int) -> Matrix:
    return tuple(_over_zeros(1 << bit, count) for bit in range(32))


@functools.cache
def _power_of_zeros(exponent: int) -> Matrix:
    """The matrix that steps over 2**exponent zero bytes."""
    if exponent == 0:
        table = _table()
        return tuple(table[(1 << bit) & 0xFF] ^ (1 << bit >> 8) for bit in range(32))
    half = _power_of_zeros(exponent - 1)
    return tuple(_times(half, column) for column in half)


def _times(matrix: Matrix, state: int) -> int:
    result = 0
    for column in matrix:
        if state & 1:
            result ^= column
        state >>= 1
    return result


@functools.cache
def _table() -> tuple[int, ...]:
    """The state that each byte value leads to."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _matrix_tables(matrix: Matrix) -> list[list[int]]:
    """The matrix as four tables, one for each byte of the state."""
    return [[_times(matrix, byte << shift) for byte in range(256)] for shift in (0, 8, 16, 24)]
