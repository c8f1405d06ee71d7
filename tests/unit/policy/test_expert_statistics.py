"""Loads are counted by window, phase and layer; what is told of them is what a plain computation tells."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError
from fourlane.policy.expert_statistics import LoadHistory, LoadStatistics, PhaseStatistics
from fourlane.policy.load_generator import DECODE, ModelShape, drift_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray


def steps_drawn(seed: int, steps: int, layers: int = 2, experts: int = 5) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 50, size=(steps, layers, experts))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
def test_windows_hold_their_steps_in_order_and_only_the_last_are_kept(
    seed: int, steps: int, window: int, keep: int
) -> None:
    statistics, load_TLE = LoadStatistics(2, 5, window=window, keep=keep), steps_drawn(seed, steps)
    for load_LE in load_TLE:
        statistics.add(load_LE)
    closed = steps // window
    whole_WLE = load_TLE[: closed * window].reshape(closed, window, 2, 5).sum(axis=1)
    assert statistics.steps == steps
    assert (statistics.total_LE == load_TLE.sum(axis=0)).all()
    assert statistics.windows_WLE.shape == (min(closed, keep), 2, 5)
    assert (statistics.windows_WLE == whole_WLE[max(0, closed - keep) :]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(1, 50))
def test_the_fading_average_weighs_a_step_half_after_its_half_life(seed: int, steps: int, half_life: float) -> None:
    statistics, load_TLE = LoadStatistics(2, 5, half_life=half_life), steps_drawn(seed, steps)
    for load_LE in load_TLE:
        statistics.add(load_LE)
    weight_T = 0.5 ** (np.arange(steps)[::-1] / half_life)
    wanted_LE = (weight_T[:, None, None] * load_TLE).sum(axis=0) / weight_T.sum()
    assert statistics.ewma_LE == pytest.approx(wanted_LE)


def test_correlation_and_drift_told_online_are_those_of_all_windows() -> None:
    rng = np.random.default_rng(0)
    shape = ModelShape(layers=4, experts=64, groups=4, tokens=100_000)
    window_WLE = drift_windows(DECODE.draw(rng, shape), 30, 0.95, rng)
    statistics = LoadStatistics(4, 64, window=1, keep=2)
    for load_LE in window_WLE:
        statistics.add(load_LE)
    each = [
        [np.corrcoef(before[layer], after[layer])[0, 1] for layer in range(4)]
        for before, after in itertools.pairwise(window_WLE)
    ]
    assert statistics.lag_one_L == pytest.approx(np.mean(each, axis=0))
    assert statistics.lag_one_L.mean() == pytest.approx(0.95, abs=0.02)
    moved = np.abs(np.diff(window_WLE, axis=0)).sum(axis=2) / (2 * window_WLE[0].sum(axis=1))
    assert statistics.drift_L == pytest.approx(moved.mean(axis=0))
    history = LoadHistory(window_WLE, phase="decode")
    assert history.lag_one_L == pytest.approx(statistics.lag_one_L)
    assert history.drift_L == pytest.approx(statistics.drift_L)


def test_nothing_is_told_of_change_before_the_second_window() -> None:
    statistics = LoadStatistics(2, 5, window=3)
    for load_LE in steps_drawn(0, 5):
        statistics.add(load_LE)
    assert np.isnan(statistics.lag_one_L).all()
    assert np.isnan(statistics.drift_L).all()


def test_a_layer_without_tokens_or_differences_has_no_correlation_and_spoils_no_other() -> None:
    statistics = LoadStatistics(3, 4, window=1)
    for row in ([1, 2, 3, 4], [1, 2, 3, 5], [2, 4, 6, 9]):
        statistics.add(np.array([[0, 0, 0, 0], [7, 7, 7, 7], row]))
    assert np.isnan(statistics.lag_one_L[:2]).all()
    assert statistics.lag_one_L[2] > 0.98
    assert np.isnan(statistics.drift_L[0])
    assert statistics.drift_L[1] == 0


def test_an_unchanged_load_does_not_drift_and_a_load_that_moves_wholly_drifts_by_one() -> None:
    statistics = LoadStatistics(2, 2, window=1)
    statistics.add(np.array([[3, 1], [5, 0]]))
    statistics.add(np.array([[30, 10], [0, 2]]))
    assert statistics.drift_L.tolist() == [0.0, 1.0]
    assert statistics.lag_one_L.tolist() == pytest.approx([1.0, -1.0])


def test_several_steps_at_once_count_as_several() -> None:
    apart, together = LoadStatistics(2, 5, window=4, half_life=7), LoadStatistics(2, 5, window=4, half_life=7)
    load_TLE = steps_drawn(1, 12)
    for start in range(0, 12, 4):
        together.add(load_TLE[start : start + 4].sum(axis=0), steps=4)
    for load_LE in load_TLE:
        apart.add(load_LE)
    assert together.steps == apart.steps
    assert (together.windows_WLE == apart.windows_WLE).all()
    assert together.ewma_LE == pytest.approx(apart.ewma_LE, rel=0.3)


def test_phases_are_kept_apart_and_a_phase_without_tokens_has_no_step() -> None:
    statistics, load_TLE = PhaseStatistics(2, 5, window=2), steps_drawn(2, 6) + 1
    for step, load_LE in enumerate(load_TLE):
        nothing = np.zeros_like(load_LE)
        statistics.add(np.stack([load_LE if step == 0 else nothing, load_LE]))
    assert statistics["prefill"].steps == 1
    assert statistics["decode"].steps == 6
    histories = statistics.to_history(source="a test")
    assert list(histories) == ["prefill", "decode"]
    assert (histories["prefill"].load_LE == load_TLE[0]).all()
    assert histories["prefill"].window_steps == 1
    assert (histories["decode"].load_LE == load_TLE.sum(axis=0)).all()
    assert histories["decode"].windows == 3
    assert histories["decode"].phase == "decode"
    assert histories["decode"].source == "a test"


def test_before_the_first_step_there_is_no_history() -> None:
    assert PhaseStatistics(2, 5).to_history() == {}
    assert LoadStatistics(2, 5).ewma_LE.tolist() == np.zeros((2, 5)).tolist()
    assert LoadStatistics(2, 5).windows_WLE.shape == (0, 2, 5)


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        (np.ones((2, 4), dtype=int), r"^load_LE: expected shape \[2, 5\], got \[2, 4\]"),
        (np.ones((2, 5)), "^load_LE: expected whole numbers of tokens, got float64"),
        (np.full((2, 5), -3), "^load_LE: expected 0 or more tokens, got -3"),
    ],
)
def test_a_step_that_cannot_be_counted_is_refused_and_changes_nothing(load: NDArray[Any], complaint: str) -> None:
    statistics = LoadStatistics(2, 5)
    with pytest.raises(BalanceInputError, match=complaint):
        statistics.add(load)
    assert statistics.steps == 0
    assert not statistics.total_LE.any()


@pytest.mark.parametrize("name", ["layers", "experts", "window", "half_life", "keep"])
def test_statistics_over_nothing_are_refused(name: str) -> None:
    sizes = {"layers": 2, "experts": 5, name: 0}
    with pytest.raises(BalanceInputError, match=f"^{name}: expected 1 or more, got 0"):
        LoadStatistics(**sizes)


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        (np.ones((2, 3)), r"^load_WLE: expected numbers of shape \[windows, layers, experts\].* shape \[2, 3\]"),
        (np.ones((0, 2, 3)), r"^load_WLE: expected numbers of shape"),
        (np.array([[["a"]]]), "^load_WLE: expected numbers"),
        (np.array([[[1.0, np.nan]], [[2.0, np.inf]]]), r"got nan in window 0, layer 0, expert 1 \(and 1 more\)"),
        (np.array([[[1, -2]]]), "expected loads of 0 or more, got -2 in window 0, layer 0, expert 1"),
    ],
)
def test_a_history_of_no_loads_is_refused(load: NDArray[Any], complaint: str) -> None:
    with pytest.raises(BalanceInputError, match=complaint):
        LoadHistory(load)


def test_a_history_of_an_unknown_phase_is_refused() -> None:
    with pytest.raises(BalanceInputError, match=r'^phase: expected "prefill", "decode" or "mixed", got "warmup"'):
        LoadHistory(np.ones((1, 1, 1)), phase="warmup")


def test_a_history_cannot_be_changed() -> None:
    given = np.ones((1, 2, 3), dtype=np.int32)
    history = LoadHistory(given)
    given[0, 0, 0] = 7
    assert history.load_WLE.dtype == np.int64
    assert history.load_LE[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        history.load_WLE[0, 0, 0] = 3
