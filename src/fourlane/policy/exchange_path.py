"""Which way tokens take to experts on other nodes: straight to each rank, or once per node and forwarded inside.

Flat: a row for each (token, expert), from the token's rank to the expert's. Hierarchical: a row for each (token, node)
to the rank of that node with the sender's index in its own, with a list of the experts' slots; that rank forwards
it to theirs. Fewer bytes cross nodes, at the price of another round and of bytes inside the node.

Pure: from numbers that all ranks of a group have, so all of them choose alike. Not for how rows are laid out
(`engine.exchange.hierarchical`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "INDEX_BYTES",
    "Hierarchical",
    "PathBytes",
    "PathChoice",
    "PathCosts",
    "choose_path",
    "expected_nodes",
    "flat_bytes",
    "hierarchical_bytes",
    "least_distinct",
]

Hierarchical = Literal["auto", "always", "never"]
INDEX_BYTES = 4
"""What says for each (token, expert) which of a node's tokens it is."""


@dataclass(frozen=True, slots=True)
class PathCosts:
    """What an all-to-all costs in a group.

    Units:
        round_s: seconds of one that carries nothing; cross_s, local_s: seconds a byte that the busiest rank
            sends to, or gets from, other nodes, or other ranks of its own.
    """

    round_s: float
    cross_s: float
    local_s: float


@dataclass(frozen=True, slots=True)
class PathBytes:
    """Bytes of the rank that sends or gets most: across nodes, and inside its node; `total_cross` is all ranks'."""

    cross: int
    local: int
    total_cross: int


@dataclass(frozen=True, slots=True)
class PathChoice:
    """Which way, and what each is expected to take.

    Units:
        flat_s, hierarchical_s: seconds.
    """

    hierarchical: bool
    flat_s: float
    hierarchical_s: float


def expected_nodes(*, top_k: int, experts: int, nodes: int) -> float:
    """Return on how many nodes a token's experts are, on average, if all choices of experts are equally likely.

    Args:
        top_k: experts a token goes to, all different.
        experts: in all, equally many on each node.
        nodes: that share them.
    """
    elsewhere = experts - experts // nodes
    return nodes * (1 - comb(elsewhere, top_k) / comb(experts, top_k))


def flat_bytes(rows_GG: NDArray[np.int64], row_bytes: int, *, nodes: int) -> PathBytes:
    """Return what a flat dispatch moves.

    Args:
        rows_GG: [ranks, ranks] (token, expert) pairs by the token's rank and the expert's.
        row_bytes: of a token.
        nodes: of equally many ranks, in rank order.
    """
    moved_GG = rows_GG - np.diag(np.diag(rows_GG))
    inside_GG = moved_GG * _same_node(len(rows_GG), nodes)
    return _path_bytes((moved_GG - inside_GG) * row_bytes, inside_GG * row_bytes)


def hierarchical_bytes(
    rows_GG: NDArray[np.int64], distinct_GN: NDArray[np.int64], row_bytes: int, *, nodes: int
) -> PathBytes:
    """Return what a hierarchical dispatch moves, its lists of slots included.

    Args:
        rows_GG: [ranks, ranks] (token, expert) pairs by the token's rank and the expert's.
        distinct_GN: [ranks, nodes] tokens of each rank with an expert on each node.
        row_bytes: of a token.
        nodes: of equally many ranks, in rank order.
    """
    ranks, width = len(rows_GG), len(rows_GG) // nodes
    rows_NWNW = rows_GG.reshape(nodes, width, nodes, width)
    forwarded_NWW = rows_NWNW.sum(axis=0).transpose(1, 0, 2)  # node, from, to
    cross_GG = np.zeros((ranks, ranks), dtype=np.int64)
    local_GG = np.zeros((ranks, ranks), dtype=np.int64)
    bytes_GN = distinct_GN * row_bytes + rows_NWNW.sum(axis=3).reshape(ranks, nodes) * INDEX_BYTES
    for index in range(width):
        peers = np.arange(nodes) * width + index
        cross_GG[np.ix_(peers, peers)] = bytes_GN[peers]
    for node in range(nodes):
        members = slice(node * width, (node + 1) * width)
        local_GG[members, members] = forwarded_NWW[node] * row_bytes
        cross_GG[members, members] = 0
    return _path_bytes(cross_GG, local_GG - np.diag(np.diag(local_GG)))


def least_distinct(rows_GG: NDArray[np.int64], top_k: int, *, nodes: int) -> NDArray[np.int64]:
    """Return how few tokens can have so many experts on each node, [ranks, nodes]: none has more than `top_k`."""
    rows_GN = rows_GG.reshape(len(rows_GG), nodes, -1).sum(axis=2)
    return -(-rows_GN // top_k)


def choose_path(
    rows_GG: NDArray[np.int64],
    distinct_GN: NDArray[np.int64],
    row_bytes: int,
    costs: PathCosts,
    *,
    nodes: int,
    more_rounds: int = 1,
) -> PathChoice:
    """Choose the way that is expected to take less time; flat unless the other is better.

    The flat way is taken at its best: its bytes across nodes and inside move at the same time. The
    hierarchical one is not: first the ones, then the others.

    Args:
        rows_GG: [ranks, ranks] (token, expert) pairs by the token's rank and the expert's.
        distinct_GN: [ranks, nodes] tokens of each rank with an expert on each node.
        row_bytes: of a token.
        costs: the same on all ranks.
        nodes: of equally many ranks, in rank order.
        more_rounds: that the hierarchical way takes.
    """
    flat = flat_bytes(rows_GG, row_bytes, nodes=nodes)
    other = hierarchical_bytes(rows_GG, distinct_GN, row_bytes, nodes=nodes)
    flat_s = costs.round_s + max(flat.cross * costs.cross_s, flat.local * costs.local_s)
    other_s = (1 + more_rounds) * costs.round_s + other.cross * costs.cross_s + other.local * costs.local_s
    return PathChoice(other_s < flat_s, flat_s, other_s)


def _same_node(ranks: int, nodes: int) -> NDArray[np.bool_]:
    node_G = np.arange(ranks) // (ranks // nodes)
    return node_G[:, None] == node_G


def _path_bytes(cross_GG: NDArray[np.int64], local_GG: NDArray[np.int64]) -> PathBytes:
    return PathBytes(_busiest(cross_GG), _busiest(local_GG), int(cross_GG.sum()))


def _busiest(bytes_GG: NDArray[np.int64]) -> int:
    return int(max(bytes_GG.sum(axis=0).max(), bytes_GG.sum(axis=1).max()))
