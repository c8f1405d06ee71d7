"""Whatever the load, a placement is legal, the same everywhere, and no worse than simpler ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from eplb import eplb_slots, pack
from hypothesis import example, given
from hypothesis import strategies as st

from fourlane.policy.placement import EMPTY, Placement, linear_placement, place_experts
from fourlane.policy.placing.search import GOOD_ENOUGH


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


def no_worse(ours: Any, theirs: Any) -> bool:
    """Whether balances are at most others, or within what the search takes for perfect."""
    return bool((ours <= np.maximum(theirs * (1 + 1e-9), 1 + 1 / GOOD_ENOUGH)).all())


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


@given(tasks())
@example(Task(np.array([[0, 0, 2, 1626, 0, 0, 3250]]), 2, 8))  # a second replica of the hot one only harms
@example(Task(np.array([[0] * 11 + [1, 2, 100, 104, 104, 3788, 4093]]), 2, 22))  # all but perfect, where packing is
def test_one_slot_an_expert_is_never_better(task: Task) -> None:
    layers, experts = task.load_LE.shape
    width = -(-experts // task.ranks)
    ours_L = place(task, split_aware=False).balance(task.load_LE)
    plain = linear_placement(layers=layers, experts=experts, ranks=task.ranks)
    assert no_worse(ours_L, plain.balance(task.load_LE))
    padded_LE = np.pad(task.load_LE, ((0, 0), (0, width * task.ranks - experts)))
    packed_LX = np.take_along_axis(padded_LE, pack(padded_LE, task.ranks), axis=1)  # heaviest first
    peak_L = packed_LX.reshape(layers, task.ranks, width).sum(axis=2).max(axis=1)
    assert no_worse(ours_L, peak_L * task.ranks / np.maximum(task.load_LE.sum(axis=1), 1))


@given(tasks(max_experts=64, max_ranks=16))
def test_eplb_is_never_better_unless_it_puts_replicas_together(task: Task) -> None:
    slot_LP = eplb_slots(task.load_LE, slots=task.slots, ranks=task.ranks)
    ours_L = place(task, split_aware=False).balance(task.load_LE)
    for layer, row in enumerate(slot_LP):
        held = np.sort(row.reshape(task.ranks, -1), axis=1)
        if (held[:, 1:] == held[:, :-1]).any():
            continue  # no placement at all
        eplb = Placement(row[None], experts=task.load_LE.shape[1], ranks=task.ranks)
        assert no_worse(ours_L[layer], eplb.balance(task.load_LE[layer : layer + 1])[0])


@given(tasks(max_experts=64, max_ranks=16))
@example(Task(np.array([[0, 0, 2, 1626, 0, 0, 3250]]), 2, 8))
def test_with_every_slot_in_use_eplb_is_never_better_unless_it_puts_replicas_together(task: Task) -> None:
    slot_LP = eplb_slots(task.load_LE, slots=task.slots, ranks=task.ranks)
    full = place(task, split_aware=False, every_slot=True)
    assert (full.slot_of_LP != EMPTY).all()
    ours_L = full.balance(task.load_LE)
    for layer, row in enumerate(slot_LP):
        held = np.sort(row.reshape(task.ranks, -1), axis=1)
        if not (held[:, 1:] == held[:, :-1]).any():
            eplb = Placement(row[None], experts=task.load_LE.shape[1], ranks=task.ranks)
            assert no_worse(ours_L[layer], eplb.balance(task.load_LE[layer : layer + 1])[0])


@given(tasks())
@example(Task(np.array([[0, 0, 2, 1626, 0, 0, 3250]]), 2, 8))
def test_a_design_for_splitting_leaves_no_slot_empty(task: Task) -> None:
    assert (place(task, split_aware=True).slot_of_LP != EMPTY).all()


@given(tasks(), st.data())
def test_nothing_moves_when_nothing_changed(task: Task, data: st.DataObject) -> None:
    split_aware = data.draw(st.booleans())
    first = place(task, split_aware=split_aware)
    for moves in (None, 0, 5):
        again = place(task, split_aware=split_aware, previous=first, moves=moves)
        assert again.slot_of_LP.tolist() == first.slot_of_LP.tolist()


@given(tasks(), st.integers(0, 10), st.randoms(use_true_random=False))
def test_a_repair_keeps_to_its_moves_and_makes_nothing_worse(task: Task, moves: int, random: Any) -> None:
    first = place(task, split_aware=False)
    changed = task.load_LE * np.array([[random.randint(1, 4) for _ in row] for row in task.load_LE])
    mended = place_experts(changed, ranks=task.ranks, slots=task.slots, previous=first, moves=moves, split_aware=False)
    assert (mended.moves_from(first) <= moves).all()
    assert (mended.balance(changed) <= first.balance(changed) * (1 + 1e-9)).all()


@given(tasks(), st.randoms(use_true_random=False))
def test_an_expert_that_stays_on_its_rank_stays_in_its_slot(task: Task, random: Any) -> None:
    first = place(task, split_aware=False)
    changed = task.load_LE * np.array([[random.randint(1, 4) for _ in row] for row in task.load_LE])
    for moves in (None, 4):
        after = place_experts(
            changed, ranks=task.ranks, slots=task.slots, previous=first, moves=moves, split_aware=False
        )
        for old, new in zip(first.slot_of_LP, after.slot_of_LP, strict=True):
            for slot, expert in enumerate(old):
                rank = slot // first.slots_per_rank * first.slots_per_rank
                if expert != EMPTY and expert in new[rank : rank + first.slots_per_rank]:
                    assert new[slot] == expert


@given(tasks())
def test_samples_count_together(task: Task) -> None:
    twice = np.stack([task.load_LE, task.load_LE])
    of_samples = place_experts(twice, ranks=task.ranks, slots=task.slots, split_aware=False)
    assert of_samples.slot_of_LP.tolist() == place(task, split_aware=False).slot_of_LP.tolist()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_groups_stay_in_one_node(nodes: int, groups_a_node: int, experts_a_group: int, data: st.DataObject) -> None:
    groups, ranks_a_node = nodes * groups_a_node, data.draw(st.integers(1, 3))
    experts, ranks = groups * experts_a_group, nodes * ranks_a_node
    inside = groups_a_node * experts_a_group
    width = data.draw(st.integers(-(-inside // ranks_a_node), inside))
    load = np.array([data.draw(st.lists(st.integers(0, 99), min_size=experts, max_size=experts)) for _ in range(2)])
    options: Any = {"ranks": ranks, "slots": width * ranks, "nodes": nodes, "groups": groups, "split_aware": False}
    placement = place_experts(load, **options)
    group_LP = np.where(placement.slot_of_LP == EMPTY, EMPTY, placement.slot_of_LP // experts_a_group)
    node_P = placement.rank_of_P // ranks_a_node
    for row in group_LP:
        assert all(np.unique(node_P[row == group]).size == 1 for group in range(groups))
    again = place_experts(load, previous=placement, **options)
    assert again.slot_of_LP.tolist() == placement.slot_of_LP.tolist()


def test_groups_packed_in_any_order_stay_where_they_are() -> None:
    load = [0, 29, 36, 36, 0, 41, 99, 99, 0, 0, 0, 79, 0, 0, 13, 99, 3, 83, 79, 96, 0, 0, 39, 50]
    load += [0, 0, 0, 79, 0, 72, 72, 72, 17, 0, 0, 0]
    options: Any = {"ranks": 9, "slots": 63, "nodes": 3, "groups": 9, "split_aware": False}
    placement = place_experts([load], **options)
    assert (place_experts([load], previous=placement, **options).slot_of_LP == placement.slot_of_LP).all()


def test_another_process_finds_the_same_to_the_bit() -> None:
    script = (
        "import numpy, zlib; from fourlane.policy.load_generator import DECODE, drift;"
        "from fourlane.policy.placement import place_experts;"
        "rng = numpy.random.default_rng(1); load = DECODE.draw(rng)[:4]; kw = dict(ranks=144, slots=288);"
        "first = place_experts(load, **kw);"
        "then = place_experts(drift(load, 0.95, rng), previous=first, moves=90, **kw);"
        "print(zlib.crc32(first.slot_of_LP.tobytes()), zlib.crc32(then.slot_of_LP.tobytes()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != b""
