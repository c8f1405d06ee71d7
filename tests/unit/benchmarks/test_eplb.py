"""The baseline does what EPLB's description and its published example say."""

from __future__ import annotations

from collections import Counter

import eplb
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_published_example_comes_out_as_published() -> None:
    # The worked example of EPLB's README: 12 experts, 16 replicas, 4 groups, 2 nodes, 8 GPUs.
    load_LE = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ]
    )
    assert eplb.eplb_slots(load_LE, slots=16, ranks=8, nodes=2, groups=4).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))
def test_every_expert_is_placed_and_copies_go_where_most_load_a_copy_is(
    seed: int, ranks: int, each: int, extra: int, layers: int
) -> None:
    experts, slots = ranks * each, ranks * (each + extra)
    load_LE = np.random.default_rng(seed).integers(1, 1000, size=(layers, experts))
    slot_of_LP = eplb.eplb_slots(load_LE, slots=slots, ranks=ranks)
    for load_E, slot_of_P in zip(load_LE, slot_of_LP, strict=True):
        copies = Counter(range(experts))
        for _ in range(slots - experts):
            copies[max(range(experts), key=lambda expert: (load_E[expert] / copies[expert], -expert))] += 1
        assert Counter(slot_of_P.tolist()) == copies


def test_hierarchical_placement_keeps_a_group_in_its_node() -> None:
    load_LE = np.random.default_rng(0).integers(1, 1000, size=(3, 64))
    slot_of_LP = eplb.eplb_slots(load_LE, slots=96, ranks=16, nodes=4, groups=8)
    for slot_of_P in slot_of_LP:
        nodes_of_group = [set() for _ in range(8)]
        for node, experts in enumerate(slot_of_P.reshape(4, -1)):
            for expert in experts:
                nodes_of_group[expert // 8].add(node)
        assert all(len(nodes) == 1 for nodes in nodes_of_group)


def test_groups_that_nodes_do_not_divide_are_left_alone() -> None:
    load_LE = np.random.default_rng(0).integers(1, 1000, size=(1, 64))
    globally = eplb.eplb_slots(load_LE, slots=96, ranks=12)
    assert (eplb.eplb_slots(load_LE, slots=96, ranks=12, nodes=3, groups=8) == globally).all()


def test_a_load_is_split_equally_over_copies_and_empty_slots_take_nothing() -> None:
    slot_of_LP = np.array([[0, 1, 0, 2, 1, -1]])
    load_LG = eplb.rank_load(slot_of_LP, np.array([[10, 4, 7]]), 3)
    assert load_LG.tolist() == [[7, 12, 2]]
    assert eplb.balance(slot_of_LP, np.array([[10, 4, 7]]), 3).tolist() == [12 / 7]
