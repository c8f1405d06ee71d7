"""Where rows go: orders over replicas, arrival, tables kept from placement to placement, what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import random_placement

from fourlane import _native
from fourlane.engine.exchange.contract import BatchExchange
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.meeting import nodes_of
from fourlane.engine.exchange.rows import Arrival, Sorted, decoded_counts, join_ranges, sort_in_torch
from fourlane.engine.exchange.slots import SlotTables
from fourlane.policy.placement import Placement, linear_placement

CPU = torch.device("cpu")
EXPERTS, TOP_K = 9, 3


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Return two layers of any number of replicas and empty slots."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ranks = draw(st.integers(1, 5))
    held = draw(st.integers(-(-EXPERTS // ranks), EXPERTS))
    empty = draw(st.integers(0, min(3, ranks * held - EXPERTS)))
    rows = [random_placement(rng, ranks=ranks, experts=EXPERTS, held=held, empty=empty) for _ in range(2)]
    return Placement(np.concatenate([row.slot_of_LP for row in rows]), experts=EXPERTS, ranks=ranks)


def routed(tokens: int, seed: int) -> torch.Tensor:
    return torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed)).topk(TOP_K).indices


def counts(topk_TK: torch.Tensor) -> np.ndarray:
    return torch.bincount(topk_TK.reshape(-1), minlength=EXPERTS).numpy()


@settings(max_examples=80, deadline=None)
@given(placements(), st.lists(st.sampled_from([0, 1, 5, 30]), min_size=5, max_size=5), st.booleans())
def test_what_one_rank_sends_is_what_the_other_expects_slot_by_slot(
    placement: Placement, tokens: list[int], split: bool
) -> None:
    topk = [routed(tokens[rank], seed=rank) for rank in range(placement.ranks)]
    count_GE = np.stack([counts(topk_TK) for topk_TK in topk])
    routes = [SlotTables(placement, rank=rank).routes(1, count_GE, split=split) for rank in range(placement.ranks)]
    quota_GP = np.stack([route.quota_P for route in routes])
    received_GGS = np.stack([route.count_GS for route in routes], axis=1)
    assert (quota_GP.reshape(received_GGS.shape) == received_GGS).all()
    assert all(
        (route.tokens_G == quota_GP.sum(axis=0).reshape(placement.ranks, -1).sum(axis=1)).all() for route in routes
    )
    assert all((route.count_E == count_GE.sum(axis=0)).all() for route in routes)
    row_P = placement.slot_of_LP[1]
    assert not quota_GP[:, row_P < 0].any()
    for expert in range(EXPERTS):
        assert (quota_GP[:, row_P == expert].sum(axis=1) == count_GE[:, expert]).all()


@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        (["a", "a", "b", "b"], 2),
        (["a", "b", "c"], 3),
        (["a"], 1),
        (["a", "a", "a", "b"], 1),
        (["a", "b", "a", "b"], 1),
        (["a", "a", "b"], 1),
        (["a", "a", "b", "a"], 1),
    ],
)
def test_hosts_are_nodes_where_each_has_equally_many_ranks_in_a_row(hosts: list[str], nodes: int) -> None:
    assert nodes_of(hosts) == nodes


def test_tokens_stay_on_their_node_where_that_makes_no_rank_fuller() -> None:
    row = np.array([[0, 1, 2, 3, 2, 4, 0, 5]])  # expert 0 on ranks 0 and 3, expert 2 on ranks 1 and 2
    placement = Placement(row, experts=6, ranks=4)
    count_GE = np.zeros((4, 6), dtype=np.int64)
    count_GE[1, 0] = count_GE[2, 0] = 6
    count_GE[0, 2] = count_GE[3, 2] = 6
    split = [SlotTables(placement, rank=rank).routes(0, count_GE, split=True, nodes=2) for rank in range(4)]
    assert [np.flatnonzero(routes.quota_P).tolist() for routes in split] == [[2], [0], [6], [4]]
    assert all((routes.tokens_G == 6).all() for routes in split)


@settings(max_examples=80, deadline=None)
@given(placements(), st.sampled_from([0, 1, 5, 40]))
def test_a_ranks_tokens_go_to_replicas_in_slot_order_natively_and_in_torch(placement: Placement, tokens: int) -> None:
    topk_TK = routed(tokens, seed=3)
    tables = SlotTables(placement, rank=0)
    count_GE = np.stack([counts(topk_TK)] * placement.ranks)
    for layer in range(2):
        quota_P = tables.routes(layer, count_GE, split=True).quota_P
        slots = tables.layer(layer)
        found = slots.by_slot(slots.sort(topk_TK), quota_P)
        expected = pairs_by_slot(topk_TK, placement.slot_of_LP[layer], quota_P)
        assert found.order_R.tolist() == expected
        assert found.rows_R.tolist() == [pair // TOP_K for pair in expected]
        keys = torch.from_numpy(np.arange(EXPERTS) if slots.replicated else placement.first_slot_of_LE[layer].copy())
        in_torch = slots.by_slot(sort_in_torch(topk_TK, keys), quota_P)
        assert all(torch.equal(getattr(found, name), getattr(in_torch, name)) for name in Sorted.__dataclass_fields__)


def pairs_by_slot(topk_TK: torch.Tensor, row_P: np.ndarray, quota_P: np.ndarray) -> list[int]:
    """Return the (token, k) pairs of each slot in turn, by the words of the contract."""
    waiting = {
        expert: [pair for pair, e in enumerate(topk_TK.reshape(-1).tolist()) if e == expert]
        for expert in range(EXPERTS)
    }
    order: list[int] = []
    for expert, quota in zip(row_P.tolist(), quota_P.tolist(), strict=True):
        if quota:
            order += waiting[expert][:quota]
            del waiting[expert][:quota]
    assert not any(waiting.values())
    return order


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_arrived_rows_are_computed_by_slot_and_then_by_rank(count_GS: list[list[int]]) -> None:
    arrived = [(rank, slot, nth) for rank, row in enumerate(count_GS) for slot, n in enumerate(row) for nth in range(n)]
    arrival = Arrival.of(np.array(count_GS), CPU)
    computed = [arrived[row] for row in arrival.by_slot_R.tolist()]
    assert computed == sorted(arrived, key=lambda row: (row[1], row[0], row[2]))
    assert [computed[place] for place in arrival.place_R.tolist()] == arrived
    sizes = np.array(count_GS).sum(axis=0)
    assert arrival.offset_S1 == [0, *sizes.cumsum().tolist()]


def test_layers_whose_slots_stay_keep_their_tables() -> None:
    first = linear_placement(layers=3, experts=4, ranks=2)
    tables = SlotTables(first, rank=1)
    before = [tables.layer(layer) for layer in range(3)]
    assert tables.of(first) is tables
    after = tables.of(first.with_layer(1, [3, 2, 1, 0]))
    assert after.layer(0) is before[0]
    assert after.layer(1) is not before[1]
    assert after.layer(2) is before[2]
    assert after.layer(1).spread(np.array([10, 11, 12, 13])).tolist() == [13, 12, 11, 10]
    wider = tables.of(linear_placement(layers=3, experts=4, ranks=2, redundant=2))
    assert wider.layer(0).replicated


def test_joined_ranges_refuse_counts_that_cannot_be() -> None:
    def join(firsts: list[int], sizes: list[int]) -> list[int]:
        return _native.join_ranges(np.array(firsts, dtype=np.int64), np.array(sizes, dtype=np.int64)).tolist()

    assert join([5, 0, 7], [2, 0, 3]) == [5, 6, 7, 8, 9]
    assert join([], []) == []
    assert join_ranges(np.array([3]), np.array([1]), CPU).dtype == torch.int64
    for firsts, sizes in (([0], [-1]), ([0, 1], [1]), ([0, 0], [2**62, 2**62])):
        with pytest.raises(ValueError, match="counts"):
            join(firsts, sizes)


def test_decoded_tokens_are_counted_apart_from_prefilled_ones() -> None:
    topk_TK = routed(6, seed=1)
    count_E = torch.from_numpy(counts(topk_TK))
    assert decoded_counts(topk_TK, None, count_E) is None
    assert decoded_counts(topk_TK, torch.empty(0, dtype=torch.int64), count_E) is None
    rows = torch.tensor([5, 0])
    found = decoded_counts(topk_TK, rows, count_E)
    assert found is not None
    assert found.tolist() == counts(topk_TK[rows]).tolist()
    assert decoded_counts(topk_TK, torch.arange(6), count_E) is count_E


def test_one_rank_alone_counts_phases_and_may_have_empty_slots() -> None:
    placement = Placement(np.array([[4, -1, *range(4), -1, *range(5, EXPERTS)]]), experts=EXPERTS, ranks=1)
    exchange = LocalExchange(placement)
    topk_TK, x_TD = routed(7, seed=2), torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    weights_TK = torch.ones(7, TOP_K)
    received = (
        BatchExchange(exchange, torch.tensor([6, 2])).dispatch(x_TD, topk_TK, weights_TK, placement, layer=0).wait()
    )
    sizes = np.diff(received.offset_S1)
    assert sizes.tolist() == [int(counts(topk_TK)[e]) if e >= 0 else 0 for e in placement.slot_of_LP[0]]
    torch.testing.assert_close(exchange.combine(received.x_RD, received).wait(), TOP_K * x_TD)
    counters = exchange.counters
    assert counters.decode_LE[0].tolist() == counts(topk_TK[[6, 2]]).tolist()
    assert (
        (counters.prefill_LE + counters.decode_LE).tolist() == counters.load_LE.tolist() == [counts(topk_TK).tolist()]
    )
    assert counters.balance == 1.0
    assert (counters.max_split_L.tolist(), counters.max_equal_L.tolist(), counters.mean_L.tolist()) == (
        [21],
        [21],
        [21],
    )
