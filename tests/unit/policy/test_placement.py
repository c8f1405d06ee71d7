"""The value that says where experts live."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError
from fourlane.policy.placement import Placement, linear_placement


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 8))
def test_a_linear_placement_gives_every_expert_one_slot(layers: int, experts: int, ranks: int) -> None:
    placement = linear_placement(layers=layers, experts=experts, ranks=ranks)
    held = [placement.experts_of(rank, layer) for layer in range(layers) for rank in range(ranks)]
    counts = np.bincount(np.concatenate(held) + 1, minlength=experts + 1)[1:]
    assert (counts == layers).all()
    slots = placement.first_slot_of_LE
    assert (np.take_along_axis(placement.slot_of_LP, slots, axis=1) == np.arange(experts)).all()
    assert not placement.replicated


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ([[0, 1, 2]], "multiple of 2 ranks"),
        ([[0, 1, 2, 7]], "expected experts in -1..2"),
        ([[0, 1, 1, -1]], r"layer 0 has no slot for experts \[2\]"),
        ([[0, 0, 1, 2]], "two replicas of an expert on rank 0"),
    ],
)
def test_a_wrong_placement_is_refused_with_the_place(table: list[list[int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Placement(np.array(table), experts=3, ranks=2)


def test_a_placement_cannot_be_changed() -> None:
    placement = linear_placement(layers=1, experts=4, ranks=2)
    with pytest.raises(ValueError, match="read-only"):
        placement.slot_of_LP[0, 0] = 3


def test_replicas_on_different_ranks_are_a_placement() -> None:
    placement = Placement(np.array([[0, 1, 2, 0]]), experts=3, ranks=2)
    assert placement.replicated
    assert placement.first_slot_of_LE.tolist() == [[0, 1, 2]]


@pytest.fixture
def four_ranks() -> Placement:
    """Two layers of 6 experts in 8 slots; expert 0 has three replicas in the first, one slot is empty in the second."""
    return Placement(np.array([[0, 1, 0, 2, 3, 0, 4, 5], [0, 1, 2, 3, 4, 5, -1, 0]]), experts=6, ranks=4)


def test_replicas_are_listed_by_expert_in_slot_order(four_ranks: Placement) -> None:
    replicas = four_ranks.replicas(0)
    assert replicas.start_E1.tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert replicas.slot_R.tolist() == [0, 2, 5, 1, 3, 4, 6, 7]
    assert replicas.rank_R.tolist() == [0, 1, 2, 0, 1, 2, 3, 3]
    assert four_ranks.replicas(0) is replicas
    assert four_ranks.replicas(1).slot_R.tolist() == [0, 7, 1, 2, 3, 4, 5]
    assert four_ranks.rank_of_P.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_tables_under_the_names_of_eplb_say_the_same(four_ranks: Placement) -> None:
    assert four_ranks.logcnt.tolist() == [[3, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1]]
    assert four_ranks.phy2log.dtype == four_ranks.log2phy.dtype == four_ranks.logcnt.dtype == np.int64
    assert four_ranks.log2phy.shape == (2, 6, 3)
    for layer in range(2):
        for expert in range(6):
            slots = np.flatnonzero(four_ranks.phy2log[layer] == expert).tolist()
            assert four_ranks.log2phy[layer, expert].tolist() == slots + [-1] * (3 - len(slots))


def test_balance_counts_equal_shares_of_replicas(four_ranks: Placement) -> None:
    load = [[6, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert four_ranks.rank_load(load).tolist() == [[3, 3, 3, 2], [0, 0, 0, 0]]
    assert four_ranks.balance(load).tolist() == [3 / 2.75, 1]
    with pytest.raises(BalanceInputError, match=r"^load_LE: expected shape \[2, 6\], got \[1, 6\]"):
        four_ranks.balance(load[:1])


def test_another_layer_leaves_the_first_value_as_it_was(four_ranks: Placement) -> None:
    changed = four_ranks.with_layer(1, [0, 1, 2, 3, 4, 5, 1, 0])
    assert changed.slot_of_LP[0].tolist() == four_ranks.slot_of_LP[0].tolist()
    assert changed.slot_of_LP[1, 6] == 1
    assert four_ranks.slot_of_LP[1, 6] == -1
    with pytest.raises(BalanceInputError, match=r"has no slot for experts \[5\]"):
        four_ranks.with_layer(1, [0, 1, 2, 3, 4, 0, 1, 2])
    with pytest.raises(BalanceInputError, match=r"^slots_P: expected \[8\] slots, got shape \[7\]"):
        four_ranks.with_layer(1, [0, 1, 2, 3, 4, 5, 1])


def test_moves_are_experts_a_rank_did_not_hold(four_ranks: Placement) -> None:
    moved = four_ranks.with_layer(0, [1, 0, 3, 2, 0, 5, 4, 5])
    assert four_ranks.moves_from(four_ranks).tolist() == [0, 0]
    assert moved.moves_from(four_ranks).tolist() == [2, 0]  # 3 on rank 1, 5 on rank 2; a slot within a rank is no move
    assert moved.bytes_from(four_ranks, 44) == 88
    with pytest.raises(BalanceInputError, match=r"^previous: expected 2 layers, 6 experts and 4 ranks, got 1, 6 and 4"):
        four_ranks.moves_from(linear_placement(layers=1, experts=6, ranks=4))


@given(st.integers(1, 40), st.integers(2, 8), st.data())
def test_a_linear_placement_spreads_copies_evenly(experts: int, ranks: int, data: st.DataObject) -> None:
    redundant = data.draw(st.integers(0, experts * (ranks - 1)))
    placement = linear_placement(layers=2, experts=experts, ranks=ranks, redundant=redundant)
    assert placement.copies_LE.sum(axis=1).tolist() == [experts + redundant] * 2
    assert np.ptp(placement.copies_LE) <= 1


def test_a_linear_placement_of_even_load_is_in_balance() -> None:
    for ranks, redundant in [(32, 32), (64, 64), (128, 128), (16, 32)]:
        placement = linear_placement(layers=1, experts=256, ranks=ranks, redundant=redundant)
        assert placement.balance(np.ones((1, 256))).tolist() == [1]


def test_more_copies_than_ranks_can_keep_apart_are_refused() -> None:
    with pytest.raises(BalanceInputError, match=r"^redundant: expected at most 8 further replicas .*, got 9"):
        linear_placement(layers=1, experts=4, ranks=3, redundant=9)
    with pytest.raises(BalanceInputError, match=r"^redundant: expected 0 or more"):
        linear_placement(layers=1, experts=4, ranks=3, redundant=-1)
