"""How evenly ranks computed in the recent past, layer by layer, from the running sums they report.

Before: had each expert's tokens been spread evenly over its replicas; after: as batches were split.
Time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.engine.messages import BalanceStats

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LayerBalance", "RecentBalance", "balance_of"]

SPAN_S = 15.0
"""The recent past reaches back over one to two such spans in which there were tokens."""


@dataclass(frozen=True, slots=True)
class LayerBalance:
    """Max over mean rows of a rank, a layer each and of all layers together (what a pass waits for)."""

    before_L: list[float]
    after_L: list[float]
    before: float
    after: float


class RecentBalance:
    """The sums of one rank, and what they were one to two spans of activity ago."""

    def __init__(self) -> None:
        self.now = BalanceStats()
        self._began = BalanceStats()
        self._next = BalanceStats()
        self._turned = 0.0

    def report(self, sums: BalanceStats, now: float) -> None:
        """Take a rank's sums; if they fell, another process has begun to count."""
        total = sum(sums.sum_of_mean_L)
        if total < sum(self.now.sum_of_mean_L) or len(sums.sum_of_mean_L) != len(self.now.sum_of_mean_L):
            self._began = self._next = BalanceStats()
            self._turned = now
        elif now - self._turned >= SPAN_S and total > sum(self._next.sum_of_mean_L):
            self._began, self._next, self._turned = self._next, self.now, now
        self.now = sums

    def sums(self) -> tuple[list[float], list[float], list[float]]:
        """Return the recent past's sums by layer: maxima before, maxima after, means."""
        now, began = self.now, self._began
        return (
            _less(now.sum_of_max_equal_L, began.sum_of_max_equal_L),
            _less(now.sum_of_max_split_L, began.sum_of_max_split_L),
            _less(now.sum_of_mean_L, began.sum_of_mean_L),
        )


def balance_of(ranks: Iterable[RecentBalance]) -> LayerBalance | None:
    """Return the balance of ranks together, of groups weighted by their tokens; None where no token was."""
    known = [sums for rank in ranks if (sums := rank.sums())[2]]
    if not known or len({len(mean_L) for _, _, mean_L in known}) > 1:
        return None
    before_L, after_L, mean_L = (
        [sum(column) for column in zip(*part, strict=True)] for part in zip(*known, strict=True)
    )
    if not sum(mean_L):
        return None
    return LayerBalance(
        before_L=[_ratio(*pair) for pair in zip(before_L, mean_L, strict=True)],
        after_L=[_ratio(*pair) for pair in zip(after_L, mean_L, strict=True)],
        before=sum(before_L) / sum(mean_L),
        after=sum(after_L) / sum(mean_L),
    )


def _less(now: list[int] | list[float], began: list[int] | list[float]) -> list[float]:
    return [a - b for a, b in zip(now, began, strict=True)] if began else list(now)


def _ratio(fullest: float, mean: float) -> float:
    return fullest / mean if mean else 1.0
