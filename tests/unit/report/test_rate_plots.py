"""Plots of rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.rate_plots import plot_rates

if TYPE_CHECKING:
    from pathlib import Path

RATES = {
    "memcpy": [(1 << 16, 2e10), (1 << 20, 3e10)],
    "line": [(1 << 16, 1e9), (1 << 20, 3e9)],
    "tcp": [(1 << 16, 1e8), (1 << 20, 2e9)],
}


def test_rates_are_drawn_by_size_a_line_a_way(tmp_path: Path) -> None:
    path = tmp_path / "rates.svg"
    plot_rates(path, RATES, title="KV")
    text = path.read_text()
    for said in ("KV", "Rate by size", "memcpy", "line", "tcp", "64.0 KiB", "1.00 MiB"):
        assert f"<!-- {said} -->" in text


def test_rates_cannot_be_written_as_no_picture(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        plot_rates(tmp_path / "rates.words", RATES, title="KV")
