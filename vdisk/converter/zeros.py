"""Finding zeros: which stretches of a buffer are worth writing."""

from __future__ import annotations

GRANULE_BYTES = 4096
"""Zeros are looked for in pieces of this size: a file system's block."""

_LONG_BYTES = 1 << 16
_ZERO_GRANULE = bytes(GRANULE_BYTES)
_LONG_ZEROS = bytes(_LONG_BYTES)


def data_runs(buffer: bytearray, length: int) -> list[tuple[int, int]]:
    """(start, end) of the stretches of `buffer[:length]` that are not zero, in granules of 4 KiB.

    Comparing with a run of zeros stops at the first byte that is none, so data costs next to nothing; it is the
    cheapest test that Python has.
    """
    runs: list[tuple[int, int]] = []
    is_zero = buffer.startswith
    position, run_start = 0, -1
    whole = length - length % GRANULE_BYTES
    while position < whole:
        if is_zero(_ZERO_GRANULE, position):
            if run_start >= 0:
                runs.append((run_start, position))
                run_start = -1
            position += GRANULE_BYTES
            while position + _LONG_BYTES <= whole and is_zero(_LONG_ZEROS, position):
                position += _LONG_BYTES
        else:
            if run_start < 0:
                run_start = position
            position += GRANULE_BYTES
    if whole < length and any(memoryview(buffer)[whole:length]):
        runs.append((whole if run_start < 0 else run_start, length))
    elif run_start >= 0:
        runs.append((run_start, whole))
    return runs


def whole_units(runs: list[tuple[int, int]], unit_bytes: int, length: int) -> list[tuple[int, int]]:
    """The runs widened to whole units (cut at `length`), neighbours joined."""
    units: list[tuple[int, int]] = []
    for start, end in runs:
        start -= start % unit_bytes
        end = min(-(-end // unit_bytes) * unit_bytes, length)
        if units and start <= units[-1][1]:
            units[-1] = (units[-1][0], max(end, units[-1][1]))
        else:
            units.append((start, end))
    return units
