"""Zeros are found in granules of 4 KiB, and nothing that is not zero is lost."""

from __future__ import annotations

import random

import pytest

from vdisk.converter.zeros import GRANULE_BYTES, data_runs, whole_units


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 65536, 200_000, 1 << 20])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_runs_hold_all_that_is_not_zero_and_no_granule_of_zeros(length: int, share: float) -> None:
    maker = random.Random(length)
    buffer = bytearray(length + 5000)
    for start in range(0, length, GRANULE_BYTES):
        if maker.random() < share:
            buffer[start + maker.randrange(min(GRANULE_BYTES, length - start))] = 1
    buffer[length:] = b"\xff" * 5000  # what lies behind belongs to an earlier piece
    runs = data_runs(buffer, length)
    covered = bytearray(length)
    for start, end in runs:
        assert start % GRANULE_BYTES == 0
        assert end % GRANULE_BYTES == 0 or end == length
        covered[start:end] = b"\1" * (end - start)
    for start in range(0, length, GRANULE_BYTES):
        end = min(start + GRANULE_BYTES, length)
        assert any(buffer[start:end]) == bool(covered[start]), start


def test_the_last_byte_of_an_odd_length_counts() -> None:
    buffer = bytearray(10_001)
    buffer[10_000] = 7
    assert data_runs(buffer, 10_001) == [(8192, 10_001)]
    assert data_runs(buffer, 10_000) == []


def test_runs_widen_to_units_and_join() -> None:
    assert whole_units([(4096, 8192), (12288, 16384), (131072, 135168)], 65536, 133_000) == [
        (0, 65536),
        (131072, 133_000),
    ]
    assert whole_units([(0, 65536), (65536, 65540)], 65536, 1 << 20) == [(0, 131072)]
