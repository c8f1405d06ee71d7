"""Straight to experts on other nodes, or once per node."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.exchange_path import (
    INDEX_BYTES,
    PathCosts,
    choose_path,
    expected_nodes,
    flat_bytes,
    hierarchical_bytes,
    least_distinct,
)

ROW = 7168


@pytest.mark.parametrize(("nodes", "expected"), [(2, 1.99), (4, 3.61), (8, 5.29), (16, 6.52), (32, 7.27)])
def test_eight_of_256_experts_are_on_as_many_nodes_as_counting_says(nodes: int, expected: float) -> None:
    assert expected_nodes(top_k=8, experts=256, nodes=nodes) == pytest.approx(expected, abs=0.005)
    rng = np.random.default_rng(nodes)
    drawn = [len(set((rng.permutation(256)[:8] * nodes // 256).tolist())) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(expected, abs=0.08)


def test_one_expert_a_token_is_on_one_node() -> None:
    assert expected_nodes(top_k=1, experts=64, nodes=8) == pytest.approx(1)
    assert expected_nodes(top_k=8, experts=64, nodes=1) == 1


def two_nodes_of_two() -> tuple[np.ndarray, np.ndarray]:
    """Rank 0 has 10 tokens, each with two experts on rank 2 and rank 3, on the other node; rank 1 has one at home."""
    rows_GG = np.zeros((4, 4), dtype=np.int64)
    rows_GG[0, 2:] = 10
    rows_GG[1, 0] = 7
    return rows_GG, np.array([[0, 10], [7, 0], [0, 0], [0, 0]])


def test_a_token_with_two_experts_on_a_node_crosses_once() -> None:
    rows_GG, distinct_GN = two_nodes_of_two()
    flat = flat_bytes(rows_GG, ROW, nodes=2)
    assert (flat.cross, flat.local, flat.total_cross) == (20 * ROW, 7 * ROW, 20 * ROW)
    once = hierarchical_bytes(rows_GG, distinct_GN, ROW, nodes=2)
    assert once.cross == once.total_cross == 10 * ROW + 20 * INDEX_BYTES
    assert once.local == 10 * ROW, "rank 2 forwards to rank 3; what rank 1 sends to rank 0 is less"


def test_the_way_over_nodes_is_taken_where_bytes_between_nodes_cost_most() -> None:
    rows_GG, distinct_GN = two_nodes_of_two()
    slow_links, slow_rounds = PathCosts(1e-5, 1e-9, 1e-11), PathCosts(1e-3, 1e-9, 1e-11)
    assert choose_path(rows_GG, distinct_GN, ROW, slow_links, nodes=2).hierarchical
    assert not choose_path(rows_GG, distinct_GN, ROW, slow_rounds, nodes=2).hierarchical
    slow_inside = PathCosts(1e-5, 1e-9, 1e-9)
    assert not choose_path(rows_GG, distinct_GN, ROW, slow_inside, nodes=2).hierarchical


def test_ways_that_take_as_long_as_each_other_are_no_reason_to_forward() -> None:
    nothing = np.zeros((4, 4), dtype=np.int64)
    choice = choose_path(nothing, np.zeros((4, 2), dtype=np.int64), ROW, PathCosts(0, 1, 1), nodes=2)
    assert choice.flat_s == choice.hierarchical_s
    assert not choice.hierarchical


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """The rank of each expert of each token, [ranks, tokens, K], and how many nodes and ranks of a node there are."""
    nodes, width = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    top_k, tokens = draw(st.integers(1, 4)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(nodes * width, size=(nodes * width, tokens, top_k)), nodes, width


@given(batches(), st.integers(1, 2000))
def test_bytes_are_those_of_every_token_counted_one_by_one(batch: tuple[np.ndarray, int, int], row: int) -> None:
    rank_GTK, nodes, width = batch
    ranks = nodes * width
    rows_GG = np.zeros((ranks, ranks), dtype=np.int64)
    distinct_GN = np.zeros((ranks, nodes), dtype=np.int64)
    straight, once, forwarded = (np.zeros((ranks, ranks), dtype=np.int64) for _ in range(3))
    for source, tokens in enumerate(rank_GTK.tolist()):
        for token in tokens:
            for target in token:
                rows_GG[source, target] += 1
                straight[source, target] += row
                relay = target // width * width + source % width
                once[source, relay] += INDEX_BYTES
                forwarded[relay, target] += row
            for node in {target // width for target in token}:
                distinct_GN[source, node] += 1
                once[source, node * width + source % width] += row
    node_G = np.arange(ranks) // width
    across = node_G[:, None] != node_G
    inside = ~across & ~np.eye(ranks, dtype=bool)
    for found, cross, local in (
        (flat_bytes(rows_GG, row, nodes=nodes), straight * across, straight * inside),
        (hierarchical_bytes(rows_GG, distinct_GN, row, nodes=nodes), once * across, forwarded * inside),
    ):
        assert found.total_cross == cross.sum()
        assert found.cross == max(cross.sum(axis=0).max(), cross.sum(axis=1).max())
        assert found.local == max(local.sum(axis=0).max(), local.sum(axis=1).max())
    assert (least_distinct(rows_GG, rank_GTK.shape[2], nodes=nodes) <= distinct_GN).all()
