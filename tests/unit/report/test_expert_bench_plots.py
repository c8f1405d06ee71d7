"""Pictures of the experts' benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.expert_bench_plots import Compared, plot_placements, plot_repairs, plot_splits

if TYPE_CHECKING:
    from pathlib import Path

COMPARED = [
    Compared(load="decode", balance={"EPLB": (1.02, 1.04), "ours": (1.0, 1.001), "lower bound": (1.0, 1.0)}),
    Compared(load="zipf 0.6", balance={"EPLB": (1.1, 1.2), "ours": (1.0, 1.002), "lower bound": (1.0, 1.0)}),
]


def said_in(path: Path, *texts: str) -> None:
    drawn = path.read_text()
    for text in texts:
        assert f"<!-- {text} -->" in drawn


def test_placements_are_drawn_by_size_and_load(tmp_path: Path) -> None:
    path = tmp_path / "placements.svg"
    plot_placements(path, {"EP32+32": COMPARED, "EP64+64": COMPARED, "EP144+32": COMPARED}, title="three sizes")
    said_in(path, "three sizes", "EP32+32", "EP144+32", "decode", "zipf 0.6", "EPLB", "ours", "lower bound")


def test_splits_are_drawn_by_lean(tmp_path: Path) -> None:
    path = tmp_path / "splits.svg"
    ways = {
        "equal": [(0.0, 1.06), (0.3, 1.26)],
        "split": [(0.0, 1.01), (0.3, 1.06)],
        "bound": [(0.0, 1.0), (0.3, 1.05)],
    }
    plot_splits(path, {"EP32+32": ways}, title="one size")
    said_in(path, "one size", "EP32+32", "equal", "split", "bound")


def test_repairs_are_drawn_by_moves(tmp_path: Path) -> None:
    path = tmp_path / "repairs.svg"
    plot_repairs(path, {"EP32+32/0.95": {"EPLB, anew": (277.0, 1.007), "repaired": (32.0, 1.01)}}, title="moves")
    said_in(path, "EP32+32/0.95", "EPLB, anew", "repaired")


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        plot_placements(tmp_path / "absent" / "p.png", {"EP32+32": COMPARED}, title="t")
