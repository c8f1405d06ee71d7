"""Whatever the load, a placement is legal, the same everywhere, and no worse than simpler ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.placement import EMPTY, place_experts


@dataclass(frozen=True)
class Task:
    """A load and where to place it."""

    load_LE: np.ndarray
    ranks: int
    slots: int


@st.composite
def tasks(draw: st.DrawFn, *, max_experts: int = 24, max_ranks: int = 8) -> Task:
    experts = draw(st.integers(1, max_experts))
    ranks = draw(st.integers(1, max_ranks))
    width = draw(st.integers(-(-experts // ranks), experts))
    layers = draw(st.integers(1, 3))
    hot = st.one_of(st.integers(0, 20), st.integers(0, 10_000))
    load = draw(st.lists(hot, min_size=layers * experts, max_size=layers * experts))
    return Task(np.array(load).reshape(layers, experts), ranks, width * ranks)


def place(task: Task, **options: Any) -> Any:
    return place_experts(task.load_LE, ranks=task.ranks, slots=task.slots, **options)


@given(tasks())
def test_every_expert_has_a_slot_and_replicas_are_apart(task: Task) -> None:
    placement = place(task)  # the value itself refuses anything else
    assert placement.slot_of_LP.shape == (task.load_LE.shape[0], task.slots)
    assert (placement.copies_LE >= 1).all()


@given(tasks(), st.data())
def test_replicas_are_on_different_nodes_on_request(task: Task, data: st.DataObject) -> None:
    nodes = data.draw(st.sampled_from([n for n in range(1, task.ranks + 1) if task.ranks % n == 0]))
    placement = place(task, nodes=nodes, spread_nodes=True)
    node_P = placement.rank_of_P // (task.ranks // nodes)
    for row in placement.slot_of_LP:
        pairs = [(int(node), int(expert)) for node, expert in zip(node_P, row, strict=True) if expert != EMPTY]
        assert len(set(pairs)) == len(pairs)
