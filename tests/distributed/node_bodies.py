"""What ranks do to show which bytes go between nodes, and that all choose the same way there."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import conformance
import numpy as np
import torch
from conformance import Tokens
from exchanges import Joining
from split_cases import random_placement

from fourlane.engine.exchange.hierarchical import HierarchicalAllToAll
from fourlane.policy.exchange_path import INDEX_BYTES, PathCosts, flat_bytes, hierarchical_bytes
from fourlane.policy.placement import Placement, linear_placement
from fourlane.policy.token_split import split_tokens

if TYPE_CHECKING:
    from conformance import Group
    from faults import Seat

__all__ = ["all_choose_alike", "bytes_between_nodes"]

EXPERTS, TOP_K, DIM = 24, 6, 40


def bytes_between_nodes(seat: Seat) -> None:
    """Bytes between nodes are what theory says, each counted, with and without replicas, on any number of nodes."""
    placements = [linear_placement(layers=1, experts=EXPERTS, ranks=seat.ranks)]
    held = -(-EXPERTS // seat.ranks) + 2
    placements.append(random_placement(np.random.default_rng(1), ranks=seat.ranks, experts=EXPERTS, held=held, empty=1))
    exchange = seat.kind.open(Joining(seat.address(), placements[0]))
    assert isinstance(exchange, HierarchicalAllToAll)
    for nodes in (nodes for nodes in range(2, 9) if seat.ranks % nodes == 0):
        for way in ("always", "never"):
            exchange.find_nodes(f"host {seat.rank * nodes // seat.ranks}", hierarchical=way)
            for placement in placements:
                exchange.begin_step(0, more=False)
                _count_pair(exchange, placement, nodes, once=way == "always")


def _count_pair(exchange: HierarchicalAllToAll, placement: Placement, nodes: int, *, once: bool) -> None:
    ranks, rank = exchange.ranks, exchange.rank
    everyones = [
        conformance.tokens_of(5 + 3 * (r % 4), seed=r, dim=DIM, experts=EXPERTS, top_k=TOP_K) for r in range(ranks)
    ]
    own = everyones[rank]
    before = exchange.counters.cross_node_bytes
    received = exchange.dispatch(own.x_TD, own.topk_TK, own.weights_TK, placement, layer=0).wait()
    dispatched = exchange.counters.cross_node_bytes - before
    result = exchange.combine(received.x_RD, received).wait()
    combined = exchange.counters.cross_node_bytes - before - dispatched
    assert torch.allclose(result, own.x_TD * own.weights_TK.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)

    slots = [_slots_of(tokens, rank, received.count_GE, placement, nodes) for rank, tokens in enumerate(everyones)]
    node_of = [[{slot * nodes // placement.slots for slot in token} for token in mine] for mine in slots]
    here = rank * nodes // ranks
    elsewhere = sum(slot * nodes // placement.slots != here for token in slots[rank] for slot in token)
    tokens_elsewhere = sum(len(reached - {here}) for reached in node_of[rank])
    row_bytes = 4 * DIM
    expected = tokens_elsewhere * row_bytes + elsewhere * INDEX_BYTES if once else elsewhere * row_bytes
    assert dispatched == expected, (nodes, once)
    came = sum(
        source * nodes // ranks != here and slot // placement.slots_per_rank == rank
        for source, mine in enumerate(slots)
        for token in mine
        for slot in token
    )
    assert combined == came * row_bytes

    rows_GG = np.zeros((ranks, ranks), dtype=np.int64)
    for source, mine in enumerate(slots):
        for token in mine:
            for slot in token:
                rows_GG[source, slot // placement.slots_per_rank] += 1
    distinct_GN = np.array([[sum(n in reached for reached in mine) for n in range(nodes)] for mine in node_of])
    foreseen = (
        hierarchical_bytes(rows_GG, distinct_GN, row_bytes, nodes=nodes)
        if once
        else flat_bytes(rows_GG, row_bytes, nodes=nodes)
    )
    sent_G = exchange.tell_all_numbers(np.array([dispatched]))[:, 0]
    assert foreseen.total_cross == sent_G.sum()
    assert foreseen.cross >= sent_G.max()
    if once:
        assert foreseen.total_cross < flat_bytes(rows_GG, row_bytes, nodes=nodes).total_cross


def _slots_of(tokens: Tokens, rank: int, count_GE: np.ndarray, placement: Placement, nodes: int) -> list[list[int]]:
    """Return the slots of each token: an expert's first tokens go to its first replica, and so on."""
    quota_P = split_tokens(count_GE, placement, 0, nodes=nodes).quota_GP[rank]
    row_P = placement.slot_of_LP[0]
    found: list[list[int]] = [[] for _ in range(tokens.topk_TK.shape[0])]
    for expert in range(EXPERTS):
        rows = (tokens.topk_TK == expert).any(dim=1).nonzero()[:, 0].tolist()
        replicas = np.flatnonzero(row_P == expert).tolist()
        ends = np.cumsum([0, *quota_P[replicas]]).tolist()
        for slot, (begin, end) in zip(replicas, pairwise(ends), strict=True):
            for token in rows[begin:end]:
                found[token].append(slot)
    return found


def all_choose_alike(seat: Seat) -> None:
    """What rounds and bytes cost is the same for all; by it batches go one way or the other, with the same bits."""
    group = seat.join()
    exchange = group.exchange
    assert isinstance(exchange, HierarchicalAllToAll)
    nodes = group.kind.nodes(seat.ranks)
    assert exchange.find_nodes(f"host {seat.rank * nodes // seat.ranks}", hierarchical="auto") == nodes
    costs = exchange.costs
    assert costs is not None
    assert costs.round_s > 0
    numbers = np.array([costs.round_s, costs.cross_s, costs.local_s]).view(np.int64)
    assert (exchange.tell_all_numbers(numbers) == numbers).all()
    for case in conformance.FEW:
        case(group)
    for told, over_nodes in ((PathCosts(1e-9, 1e-3, 1e-6), True), (PathCosts(1.0, 1e-9, 1e-9), False)):
        exchange.costs = told
        _one_way(group, over_nodes=over_nodes)


def _one_way(group: Group, *, over_nodes: bool) -> None:
    """Batches all take the way that costs less, whether experts have replicas or not."""
    rng = np.random.default_rng(group.ranks)
    experts = conformance.EXPERTS
    shape = {"ranks": group.ranks, "experts": experts, "held": -(-experts // group.ranks) + 1}
    replicated = Placement(
        np.tile(random_placement(rng, **shape).slot_of_LP, (conformance.LAYERS, 1)), experts=experts, ranks=group.ranks
    )
    dim = 64  # so that a row is longer than its place in a list
    for placement in (group.placement, replicated):
        # a node of one rank takes no round more, except to tell how many tokens replicas leave for each node
        no_round = placement is group.placement and group.kind.nodes(group.ranks) == group.ranks
        group.step()
        before = group.exchange.counters.over_nodes
        tokens = conformance.tokens_of(20, seed=group.rank, dim=dim)
        group.check(group.pair(tokens, 0, placement), tokens)
        assert group.exchange.counters.over_nodes - before == int(over_nodes or no_round), placement
