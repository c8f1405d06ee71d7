"""Placements designed for splitting: legal, within their limits, and better for batches that lean."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import random_placement

from fourlane.errors import BalanceInputError
from fourlane.policy.load_generator import DECODE, leaning_batch
from fourlane.policy.placement import Leaning, Placement, place_experts
from fourlane.policy.placing.split_aware import DesignRules, design_for_splitting, split_balance
from fourlane.policy.token_split import split_tokens

SUPPORT = Path(__file__).parents[1] / "support"


@dataclass(frozen=True)
class Case:
    """A placement to begin with, the samples it is designed for, and costs with equal shares."""

    start: Placement
    load_WLE: np.ndarray
    cost_LEC: np.ndarray
    leaning: Leaning


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ranks = draw(st.integers(1, 8))
    experts = draw(st.integers(1, 24))
    held = draw(st.integers(-(-experts // ranks), experts))
    empty = draw(st.integers(0, min(3, ranks * held - experts)))
    start = random_placement(rng, ranks=ranks, experts=experts, held=held, empty=empty)
    load_WLE = rng.lognormal(sigma=1.0, size=(draw(st.integers(1, 3)), 1, experts)) * draw(st.sampled_from([1, 1000]))
    load_WLE *= rng.random(load_WLE.shape) < 0.9
    cost_LEC = (load_WLE.sum(axis=0)[:, :, None] / np.arange(1, ranks + 1) * 1000).astype(np.int64)
    leaning = draw(
        st.sampled_from([Leaning(batches=5), Leaning(sd=0.0, tokens=0), Leaning(sd=0.5, equal_split=0.2, batches=11)])
    )
    return Case(start, load_WLE, cost_LEC, leaning)


def design(case: Case, **rules: object) -> Placement:
    found = design_for_splitting(
        case.start.slot_of_LP, case.load_WLE, case.cost_LEC, DesignRules(case.start.ranks, **rules), case.leaning
    )
    return Placement(found, experts=case.start.experts, ranks=case.start.ranks)  # refuses what is not legal


def costliest(case: Case, placement: Placement) -> int:
    """Return the cost of the costliest rank with equal shares."""
    share_E = np.take_along_axis(case.cost_LEC[0], placement.copies_LE[0][:, None] - 1, axis=1)[:, 0]
    row = placement.slot_of_LP[0]
    share_P = np.where(row >= 0, share_E[row], 0)
    return int(share_P.reshape(placement.ranks, -1).sum(axis=1).max())


@given(cases())
@settings(deadline=None, max_examples=60)
def test_no_design_is_worse_than_its_start_for_the_batches_drawn(case: Case) -> None:
    before = split_balance(case.load_WLE, case.start, case.leaning)
    after = split_balance(case.load_WLE, design(case), case.leaning)
    assert after[0] <= before[0]


@given(cases())
@settings(deadline=None, max_examples=60)
def test_equal_shares_become_no_worse_than_allowed(case: Case) -> None:
    limit = int(costliest(case, case.start) * (1.0 + case.leaning.equal_split))
    assert costliest(case, design(case)) <= limit


@given(cases(), st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_no_more_experts_move_than_allowed(case: Case, moves: int) -> None:
    found = design(case, previous_LP=case.start.slot_of_LP, moves=moves)
    assert found.moves_from(case.start)[0] <= moves


@given(cases())
@settings(deadline=None, max_examples=60)
def test_a_design_is_the_same_again_and_for_each_layer_by_itself(case: Case) -> None:
    once = design(case)
    twice = design_for_splitting(
        np.repeat(case.start.slot_of_LP, 2, axis=0),
        np.repeat(case.load_WLE, 2, axis=1),
        np.repeat(case.cost_LEC, 2, axis=0),
        DesignRules(case.start.ranks),
        case.leaning,
    )
    assert (twice == once.slot_of_LP).all()


@pytest.mark.parametrize("domain_ranks", [1, 2, 4])
def test_experts_stay_in_their_domain_on_request(domain_ranks: int) -> None:
    case = leaning_case(ranks=8, experts=24, held=6)
    before, after = (
        found.slot_of_LP.reshape(8 // domain_ranks, -1)
        for found in (case.start, design(case, domain_ranks=domain_ranks))
    )
    for was, now in zip(before, after, strict=True):
        assert set(now) <= set(was)


def test_replicas_stay_on_different_nodes_on_request() -> None:
    loads = np.random.default_rng(0).lognormal(sigma=0.8, size=(2, 64))
    placement = place_experts(loads, ranks=16, slots=80, nodes=4, spread_nodes=True)
    plain = place_experts(loads, ranks=16, slots=80, nodes=4, spread_nodes=True, split_aware=False)
    assert (placement.slot_of_LP != plain.slot_of_LP).any()
    node_P = placement.rank_of_P // 4
    for row in placement.slot_of_LP:
        pairs = {(int(node), int(expert)) for node, expert in zip(node_P, row, strict=True)}
        assert len(pairs) == placement.slots


def leaning_case(*, ranks: int, experts: int, held: int) -> Case:
    rng = np.random.default_rng(1)
    load_WLE = rng.lognormal(sigma=0.8, size=(1, 1, experts))
    cost_LEC = (load_WLE[0, :, :, None] / np.arange(1, ranks + 1) * 1e6).astype(np.int64)
    start = random_placement(rng, ranks=ranks, experts=experts, held=held)
    return Case(start, load_WLE, cost_LEC, Leaning(equal_split=0.1))


def fingerprint() -> str:
    return hashlib.sha256(design(leaning_case(ranks=16, experts=48, held=5)).slot_of_LP.tobytes()).hexdigest()


def test_another_process_finds_the_same_design() -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(SUPPORT)]!r}; "
        "import test_split_aware as t; print(t.fingerprint())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == fingerprint()


def test_without_replicas_nothing_is_designed() -> None:
    loads = DECODE.draw(np.random.default_rng(0))[:2]
    plain = place_experts(loads, ranks=32, slots=256, split_aware=False)
    assert (place_experts(loads, ranks=32, slots=256).slot_of_LP == plain.slot_of_LP).all()


def test_a_design_helps_batches_it_has_not_seen_and_costs_a_percent_with_equal_shares() -> None:
    rng = np.random.default_rng(2)
    loads = DECODE.draw(rng)[:4]
    plain = place_experts(loads, ranks=32, slots=288, split_aware=False)
    designed = place_experts(loads, ranks=32, slots=288)
    ratios = {"plain": [], "designed": []}
    for layer, load_E in enumerate(loads):
        for _ in range(6):
            count_GE = leaning_batch(load_E, rng, ranks=32, tokens=128, lean_sd=0.2)
            for name, placement in (("plain", plain), ("designed", designed)):
                tokens_G = split_tokens(count_GE, placement, layer).tokens_G
                ratios[name].append(tokens_G.max() / tokens_G.mean())
    assert np.mean(ratios["designed"]) <= 1.05
    assert np.mean(ratios["designed"]) < np.mean(ratios["plain"]) - 0.02
    assert (designed.balance(loads) <= plain.balance(loads) * 1.01 + 1e-9).all()


def test_samples_themselves_can_be_the_batches() -> None:
    rng = np.random.default_rng(4)
    load_E = rng.lognormal(sigma=0.8, size=64)
    load_WLE = np.stack([rng.poisson(load_E * 50 * rng.lognormal(sigma=0.3, size=64))[None] for _ in range(24)])
    as_they_are = Leaning(sd=0.0, tokens=0, equal_split=0.05)
    plain = place_experts(load_WLE, ranks=16, slots=80, split_aware=False)
    designed = place_experts(load_WLE, ranks=16, slots=80, split_aware=as_they_are)
    counts = load_WLE.astype(np.int64)
    means = []
    for placement in (plain, designed):
        splits = [split_tokens(np.vstack([c, np.zeros((15, 64), np.int64)]), placement, 0) for c in counts]
        means.append(np.mean([split.tokens_G.max() / split.tokens_G.mean() for split in splits]))
        assert split_balance(load_WLE, placement, as_they_are)[0] == pytest.approx(means[-1], rel=0.005)
    assert means[1] < means[0]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"sd": -0.1}, r"sd: expected .* got -0.1"),
        ({"sd": float("nan")}, r"sd: expected .* got nan"),
        ({"tokens": -1}, r"tokens: expected .* got -1"),
        ({"batches": 0}, r"batches: expected 1..4096, got 0"),
        ({"equal_split": float("inf")}, r"equal_split: expected .* got inf"),
    ],
)
def test_batches_that_cannot_be_are_refused_by_name(wrong: dict[str, float], complaint: str) -> None:
    with pytest.raises(BalanceInputError, match=f"^{complaint}"):
        Leaning(**wrong)


def test_other_arguments_are_refused_by_name_too() -> None:
    with pytest.raises(BalanceInputError, match=r"^split_aware: expected True, False or a Leaning, got 1"):
        place_experts([[1, 2]], ranks=1, slots=2, split_aware=1)
    placement = place_experts([[1, 2]], ranks=1, slots=2)
    with pytest.raises(BalanceInputError, match=r"^load: expected loads of 1 layers and 2 experts, got 1 and 3"):
        split_balance([[1, 2, 3]], placement)
