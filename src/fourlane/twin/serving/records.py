"""What is written down of steps while a service is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.twin.serving.fast_steps import FastSteps, Point

__all__ = ["DecodeLeap", "PrefillStep", "Records"]


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """A prefill unit's step: figures of the fullest rank; `mean`, `total`: tokens of the mean rank, and of all.

    `times` is what its time was read off.
    """

    times: FastSteps
    unit: int
    tokens: int
    pairs: int
    logits: int
    mean: float
    total: int

    @property
    def point(self) -> Point:
        """Return the point of the grid that is nearest."""
        return self.times.nearest(self.tokens, self.pairs, self.mean, logits=self.logits)

    @property
    def exchanging(self) -> float:
        """Return the share of its time in which something travels between experts."""
        return exchanging(self.times, self.point)


@dataclass(frozen=True, slots=True)
class DecodeLeap:
    """Steps of a decode unit in which its sequences stay the same: how many, and figures of the fullest rank.

    `rows` and `mean` with drafted tokens; `context` at the first step, `growth` of it in each; `sequences` of all.
    `times` is what their time was read off.
    """

    times: FastSteps
    unit: int
    steps: int
    rows: float
    context: float
    growth: float
    mean: float
    sequences: int

    @property
    def point(self) -> Point:
        """Return the point of the grid that is nearest to the step amid the leap."""
        return self.times.nearest(self.rows, self.context + self.growth * (self.steps - 1) / 2, self.mean)

    @property
    def exchanging(self) -> float:
        """Return the share of its time in which something travels between experts."""
        return exchanging(self.times, self.point)


def exchanging(times: FastSteps, point: Point) -> float:
    """Return the share of a step's time in which something travels."""
    step = times.at(point)
    return min(1.0, step.exchange_s / step.seconds) if step.seconds > 0 else 0.0


class Records:
    """Every step and leap, with its begin and end in seconds."""

    def __init__(self) -> None:
        self.prefill: list[tuple[PrefillStep, float, float]] = []
        self.decode: list[tuple[DecodeLeap, float, float]] = []

    def prefill_step(self, step: PrefillStep, begin: float, end: float) -> None:
        """Write down a step."""
        self.prefill.append((step, begin, end))

    def decode_leap(self, leap: DecodeLeap, begin: float, end: float) -> None:
        """Write down a leap."""
        self.decode.append((leap, begin, end))
