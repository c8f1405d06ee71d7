"""What an experiment shows: figures of every arrangement it tries, bars they must clear, and a verdict.

Not for how it is shown to a person (`fourlane.cli`).
"""

from __future__ import annotations

from statistics import median
from typing import Literal

import msgspec

from fourlane.lab.verdict import Verdict

__all__ = ["Arrangement", "Bar", "Metric", "Shown", "Unit"]

Unit = Literal["seconds", "share", "bits", "count"]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that every arrangement has: its name, its heading, its unit; whether a plot is logarithmic."""

    name: str
    title: str
    unit: Unit
    logarithmic: bool = False


class Arrangement(msgspec.Struct, frozen=True, kw_only=True):
    """One way to set up the network, and what was measured: by metric a figure a repetition, in base units."""

    name: str
    figures: dict[str, list[float]]

    def middle(self, metric: str) -> float:
        """Return a metric's median over the repetitions."""
        return median(self.figures[metric])


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """Something the experiment must show: a measured ratio or share, and its bound."""

    claim: str
    measured: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Tell whether it was shown."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one experiment."""

    name: str
    title: str
    setting: str
    metrics: tuple[Metric, ...]
    arrangements: tuple[Arrangement, ...]
    bars: tuple[Bar, ...]
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Tell whether the run is valid and every bar was cleared."""
        return self.verdict.valid and all(bar.met for bar in self.bars)
