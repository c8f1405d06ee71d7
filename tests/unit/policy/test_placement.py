"""The value that says where experts live."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
