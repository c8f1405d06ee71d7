"""Drawn loads have the statistics that were published for recorded ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import eplb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError
from fourlane.policy.load_generator import (
    DEEPSEEK_V3,
    PRESETS,
    ModelShape,
    draw_phases,
    drift,
    drift_windows,
    leaning_batch,
    leaning_counts,
    lognormal,
    single_hot,
    zipf,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS = range(4)


def correlation(one_LE: NDArray[Any], other_LE: NDArray[Any]) -> float:
    """Return the correlation of loads in the mean layer."""
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(one_LE, other_LE, strict=True)]))


def skew(load_LE: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Return the coefficient of variation in the mean layer, and the hottest expert over the mean in each."""
    relative_LE = load_LE / load_LE.mean(axis=1, keepdims=True)
    return float(relative_LE.std(axis=1).mean()), relative_LE.max(axis=1)


@pytest.mark.parametrize("phase", PRESETS)
def test_presets_are_as_skewed_as_recorded_loads(phase: str) -> None:
    drawn = [skew(PRESETS[phase].draw(np.random.default_rng(seed))) for seed in SEEDS]
    assert all(0.73 <= variation <= 1.07 for variation, _ in drawn)
    assert 5.6 <= np.mean([hottest_L.mean() for _, hottest_L in drawn]) <= 8.1
    assert all(10 <= hottest_L.max() <= 14 for _, hottest_L in drawn)


def test_the_body_is_lognormal_and_the_tail_heavier() -> None:
    log_LE = np.log(np.concatenate([PRESETS["decode"].draw(np.random.default_rng(seed)) for seed in SEEDS]))
    quartile = 0.6745  # of a normal
    low_L, middle_L, high_L = np.quantile(log_LE, [0.25, 0.5, 0.75], axis=1)
    assert 0.6 <= ((high_L - low_L) / (2 * quartile)).mean() <= 0.8
    below_L, above_L = (middle_L - np.quantile(log_LE, 0.02, axis=1)), np.quantile(log_LE, 0.98, axis=1) - middle_L
    assert (above_L / below_L).mean() > 1.05


def test_redundancy_that_decode_needs_is_what_recorded_loads_need() -> None:
    # R >= sum over experts of ceil(share * G / 1.2) - 1, mean layer: 2 at EP64, 17 at EP128, 23 at EP144, 87 at EP256.
    load_LE = np.concatenate([PRESETS["decode"].draw(np.random.default_rng(seed)) for seed in SEEDS])
    share_LE = load_LE / load_LE.sum(axis=1, keepdims=True)
    needed = {ranks: (np.ceil(share_LE * ranks / 1.2) - 1).sum(axis=1).mean() for ranks in (64, 128, 144, 256)}
    assert needed == pytest.approx({64: 2, 128: 17, 144: 23, 256: 87}, rel=0.15)


def test_eplb_does_on_drawn_loads_as_it_does_on_recorded_ones() -> None:
    prefill_LE, decode_LE = draw_phases(np.random.default_rng(0))

    def planned(from_LE: NDArray[Any], ranks: int, redundant: int, **hierarchy: int) -> float:
        slot_of_LP = eplb.eplb_slots(from_LE, slots=256 + redundant, ranks=ranks, **hierarchy)
        return float(eplb.balance(slot_of_LP, decode_LE, ranks).mean())

    assert planned(decode_LE, 32, 32) == pytest.approx(1.008, abs=0.003)
    assert planned(decode_LE, 64, 64) == pytest.approx(1.019, abs=0.005)
    assert planned(decode_LE, 128, 128) == pytest.approx(1.052, abs=0.02)
    assert planned(decode_LE, 144, 32) == pytest.approx(1.166, abs=0.05)
    assert planned(prefill_LE, 32, 32) == pytest.approx(1.38, abs=0.06)
    assert planned(prefill_LE, 144, 32) == pytest.approx(2.4, abs=0.2)
    assert 1.15 < planned(decode_LE, 32, 32, nodes=4, groups=8) < 1.35
    assert 1.75 < planned(decode_LE, 64, 64, nodes=8, groups=8) < 2.15


def test_phases_prefer_different_experts() -> None:
    drawn = [correlation(*draw_phases(np.random.default_rng(seed))) for seed in SEEDS]
    assert all(0.70 <= found <= 0.90 for found in drawn)
    assert correlation(*draw_phases(np.random.default_rng(0), correlation=0.97)) == pytest.approx(0.97, abs=0.01)


@pytest.mark.parametrize("rho", [0.99, 0.95])
def test_drifting_windows_correlate_as_asked_and_stay_as_skewed(rho: float) -> None:
    rng = np.random.default_rng(5)
    window_WLE = drift_windows(PRESETS["decode"].draw(rng), 12, rho, rng)
    successive = [correlation(before, after) for before, after in itertools.pairwise(window_WLE)]
    assert np.mean(successive) == pytest.approx(rho, abs=0.006)
    assert skew(window_WLE[-1])[0] == pytest.approx(skew(window_WLE[0])[0], rel=0.15)
    assert (window_WLE.sum(axis=2) == window_WLE[0].sum(axis=1)).all()


def test_an_even_load_stays_even_when_it_drifts() -> None:
    load_LE = np.full((2, 16), 100)
    assert (drift(load_LE, 0.9, np.random.default_rng(0)) == load_LE).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["decode", "prefill", "zipf", "lognormal", "single hot"]),
    st.integers(8, 96),
    st.integers(1, 8),
)
def test_every_load_is_whole_sums_to_its_pairs_and_could_come_from_distinct_choices(
    seed: int, kind: str, experts: int, top_k: int
) -> None:
    rng, shape = np.random.default_rng(seed), ModelShape(layers=3, experts=experts, groups=4, top_k=top_k, tokens=5000)
    draws = {
        "decode": lambda: PRESETS["decode"].draw(rng, shape),
        "prefill": lambda: PRESETS["prefill"].draw(rng, shape),
        "zipf": lambda: zipf(1.3, rng, shape),
        "lognormal": lambda: lognormal(1.25, rng, shape),
        "single hot": lambda: single_hot(rng, shape),
    }
    load_LE = draws[kind]()
    assert load_LE.shape == (3, experts)
    assert load_LE.dtype == np.int64
    assert (load_LE.sum(axis=1) == 5000 * top_k).all()
    assert load_LE.min() >= 0
    assert load_LE.max() <= 5000 + 1  # one pair a token, rounded


def test_zipf_falls_with_its_exponent() -> None:
    load_E = np.sort(zipf(0.6, np.random.default_rng(0))[0])[::-1]
    assert load_E[9] / load_E[0] == pytest.approx(10**-0.6, rel=1e-3)
    assert load_E[99] / load_E[0] == pytest.approx(100**-0.6, rel=1e-3)


def test_lognormal_has_its_sigma() -> None:
    assert np.log(lognormal(1.25, np.random.default_rng(0))).std() == pytest.approx(1.25, rel=0.03)


def test_a_single_hot_expert_is_chosen_by_every_token_and_the_rest_is_even() -> None:
    load_LE = single_hot(np.random.default_rng(0))
    assert (load_LE.max(axis=1) == DEEPSEEK_V3.tokens).all()
    rest_LE = np.sort(load_LE, axis=1)[:, :-1]
    assert (rest_LE.max(axis=1) - rest_LE.min(axis=1) <= 1).all()


def test_tokens_of_a_batch_choose_distinct_experts_in_proportion_to_their_load() -> None:
    load_E = PRESETS["decode"].draw(np.random.default_rng(1))[0]
    count_GE = leaning_batch(load_E, np.random.default_rng(2), ranks=64, tokens=1024)
    assert (count_GE.sum(axis=1) == 1024 * 8).all()
    assert count_GE.max() <= 1024
    wanted_E = load_E / load_E.sum() * count_GE.sum()
    assert count_GE.sum(axis=0) == pytest.approx(wanted_E, rel=0.02, abs=6 * np.sqrt(wanted_E.mean()))
    hottest = int(load_E.argmax())
    assert count_GE[:, hottest].sum() == pytest.approx(wanted_E[hottest], rel=0.02)


def test_an_expert_of_every_token_is_in_every_token() -> None:
    load_E = single_hot(np.random.default_rng(0))[0]
    count_GE = leaning_batch(load_E, np.random.default_rng(0), ranks=4, tokens=128)
    assert (count_GE[:, load_E.argmax()] == 128).all()


@pytest.mark.parametrize("lean_sd", [0.1, 0.2, 0.3])
def test_a_batch_leans_as_much_as_asked(lean_sd: float) -> None:
    load_E = np.full(256, 1000)
    count_GE = leaning_batch(load_E, np.random.default_rng(3), ranks=32, tokens=4096, lean_sd=lean_sd)
    assert np.log(count_GE.sum(axis=0)).std() == pytest.approx(lean_sd, rel=0.15)


def test_equal_splitting_of_leaning_batches_is_as_bad_as_published() -> None:
    # 1.06 where batches do not lean, 1.26 at a lean of 0.3 (EP32+32, 128 tokens a rank).
    load_LE = PRESETS["decode"].draw(np.random.default_rng(0))[:12]
    slot_of_LP = eplb.eplb_slots(load_LE, slots=288, ranks=32)
    for lean_sd, published in ((0.0, 1.06), (0.3, 1.26)):
        rng = np.random.default_rng(4)
        batch_LE = np.stack(
            [leaning_batch(load_E, rng, ranks=32, tokens=128, lean_sd=lean_sd).sum(0) for load_E in load_LE]
        )
        load_LG = eplb.rank_load(slot_of_LP, batch_LE, 32)
        assert load_LG.max(axis=1).sum() / load_LG.mean(axis=1).sum() == pytest.approx(published, abs=0.04)


def test_the_same_seed_draws_the_same() -> None:
    one, other = (draw_phases(np.random.default_rng(7)) for _ in range(2))
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()
    batches = [leaning_batch(one[1][0], np.random.default_rng(8), ranks=4, tokens=64, lean_sd=0.2) for _ in range(2)]
    assert (batches[0] == batches[1]).all()


@pytest.mark.parametrize(
    ("draw", "complaint"),
    [
        (lambda _: ModelShape(layers=0), "^layers: expected 1 or more, got 0"),
        (lambda _: ModelShape(experts=4, groups=2), "^top_k: expected 1 to 4, got 8"),
        (lambda rng: draw_phases(rng, correlation=1.5), "^correlation: expected 0 to 1, got 1.5"),
        (lambda rng: zipf(float("nan"), rng), "^exponent: expected 0 or more, got nan"),
        (lambda rng: lognormal(-1, rng), "^sigma: expected 0 to 20, got -1"),
        (lambda rng: drift(np.ones((1, 4)), 1.01, rng), "^rho: expected 0 to 1, got 1.01"),
        (
            lambda rng: drift(np.ones(4), 0.9, rng),
            r"^load_LE: expected numbers \[layers, experts\], got float64 .* \[4\]",
        ),
        (lambda rng: drift(np.array([[1, np.nan]]), 0.9, rng), "^load_LE: expected finite numbers of 0 or more"),
        (lambda rng: drift(np.array([[1, 2], [0, 0]]), 0.9, rng), "some above 0 in each layer"),
        (lambda rng: leaning_batch(np.ones(4), rng, ranks=2, tokens=8), "^top_k: expected 1 to 4, got 8"),
        (lambda rng: leaning_batch(np.ones(9), rng, ranks=0, tokens=8), "^ranks: expected 1 or more, got 0"),
        (
            lambda rng: leaning_batch(np.ones(9), rng, ranks=1, tokens=8, lean_sd=-1),
            "^lean_sd: expected 0 to 20, got -1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_argument(draw: Any, complaint: str) -> None:
    with pytest.raises(BalanceInputError, match=complaint):
        draw(np.random.default_rng(0))


def test_counts_of_many_tokens_are_as_those_of_tokens_drawn_one_by_one() -> None:
    load_E = PRESETS["decode"].draw(np.random.default_rng(1), ModelShape(layers=1, experts=32, groups=4, top_k=4))[0]
    drawn = {}
    for draw in (leaning_batch, leaning_counts):
        rng = np.random.default_rng(2)
        drawn[draw] = np.stack([draw(load_E, rng, ranks=8, tokens=64, top_k=4) for _ in range(100)]).reshape(-1, 32)
        assert (drawn[draw].sum(axis=1) == 64 * 4).all()
    one_by_one, together = drawn[leaning_batch], drawn[leaning_counts]
    assert together.mean(axis=0) == pytest.approx(one_by_one.mean(axis=0), abs=0.6)
    assert together.std(axis=0) == pytest.approx(one_by_one.std(axis=0), rel=0.15, abs=0.2)
