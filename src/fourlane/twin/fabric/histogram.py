"""Histograms of times in buckets that widen as times grow: 64 a doubling, so that a percentile is 0.8 % off at most.

A time of v ps below 128 has bucket v; above, bucket 64 * e + (v >> e), where e is the number of bits of v less 7. Not
for the counting itself, which the simulators do.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["BUCKETS", "bucket_of", "bucket_width", "lowest", "middle", "nearest_rank", "percentile"]

BUCKETS = 64 * 56 + 128
"""As many as times below 2**63 ps need."""


def bucket_of(time_ps: int) -> int:
    """Return the bucket of a time."""
    exponent = max(0, time_ps.bit_length() - 7)
    return 64 * exponent + (time_ps >> exponent)


def lowest(bucket: ArrayLike) -> NDArray[np.int64]:
    """Return the least time of each bucket, in ps."""
    place = np.asarray(bucket, dtype=np.int64)
    exponent = np.maximum(0, (place - 64) // 64)
    return (place - 64 * exponent) << exponent


def bucket_width(bucket: ArrayLike) -> NDArray[np.int64]:
    """Return how many ps fall into each bucket."""
    return np.int64(1) << np.maximum(0, (np.asarray(bucket, dtype=np.int64) - 64) // 64)


def middle(bucket: ArrayLike) -> NDArray[np.float64]:
    """Return the middle of each bucket in ps; the only time in it where it is 1 ps wide."""
    return lowest(bucket) + (bucket_width(bucket) - 1) / 2


def nearest_rank(percent: float, count: int) -> int:
    """Return which of `count` values in rising order, from 1, is a percentile: the least with that share at or below.

    Raises:
        SpecError: the percentile is not between 0 and 100.
    """
    if not 0 <= percent <= 100:
        raise SpecError(f"percentile: expected a number from 0 to 100, got {percent}")
    # Rounded first: 99.9 % of 1,000 are 999, though the floating-point product is a little more.
    return max(1, ceil(round(percent * count / 100, 9)))


def percentile(counts: NDArray[np.int64], percent: float) -> float:
    """Return a percentile in ps of what a histogram counted; NaN when it counted nothing.

    Args:
        counts: [BUCKETS].

    Raises:
        SpecError: the percentile is not between 0 and 100.
    """
    rank = nearest_rank(percent, total := int(counts.sum()))
    if total == 0:
        return float("nan")
    return float(middle(int(np.searchsorted(np.cumsum(counts), rank))))
