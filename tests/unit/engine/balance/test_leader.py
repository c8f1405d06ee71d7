"""When a group's leader decides, what it wants, and when it stops trying."""

from __future__ import annotations

import numpy as np
import pytest

from fourlane.engine.balance.leader import MOST_FAILURES, Leader
from fourlane.engine.rank_config import RankBalance
from fourlane.policy.expert_cost import ExpertCost
from fourlane.policy.migration import expect_equal_shares
from fourlane.policy.placement import Placement, linear_placement

EXPERTS, LAYERS = 8, 2
LINEAR = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=2)
SKEWED = np.array([[40, 30, 20, 10, 5, 5, 5, 5], [10, 10, 10, 10, 10, 10, 10, 10]])
"""Layer 0 has 100 of 120 tokens on rank 0, layer 1 is even."""


def leader(**settings: object) -> Leader:
    chosen = {"interval_steps": 20, "window_steps": 10, "min_gain": 0.05} | settings
    return Leader(RankBalance(**chosen), layers=LAYERS, experts=EXPERTS)  # type: ignore[arg-type]


def count(each: Leader, load_LE: np.ndarray, windows: int, placement: Placement = LINEAR) -> None:
    for _ in range(windows):
        each.add_window(load_LE, load_LE, 10, placement)


def migrate(each: Leader, placement: Placement, *, committed: bool = True) -> Placement:
    """Let the leader's next migration end, and return the placement after it."""
    found = each.next_layer(placement)
    assert found is not None
    number, layer, slots = found
    each.ended(number, committed=committed)
    return placement.with_layer(layer, slots) if committed else placement


def test_it_decides_once_enough_steps_were_counted_and_moves_only_what_gains() -> None:
    each = leader()
    count(each, SKEWED, 1)
    assert each.next_layer(LINEAR) is None
    count(each, SKEWED, 1)
    found = each.next_layer(LINEAR)
    assert found is not None
    number, layer, slots = found
    assert (number, layer) == (1, 0)
    assert LINEAR.with_layer(0, slots).balance(SKEWED)[0] < 1.1
    assert each.next_layer(LINEAR) is None, "one at a time"
    each.ended(1, committed=True)
    assert each.next_layer(LINEAR) is None, "layer 1 gains nothing"


def test_it_rests_between_layers_and_decides_the_same() -> None:
    restful, other = leader(), leader()
    rests: list[bool] = []
    restful.rest = lambda: rests.append(True)
    for each in (restful, other):
        count(each, SKEWED, 2)
    assert restful.next_layer(LINEAR) == other.next_layer(LINEAR)
    assert len(rests) >= LAYERS


def test_a_load_that_is_even_moves_nothing() -> None:
    each = leader()
    count(each, np.full((LAYERS, EXPERTS), 7), 5)
    assert each.next_layer(LINEAR) is None


def test_the_most_promising_layer_moves_first() -> None:
    each = leader()
    slightly = np.array([[12, 12, 12, 12, 10, 10, 10, 10], SKEWED[0]])
    count(each, slightly, 2)
    found = each.next_layer(LINEAR)
    assert found is not None
    assert found[1] == 1


def test_what_was_forecast_is_held_against_what_then_came() -> None:
    each = leader()
    count(each, SKEWED, 2)
    assert (each.forecast, each.realised) == (None, None)
    after = migrate(each, LINEAR)
    assert each.forecast == pytest.approx(after.rank_load(SKEWED).max(axis=1).sum() / SKEWED.sum() * 2)
    assert each.realised is None
    count(each, SKEWED[:, ::-1], 1, after)
    there = after.rank_load(SKEWED[:, ::-1])
    assert each.realised == pytest.approx(there.max(axis=1).sum() / there.mean(axis=1).sum())


def test_after_a_failure_the_rest_waits_for_the_next_decision_and_after_some_in_a_row_for_ever() -> None:
    each = leader()
    for failure in range(MOST_FAILURES):
        count(each, SKEWED, 2)
        assert each.next_layer(LINEAR) is not None, f"after {failure} failures"
        each.ended(failure + 1, committed=False)
        assert each.next_layer(LINEAR) is None
    count(each, SKEWED, 9)
    assert each.next_layer(LINEAR) is None
    assert each.forecast is None, "nothing was completed"


def test_a_success_between_makes_failures_count_anew() -> None:
    each = leader()
    for committed in (False, False, True, False, False):
        count(each, SKEWED, 2)
        migrate(each, LINEAR, committed=committed)
    count(each, SKEWED, 2)
    assert each.next_layer(LINEAR) is not None


def test_the_end_of_another_migration_than_the_one_under_way_is_no_news() -> None:
    each = leader()
    count(each, SKEWED, 2)
    assert each.next_layer(LINEAR) is not None
    each.ended(7, committed=True)
    assert each.next_layer(LINEAR) is None, "number 1 is still under way"


def test_what_splitting_levels_anyway_is_not_moved() -> None:
    replicated = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=2, redundant=8)
    skewed = np.array([[40, 3, 20, 10, 5, 5, 5, 5]] * LAYERS)
    each = leader(min_gain=0.0)
    count(each, skewed, 2, replicated)
    assert each.next_layer(replicated) is None, "every rank has every expert: any batch can be split evenly"


def test_no_more_experts_are_received_in_a_layer_than_allowed() -> None:
    each = leader(moves=2)
    count(each, SKEWED, 2)
    found = each.next_layer(LINEAR)
    assert found is not None
    after = LINEAR.with_layer(found[1], found[2])
    assert 0 < after.moves_from(LINEAR)[0] <= 2
    assert after.balance(SKEWED)[0] < LINEAR.balance(SKEWED)[0]


def test_where_activated_experts_cost_ranks_are_given_equally_many() -> None:
    load_LE = np.array([[60, 30, 30, 1, 1, 1, 1, 1]] * LAYERS)
    each = leader(cost_tokens=0.0, cost_activated=1.0, min_gain=0.0)
    lopsided = Placement(np.array([[0, 1, 2, -1, -1, 3, 4, 5, 6, 7]] * LAYERS), experts=EXPERTS, ranks=2)
    count(each, load_LE, 2, lopsided)
    found = each.next_layer(lopsided)
    assert found is not None
    cost_LEC = ExpertCost(tokens=0.0, activated=1.0).replica_cost(load_LE[None], 2)
    before, after = (
        expect_equal_shares(each, cost_LEC).fullest_L for each in (lopsided, lopsided.with_layer(found[1], found[2]))
    )
    assert before[found[1]] == 5
    assert after[found[1]] <= 4, "each rank reads as many experts"
