"""Durations counted in buckets."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fourlane.engine.durations import BOUNDS_S, DurationCounts


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (BOUNDS_S[0], 0), (0.00011, 1), (BOUNDS_S[-1], 63), (1e9, 64)]
)
def test_a_duration_falls_into_the_first_bucket_that_holds_it(seconds: float, bucket: int) -> None:
    times = DurationCounts()
    times.add(seconds)
    assert [index for index, count in enumerate(times.counts) if count] == [bucket]


def test_buckets_are_a_fifth_apart_so_that_percentiles_err_by_a_tenth_at_most() -> None:
    assert all(1.19 < high / low < 1.21 for low, high in pairwise(BOUNDS_S))
