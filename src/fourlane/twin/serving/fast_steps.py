"""Step times read off a grid that is filled as it is needed: what a simulation asks for a hundred thousand times.

A step's load is put as the fullest rank's rows, positions for each of them, and the mean rank's rows as a share of its
own. Between points of the grid (whole numbers of rows up to 4, then four in each doubling, two of positions) times are
straight in each of these. What that costs, tests hold.
"""

from __future__ import annotations

from math import floor, log2
from typing import TYPE_CHECKING

from fourlane.twin.times import GroupLoad

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import StepTimes
    from fourlane.twin.times import Phase, StepTime

__all__ = ["FastSteps", "Point", "load_of"]

Point = tuple[float, float, float, float]
"""Rows of the fullest rank, positions for each, share of its rows that the mean rank has; logits, in prefill."""

_WHOLE = 4
"""Up to here points are whole numbers apart."""
_ROWS, _POSITIONS, _SHARES = 4, 2, 4
"""Points in each doubling."""
_LEAST = 2.0**-20
"""The first point above none: a token of a million ranks."""


class FastSteps:
    """Steps of one phase's units: prompts are prefilled, or sequences decoded."""

    def __init__(self, steps: StepTimes, ranks: int, phase: Phase) -> None:
        self.model = steps
        self.ranks = ranks
        self.phase = phase
        self._points: dict[Point, StepTime] = {}
        self._seconds: dict[Point, float] = {}

    def seconds(self, rows: float, positions: float, mean: float, *, logits: int = 0) -> float:
        """Return the seconds of a step.

        Args:
            rows: prompt tokens, or rows of decoding sequences with drafted tokens, of the fullest rank; more than 0.
            positions: that these attend to, summed (prefill); in their sequences' caches, summed (decode).
            mean: rows of the mean rank.
            logits: prompts that end in the step on the fullest rank; a decoding row always has its own.
        """
        each_at = _between(positions / rows, _POSITIONS)
        share_at = _between(mean / rows, _SHARES)
        ends = _some_logits(logits)
        seconds = 0.0
        for row, row_weight in _between(rows, _ROWS, whole=True):
            for each, each_weight in each_at:
                both = row_weight * each_weight
                for share, share_weight in share_at:
                    point = (row, each, share, ends)
                    known = self._seconds.get(point)
                    seconds += both * share_weight * (self.at(point).seconds if known is None else known)
        return seconds

    def at(self, point: Point) -> StepTime:
        """Return the step at a point of the grid."""
        known = self._points.get(point)
        if known is None:
            known = self._points[point] = self.model.step(load_of(point, self.ranks, self.phase))
            self._seconds[point] = known.seconds
        return known

    def nearest(self, rows: float, positions: float, mean: float, *, logits: int = 0) -> Point:
        """Return the point of the grid that is nearest to a load, to see what its steps are made of."""
        return (
            _nearest(_between(rows, _ROWS, whole=True)),
            _nearest(_between(positions / rows, _POSITIONS)),
            _nearest(_between(mean / rows, _SHARES)),
            _some_logits(logits),
        )


def load_of(point: Point, ranks: int, phase: Phase) -> GroupLoad:
    """Return the load that a point stands for."""
    rows, each, share, logits = point
    prefill = phase == "prefill"
    return GroupLoad(
        ranks=ranks,
        prefill_tokens=rows if prefill else 0.0,
        prefill_pairs=rows * each if prefill else 0.0,
        decode_tokens=0.0 if prefill else rows,
        decode_context=0.0 if prefill else rows * each,
        logits=logits if prefill else rows,
        tokens=rows * share,
    )


def _some_logits(count: int) -> float:
    """Return the nearest of 1, 8, 64, ..., 0 for none: reading the vocabulary's weights takes most of their time."""
    return 8.0 ** round(log2(count) / 3) if count else 0.0


def _between(value: float, per_doubling: int, *, whole: bool = False) -> tuple[tuple[float, float], ...]:
    """Return the points around a value, each with its weight: two, or the one that it is."""
    if value <= _LEAST:
        share = max(0.0, value) / _LEAST
        return ((0.0, 1 - share), (_LEAST, share)) if share else ((0.0, 1.0),)
    if whole and 1 <= value <= _WHOLE:
        low = float(floor(value))
        return ((low, 1.0),) if low == value else ((low, low + 1 - value), (low + 1, value - low))
    index = floor(log2(value) * per_doubling)
    low, high = 2.0 ** (index / per_doubling), 2.0 ** ((index + 1) / per_doubling)
    share = (value - low) / (high - low)
    if share <= 0:
        return ((low, 1.0),)
    return ((low, 1 - share), (high, share)) if share < 1 else ((high, 1.0),)


def _nearest(points: tuple[tuple[float, float], ...]) -> float:
    """Return the point with most weight, the lower of equals."""
    return max(points, key=lambda point: point[1])[0]
