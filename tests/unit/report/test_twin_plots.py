"""Pictures of a simulated service, of a plan's candidates and of sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.report.page import svg_of
from fourlane.report.plan_plots import Candidate, _front, plot_pareto
from fourlane.report.sweep_plots import Swept, _numbers, plot_sweep
from fourlane.report.twin_plots import (
    Distribution,
    MakeUp,
    OverTime,
    Span,
    Use,
    latency_figure,
    make_up_figure,
    over_time_figure,
    use_figure,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_distribution_says_its_percentiles_and_who_is_within_the_bound() -> None:
    values = [index / 100 for index in range(1, 101)]
    with latency_figure([Distribution(title="TTFT", values=values, bound=0.8)]) as figure:
        axes = figure.axes[0]
        assert [text.get_text() for text in axes.texts] == ["p50 505 ms", "p90 901 ms", "p99 990 ms"]
        assert axes.get_title("right") == "80.0 % within 800 ms"


@pytest.mark.parametrize("values", [[], [float("inf")], [0.5], [0.0, 0.0]])
def test_a_distribution_of_hardly_anything_is_drawn_too(values: list[float]) -> None:
    with latency_figure([Distribution(title="TPOT", values=values)]) as figure:
        assert ("no request got that far" in svg_of(figure)) == (values in ([], [float("inf")]))


def test_a_long_distribution_is_drawn_by_its_quantiles() -> None:
    with latency_figure([Distribution(title="TTFT", values=[float(i % 977) for i in range(50_000)])]) as figure:
        assert len(svg_of(figure)) < 150_000


def test_a_step_shows_its_parts_together_and_its_whole_time() -> None:
    parts = {"attention 0": 0.010, "attention 1": 0.020, "experts": 0.030, "dispatch": 0.015, "combine": 0.025}
    with make_up_figure([MakeUp(name="decode", seconds=0.07, parts=parts)]) as figure:
        text = svg_of(figure)
    for said in ("decode: 70.0 ms", "attention", "experts", "dispatch", "30.0", "25.0"):
        assert f"<!-- {said} -->" in text
    assert "<!-- shared expert -->" not in text


def test_a_span_is_named_once_and_left_out_where_it_lies_beyond() -> None:
    panels = [OverTime(title=name, times=[0.0, 10.0], lines={"a": [1.0, 1.0]}) for name in ("x", "y")]
    spans = [Span(name="spine0", begin=2.0, end=float("inf")), Span(name="late", begin=11.0, end=12.0)]
    with over_time_figure(panels, spans=spans) as figure:
        assert [text.get_text() for axes in figure.axes for text in axes.texts] == [" spine0"]
        assert figure.axes[0].get_xlim() == (0.0, 10.0)


def test_time_and_use_are_drawn() -> None:
    with over_time_figure([OverTime(title="Units", times=[0.0, 1.0], lines={"a": [0.0, 1.0], "b": [1.0, 0.5]})]) as f:
        assert "<!-- Units -->" in svg_of(f)
    with use_figure([Use(name="leaf0", share=0.5, group="up"), Use(name="leaf1", share=1.2, group="down")]) as f:
        text = svg_of(f)
    assert "<!-- 50.0 % -->" in text
    assert "<!-- 120.0 % -->" in text


def test_no_other_candidate_beats_one_of_the_front_in_both() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 4.0), (0.5, 4.5), (4.0, 1.0)]
    assert _front(points, more_is_better=True) == [(1.0, 5.0), (3.0, 4.0), (4.0, 1.0)]
    assert _front(points, more_is_better=False) == [(0.5, 4.5), (1.0, 5.0)]


def test_candidates_are_drawn_whether_or_not_any_meets_the_slo(tmp_path: Path) -> None:
    for meets in (True, False):
        candidate = Candidate(row=1, label="2 x EP32", throughput=900.0, tpot_s=0.04, ttft_s=1.0, meets=meets)
        plot_pareto([tmp_path / "front.svg"], [candidate], title="one")
        text = (tmp_path / "front.svg").read_text()
        assert ("<!-- meets the SLO -->" in text) == meets


def test_a_sweep_leaves_a_gap_where_there_is_no_value(tmp_path: Path) -> None:
    lines: dict[str, list[float | None]] = {"one": [1.0, None, float("inf")], "two": [1.0, 2.0, 3.0]}
    swept = Swept(title="TPOT", unit="ms", lines=lines)
    plot_sweep([tmp_path / "s.svg"], [swept], varied="decode.ranks", values=["8", "32", "128"], title="s")
    assert "<!-- TPOT (ms) -->" in (tmp_path / "s.svg").read_text()


def test_values_that_are_numbers_stand_at_their_distance() -> None:
    assert _numbers(["1", "2", "3"]) == [1.0, 2.0, 3.0]
    assert _numbers(["8", "16", "64", "128"]) == [3.0, 4.0, 6.0, 7.0]
    assert _numbers(["hpn", "dcn"]) == [0.0, 1.0]
    assert _numbers(["3", "1"]) == [0.0, 1.0]
