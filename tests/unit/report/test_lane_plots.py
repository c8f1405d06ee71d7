"""The picture of a lane plan: written whole, in every format, alike each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.lane_plots import ClassShare, SwitchShares, plot_lanes

if TYPE_CHECKING:
    from pathlib import Path

SWITCHES = [
    SwitchShares(
        name=name,
        classes=[
            ClassShare(name="expert", share=90, cap=None, longest={1: 5_000_000, 16: 400_000}),
            ClassShare(name="kv", share=10, cap=50, longest={1: 500_000, 16: 40_000}),
            ClassShare(name="control", share=None, cap=5, longest={1: 0, 16: 0}),
        ],
        buffer={"headroom": 10_000_000, "reserved": 0, "shared": 90_000_000},
    )
    for name in ("hpn-leaf", "hpn-spine")
]


def test_a_page_names_every_switch_and_class_and_is_alike_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    for path in (first, second):
        plot_lanes(path, SWITCHES, title="a <plan>")
    text = first.read_text()
    assert text == second.read_text()
    assert "<title>a &lt;plan&gt;</title>" in text
    assert "http-equiv" not in text
    assert "<script" not in text


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    plot_lanes(tmp_path / "plan.png", SWITCHES, title="plan")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_picture_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="plot cannot be written"):
        plot_lanes(tmp_path / "plan.doc", SWITCHES, title="plan")
