"""Count durations in buckets, so that percentiles can be taken over ranks, processes and spans of time.

No torch here: ranks count, the gateway turns counts into a Prometheus histogram.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["BOUNDS_S", "DurationCounts"]

BOUNDS_S = tuple(float(f"{0.0001 * 1.2**step:.3g}") for step in range(64))
"""Upper bounds of the buckets: 0.1 ms to 9.7 s, each a fifth above the one before."""


class DurationCounts:
    """How many durations fell into each bucket; the last bucket has no upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
