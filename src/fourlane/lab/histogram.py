"""Percentiles of a Prometheus histogram over a span of time: what was counted after less what was before."""

from __future__ import annotations

import re

__all__ = ["Histogram", "percentile_of", "read_histogram", "since"]

Histogram = list[tuple[float, float]]
"""Upper bounds, ascending, and how many values are at or below each."""

_BUCKET = re.compile(r"^(?P<name>\w+)_bucket\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def read_histogram(text: str, name: str, **labels: str) -> Histogram:
    """Return a histogram out of the text format, empty if it is not there.

    Args:
        text: what /metrics answers.
        name: of the metric.
        labels: that the buckets carry, besides `le`.
    """
    found: Histogram = []
    for match in _BUCKET.finditer(text):
        carried = dict(_LABEL.findall(match["labels"]))
        if match["name"] == name and all(carried.get(key) == value for key, value in labels.items()):
            found.append((float(carried["le"].replace("+Inf", "inf")), float(match["count"])))
    return sorted(found)


def since(after: Histogram, before: Histogram) -> Histogram:
    """Return what was counted between two readings."""
    earlier = dict(before)
    return [(bound, count - earlier.get(bound, 0.0)) for bound, count in after]


def percentile_of(histogram: Histogram, share: float) -> float | None:
    """Return the value below which `share` of the values lie, interpolated within its bucket; None without values.

    Values beyond the last finite bound count as that bound.
    """
    total = histogram[-1][1] if histogram else 0
    if not total:
        return None
    wanted, low, below = share * total, 0.0, 0.0
    for bound, count in histogram:
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low
