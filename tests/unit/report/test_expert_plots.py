"""Pictures of experts: every one is drawn from plain arrays, in any shape they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.report.expert_plots import (
    AdvicePicture,
    BalanceCurve,
    NeedCurve,
    PhasePicture,
    PlacementPicture,
    SplitPicture,
    plot_advice,
    plot_choices,
    plot_loads,
    plot_placement,
    plot_split,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def load_LE() -> np.ndarray:  # noqa: N802 - a shape suffix
    return np.random.default_rng(3).lognormal(sigma=0.8, size=(5, 16)) * 1000


def texts(path: Path) -> str:
    """Return an svg's text; words are drawn as glyphs, and said in comments."""
    return path.read_text()


def test_loads_show_a_row_for_each_phase_and_its_time_below(tmp_path: Path, load_LE: np.ndarray) -> None:
    over_time = [BalanceCurve("linear", np.array([1.5, 1.6, 1.4]), np.array([2.0, 2.1, 1.9]))]
    phases = [PhasePicture("decode", load_LE, over_time), PhasePicture("prefill", load_LE[::-1], over_time)]
    plot_loads(tmp_path / "loads.svg", phases, title="loads")
    drawn = texts(tmp_path / "loads.svg")
    for title in ("decode: load of each expert", "prefill: load of each expert", "prefill over time"):
        assert title in drawn


def test_experts_without_a_token_and_layers_without_load_are_drawn(tmp_path: Path, load_LE: np.ndarray) -> None:
    load_LE[0] = 0
    load_LE[1, 3:] = 0
    plot_loads(tmp_path / "loads.png", [PhasePicture("decode", load_LE, [])], title="loads")
    assert (tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")


def test_a_placement_shows_copies_and_how_full_the_fullest_rank_is(tmp_path: Path) -> None:
    rank_load_LG = np.array([[1.0, 1.0, 1.0, 1.2], [0.9, 1.1, 1.0, 1.0]])
    rank_load_LG[0] *= 4 / 4.2
    copies_LE = np.array([[1, 2, 1, 1], [3, 1, 1, 14]])
    plot_placement(tmp_path / "placement.svg", PlacementPicture(copies_LE, rank_load_LG), title="placement")
    assert "fullest 1.143, mean layer 1.121" in texts(tmp_path / "placement.svg")
    plot_placement(tmp_path / "copies.svg", PlacementPicture(copies_LE, None), title="placement")
    assert "Load of each rank" not in texts(tmp_path / "copies.svg")


def test_advice_shows_targets_needs_and_what_each_means_saves(tmp_path: Path) -> None:
    redundant = np.array([0, 4, 8])
    curves = [
        BalanceCurve("bound", np.array([1.1, 1.0, 1.0])),
        BalanceCurve("placed", np.array([1.2, 1.1, 1.0]), np.array([1.5, 1.2, 1.1])),
    ]
    picture = AdvicePicture(
        redundant=redundant,
        extra_bytes=np.array([0, 1_500_000_000, 3_000_000_000]),
        curves=curves,
        needs=[NeedCurve(1.2, np.array([0, 2, 3]), np.array([0, 4, -1]))],
        means=[("linear", 2.0), ("placed", 1.5), ("placed and split", 1.0)],
        chosen=4,
    )
    plot_advice(tmp_path / "advice.svg", picture, title="advice")
    drawn = texts(tmp_path / "advice.svg")
    assert "Layers of 3 that hold a target" in drawn
    assert "1.500  (-25 %)" in drawn
    assert "1.000  (-50 %)" in drawn
    assert "+1.5 GB" in drawn
    plot_advice(tmp_path / "plain.svg", picture._replace(extra_bytes=None, needs=[]), title="advice")
    assert " GB" not in texts(tmp_path / "plain.svg")


def test_a_split_batch_shows_the_fullest_rank_before_and_after(tmp_path: Path) -> None:
    picture = SplitPicture("batch 0", np.array([10, 30, 20]), np.array([20, 20, 20]), 20.0)
    plot_split(tmp_path / "split.svg", [picture], title="split")
    drawn = texts(tmp_path / "split.svg")
    assert "max/mean 1.500" in drawn
    assert "split by batch: 1.000" in drawn


def test_placements_are_drawn_beside_the_first_of_them(tmp_path: Path) -> None:
    panels = [(f"batch: {way}", [2.0, 1.5, 1.0]) for way in ("random", "hash", "equally", "own", "all")]
    plot_choices(tmp_path / "bench.svg", panels, names=["linear", "placed", "best"], title="bench")
    drawn = texts(tmp_path / "bench.svg")
    assert drawn.count("1.500  (-25 %)") == 5
    assert "batch: all" in drawn


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, load_LE: np.ndarray) -> None:
    with pytest.raises(SpecError, match=r"absent/loads\.png: the plot cannot be written"):
        plot_loads(tmp_path / "absent" / "loads.png", [PhasePicture("decode", load_LE, [])], title="loads")
