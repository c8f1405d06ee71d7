"""How experts get from one placement to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.migration import (
    Copy,
    Expectation,
    Transfer,
    expect_equal_shares,
    expect_split,
    gains,
    layer_moves,
    worthwhile_layers,
)
from fourlane.policy.placement import Placement, linear_placement


def row(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.int32)


def test_a_layer_that_stays_as_it_is_moves_nothing_and_keeps_everything() -> None:
    moves = layer_moves(row(0, 1, 2, -1), row(0, 1, 2, -1), ranks=2)
    assert moves.transfers == ()
    assert moves.kept_G == ((Copy(0, 0), Copy(1, 1)), (Copy(0, 0),))


def test_experts_that_change_slots_within_their_rank_are_copied_and_not_sent() -> None:
    moves = layer_moves(row(0, 1, 2, 3), row(1, 0, 2, 3), ranks=2)
    assert moves.transfers == ()
    assert moves.kept_G[0] == (Copy(1, 0), Copy(0, 1))


def test_two_ranks_that_exchange_an_expert_each_send_one() -> None:
    moves = layer_moves(row(0, 1, 2, 3), row(0, 3, 2, 1), ranks=2)
    assert moves.transfers == (Transfer(3, 1, 1, 0, 1), Transfer(1, 0, 1, 1, 1))
    assert moves.sent_by(0) == [moves.transfers[1]]
    assert moves.received_by(0) == [moves.transfers[0]]


def test_copies_are_sent_by_replicas_in_turn() -> None:
    before = row(0, 1, 0, 2, 3, -1, 4, -1)
    moves = layer_moves(before, row(0, 1, 0, 2, 3, 0, 4, 0), ranks=4)
    assert [(move.source, move.target) for move in moves.transfers] == [(0, 2), (1, 3)]


def placements(draw: st.DrawFn, *, ranks: int, slots: int, experts: int) -> np.ndarray:
    """Return a row of a layer: each expert somewhere, none twice on a rank, some slots empty."""
    homes = draw(st.permutations(range(ranks * slots)))[:experts]
    found = np.full(ranks * slots, -1, dtype=np.int32)
    found[list(homes)] = np.arange(experts)
    for slot in np.flatnonzero(found < 0).tolist():
        first = slot // slots * slots
        free = sorted(set(range(-1, experts)) - set(found[first : first + slots].tolist()) | {-1})
        found[slot] = draw(st.sampled_from(free))
    return found


@st.composite
def two_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    ranks, slots = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, ranks * slots))
    before, after = (placements(draw, ranks=ranks, slots=slots, experts=experts) for _ in range(2))
    return before, after, ranks


@given(two_rows())
def test_moves_fill_every_slot_from_ranks_that_hold_it_and_are_no_more_than_needed(
    rows: tuple[np.ndarray, np.ndarray, int],
) -> None:
    before, after, ranks = rows
    moves = layer_moves(before, after, ranks=ranks)
    then = np.full_like(after, -1).reshape(ranks, -1)
    now = before.reshape(ranks, -1)
    for transfer in moves.transfers:
        assert now[transfer.source, transfer.source_slot] == transfer.expert
        assert transfer.expert not in now[transfer.target]
        assert then[transfer.target, transfer.slot] == -1
        then[transfer.target, transfer.slot] = transfer.expert
    for rank, kept in enumerate(moves.kept_G):
        for copy in kept:
            assert then[rank, copy.slot] == -1
            then[rank, copy.slot] = now[rank, copy.source_slot]
    assert then.reshape(-1).tolist() == after.tolist()
    experts = int(before.max()) + 1
    was, will = (Placement(each[None], experts=experts, ranks=ranks) for each in (before, after))
    assert len(moves.transfers) == will.moves_from(was)[0]


def expected(fullest: list[float], mean: list[float]) -> Expectation:
    return Expectation(np.array(fullest), np.array(mean))


def test_with_equal_shares_a_rank_costs_what_its_replicas_cost() -> None:
    placement = Placement(np.array([[0, 1, 0, 2]], dtype=np.int32), experts=3, ranks=2)
    cost_LEC = np.array([[[8.0, 5.0], [2.0, 1.0], [1.0, 1.0]]])
    found = expect_equal_shares(placement, cost_LEC)
    assert (found.fullest_L.tolist(), found.mean_L.tolist()) == ([7.0], [6.5])


def test_with_equal_shares_costs_of_plain_tokens_are_loads() -> None:
    placement = linear_placement(layers=2, experts=6, ranks=3, redundant=3)
    load_LE = np.arange(12.0).reshape(2, 6)
    found = expect_equal_shares(placement, load_LE[:, :, None] / np.arange(1, 4))
    assert found.fullest_L / found.mean_L == pytest.approx(placement.balance(load_LE))


def test_batches_that_are_split_cost_their_fullest_rank_batch_by_batch() -> None:
    placement = Placement(np.array([[0, 1, 0, 2]], dtype=np.int32), experts=3, ranks=2)
    leaning_WLE = np.array([[[8, 6, 0]], [[8, 0, 6]], [[0, 9, 1]]])
    found = expect_split(placement, leaning_WLE)
    assert (found.fullest_L.tolist(), found.mean_L.tolist()) == ([7 + 7 + 9], [7 + 7 + 5])


def test_gain_is_what_the_fullest_rank_loses_in_parts_of_the_mean() -> None:
    before, after = expected([3.0, 2.0, 0.0], [2.0, 2.0, 0.0]), expected([2.0, 3.0, 0.0], [2.0, 2.0, 0.0])
    assert gains(before, after).tolist() == [0.5, -0.5, 0.0]


def test_balance_is_the_sum_of_the_fullest_over_the_sum_of_the_means() -> None:
    before = expected([3.0, 10.0], [2.0, 10.0])
    assert before.balance == pytest.approx(13 / 12)
    assert before.with_layers([0], expected([2.0, 20.0], [2.0, 10.0])).balance == 1.0
    assert expected([0.0], [0.0]).balance == 1.0


def test_what_is_expected_of_layers_one_by_one_is_what_is_expected_of_all() -> None:
    placement = linear_placement(layers=3, experts=4, ranks=2, redundant=2)
    batch_WLE = np.arange(24).reshape(2, 3, 4)
    alone = [expect_split(placement.only_layer(layer), batch_WLE[:, layer : layer + 1]) for layer in range(3)]
    joined, whole = Expectation.of_layers(alone), expect_split(placement, batch_WLE)
    assert joined.fullest_L.tolist() == whole.fullest_L.tolist()
    assert joined.mean_L.tolist() == whole.mean_L.tolist()


def test_layers_move_in_order_of_their_gain_and_only_if_it_is_enough() -> None:
    gain_L = np.array([0.02, 0.3, 0.0, 0.3, -0.1, 0.019])
    assert worthwhile_layers(gain_L, min_gain=0.02) == [1, 3, 0]
    assert worthwhile_layers(gain_L, min_gain=0.0) == [1, 3, 0, 5]
