"""The picture of kernels under the roof of the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.roofline_plot import Point, plot_roofline

if TYPE_CHECKING:
    from pathlib import Path


def test_each_kernel_is_named_with_its_share_of_the_memorys_rate(tmp_path: Path) -> None:
    points = [
        Point(name="quantise", operations=3e9, moved=3e9, seconds=2e-3),
        Point(name="fold", operations=2e9, moved=2e9, seconds=1e-3),
    ]
    plot_roofline(tmp_path / "roofline.svg", points, memory=2e12, title="Kernels")
    text = (tmp_path / "roofline.svg").read_text()
    for said in (
        "Kernels",
        "memory, 2000 GB/s",
        "quantise: 75% of the memory's rate",
        "fold: 100% of the memory's rate",
    ):
        assert f"<!-- {said} -->" in text
