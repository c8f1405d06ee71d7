"""Pictures of two streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.report.overlap_plots import Case, plot_overlap, plot_streams
from fourlane.report.perfetto import Slice, Track

if TYPE_CHECKING:
    from pathlib import Path

RULE = {"by_rule": 1.2, "dual_share": 0.9, "predicted": None}
CASES = [
    Case(link="500Mbps", tokens=64, gloo_s=0.09, single_s=0.06, dual_s=0.04, alone_s=0.03, **RULE),
    Case(link="500Mbps", tokens=256, gloo_s=0.3, single_s=0.2, dual_s=0.16, alone_s=0.06, **RULE),
    Case(link="1Gbps", tokens=64, gloo_s=0.08, single_s=0.05, dual_s=0.04, alone_s=0.04, **RULE),
]


def test_a_case_tells_its_gain_and_what_hiding_everything_would_gain() -> None:
    assert CASES[1].communication == pytest.approx(0.7)
    assert CASES[0].gain == pytest.approx(1.5)
    assert CASES[0].most == pytest.approx(2.0)
    assert CASES[1].most == pytest.approx(1 / 0.7)
    assert CASES[2].most == pytest.approx(1.25)


def test_gains_of_all_links_are_drawn_beside_the_times_of_the_first(tmp_path: Path) -> None:
    plot_overlap(tmp_path / "found.svg", CASES, title="One stream and two")
    drawn = (tmp_path / "found.svg").read_text()
    for said in ("A pass, 500Mbps", "gloo, one stream", "two streams", "1Gbps", "64", "256"):
        assert f"<!-- {said} -->" in drawn


def test_streams_are_drawn_as_rows_of_bars(tmp_path: Path) -> None:
    slices = [Slice(name="experts", category="compute", begin_s=0.0, end_s=0.002)]
    tracks = [Track(process="two streams, rank 0", name=f"stream {row}", slices=slices) for row in (0, 1)]
    plot_streams(tmp_path / "streams.svg", tracks, title="A pass", until_s=0.004)
    drawn = (tmp_path / "streams.svg").read_text()
    for said in ("two streams, rank 0: stream 0", "two streams, rank 0: stream 1", "computes", "travels"):
        assert f"<!-- {said} -->" in drawn
