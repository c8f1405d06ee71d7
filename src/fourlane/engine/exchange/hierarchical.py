"""Dispatch over nodes: a token goes to each node once and is forwarded to its experts' ranks there.

Between nodes, ranks with the same index in theirs talk: a rank sends each of its peers the tokens that
have an expert on the peer's node, each once, behind a list that says for every row of that node's slots
which of the tokens it is. Both lengths follow from the counts round. The peer forwards rows to the ranks
of its node, from where they come to the same place as on the flat way, in the same order.

Outputs go back straight, row by row: were they added up on the way, the order of additions would depend
on where experts are, and the results on the placement. Which way pays: `policy.exchange_path`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane.engine.exchange.all_to_all import AllToAllExchange
from fourlane.engine.exchange.rows import Arrival, join_ranges
from fourlane.policy.exchange_path import INDEX_BYTES, PathCosts, choose_path, least_distinct

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.engine.exchange.rows import Sorted
    from fourlane.engine.exchange.slots import LayerSlots, Routes
    from fourlane.policy.exchange_path import Hierarchical

__all__ = ["HierarchicalAllToAll", "NodeLayout", "NodeRows"]

_PROBE_BYTES = 256 << 10
_PROBES = 3


@dataclass(frozen=True, slots=True)
class NodeRows:
    """A rank's tokens as they leave for nodes.

    token_R: int64, the tokens for node 0, then 1, ..., each once a node, in token order.
    index_R: int32, for each (token, expert) in order of slots which of its node's tokens it is.
    count_N: int64 [nodes], the tokens for each node.
    """

    token_R: Tensor
    index_R: Tensor
    count_N: Tensor

    @classmethod
    def of(cls, rows_R: Tensor, rows_N: np.ndarray, tokens: int) -> NodeRows:
        """Gather the tokens that each node gets.

        Args:
            rows_R: int64, the token of each (token, expert), in order of slots and so of nodes.
            rows_N: int64 [nodes], how many of them are each node's.
            tokens: of this rank.
        """
        nodes = torch.arange(len(rows_N), device=rows_R.device)
        node_R = nodes.repeat_interleave(torch.from_numpy(rows_N).to(rows_R.device), output_size=rows_R.shape[0])
        goes_NT = torch.zeros((len(rows_N), tokens), dtype=torch.bool, device=rows_R.device)
        goes_NT[node_R, rows_R] = True
        place_NT = goes_NT.cumsum(dim=1, dtype=torch.int32) - 1
        return cls(goes_NT.nonzero()[:, 1], place_NT[node_R, rows_R], goes_NT.sum(dim=1))


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """What goes where in one dispatch over nodes, as one rank sees it; from numbers that all ranks have.

    Args:
        quota_GP: int64 [ranks, slots], the rows of each rank for each slot.
        distinct_GN: int64 [ranks, nodes], the tokens of each rank with an expert on each node.
        rank: this one.
    """

    quota_GP: np.ndarray
    distinct_GN: np.ndarray
    rank: int

    @property
    def nodes(self) -> int:
        """Return how many nodes there are."""
        return self.distinct_GN.shape[1]

    @property
    def width(self) -> int:
        """Return the ranks of a node."""
        return self.quota_GP.shape[0] // self.nodes

    @property
    def node(self) -> int:
        """Return this rank's node."""
        return self.rank // self.width

    @property
    def peers(self) -> range:
        """Return the ranks with this one's index in their nodes, this one among them."""
        return range(self.rank % self.width, self.quota_GP.shape[0], self.width)

    def rows_to_nodes(self, rank: int) -> np.ndarray:
        """Return how many rows a rank has for the slots of each node, [nodes]."""
        return self.quota_GP[rank].reshape(self.nodes, -1).sum(axis=1)

    def bytes_to_peers(self, row_bytes: int) -> tuple[list[int], list[int]]:
        """Return the bytes for each rank and from each rank, between nodes."""
        sent_G, received_G = [0] * len(self.quota_GP), [0] * len(self.quota_GP)
        mine_N = self.rows_to_nodes(self.rank)
        for node, peer in enumerate(self.peers):
            if node != self.node:
                sent_G[peer] = int(mine_N[node]) * INDEX_BYTES + int(self.distinct_GN[self.rank, node]) * row_bytes
                rows = int(self.rows_to_nodes(peer)[self.node])
                received_G[peer] = rows * INDEX_BYTES + int(self.distinct_GN[peer, self.node]) * row_bytes
        return sent_G, received_G

    def rows_from_peers(self) -> np.ndarray:
        """Return the rows that this rank forwards, int64 [nodes they come from, ranks of the node they go to]."""
        quota_NP = self.quota_GP[self.peers.start :: self.width]
        return quota_NP.reshape(self.nodes, self.nodes, self.width, -1)[:, self.node].sum(axis=2)

    def rows_inside(self, count_GS: np.ndarray) -> tuple[list[int], list[int]]:
        """Return the rows for each rank and from each rank, inside the node.

        Args:
            count_GS: int64 [ranks, slots a rank], the rows of each rank for this one's slots.
        """
        sent_G, received_G = [0] * len(self.quota_GP), [0] * len(self.quota_GP)
        members = slice(self.node * self.width, (self.node + 1) * self.width)
        sent_G[members] = self.rows_from_peers().sum(axis=0).tolist()
        received_G[members] = count_GS.sum(axis=1).reshape(self.nodes, self.width).sum(axis=0).tolist()
        return sent_G, received_G

    def by_slot(self, count_GS: np.ndarray, device: torch.device) -> Tensor:
        """Return which arrived row stands at each place; rows come by forwarding rank, node of origin and slot."""
        came = np.arange(len(count_GS)).reshape(self.nodes, self.width).T.reshape(-1)
        count_X = count_GS[came].reshape(-1)
        begin_GS = np.empty_like(count_GS)
        begin_GS[came] = (count_X.cumsum() - count_X).reshape(count_GS.shape)
        return join_ranges(begin_GS.T.reshape(-1), count_GS.T.reshape(-1), device)


class HierarchicalAllToAll(AllToAllExchange):
    """An exchange over a carrier that may send tokens once per node; among the ranks of one node as without.

    What rounds and bytes cost, if it matters, is measured when the nodes are found, and kept in `costs`.
    """

    _hierarchical: Hierarchical = "never"
    costs: PathCosts | None = None

    def find_nodes(self, host: str, *, hierarchical: Hierarchical = "never") -> int:
        """Find out on how many nodes the group is, and if it may matter, what rounds and bytes cost there.

        Args:
            host: this rank's.
            hierarchical: whether tokens go once per node, the same on all ranks; "auto": each dispatch by
                what it is expected to cost.

        Raises:
            PeerLost: a peer died or hangs.
        """
        nodes = super().find_nodes(host)
        self._hierarchical = hierarchical
        if nodes > 1 and hierarchical == "auto":
            self.costs = self._measure()
        return nodes

    def _more_counts(self, slots: LayerSlots, topk_TK: Tensor) -> Tensor | None:
        """Return how many tokens have an expert on each node, where the split has no say in it."""
        if not self._may_forward or slots.replicated:
            return None
        node_TK = slots.node_of_experts(self._nodes, topk_TK.device)[topk_TK]
        goes_TN = torch.zeros((topk_TK.shape[0], self._nodes), dtype=torch.bool, device=topk_TK.device)
        return goes_TN.scatter_(1, node_TK, value=True).sum(dim=0)

    @property
    def _may_forward(self) -> bool:
        return self._nodes > 1 and self._hierarchical != "never"

    def _send(
        self, packed_TB: Tensor, sent: Sorted, routes: Routes, *, more_GX: np.ndarray, top_k: int, where: str
    ) -> tuple[Tensor, Arrival]:
        """Give packed tokens to the ranks of their experts, the way that takes less time."""
        layout = None
        if self._may_forward:
            layout = self._layout(packed_TB, sent, routes.quota_GP, distinct_GN=more_GX, top_k=top_k, where=where)
        if layout is None:
            return super()._send(packed_TB, sent, routes, more_GX=more_GX, top_k=top_k, where=where)
        return self._send_over_nodes(packed_TB, sent, routes, layout, where)

    def _layout(
        self, packed_TB: Tensor, sent: Sorted, quota_GP: np.ndarray, *, distinct_GN: np.ndarray, top_k: int, where: str
    ) -> NodeLayout | None:
        """Return the layout over nodes, if that way is taken; all ranks come to the same."""
        rows_GG = quota_GP.reshape(self.ranks, self.ranks, -1).sum(axis=2)
        told = distinct_GN.shape[1] > 0
        least_GN = distinct_GN if told else least_distinct(rows_GG, top_k, nodes=self._nodes)
        if not self._pays(rows_GG, least_GN, packed_TB.shape[1], more_rounds=1 if told else 2):
            return None
        if not told:
            rows_N = rows_GG[self.rank].reshape(self._nodes, -1).sum(axis=1)
            mine = NodeRows.of(sent.rows_R, rows_N, packed_TB.shape[0])
            distinct_GN = self._gather(mine.count_N, f"{where}, tokens a node")
            if not self._pays(rows_GG, distinct_GN, packed_TB.shape[1], more_rounds=1):
                return None
        return NodeLayout(quota_GP, distinct_GN, self.rank)

    def _pays(self, rows_GG: np.ndarray, distinct_GN: np.ndarray, row_bytes: int, *, more_rounds: int) -> bool:
        if self._hierarchical == "always":
            return True
        if self.costs is None:
            return False
        more_rounds -= self.ranks == self._nodes  # a rank forwards to itself
        choice = choose_path(rows_GG, distinct_GN, row_bytes, self.costs, nodes=self._nodes, more_rounds=more_rounds)
        return choice.hierarchical

    def _send_over_nodes(
        self, packed_TB: Tensor, sent: Sorted, routes: Routes, layout: NodeLayout, where: str
    ) -> tuple[Tensor, Arrival]:
        self.counters.over_nodes += 1
        packed_TB = packed_TB.to(self._wire)
        rows_R = sent.rows_R.to(self._wire)
        came = self._to_peers(packed_TB, rows_R, layout, f"{where} between nodes")
        rows_RB = self._rows_to_forward(packed_TB, rows_R, layout, came)
        sent_G, received_G = layout.rows_inside(routes.count_GS)
        if layout.width > 1:
            rows_RB, work = self._exchange(rows_RB, sent_G, received_G, f"{where} inside nodes")
        else:
            work = None
        arrival = Arrival.of(routes.count_GS, self._device)
        by_slot_R = layout.by_slot(routes.count_GS, self._device)
        if work is not None:
            self._wait(work, f"{where} inside nodes", self.meanwhile)
        return rows_RB.to(self._device).index_select(0, by_slot_R), arrival

    def _to_peers(self, packed_TB: Tensor, rows_R: Tensor, layout: NodeLayout, where: str) -> Tensor:
        """Give each node its tokens and the list of its rows; return what came from peers, as bytes."""
        rows_N = layout.rows_to_nodes(self.rank)
        mine = NodeRows.of(rows_R, rows_N, packed_TB.shape[0])
        lists = mine.index_R.split(rows_N.tolist())
        tokens = mine.token_R.split(layout.distinct_GN[self.rank].tolist())
        pieces = [torch.empty(0, dtype=torch.uint8, device=self._wire)]
        for node in range(layout.nodes):
            if node != layout.node:
                pieces.append(lists[node].contiguous().view(torch.uint8))
                pieces.append(packed_TB.index_select(0, tokens[node]).view(-1))
        sent_G, received_G = layout.bytes_to_peers(packed_TB.shape[1])
        came, work = self._exchange(torch.cat(pieces).view(-1, 1), sent_G, received_G, where)
        self._wait(work, where)
        return came.view(-1)

    def _rows_to_forward(self, packed_TB: Tensor, rows_R: Tensor, layout: NodeLayout, came: Tensor) -> Tensor:
        """Return the rows for the ranks of this node, by rank, node they come from and slot."""
        rows_NW = layout.rows_from_peers()
        stores = [packed_TB]
        indices: list[Tensor] = []
        base, at = packed_TB.shape[0], 0
        for node, peer in enumerate(layout.peers):
            rows = int(rows_NW[node].sum())
            if node == layout.node:  # its own tokens need no list
                first = int(layout.rows_to_nodes(self.rank)[:node].sum())
                indices.append(rows_R[first : first + rows])
                continue
            listed = came[at : at + rows * INDEX_BYTES].clone().view(torch.int32)
            at += rows * INDEX_BYTES
            tokens = int(layout.distinct_GN[peer, layout.node])
            stores.append(came[at : at + tokens * packed_TB.shape[1]].view(tokens, packed_TB.shape[1]))
            at += tokens * packed_TB.shape[1]
            indices.append(listed.to(torch.int64) + base)
            base += tokens
        count_X = rows_NW.reshape(-1)
        begin_NW = (count_X.cumsum() - count_X).reshape(rows_NW.shape)
        taken_R = join_ranges(begin_NW.T.reshape(-1), rows_NW.T.reshape(-1), self._wire)
        return torch.cat(stores).index_select(0, torch.cat(indices).index_select(0, taken_R))

    def _measure(self) -> PathCosts:
        """Find out what a round and bytes across and inside nodes cost; the same numbers on all ranks."""
        width = self.ranks // self._nodes
        node, index = divmod(self.rank, width)
        across = [rank for rank in range(index, self.ranks, width) if rank != self.rank]
        inside = [rank for rank in range(node * width, (node + 1) * width) if rank != self.rank]
        took = [
            self._probe(peers, size) for peers, size in ((across, 0), (across, _PROBE_BYTES), (inside, _PROBE_BYTES))
        ]
        round_s, cross_s, local_s = (self.tell_all_numbers(np.array(took)).max(axis=0) * 1e-9).tolist()
        return PathCosts(
            round_s,
            max(0.0, cross_s - round_s) / (_PROBE_BYTES * len(across)),
            max(0.0, local_s - round_s) / (_PROBE_BYTES * max(1, len(inside))),
        )

    def _probe(self, peers: list[int], size: int) -> int:
        """Return the nanoseconds of an all-to-all of so many bytes with each of some ranks, the median of a few."""
        sizes_G = [size * (rank in peers) for rank in range(self.ranks)]
        block = torch.zeros((size * len(peers), 1), dtype=torch.uint8, device=self._wire)
        took = []
        for _ in range(1 + _PROBES):  # the first warms connections up
            began = time.perf_counter_ns()
            _, work = self._exchange(block, sizes_G, sizes_G, "measuring nodes")
            self._wait(work, "measuring nodes")
            if self._wire.type == "cuda":
                torch.cuda.synchronize(self._wire)
            took.append(time.perf_counter_ns() - began)
        return int(statistics.median(took[1:]))
