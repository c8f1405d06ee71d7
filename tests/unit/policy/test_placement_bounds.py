"""What no placement goes below, and what slots are worth to a layer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError
from fourlane.policy.load_generator import DECODE
from fourlane.policy.placement import lower_bound, place_experts, redundancy_per_layer


def counts(experts: int, slots: int, ranks: int) -> list[tuple[int, ...]]:
    return [c for c in product(range(1, ranks + 1), repeat=experts) if sum(c) <= slots]


def best_packing(values: list[float], ranks: int, width: int) -> float:
    """Return the least greatest sum of at most `width` values a rank, by trying everything."""
    best = [np.inf]
    sums, held = [0.0] * ranks, [0] * ranks

    def place(item: int) -> None:
        if max(sums) >= best[0]:
            return
        if item == len(values):
            best[0] = max(sums)
            return
        tried = set()
        for rank in range(ranks):
            if held[rank] == width or (sums[rank], held[rank]) in tried:
                continue
            tried.add((sums[rank], held[rank]))
            sums[rank] += values[item]
            held[rank] += 1
            place(item + 1)
            sums[rank] -= values[item]
            held[rank] -= 1

    place(0)
    return best[0]


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=5),
    st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 2), (3, 3)]),
)
def test_no_packing_of_any_counts_goes_below_the_bound(load: list[int], shape: tuple[int, int]) -> None:
    ranks, width = shape
    if sum(load) == 0 or not width <= len(load) <= ranks * width:
        return
    best = np.inf
    for chosen in counts(len(load), ranks * width, ranks):
        values = [share for weight, copies in zip(load, chosen, strict=True) for share in [weight / copies] * copies]
        best = min(best, best_packing(sorted(values, reverse=True), ranks, width))
    bound = lower_bound([load], ranks=ranks, slots=ranks * width)[0]
    assert bound <= best / (sum(load) / ranks) * (1 + 1e-9)


def test_two_slots_a_rank_are_placed_within_a_percent_of_the_bound() -> None:
    load_LE = DECODE.draw(np.random.default_rng(3))
    placement = place_experts(load_LE, ranks=144, slots=288, split_aware=False)
    bound_L = lower_bound(load_LE, ranks=144, slots=288)
    assert (placement.balance(load_LE) >= bound_L * (1 - 1e-9)).all()
    assert np.median(placement.balance(load_LE) / bound_L) < 1.01


def test_the_bound_is_at_least_the_mean_and_one_where_there_is_no_load() -> None:
    assert lower_bound([[0, 0, 0], [1, 1, 2]], ranks=2, slots=4).tolist() == [1, 1]


def test_slots_go_to_layers_that_need_them() -> None:
    even, skewed = [1] * 8, [40, 1, 1, 1, 1, 1, 1, 1]
    slots_L = redundancy_per_layer([even, skewed, even], ranks=4, extra_slots=12)
    assert slots_L[0] == slots_L[2] == 8
    assert 8 < slots_L[1] <= 20
    placement = place_experts([even, skewed, even], ranks=4, slots=slots_L, split_aware=False)
    assert placement.balance([even, skewed, even]).max() < 1.05


def test_a_budget_that_cannot_fill_up_ranks_is_refused() -> None:
    with pytest.raises(BalanceInputError, match=r"^extra_slots: expected at least 4 .*, got 3"):
        redundancy_per_layer(np.ones((2, 10)), ranks=4, extra_slots=3)


def test_a_placement_knows_the_bound_of_as_many_slots() -> None:
    load_LE = DECODE.draw(np.random.default_rng(3))[:2]
    placement = place_experts(load_LE, ranks=32, slots=288, split_aware=False)
    assert placement.lower_bound(load_LE).tolist() == lower_bound(load_LE, ranks=32, slots=288).tolist()
    assert (placement.lower_bound(load_LE) <= placement.balance(load_LE)).all()
