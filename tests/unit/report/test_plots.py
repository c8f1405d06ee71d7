"""Plots of load runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.plots import RequestTimes, plot_load

if TYPE_CHECKING:
    from pathlib import Path

RUN = [
    RequestTimes(due_s=i * 0.1, tokens=8, event_s=[i * 0.1 + 0.05 * j for j in range(1, 9)], end_s=i * 0.1 + 0.4)
    for i in range(9)
]


def test_a_run_is_drawn_with_its_percentiles(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    plot_load(path, RUN, title="9 requests")
    text = path.read_text()
    assert text.count("<path") > 20
    for said in ("9 requests", "Time to first token", "p50 50.0 ms", "p99 50.0 ms"):
        assert f"<!-- {said} -->" in text


def test_an_event_with_several_tokens_counts_as_several(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    merged = [RequestTimes(due_s=0.0, tokens=11, event_s=[0.1, 0.3, 0.6], end_s=0.6)]
    plot_load(path, merged, title="t")
    assert "<!-- p50 50.0 ms -->" in path.read_text()  # 0.5 s over ten tokens after the first


def test_a_run_in_which_nothing_was_answered_is_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot_load(path, [RequestTimes(due_s=0.0, tokens=0, event_s=[], end_s=1.0)], title="refused")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_single_token_is_enough_for_a_plot(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot_load(path, [RequestTimes(due_s=0.0, tokens=1, event_s=[0.5], end_s=0.5)], title="one")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("name", ["run.nonsense", "no/such/folder.png"])
def test_a_plot_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="the plot cannot be written"):
        plot_load(tmp_path / name, RUN, title="t")
