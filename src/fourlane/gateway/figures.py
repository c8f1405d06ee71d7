"""Figures of the recent past: percentiles, tokens a second, how long a full queue lasts.

Time is passed in, in seconds of any steady clock. For totals and histograms see `metrics`.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Figures", "percentile"]

HISTORY_S = 60
SAMPLES = 1024


def percentile(values: list[float], percent: float) -> float | None:
    """Return the nearest-rank percentile of values, None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class Figures:
    """What the last requests and the last minute were like."""

    def __init__(self) -> None:
        self.first_token: deque[float] = deque(maxlen=SAMPLES)
        """Seconds from a request's arrival to its first token."""
        self.per_token: deque[float] = deque(maxlen=SAMPLES)
        """Mean seconds a token after the first, one entry a finished text."""
        self._ends: deque[float] = deque(maxlen=64)
        self._seconds: deque[tuple[int, int]] = deque(maxlen=HISTORY_S + 1)
        self._second = -1
        self._count = 0

    def token(self, now: float) -> None:
        """Count a token."""
        second = int(now)
        if second != self._second:
            if self._count:
                self._seconds.append((self._second, self._count))
            self._second, self._count = second, 0
        self._count += 1

    def ended(self, now: float) -> None:
        """Count a request's end."""
        self._ends.append(now)

    def tokens_per_second(self, now: float) -> list[int]:
        """Return the tokens of each of the last 60 whole seconds, oldest first."""
        counts = dict(self._seconds)
        counts[self._second] = self._count
        last = int(now)
        return [counts.get(second, 0) for second in range(last - HISTORY_S, last)]

    def retry_after(self, waiting: int, now: float) -> int:
        """Return the seconds after which a full queue of `waiting` requests has likely moved on.

        The time in which half of it went, at the rate requests ended lately; from 1 to 60.
        """
        recent = [end for end in self._ends if now - end < HISTORY_S]
        if len(recent) < 2 or recent[-1] <= recent[0]:
            return 1
        rate = (len(recent) - 1) / (now - recent[0])
        return max(1, min(60, math.ceil(waiting / 2 / rate)))
