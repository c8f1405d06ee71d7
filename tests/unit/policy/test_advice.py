"""Advice: what redundancy must be had, what it brings, what is chosen, and how it is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError
from fourlane.policy.advice import Advice, Circumstances, advise, least_redundancy, usual_sweep
from fourlane.policy.advice_verdict import verdict
from fourlane.policy.load_generator import DECODE, ModelShape, drift_windows
from fourlane.policy.placement import linear_placement, place_experts
from fourlane.policy.token_split import split_tokens

SHAPE = ModelShape(layers=3, experts=24, groups=4, top_k=4, tokens=20_000)
RANKS = 8
GIVEN = Circumstances(top_k=4, batch_tokens=64, expert_bytes=1_000_000, rate=1e9)


@pytest.fixture(scope="module")
def load_WLE() -> np.ndarray:  # noqa: N802 - a shape suffix
    """Return three windows of a skewed load that drifts."""
    rng = np.random.default_rng(5)
    return drift_windows(DECODE.draw(rng, SHAPE), 3, 0.9, rng, top_k=4)


@pytest.fixture(scope="module")
def advice(load_WLE: np.ndarray) -> Advice:
    return advise(load_WLE, ranks=RANKS, circumstances=GIVEN)


# the bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "least"), [(1.0, 2), (1.2, 1), (1.7, 1), (2.0, 0)])
def test_experts_hotter_than_a_rank_may_get_need_more_ranks(target: float, least: int) -> None:
    # of four ranks each may get target / 4: the first expert needs half over that, the second three tenths
    assert least_redundancy(np.array([[50, 30, 20, 0]]), ranks=4, target=target).tolist() == [least]


@pytest.mark.parametrize("ranks", [3, 7, 12, 144, 320])
def test_even_loads_need_no_redundancy_however_shares_are_rounded(ranks: int) -> None:
    assert least_redundancy(np.full((2, ranks), 7), ranks=ranks, target=1.0).tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(
    load=st.lists(st.integers(1, 400), min_size=4, max_size=10),
    ranks=st.sampled_from([2, 4]),
    target=st.sampled_from([1.0, 1.05, 1.2, 1.5]),
)
def test_with_less_than_the_least_redundancy_no_split_holds_the_target(
    load: list[int], ranks: int, target: float
) -> None:
    load_LE = np.array([load])
    least = int(least_redundancy(load_LE, ranks=ranks, target=target)[0])
    for slots in range(-(-len(load) // ranks) * ranks, ranks * len(load) + 1, ranks):
        made = place_experts(load_LE, ranks=ranks, slots=slots)
        count_GE = np.zeros((ranks, len(load)), dtype=np.int64)
        count_GE[0] = load
        bound = split_tokens(count_GE, made, 0).lower_bound / (sum(load) / ranks)
        if made.copies_LE.sum() - len(load) < least:
            assert bound > target * (1 - 1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(2, 320))
def test_a_usual_sweep_begins_with_the_fewest_slots_and_fills_all_ranks_equally(experts: int, ranks: int) -> None:
    sweep = usual_sweep(experts, ranks)
    assert list(sweep) == sorted(set(sweep))
    assert 0 <= sweep[0] < ranks
    assert all((experts + redundant) % ranks == 0 for redundant in sweep)
    assert all((experts + redundant) // ranks <= experts for redundant in sweep)
    assert all(redundant <= experts for redundant in sweep[3:])


# what is found ----------------------------------------------------------------------------------------


def test_figures_are_those_of_placements_made_again(advice: Advice, load_WLE: np.ndarray) -> None:
    total_LE = load_WLE.sum(axis=0)
    assert advice.linear.balance_L == pytest.approx(
        linear_placement(layers=3, experts=24, ranks=RANKS).balance(total_LE)
    )
    for option in advice.options:
        placed = place_experts(total_LE, ranks=RANKS, slots=option.slots, split_aware=False)
        assert option.placed.balance_L == pytest.approx(placed.balance(total_LE))
        stale = [
            place_experts(load_WLE[window], ranks=RANKS, slots=option.slots, split_aware=False).balance(
                load_WLE[window + 1]
            )
            for window in (0, 1)
        ]
        assert option.stale is not None
        assert option.stale.balance_L == pytest.approx(np.mean(stale, axis=0))


def test_bounds_lie_below_and_more_redundancy_helps(advice: Advice) -> None:
    for option in advice.options:
        assert (option.bound.balance_L <= option.placed.balance_L + 1e-9).all()
        assert (option.split.balance_L <= option.equal.balance_L + 1e-9).all()
        assert option.gain == pytest.approx(1 - option.split.mean / advice.linear_batches.mean)
    assert advice.options[-1].split.mean < advice.options[0].split.mean
    for need in advice.needs:
        known = need.reached_L >= 0
        assert (need.reached_L[known] >= need.least_L[known]).all()


def test_the_first_redundancy_that_holds_a_target_is_the_one_that_is_needed(advice: Advice) -> None:
    for need in advice.needs:
        for layer, reached in enumerate(need.reached_L):
            holding = [
                each.redundant for each in advice.options if each.placed.balance_L[layer] <= need.target * (1 + 1e-9)
            ]
            assert reached == (holding[0] if holding else -1)


def test_memory_is_that_of_the_slots_beyond_linear_placement(load_WLE: np.ndarray) -> None:
    found = advise(load_WLE, ranks=7, circumstances=replace(GIVEN, redundant=(4, 11)))
    # 24 experts on 7 ranks take 4 slots a rank as they are
    assert [option.extra_bytes for option in found.options] == [0, 3 * 1_000_000]


def test_slots_are_taken_as_long_as_each_saves_what_it_must(load_WLE: np.ndarray, advice: Advice) -> None:
    free = advise(load_WLE, ranks=RANKS, circumstances=replace(GIVEN, slot_gain=0.0))
    dear = advise(load_WLE, ranks=RANKS, circumstances=replace(GIVEN, slot_gain=5.0))
    assert free.choice.split.mean == min(option.split.mean for option in free.options)
    assert dear.chosen == 0
    assert dear.choice.redundant < advice.choice.redundant <= free.choice.redundant


def test_memory_limits_the_choice_and_nothing_else(load_WLE: np.ndarray, advice: Advice) -> None:
    limited = advise(load_WLE, ranks=RANKS, circumstances=replace(GIVEN, memory=0))
    assert limited.choice.redundant == 0
    assert [option.split.mean for option in limited.options] == [option.split.mean for option in advice.options]


def test_following_costs_what_moves_cost(advice: Advice) -> None:
    following = advice.following
    assert following is not None
    assert following.repair_moves <= following.moves == RANKS
    assert following.repair_moves < following.replan_moves
    assert following.repair_bytes == pytest.approx(following.repair_moves * 3 * 1_000_000 / RANKS)
    assert following.repair_s == pytest.approx(following.repair_bytes / 1e9)


def test_slots_shared_out_by_layer_keep_to_the_same_memory(load_WLE: np.ndarray) -> None:
    uneven_WLE = load_WLE.copy()
    uneven_WLE[:, 0] = uneven_WLE[:, 0].sum() // load_WLE[:, 0].size  # a layer that needs no copies
    found = advise(uneven_WLE, ranks=RANKS, circumstances=replace(GIVEN, redundant=(8,)))
    budget = found.layer_budget
    assert budget is not None
    assert budget.slots_L.sum() <= 3 * 32
    assert budget.slots_L[0] == 24
    assert budget.uniform.mean == found.choice.placed.mean


def test_the_same_question_gets_the_same_answer(advice: Advice, load_WLE: np.ndarray) -> None:
    again = advise(load_WLE, ranks=RANKS, circumstances=GIVEN)
    assert [option.split.balance_L.tolist() for option in again.options] == [
        option.split.balance_L.tolist() for option in advice.options
    ]
    assert verdict(again) == verdict(advice)


def test_progress_only_grows_and_ends_before_the_end(load_WLE: np.ndarray) -> None:
    seen: list[tuple[int, int, str]] = []
    advise(load_WLE, ranks=RANKS, circumstances=GIVEN, progress=lambda *now: seen.append(now))
    shares = [done / total for done, total, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1


# what is said -----------------------------------------------------------------------------------------


def test_a_skewed_load_is_worth_balancing(advice: Advice) -> None:
    said = verdict(advice)
    assert advice.worthwhile
    assert said[0].startswith(f"Worth it, with R={advice.choice.redundant} (")
    assert f"saves {advice.choice.gain:.0%}" in said[0]
    assert any(sentence.startswith("Max/mean 1.05 takes at least R=") for sentence in said)
    assert any("of the load changes experts" in sentence for sentence in said)
    assert any(sentence.startswith("Following each window by repair costs") for sentence in said)


def test_an_even_load_is_not_worth_balancing() -> None:
    even = advise(np.full((1, 2, 16), 1000), ranks=4, circumstances=replace(GIVEN, lean_sd=0.0, batch_tokens=512))
    assert not even.worthwhile
    assert verdict(even)[0].startswith("Not worth it")
    assert verdict(even)[0].endswith("less than the 3.0% asked for.")


def test_one_window_says_nothing_of_change(load_WLE: np.ndarray) -> None:
    found = advise(load_WLE[0], ranks=RANKS, circumstances=replace(GIVEN, redundant=(0, 8)))
    assert found.following is None
    assert all(option.stale is None for option in found.options)
    assert "One window alone says nothing about how fast loads change; give several for that." in verdict(found)


def test_without_an_experts_size_no_bytes_are_told(load_WLE: np.ndarray) -> None:
    found = advise(load_WLE, ranks=RANKS, circumstances=replace(GIVEN, expert_bytes=None, redundant=(8,)))
    assert found.choice.extra_bytes is None
    assert not any("GB" in sentence for sentence in verdict(found))


# wrong arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "more", "complaint"),
    [
        (np.ones((2, 8)), {"ranks": 1}, "ranks: expected at least 2"),
        (np.ones(8), {}, "load_WLE: expected numbers of shape"),
        ([[1, 2], [3]], {}, "load: expected layers of equally many experts"),
        (np.array([[1.0, np.nan]]), {}, "load_WLE: expected loads of 0 or more, got nan"),
        (np.array([[1, -1]]), {}, "load_WLE: expected loads of 0 or more, got -1"),
        (np.array([[1, 1], [0, 0]]), {}, "load: expected tokens in every layer, got none in window 0, layer 1"),
        (np.ones((2, 8)), {"redundant": (3,)}, "redundant: expected as many as give every one of 4 ranks"),
        (np.ones((2, 8)), {"batch_tokens": 0}, "batch_tokens: expected at least 1"),
        (np.ones((2, 8)), {"lean_sd": float("nan")}, "lean_sd: expected a number of at least 0"),
        (np.ones((2, 8)), {"targets": (0.9,)}, "target: expected max/mean of at least 1, got 0.9"),
        (np.ones((2, 8)), {"top_k": 9}, "top_k: expected 1 to 8 experts, got 9"),
    ],
)
def test_a_wrong_argument_is_named(load: Any, more: dict[str, Any], complaint: str) -> None:
    ranks = more.pop("ranks", 4)
    with pytest.raises(BalanceInputError, match=complaint.replace("(", r"\(")):
        advise(load, ranks=ranks, circumstances=replace(GIVEN, **more))
