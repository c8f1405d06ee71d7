"""What the steps of a simulation were made of, and what bounds them: all of them, weighed by their time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.serving.fast_steps import FastSteps, Point
    from fourlane.twin.serving.records import DecodeLeap, PrefillStep

__all__ = ["MakeUp", "make_up"]

_SAMPLED = 4000
"""Steps or leaps looked at, evenly over all; more would not change shares."""


@dataclass(frozen=True, slots=True)
class MakeUp:
    """Shares of the time units were in steps.

    Args:
        parts: of each part of a pass, "dispatch" and "combine" among them; what is hidden counts too, so that they
            add up to more than 1 where two streams overlap.
        bounds: parts by what bounds them, of all parts' time.
        exposed: something travelled and nothing was computed; exchange: something travelled; two_streams: steps that
            ran as two.
        sources: of each part.
    """

    parts: dict[str, float]
    bounds: dict[str, float]
    exposed: float
    exchange: float
    two_streams: float
    sources: dict[str, str]


def make_up(records: Sequence[tuple[PrefillStep | DecodeLeap, float, float]]) -> MakeUp:
    """Return what recorded steps were made of, read off the nearest points of the grid."""
    every = -(-len(records) // _SAMPLED) or 1
    weights: dict[tuple[FastSteps, Point], float] = defaultdict(float)
    for record, begin, end in records[::every]:
        weights[record.times, record.point] += end - begin
    parts: dict[str, float] = defaultdict(float)
    bounds: dict[str, float] = defaultdict(float)
    sources: dict[str, str] = {}
    whole = exposed = exchange = two = 0.0
    for (times, point), weight in weights.items():
        step = times.at(point)
        scale = weight / step.seconds if step.seconds > 0 else 0.0
        whole += weight
        exposed += step.exposed_s * scale
        exchange += step.exchange_s * scale
        two += weight * (step.streams == 2)
        for name, seconds in step.parts.items():
            parts[name] += seconds * scale
            bounds[step.bounds.get(name, "other")] += seconds * scale
        sources |= step.sources
    whole, bounded = whole or 1.0, sum(bounds.values()) or 1.0
    return MakeUp(
        parts={name: seconds / whole for name, seconds in parts.items()},
        bounds={name: seconds / bounded for name, seconds in sorted(bounds.items(), key=lambda item: -item[1])},
        exposed=exposed / whole,
        exchange=exchange / whole,
        two_streams=two / whole,
        sources=sources,
    )
