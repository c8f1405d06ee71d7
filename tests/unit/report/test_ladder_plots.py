"""The picture of the ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.ladder_plots import Bar, Panel, plot_ladder

if TYPE_CHECKING:
    from pathlib import Path

BARS = [Bar(value=120, lowest=100, highest=130, ratio=1.0), Bar(value=20, lowest=18, highest=25, ratio=0.17)]
PANELS = [
    Panel(title="Time per output token", unit="ms", bars={"p50": BARS, "p99": BARS}),
    Panel(title="KV bandwidth", unit="", bars={"median": BARS}, limit=200.0),
]


def test_one_picture_is_written_in_every_format_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / "ladder.png", tmp_path / "ladder.html"]
    plot_ladder(paths, PANELS, steps=["1\none FIFO", "2\nspread"], title="ladder")
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    page = paths[1].read_text()
    assert "<title>ladder</title>" in page
    assert "<svg" in page
