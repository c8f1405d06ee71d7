"""Plots of all-to-alls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.exchange_plots import Line, plot_exchange

if TYPE_CHECKING:
    from pathlib import Path

LINES = [
    Line(name="memcpy", sizes=[4096, 65536], seconds=[1e-6, 4e-6], yardstick=True),
    Line(name="tcp", sizes=[4096, 65536], seconds=[2e-5, 4e-5], band=[(1e-5, 3e-5), (3e-5, 9e-5)]),
]


def test_each_number_of_ranks_has_a_panel_and_each_way_a_line(tmp_path: Path) -> None:
    panels = {f"{ranks} ranks": LINES for ranks in (2, 4, 8, 16)}
    plot_exchange(tmp_path / "found.svg", panels, title="All-to-all here")
    drawn = (tmp_path / "found.svg").read_text()
    for said in ("All-to-all here", *panels, "memcpy", "tcp", "4 KiB", "64 KiB"):
        assert f"<!-- {said} -->" in drawn


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        plot_exchange(tmp_path / "found.doc", {"2 ranks": LINES}, title="x")
