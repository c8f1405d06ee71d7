"""Expert traffic: tokens are routed as theory says, and no byte is lost or sent twice on its way."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.policy.placement import Placement, linear_placement
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_routing import (
    NO_RANK,
    ExpertRouting,
    count_messages,
    distinct_ranks,
    ranks_of_experts,
)
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels, message_bytes

FP8, BF16 = 7408, 14336


def balanced(ranks: int, tokens: int, *, experts: int = 256, seed: int = 1, **more: int) -> np.ndarray:
    routing = ExpertRouting(tokens=tokens, experts=experts, top_k=8, **more)
    drawn = routing.draw(np.random.default_rng(seed), ranks)
    return ranks_of_experts(drawn, ranks=ranks, experts=experts)


@st.composite
def routed(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Draw the ranks of choices (some of them not sent), how many ranks there are, and how many share a node."""
    per_node, nodes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks = per_node * nodes
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (ranks * draw(st.integers(0, 12)), draw(st.integers(1, 5)))
    return generator.integers(NO_RANK, ranks, size=shape, dtype=np.int32), ranks, per_node


def test_a_message_has_the_published_size() -> None:
    assert (message_bytes(7168, "fp8"), message_bytes(7168, "bf16")) == (FP8, BF16)


@pytest.mark.parametrize(("nodes", "published"), [(2, 1.99), (4, 3.61), (8, 5.30), (16, 6.52), (32, 7.27)])
def test_a_token_visits_as_many_nodes_as_theory_says(nodes: int, published: float) -> None:
    rank_TK = balanced(8 * nodes, 200)
    seen = (distinct_ranks(rank_TK, each=8) != NO_RANK).sum() / len(rank_TK)
    experts = 256 // nodes
    theory = nodes * (1 - comb(256 - experts, 8) / comb(256, 8))
    assert seen == pytest.approx(theory, rel=0.02)
    assert theory == pytest.approx(published, rel=0.005)


def test_every_set_of_experts_is_as_likely_as_any_other() -> None:
    drawn = ExpertRouting(tokens=40_000, experts=6, top_k=3).draw(np.random.default_rng(3), 1)
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    _, seen = np.unique((1 << drawn).sum(axis=1), return_counts=True)
    expected = 40_000 / comb(6, 3)
    assert len(seen) == comb(6, 3)
    assert ((seen - expected) ** 2 / expected).sum() < 43.8  # chi square, 19 degrees of freedom, 1 in 1000


def test_group_limited_tokens_stay_in_their_groups() -> None:
    routing = ExpertRouting(tokens=300, experts=64, top_k=8, groups=8, top_groups=4)
    drawn = routing.draw(np.random.default_rng(5), 2)
    assert drawn.shape == (600, 8)
    assert all(len(set(row)) == 8 and len({expert // 8 for expert in row}) <= 4 for row in drawn.tolist())
    assert np.bincount(drawn.ravel(), minlength=64) == pytest.approx(600 * 8 / 64, rel=0.5)


@given(routed())
def test_low_latency_flows_carry_every_message_that_leaves_its_rank(case: tuple[np.ndarray, int, int]) -> None:
    rank_TK, ranks, per_node = case
    counts = count_messages(rank_TK, ranks=ranks)
    away = counts * ~np.eye(ranks, dtype=bool)
    assert counts.sum() == (rank_TK != NO_RANK).sum()
    for traffic, matrix, message in (
        (LowLatencyKernels(ranks_per_node=per_node).dispatch(counts), away, FP8),
        (LowLatencyKernels(ranks_per_node=per_node).combine(counts), away.T, BF16),
    ):
        assert not traffic.nvlink.any()
        assert traffic.bytes_out_of(nvlink=False).tolist() == (matrix.sum(axis=1) * message).tolist()
        assert traffic.bytes_into(nvlink=False).tolist() == (matrix.sum(axis=0) * message).tolist()


@given(routed(), st.sampled_from(["spine", "sender", "receiver"]))
def test_relays_pass_on_just_what_they_get(case: tuple[np.ndarray, int, int], cross_rail: str) -> None:
    rank_TK, ranks, per_node = case
    counts = count_messages(rank_TK, ranks=ranks)
    traffic = LowLatencyKernels(ranks_per_node=per_node, nvlink=True, cross_rail=cross_rail).dispatch(counts)  # type: ignore[arg-type]
    into = sum(traffic.bytes_into(nvlink=each) for each in (False, True))
    out_of = sum(traffic.bytes_out_of(nvlink=each) for each in (False, True))
    away = counts * ~np.eye(ranks, dtype=bool)
    assert (into - out_of).tolist() == ((away.sum(axis=0) - away.sum(axis=1)) * FP8).tolist()
    assert (traffic.source // per_node == traffic.target // per_node)[traffic.nvlink].all()
    if cross_rail != "spine":
        assert (traffic.source % per_node == traffic.target % per_node)[~traffic.nvlink].all()
    assert (traffic.target[traffic.before] == traffic.source[traffic.after]).all()
    assert (traffic.size[traffic.before] == traffic.size[traffic.after]).all()


@given(routed(), st.integers(1, 4), st.integers(1, 3))
def test_a_token_crosses_once_per_node_and_reaches_every_gpu(
    case: tuple[np.ndarray, int, int], chunk: int, in_flight: int
) -> None:
    rank_TK, ranks, per_node = case
    tokens = max(1, len(rank_TK) // ranks)
    crossing, wanted = np.zeros(ranks, dtype=int), np.zeros(ranks, dtype=int)
    for token, row in enumerate(rank_TK.tolist()):
        source = token // tokens
        goals = {goal for goal in row if goal != NO_RANK}
        for node in {goal // per_node for goal in goals} - {source // per_node}:
            relay = node * per_node + source % per_node
            crossing[relay] += 1
            wanted += np.isin(np.arange(ranks), [g for g in goals if g // per_node == node and g != relay])
        wanted += np.isin(np.arange(ranks), [g for g in goals if g // per_node == source // per_node and g != source])
    mode = NormalKernels(ranks_per_node=per_node, chunk=chunk, in_flight=in_flight)
    there, back = mode.dispatch(rank_TK, ranks=ranks), mode.combine(rank_TK, ranks=ranks)
    assert there.bytes_into(nvlink=False).tolist() == (crossing * FP8).tolist()
    assert there.bytes_into(nvlink=True).tolist() == (wanted * FP8).tolist()
    assert back.bytes_out_of(nvlink=False).tolist() == (crossing * BF16).tolist()
    assert back.bytes_out_of(nvlink=True).tolist() == (wanted * BF16).tolist()
    assert there.size[~there.nvlink].max(initial=0) <= chunk * FP8


@given(routed(), st.integers(1, 3))
def test_what_is_passed_on_waits_for_its_chunk_and_sums_wait_for_their_parts(
    case: tuple[np.ndarray, int, int], in_flight: int
) -> None:
    rank_TK, ranks, per_node = case
    mode = NormalKernels(ranks_per_node=per_node, chunk=2, in_flight=in_flight)
    for traffic, first_nvlink in (
        (mode.dispatch(rank_TK, ranks=ranks), False),
        (mode.combine(rank_TK, ranks=ranks), True),
    ):
        legs = traffic.nvlink[traffic.before] != traffic.nvlink[traffic.after]
        before, after = traffic.before[legs], traffic.after[legs]
        assert (traffic.nvlink[before] == first_nvlink).all()
        assert (traffic.target[before] == traffic.source[after]).all()
        ends = set(after.tolist()) if not first_nvlink else set(before.tolist())
        passed = [
            flow
            for flow in np.flatnonzero(traffic.nvlink).tolist()
            if flow not in ends  # what stays in its node waits for nobody
        ]
        assert len(passed) <= ranks * per_node
        turns = np.stack([traffic.source, traffic.target])
        assert (turns[:, traffic.before[~legs]] == turns[:, traffic.after[~legs]]).all()


def test_a_placement_decides_where_tokens_go_and_replicas_take_turns() -> None:
    moved = Placement(np.array([[3, 2, 1, 0]]), experts=4, ranks=4)
    assert ranks_of_experts(np.array([[0, 3]], np.int32), ranks=4, experts=4, placement=moved).tolist() == [[3, 0]]
    twice = Placement(np.array([[0, 1, 0, -1]]), experts=2, ranks=4)
    rank_TK = ranks_of_experts(np.zeros((4, 1), np.int32), ranks=4, experts=2, placement=twice)
    assert rank_TK.ravel().tolist() == [0, 2, 0, 2]


def test_a_linear_placement_is_the_default() -> None:
    drawn = ExpertRouting(tokens=50, experts=32, top_k=4).draw(np.random.default_rng(2), 8)
    placed = ranks_of_experts(
        drawn, ranks=8, experts=32, placement=linear_placement(layers=1, experts=32, ranks=8), layer=0
    )
    assert (placed == ranks_of_experts(drawn, ranks=8, experts=32)).all()


def test_thirty_two_groups_are_laid_out_side_by_side_and_never_mix() -> None:
    counts = np.stack([count_messages(balanced(16, 8, seed=seed), ranks=16) for seed in range(32)])
    traffic = LowLatencyKernels().dispatch(counts)
    assert traffic.ranks == 512
    assert (traffic.source // 16 == traffic.target // 16).all()
    away = counts.sum() - np.trace(counts, axis1=1, axis2=2).sum()
    assert traffic.size.sum() == away * FP8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExpertRouting(tokens=-1, experts=8, top_k=2), "routing.tokens: expected a whole number from 0"),
        (lambda: ExpertRouting(tokens=1, experts=8, top_k=9), "routing.top_k: expected a whole number from 1 to 8"),
        (lambda: ExpertRouting(tokens=1, experts=9, top_k=2, groups=2), "expected a divisor of 9 experts"),
        (lambda: ExpertRouting(tokens=1, experts=8, top_k=3, groups=4), "at most the 2 experts of 1 groups, got 3"),
        (lambda: message_bytes(100, "fp8"), "hidden: expected a positive multiple of 128, got 100"),
        (lambda: LowLatencyKernels(cross_rail="sender"), "passes messages on over NVLink"),
        (lambda: LowLatencyKernels(cross_rail="pxn"), 'expected "spine", "sender" or "receiver"'),  # type: ignore[arg-type]
        (lambda: LowLatencyKernels().dispatch(np.zeros((2, 3), int)), r"got \(2, 3\)"),
        (lambda: LowLatencyKernels().dispatch(np.zeros((2, 2))), "expected whole numbers, got float64"),
        (lambda: LowLatencyKernels().dispatch(np.array([[0, -1], [0, 0]])), "expected at least 0, got -1"),
        (
            lambda: LowLatencyKernels().dispatch(np.zeros((12, 12), int)),
            "expected a multiple of 8 ranks a group, got 12",
        ),
        (lambda: NormalKernels(chunk=0), "chunk: expected at least 1, got 0"),
        (lambda: NormalKernels().dispatch(np.zeros((3, 1), np.int32), ranks=2), "equally many tokens each"),
        (lambda: ranks_of_experts(np.zeros((1, 1), np.int32), ranks=3, experts=8), "expected a multiple of 3 ranks"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(make: object, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()  # type: ignore[operator]
