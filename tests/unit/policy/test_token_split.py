"""Batch-level splitting: which replica gets which tokens of the batch about to be dispatched."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import least_maximum, random_counts, random_placement

from fourlane.errors import BalanceInputError
from fourlane.policy.placement import Placement, linear_placement
from fourlane.policy.token_split import (
    TokenSplit,
    equal_tokens,
    rank_tokens,
    split_equally,
    split_local_tokens,
    split_tokens,
)

SUPPORT = Path(__file__).parents[2] / "support"


@st.composite
def layers(draw: st.DrawFn) -> tuple[Placement, np.ndarray]:
    """Return a layer with any number of replicas and empty slots, and a batch's counts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ranks = draw(st.integers(1, 12))
    experts = draw(st.integers(1, 40))
    least = -(-experts // ranks)
    held = draw(st.integers(least, min(experts, least + 3)))
    empty = draw(st.integers(0, min(4, ranks * held - experts)))
    placement = random_placement(rng, ranks=ranks, experts=experts, held=held, empty=empty)
    tokens = draw(st.sampled_from([0, 1, 7, 300, 5000]))
    return placement, random_counts(rng, ranks=ranks, experts=experts, tokens=tokens)


def returned(quota_GP: np.ndarray, placement: Placement) -> np.ndarray:
    """Return how many tokens each rank gave to each expert, [ranks, experts]."""
    held = placement.slot_of_LP[0] >= 0
    assert not quota_GP[:, ~held].any()
    counts = np.zeros((placement.ranks, placement.experts), dtype=np.int64)
    np.add.at(counts, (slice(None), placement.slot_of_LP[0, held]), quota_GP[:, held])
    return counts


@given(layers())
@settings(deadline=None, max_examples=200)
def test_the_maximum_is_the_least_there_is_rounded_up(case: tuple[Placement, np.ndarray]) -> None:
    placement, count_GE = case
    split = split_tokens(count_GE, placement, 0)
    least = least_maximum(count_GE.sum(axis=0), placement)
    assert split.tokens_G.max() == math.ceil(least)
    assert split.lower_bound <= float(least) * (1 + 1e-15)
    assert math.ceil(split.lower_bound) == split.tokens_G.max()


@given(layers(), st.integers(1, 12))
@settings(deadline=None)
def test_every_token_goes_to_a_replica_of_its_expert(case: tuple[Placement, np.ndarray], nodes: int) -> None:
    placement, count_GE = case
    nodes = math.gcd(nodes, placement.ranks)
    local_GP = [split_local_tokens(c, placement, 0, rank=rank, nodes=nodes) for rank, c in enumerate(count_GE)]
    splits = [split_tokens(count_GE, placement, 0, nodes=nodes), split_equally(count_GE, placement, 0)]
    for quota_GP in [*(split.quota_GP for split in splits), np.array(local_GP)]:
        assert quota_GP.dtype == np.int32
        assert quota_GP.min() >= 0
        assert (returned(quota_GP, placement) == count_GE).all()
    for split in splits:
        assert (rank_tokens(split.quota_GP, placement.ranks) == split.tokens_G).all()


@given(layers())
@settings(deadline=None)
def test_no_choice_of_replicas_goes_below_the_bound(case: tuple[Placement, np.ndarray]) -> None:
    placement, count_GE = case
    split, equal = split_tokens(count_GE, placement, 0), split_equally(count_GE, placement, 0)
    assert equal.lower_bound == split.lower_bound
    assert equal.tokens_G.max() >= split.tokens_G.max() >= split.lower_bound >= count_GE.sum() / placement.ranks


@given(layers(), st.integers(1, 12))
@settings(deadline=None)
def test_keeping_tokens_near_changes_no_ranks_load(case: tuple[Placement, np.ndarray], nodes: int) -> None:
    placement, count_GE = case
    nodes = math.gcd(nodes, placement.ranks)
    apart, near = split_tokens(count_GE, placement, 0), split_tokens(count_GE, placement, 0, nodes=nodes)
    assert (apart.tokens_G == near.tokens_G).all()
    assert (apart.quota_GP.sum(axis=0) == near.quota_GP.sum(axis=0)).all()
    assert staying(near, placement, 1) == staying(apart, placement, 1)
    assert staying(near, placement, placement.ranks // nodes) >= staying(apart, placement, placement.ranks // nodes)


@given(layers(), st.integers(1, 12))
@settings(deadline=None)
def test_no_other_transport_of_the_same_totals_keeps_more_tokens_near(
    case: tuple[Placement, np.ndarray], nodes: int
) -> None:
    placement, count_GE = case
    nodes = math.gcd(nodes, placement.ranks)
    split = split_tokens(count_GE, placement, 0, nodes=nodes)
    node_ranks = placement.ranks // nodes
    own = at_home = 0
    for expert in range(placement.experts):
        slots = np.flatnonzero(placement.slot_of_LP[0] == expert)
        taken_R, rank_R = split.quota_GP[:, slots].sum(axis=0), placement.rank_of_P[slots]
        own += np.minimum(taken_R, count_GE[rank_R, expert]).sum()
        taken_N = np.bincount(rank_R // node_ranks, weights=taken_R, minlength=nodes)
        at_home += np.minimum(taken_N, count_GE[:, expert].reshape(nodes, -1).sum(axis=1)).sum()
    assert staying(split, placement, 1) == own
    assert staying(split, placement, node_ranks) == at_home


def staying(split: TokenSplit, placement: Placement, group: int) -> int:
    """Return the tokens that stay within their group of so many ranks."""
    home = np.arange(placement.ranks)[:, None] // group == placement.rank_of_P // group
    return int(split.quota_GP[home].sum())


def serving_layer() -> tuple[Placement, np.ndarray]:
    rng = np.random.default_rng(5)
    placement = random_placement(rng, ranks=32, experts=256, held=9)
    return placement, random_counts(rng, ranks=32, experts=256, tokens=1024)


def fingerprint() -> str:
    placement, count_GE = serving_layer()
    digest = hashlib.sha256()
    digest.update(split_tokens(count_GE, placement, 0, nodes=4).quota_GP.tobytes())
    digest.update(split_equally(count_GE, placement, 0).quota_GP.tobytes())
    for rank, count_E in enumerate(count_GE):
        digest.update(split_local_tokens(count_E, placement, 0, rank=rank, nodes=4).tobytes())
    return digest.hexdigest()


def test_another_process_finds_the_same_split() -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(SUPPORT)]!r}; "
        "import test_token_split as t; print(t.fingerprint())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == fingerprint()


def test_counts_of_any_integer_type_and_layout_give_the_same_split() -> None:
    placement, count_GE = serving_layer()
    wanted = split_tokens(count_GE, placement, 0).quota_GP
    for dtype in (np.int16, np.uint16, np.int32, np.uint32, np.uint64):
        assert (split_tokens(count_GE.astype(dtype), placement, 0).quota_GP == wanted).all()
    assert (split_tokens(np.asfortranarray(count_GE), placement, 0).quota_GP == wanted).all()
    assert (split_tokens(count_GE.tolist(), placement, 0).quota_GP == wanted).all()


def test_without_tokens_nothing_goes_anywhere_and_the_bound_is_zero() -> None:
    placement, count_GE = serving_layer()
    for split in (split_tokens(0 * count_GE, placement, 0), split_equally(0 * count_GE, placement, 0)):
        assert not split.quota_GP.any()
        assert not split.tokens_G.any()
        assert split.lower_bound == 0


def test_one_rank_computes_everything_itself() -> None:
    placement = linear_placement(layers=1, experts=4, ranks=1)
    split = split_tokens([[3, 0, 2, 7]], placement, 0)
    assert split.quota_GP.tolist() == [[3, 0, 2, 7]]
    assert split.tokens_G.tolist() == [12]


def test_a_rank_without_tokens_gets_its_share_of_the_others() -> None:
    placement = Placement(np.array([[0, 1, 1, 0]]), experts=2, ranks=2)
    split = split_tokens([[6, 4], [0, 0]], placement, 0)
    assert split.tokens_G.tolist() == [5, 5]
    assert not split.quota_GP[1].any()


def test_the_largest_counts_there_can_be_are_split_exactly() -> None:
    most = 2**31 - 1
    placement = Placement(np.array([[0, 1, 1, 0]]), experts=2, ranks=2)
    split = split_tokens([[most, most], [most, 0]], placement, 0)
    assert split.tokens_G.tolist() == [(3 * most + 1) // 2, 3 * most // 2]
    assert split.quota_GP.sum(axis=1, dtype=np.int64).tolist() == [2 * most, most]


def test_each_layer_is_split_over_its_own_replicas() -> None:
    placement = Placement(np.array([[0, 1, 1, -1], [0, 1, -1, 0]]), experts=2, ranks=2)
    assert split_tokens([[4, 4], [4, 4]], placement, 0).tokens_G.tolist() == [8, 8]
    assert split_tokens([[4, 4], [4, 4]], placement, 1).quota_GP.tolist() == [[0, 4, 0, 4], [0, 4, 0, 4]]


def test_tokens_left_over_from_equal_shares_go_to_another_replica_on_each_rank() -> None:
    placement = Placement(np.array([[0, 1, 0, 2, 0, 3]]), experts=4, ranks=3)
    split = split_equally([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], placement, 0)
    assert split.tokens_G.tolist() == [1, 1, 1]


@given(layers())
@settings(deadline=None, max_examples=100)
def test_the_tokens_of_equal_shares_are_known_without_the_shares(case: tuple[Placement, np.ndarray]) -> None:
    placement, counts = case
    for given_counts in (counts, counts.astype(np.int32)):
        assert (
            equal_tokens(given_counts, placement, 0).tolist() == split_equally(counts, placement, 0).tokens_G.tolist()
        )


def test_local_counts_alone_come_within_three_percent_of_all_counts_together() -> None:
    rng = np.random.default_rng(11)
    placement = random_placement(rng, ranks=32, experts=256, held=9)
    worse = []
    for _ in range(10):
        popularity = rng.lognormal(sigma=0.7, size=256)
        count_GE = rng.multinomial(1024, popularity / popularity.sum(), size=32)
        local = rank_tokens(
            np.array([split_local_tokens(c, placement, 0, rank=g) for g, c in enumerate(count_GE)]), placement.ranks
        )
        worse.append(local.max() / split_tokens(count_GE, placement, 0).tokens_G.max())
    assert np.mean(worse) <= 1.03


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"count_GE": [[1, -2], [0, 0]]}, r"count_GE: expected counts in 0..2147483647, got -2 at \[0, 1\]"),
        ({"count_GE": [[1, 2], [2**31, 0]]}, r"count_GE: .* got 2147483648 at \[1, 0\]"),
        ({"count_GE": np.array([[1, 2], [2**63, 0]], dtype=np.uint64)}, r"count_GE: expected counts in .* at \[1, 0\]"),
        ({"count_GE": [[1.0, 2.0], [0.0, 0.0]]}, r"count_GE: expected integers of shape \[2, 2\], got float64"),
        ({"count_GE": [[1, 2]]}, r"count_GE: expected integers of shape \[2, 2\], got int64 of shape \[1, 2\]"),
        ({"count_GE": [1, 2]}, "count_GE: "),
        ({"count_GE": [[1, 2], [1]]}, "count_GE: .* ragged"),
        ({"layer": 1}, r"layer: expected 0..0, got 1"),
        ({"layer": -1}, r"layer: expected 0..0, got -1"),
        ({"nodes": 0}, "nodes: expected a divisor of 2 ranks, got 0"),
        ({"nodes": 4}, "nodes: expected a divisor of 2 ranks, got 4"),
    ],
)
def test_what_cannot_be_split_is_refused_by_its_name(change: dict[str, object], complaint: str) -> None:
    placement = Placement(np.array([[0, 1, 1, 0]]), experts=2, ranks=2)
    arguments = {"count_GE": [[1, 2], [3, 4]], "placement": placement, "layer": 0} | change
    with pytest.raises(BalanceInputError, match=f"^{complaint}"):
        split_tokens(**arguments)


def test_local_and_equal_splits_refuse_by_name_too() -> None:
    placement = Placement(np.array([[0, 1, 1, 0]]), experts=2, ranks=2)
    with pytest.raises(BalanceInputError, match=r"^count_GE: .* got -1 at \[1, 1\]"):
        split_equally([[0, 0], [0, -1]], placement, 0)
    with pytest.raises(BalanceInputError, match=r"^layer: "):
        split_equally([[0, 0], [0, 1]], placement, 7)
    with pytest.raises(BalanceInputError, match=r"^count_GE: .* got -2 at \[0, 1\]"):
        equal_tokens([[0, -2], [0, 1]], placement, 0)
    with pytest.raises(BalanceInputError, match=r"^count_E: expected integers of shape \[2\]"):
        split_local_tokens([[1, 2]], placement, 0, rank=0)
    with pytest.raises(BalanceInputError, match=r"^count_E: .* got -3 at \[0\]"):
        split_local_tokens([-3, 2], placement, 0, rank=0)
    with pytest.raises(BalanceInputError, match=r"^rank: expected 0..1, got 2"):
        split_local_tokens([1, 2], placement, 0, rank=2)
    with pytest.raises(BalanceInputError, match=r"^nodes: "):
        split_local_tokens([1, 2], placement, 0, rank=1, nodes=3)
    with pytest.raises(BalanceInputError, match=r"^quota_GP: "):
        rank_tokens(np.zeros((2, 5), dtype=np.int32), 2)
