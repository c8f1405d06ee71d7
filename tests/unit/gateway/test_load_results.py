"""How a run is summed up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.gateway.load import Objectives, Record, summarize
from fourlane.gateway.load.results import distribution, percentile


def record(index: int, *, due: float, ttft: float, tokens: int, tpot: float, error: str | None = None) -> Record:
    return Record(
        index=index,
        due_s=due,
        sent_s=due,
        ttft_s=ttft,
        e2e_s=ttft + tpot * (tokens - 1),
        gaps_s=[tpot] * (tokens - 1),
        prompt_tokens=10,
        output_tokens=tokens,
        error=error,
    )


def test_throughput_counts_from_the_first_request_to_the_last_answer() -> None:
    records = [record(0, due=1.0, ttft=0.5, tokens=11, tpot=0.05), record(1, due=2.0, ttft=1.0, tokens=11, tpot=0.1)]
    summary = summarize(records)
    assert summary.duration_s == pytest.approx(3.0)
    assert summary.output_tokens_per_s == pytest.approx(22 / 3)
    assert summary.total_tokens_per_s == pytest.approx(42 / 3)
    assert summary.ttft_s.p50 == pytest.approx(0.75)
    assert summary.tpot_s.max == pytest.approx(0.1)
    assert summary.itl_s.count == 20


def test_goodput_counts_requests_within_both_objectives() -> None:
    records = [
        record(0, due=0.0, ttft=0.1, tokens=5, tpot=0.01),
        record(1, due=0.0, ttft=0.9, tokens=5, tpot=0.01),
        record(2, due=0.0, ttft=0.1, tokens=5, tpot=0.2),
        record(3, due=0.0, ttft=0.1, tokens=5, tpot=0.01, error="status 503: no"),
    ]
    summary = summarize(records, objectives=Objectives(ttft_s=0.5, tpot_s=0.05))
    assert summary.goodput_share == pytest.approx(0.25)
    assert (summary.completed, summary.failed, summary.interrupted) == (3, 1, 0)
    assert summary.errors == {"status 503: no": 1}


def test_interrupted_requests_are_no_failures_and_count_in_nothing() -> None:
    records = [
        record(0, due=0.0, ttft=0.1, tokens=5, tpot=0.01),
        record(1, due=0.0, ttft=0.1, tokens=5, tpot=9.0, error="interrupted"),
    ]
    summary = summarize(records)
    assert (summary.completed, summary.failed, summary.interrupted) == (1, 0, 1)
    assert summary.output_tokens == 5


def test_nothing_measured_sums_up_to_zeros() -> None:
    summary = summarize([])
    assert (summary.requests, summary.output_tokens_per_s, summary.ttft_s.count) == (0, 0.0, 0)


def test_one_token_has_no_time_per_output_token() -> None:
    assert record(0, due=0.0, ttft=0.1, tokens=1, tpot=0.0).tpot_s is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_percentiles_lie_within_the_values_and_in_order(values: list[float]) -> None:
    summed = distribution(values)
    ordered = sorted(values)
    assert ordered[0] <= summed.p50 <= summed.p90 <= summed.p99 <= summed.max == ordered[-1]
    assert percentile(ordered, 0.0) == ordered[0]
