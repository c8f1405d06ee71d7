"""Finding placements: how good, how far from the old one, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fourlane.errors import BalanceInputError
from fourlane.policy.eplb import rebalance_experts
from fourlane.policy.expert_cost import ExpertCost
from fourlane.policy.load_generator import DECODE, ModelShape, drift, single_hot
from fourlane.policy.placement import EMPTY, group_traffic, linear_placement, place_experts

SOME_LAYERS = ModelShape(layers=12)


@pytest.fixture(scope="module")
def skewed_load() -> np.ndarray:
    return DECODE.draw(np.random.default_rng(7), SOME_LAYERS)


@pytest.mark.parametrize(
    ("ranks", "redundant", "mean", "worst"),
    [(32, 32, 1.002, 1.005), (64, 64, 1.003, 1.01), (128, 128, 1.006, 1.02)],
)
def test_ranks_are_nearly_in_balance(
    skewed_load: np.ndarray, ranks: int, redundant: int, mean: float, worst: float
) -> None:
    placement = place_experts(skewed_load, ranks=ranks, slots=256 + redundant, split_aware=False)
    balance_L = placement.balance(skewed_load)
    assert balance_L.mean() <= mean
    assert balance_L.max() <= worst


def test_one_hot_expert_gets_a_replica_on_every_rank_where_that_is_best() -> None:
    load_LE = single_hot(np.random.default_rng(1), ModelShape(layers=1))
    placement = place_experts(load_LE, ranks=64, slots=320, split_aware=False)
    assert placement.copies_LE.max() == 64
    assert placement.balance(load_LE)[0] < 1.004


def test_a_few_moves_mend_a_placement_whose_load_has_drifted(skewed_load: np.ndarray) -> None:
    drifted = drift(skewed_load, 0.95, np.random.default_rng(2))
    old = place_experts(skewed_load, ranks=32, slots=288, split_aware=False)
    mended = place_experts(drifted, ranks=32, slots=288, previous=old, moves=32, split_aware=False)
    assert mended.moves_from(old).max() <= 32
    assert old.balance(drifted).mean() > 1.1
    assert mended.balance(drifted).mean() <= 1.02


def test_pairs_are_mended_with_a_third_of_the_moves_of_a_fresh_plan(skewed_load: np.ndarray) -> None:
    drifted = drift(skewed_load, 0.95, np.random.default_rng(2))
    old = place_experts(skewed_load, ranks=144, slots=288, split_aware=False)
    fresh = place_experts(drifted, ranks=144, slots=288, split_aware=False)
    third = int(fresh.moves_from(old).min()) // 3
    mended = place_experts(drifted, ranks=144, slots=288, previous=old, moves=third, split_aware=False)
    assert mended.moves_from(old).max() <= third
    assert mended.balance(drifted).sum() <= 1.02 * fresh.balance(drifted).sum()


def test_slots_may_differ_by_layer(skewed_load: np.ndarray) -> None:
    load_LE = skewed_load[:3]
    placement = place_experts(load_LE, ranks=32, slots=[256, 288, 320], split_aware=False)
    assert placement.slots == 320
    assert (placement.slot_of_LP != EMPTY).sum(axis=1).tolist() == [256, 288, 320]
    again = place_experts(load_LE, ranks=32, slots=[256, 288, 320], previous=placement, split_aware=False)
    assert again.slot_of_LP.tolist() == placement.slot_of_LP.tolist()


def test_activated_experts_are_spread_where_only_they_cost() -> None:
    # Each batch wakes two of the first four experts, one token each; tokens of the others are many and cost nothing.
    batches = np.zeros((6, 1, 8))
    for batch, (a, b) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        batches[batch, 0, [a, b]] = 1
    batches[0, 0, 4:] = 1000
    placement = place_experts(batches, ranks=4, slots=8, cost=ExpertCost(tokens=0.0, activated=1.0), split_aware=False)
    assert all((np.sort(placement.experts_of(rank, 0)) < 4).tolist() == [True, False] for rank in range(4))


def test_a_cost_of_ones_own_is_asked(skewed_load: np.ndarray) -> None:
    class Bytes:
        def replica_cost(self, load_WLE: np.ndarray, max_copies: int) -> np.ndarray:
            return np.ones((*load_WLE.shape[1:], max_copies))

    placement = place_experts(skewed_load[:1], ranks=32, slots=256, cost=Bytes(), split_aware=False)
    assert (placement.copies_LE == 1).all()

    class Rising:
        def replica_cost(self, load_WLE: np.ndarray, max_copies: int) -> np.ndarray:
            return np.broadcast_to(np.arange(max_copies, dtype=float), (*load_WLE.shape[1:], max_copies))

    with pytest.raises(BalanceInputError, match=r"^cost: expected a replica to cost no more"):
        place_experts(skewed_load[:1], ranks=32, slots=288, cost=Rising(), split_aware=False)


def test_groups_in_nodes_save_traffic_and_cost_balance(skewed_load: np.ndarray) -> None:
    grouped = place_experts(skewed_load, ranks=32, slots=288, nodes=4, groups=8, split_aware=False)
    anywhere = place_experts(skewed_load, ranks=32, slots=288, split_aware=False)
    assert grouped.balance(skewed_load).mean() > anywhere.balance(skewed_load).mean() + 0.05
    sent = [group_traffic(p, skewed_load, nodes=4, groups=8).mean() for p in (grouped, anywhere)]
    assert sent[0] < 0.92 * sent[1]


def test_a_token_of_one_group_goes_to_one_node() -> None:
    placement = linear_placement(layers=1, experts=8, ranks=4)
    figures = group_traffic(placement, np.ones((1, 8)), nodes=4, groups=4, top_k=2, top_groups=1)
    assert figures == pytest.approx([3 / 4])
    spread = group_traffic(placement, np.ones((1, 8)), nodes=4, groups=1, top_k=2, top_groups=1)
    assert spread == pytest.approx([4 * (1 - (3 / 4) ** 2) * 3 / 4])


def test_eplbs_tables_have_no_empty_slots_even_where_that_is_worse() -> None:
    phy2log, _, logcnt = rebalance_experts([[1, 1, 1, 1]], 6, 1, 1, 2)
    assert (phy2log >= 0).all()
    assert logcnt.sum() == 6
    assert place_experts([[1, 1, 1, 1]], ranks=2, slots=6, split_aware=False).balance([[1, 1, 1, 1]]) == [1]


def test_redundant_slots_are_used_though_balance_with_equal_shares_is_no_better_for_it() -> None:
    load = DECODE.draw(np.random.default_rng(6))
    later = drift(load, 0.95, np.random.default_rng(7))[:1]  # 256 experts in 256 slots are a shade better in balance
    anything = place_experts(later, ranks=32, slots=288, split_aware=False)
    assert (anything.slot_of_LP == EMPTY).sum() == 32
    for options in ({"split_aware": True}, {"split_aware": False, "every_slot": True}):
        full = place_experts(later, ranks=32, slots=288, **options)
        assert (full.slot_of_LP != EMPTY).all()
        assert full.replicated
        assert full.balance(later)[0] <= anything.balance(later)[0] + 0.0101


def test_eplbs_function_returns_its_three_tables(skewed_load: np.ndarray) -> None:
    for groups in (8, 3):  # three do not divide by nodes: anywhere
        phy2log, log2phy, logcnt = rebalance_experts(skewed_load[:2], 288, groups, 4, 32)
        assert phy2log.shape == (2, 288)
        assert log2phy.shape == (2, 256, logcnt.max())
        assert logcnt.sum(axis=1).tolist() == [288, 288]
        for layer, expert in [(0, 0), (1, 255)]:
            slots = log2phy[layer, expert, : logcnt[layer, expert]]
            assert (phy2log[layer, slots] == expert).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"load": [[1, 2], [3]]}, "load: expected numbers"),
        ({"load": [1, 2, 3, 4]}, "load: expected numbers [layers, experts]"),
        ({"load": [[1, np.nan, 1, 1]]}, "load: expected finite numbers of at least 0, got nan at layer 0, expert 1"),
        ({"load": [[1, 1, np.inf, 1]]}, "load: expected finite numbers of at least 0, got inf"),
        ({"load": [[1, 1, 1, -1]]}, "load: expected finite numbers of at least 0, got -1.0 at layer 0, expert 3"),
        ({"load": [["a", "b", "c", "d"]]}, "load: expected numbers"),
        ({"ranks": 0}, "ranks: expected at least 1, got 0"),
        ({"slots": 5}, "slots: expected a multiple of 2 ranks, got 5"),
        ({"slots": 2}, "slots: expected at least one for each of 4 experts, got 2"),
        ({"slots": 10}, "slots: expected at most 4 a rank"),
        ({"slots": [4, 4]}, "slots: expected a whole number, or one for each of 1 layers"),
        ({"slots": 4.5}, "slots: expected a whole number"),
        ({"nodes": 3}, "nodes: expected a divisor of 2 ranks, got 3"),
        ({"nodes": 2, "groups": 3}, "groups: expected a divisor of 4 experts and a multiple of 2 nodes, got 3"),
        ({"nodes": 2, "groups": 2, "spread_nodes": True}, "spread_nodes: expected False with groups"),
        ({"moves": 3}, "moves: expected a previous placement"),
        ({"moves": -1}, "moves: expected 0 or more"),
        ({"previous": linear_placement(layers=2, experts=4, ranks=2)}, "previous: expected 1 layers, 4 experts"),
        ({"previous": linear_placement(layers=1, experts=4, ranks=2, redundant=4)}, "previous: expected at most 3"),
        ({"split_aware": 1}, "split_aware: expected True, False or a Leaning"),
    ],
)
def test_what_no_placement_can_be_made_from_is_refused_by_name(change: dict[str, Any], complaint: str) -> None:
    given: dict[str, Any] = {"load": [[1, 2, 3, 4]], "ranks": 2, "slots": 6, **change}
    with pytest.raises(BalanceInputError) as refused:
        place_experts(given.pop("load"), **given)
    assert str(refused.value).startswith(complaint)


@pytest.mark.parametrize("weights", [{"tokens": -1.0}, {"activated": np.inf}, {"tokens": 0.0}])
def test_a_cost_that_measures_nothing_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(BalanceInputError, match=r"^cost: expected"):
        ExpertCost(**weights)
