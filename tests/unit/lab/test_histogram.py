"""Percentiles out of Prometheus histograms."""

from __future__ import annotations

import pytest

from fourlane.lab.histogram import percentile_of, read_histogram, since

TEXT = """\
# TYPE waits histogram
waits_bucket{pool="decode",le="0.1"} 0.0
waits_bucket{pool="decode",le="+Inf"} 12.0
waits_bucket{pool="decode",le="0.2"} 10.0
waits_bucket{pool="prefill",le="0.1"} 7.0
waits_count{pool="decode"} 12.0
other_bucket{pool="decode",le="0.1"} 3.0
"""
INFINITY = float("inf")


def test_a_histogram_is_read_by_name_and_labels_in_order_of_bounds() -> None:
    assert read_histogram(TEXT, "waits", pool="decode") == [(0.1, 0.0), (0.2, 10.0), (INFINITY, 12.0)]
    assert read_histogram(TEXT, "waits", pool="unified") == []


def test_what_came_between_two_readings_is_the_difference() -> None:
    assert since([(0.1, 5.0), (INFINITY, 9.0)], [(0.1, 2.0), (INFINITY, 3.0)]) == [(0.1, 3.0), (INFINITY, 6.0)]
    assert since([(0.1, 5.0)], []) == [(0.1, 5.0)]


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.5, 0.16), (0.25, 0.13), (0.99, 0.2)],  # 12 values: 10 in 0.1 to 0.2, two beyond the last bound
)
def test_percentiles_are_interpolated_within_their_bucket(share: float, value: float) -> None:
    assert percentile_of(read_histogram(TEXT, "waits", pool="decode"), share) == pytest.approx(value)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile_of([], 0.5) is None
    assert percentile_of([(0.1, 0.0), (INFINITY, 0.0)], 0.5) is None
