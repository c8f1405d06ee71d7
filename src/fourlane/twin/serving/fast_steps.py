"""Step times read off a grid that is filled as it is needed: what a simulation asks for a hundred thousand times.

Between points of the grid (whole numbers up to 4, then two in each doubling) times are straight in each figure of the
load. What that costs, tests hold below a hundredth.
"""

from __future__ import annotations

from math import floor, log2
from typing import TYPE_CHECKING

from fourlane.twin.times import GroupLoad

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import StepTimes
    from fourlane.twin.times import StepTime

__all__ = ["FastSteps", "Point", "load_of"]

_LINEAR = 4
"""Below it points are whole numbers apart; shares of a token (a mean over ranks) have points in each doubling, too."""
_PER_DOUBLING = 2
_LEAST = 2.0**-20
"""The first point above none: a token of a million ranks."""

Point = tuple[float, float, float, float, float, float]
"""Prefill tokens and pairs, decode rows and context, logits, mean tokens a rank."""


class FastSteps:
    """Steps of one phase's units."""

    def __init__(self, steps: StepTimes, ranks: int) -> None:
        self._steps = steps
        self.ranks = ranks
        self._points: dict[Point, StepTime] = {}

    def prefill(self, tokens: float, pairs: float, *, logits: int, mean: float) -> float:
        """Return the seconds of a step of prompts.

        Args:
            tokens, pairs: prompt tokens of the fullest rank, and positions they attend to.
            logits: prompts that end in it on the fullest rank.
            mean: tokens of the mean rank.
        """
        rows = 0 if logits == 0 else 1 << (logits - 1).bit_length()
        seconds = 0.0
        for token_point, token_weight in _between(tokens):
            for pair_point, pair_weight in _between(pairs):
                for mean_point, mean_weight in _between(mean):
                    weight = token_weight * pair_weight * mean_weight
                    if weight:
                        point = (token_point, pair_point, 0.0, 0.0, float(rows), mean_point)
                        seconds += weight * self.at(point).seconds
        return seconds

    def decode(self, rows: float, context: float, mean: float) -> float:
        """Return the seconds of a step of decoding sequences.

        Args:
            rows: of the fullest rank, drafted tokens included.
            context: positions its sequences have in their caches, summed.
            mean: rows of the mean rank.
        """
        seconds = 0.0
        for row_point, row_weight in _between(rows):
            for context_point, context_weight in _between(context):
                for mean_point, mean_weight in _between(mean):
                    weight = row_weight * context_weight * mean_weight
                    if weight:
                        point = (0.0, 0.0, row_point, context_point, row_point, mean_point)
                        seconds += weight * self.at(point).seconds
        return seconds

    def at(self, point: Point) -> StepTime:
        """Return the step at a point of the grid."""
        known = self._points.get(point)
        if known is None:
            known = self._points[point] = self._steps.step(load_of(point, self.ranks))
        return known

    def nearest_point(self, load: GroupLoad) -> Point:
        """Return the point of the grid that is nearest to a load, to see what its steps are made of."""
        return (
            _nearest(load.prefill_tokens),
            _nearest(load.prefill_pairs),
            _nearest(load.decode_tokens),
            _nearest(load.decode_context),
            _nearest(load.logits),
            _nearest(load.tokens),
        )


def load_of(point: Point, ranks: int) -> GroupLoad:
    """Return the load that a point stands for."""
    prefill_tokens, prefill_pairs, decode_tokens, decode_context, logits, tokens = point
    return GroupLoad(
        ranks=ranks,
        prefill_tokens=prefill_tokens,
        prefill_pairs=prefill_pairs,
        decode_tokens=decode_tokens,
        decode_context=decode_context,
        logits=logits,
        tokens=tokens,
    )


def _between(value: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the points below and above a value, each with its weight."""
    if value <= _LEAST:
        share = max(0.0, value) / _LEAST
        return (0.0, 1 - share), (_LEAST, share)
    if 1 <= value <= _LINEAR:
        low = float(floor(value))
        return (low, low + 1 - value), (low + 1, value - low)
    index = floor(log2(value) * _PER_DOUBLING)
    low, high = 2.0 ** (index / _PER_DOUBLING), 2.0 ** ((index + 1) / _PER_DOUBLING)
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return (low, 1 - share), (high, share)


def _nearest(value: float) -> float:
    """Return the nearer of both points around a value."""
    (low, low_weight), (high, high_weight) = _between(value)
    return low if low_weight >= high_weight else high
