"""Dispatch and combine in which a token crosses once per node: forwarded over NVLink, and summed on the way back.

Not for one message per choice (`fourlane.twin.fabric.expert_traffic`).

Source: DeepEP README (normal kernels); DeepSeek-V3 technical report, section 3.2.2 (first over InfiniBand to the GPU
with the same index in the target node, then over NVLink).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.expert_routing import NO_RANK, distinct_ranks
from fourlane.twin.fabric.expert_traffic import ExpertTraffic, message_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Longs = NDArray[np.int64]

__all__ = ["NormalKernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalKernels:
    """A token crosses once per node, to the GPU of its own rail, which passes it on to its experts' GPUs.

    Chunks of tokens keep NIC and NVLink busy at once. From one rank to one node `in_flight` chunks are under way; the
    next waits until one has arrived, as the receiver's buffers demand.

    Args:
        hidden: model dim.
        ranks_per_node: GPUs that share an NVSwitch.
        chunk: tokens passed on together.
        in_flight: chunks under way.
    """

    hidden: int = 7168
    ranks_per_node: int = 8
    chunk: int = 64
    in_flight: int = 4

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "chunk", "in_flight"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def dispatch(self, rank_TK: NDArray[np.int32], *, ranks: int) -> ExpertTraffic:
        """Return the flows that carry tokens to experts.

        Args:
            rank_TK: [ranks * tokens, top_k], the rank of each choice, tokens of rank 0 first.
            ranks: ranks of the group.
        """
        chunks, legs = self._ways(rank_TK, ranks)
        return self._traffic(chunks, legs, ranks, message_bytes(self.hidden, "fp8"))

    def combine(self, rank_TK: NDArray[np.int32], *, ranks: int) -> ExpertTraffic:
        """Return the flows that carry results back, summed per node; `rank_TK` is the dispatch's."""
        chunks, legs = self._ways(rank_TK, ranks)
        there = self._traffic(chunks, legs, ranks, message_bytes(self.hidden, "bf16"))
        number = np.arange(len(legs.chunk)) + len(chunks.lane)
        lane = chunks.lane[legs.chunk] * self.ranks_per_node + legs.target[: len(number)] % self.ranks_per_node
        order = np.argsort(lane, kind="stable")
        before, after = self._turns(lane[order], number[order])
        return there.turned(also_before=after, also_after=before)

    def _ways(self, rank_TK: NDArray[np.int32], ranks: int) -> tuple[_Chunks, _Legs]:
        """Work out which tokens go together: in chunks from node to node, from there to each GPU; and at home."""
        if (ranks > self.ranks_per_node and ranks % self.ranks_per_node) or len(rank_TK) % ranks:
            raise SpecError(
                f"ranks: expected a multiple of {self.ranks_per_node} with equally many tokens each, "
                f"got {ranks} with {len(rank_TK)} tokens in all"
            )
        tokens, nodes = max(1, len(rank_TK) // ranks), -(-ranks // self.ranks_per_node)
        token, node = _choices(distinct_ranks(rank_TK, each=self.ranks_per_node))
        away = node != token // tokens // self.ranks_per_node
        token, node = token[away], node[away]
        chunk, chunks = self._chunked(token // tokens, node, nodes)
        goal_token, goal = _choices(distinct_ranks(rank_TK))
        goal_node = goal // self.ranks_per_node
        home = goal_node == goal_token // tokens // self.ranks_per_node
        found = np.searchsorted(token * nodes + node, goal_token[~home] * nodes + goal_node[~home])
        legs = self._passed_on(chunk[found], goal[~home], chunks)
        return chunks, self._with_home(legs, goal_token[home] // tokens, goal[home])

    def _chunked(self, source: Longs, node: Longs, nodes: int) -> tuple[Longs, _Chunks]:
        """Cut the tokens from each rank to each node into chunks; return each token's, and what they are.

        A lane is a rank and how many nodes on from its own: so every rank begins with another node.
        """
        lane = source * nodes + (node - source // self.ranks_per_node) % nodes
        order = np.argsort(lane, kind="stable")
        place = np.arange(len(lane)) - np.searchsorted(lane[order], lane[order])
        most = int(place.max(initial=0)) // self.chunk + 1
        key, number, tokens = np.unique(
            lane[order] * most + place // self.chunk, return_inverse=True, return_counts=True
        )
        chunk = np.empty(len(lane), dtype=np.int64)
        chunk[order] = number
        lanes = key // most
        sources = lanes // nodes
        nodes_on = (lanes % nodes + sources // self.ranks_per_node) % nodes
        relay = nodes_on * self.ranks_per_node + sources % self.ranks_per_node
        return chunk, _Chunks(lane=lanes, source=sources, target=relay, tokens=tokens)

    def _passed_on(self, chunk: Longs, goal: Longs, chunks: _Chunks) -> _Legs:
        """Return what the GPU a chunk arrives at passes on to the others of its node."""
        key, tokens = np.unique(chunk * self.ranks_per_node + goal % self.ranks_per_node, return_counts=True)
        of = key // self.ranks_per_node
        relay = chunks.target[of]
        target = relay - relay % self.ranks_per_node + key % self.ranks_per_node
        apart = target != relay
        return _Legs(chunk=of[apart], source=relay[apart], target=target[apart], tokens=tokens[apart])

    def _with_home(self, legs: _Legs, source: Longs, goal: Longs) -> _Legs:
        """Return the ways with those of tokens that stay in their node; every rank begins with the GPU next to it."""
        key, tokens = np.unique(
            source * self.ranks_per_node + (goal - source) % self.ranks_per_node, return_counts=True
        )
        apart = key % self.ranks_per_node > 0
        source, ahead = np.divmod(key[apart], self.ranks_per_node)
        first = source - source % self.ranks_per_node
        return _Legs(
            chunk=legs.chunk,
            source=np.concatenate([legs.source, source]),
            target=np.concatenate([legs.target, first + (source + ahead) % self.ranks_per_node]),
            tokens=np.concatenate([legs.tokens, tokens[apart]]),
        )

    def _traffic(self, chunks: _Chunks, legs: _Legs, ranks: int, message: int) -> ExpertTraffic:
        """Return the flows: chunks by NIC first, then what goes over NVLink."""
        crossing, passed = len(chunks.lane), len(legs.chunk)
        before, after = self._turns(chunks.lane, np.arange(crossing))
        tokens = np.concatenate([chunks.tokens, legs.tokens])
        return ExpertTraffic(
            ranks=ranks,
            ranks_per_node=self.ranks_per_node,
            message=message,
            source=np.concatenate([chunks.source, legs.source]).astype(np.int32),
            target=np.concatenate([chunks.target, legs.target]).astype(np.int32),
            size=tokens.astype(np.int64) * message,
            nvlink=np.arange(len(tokens)) >= crossing,
            before=np.concatenate([legs.chunk, before]).astype(np.int32),
            after=np.concatenate([np.arange(crossing, crossing + passed), after]).astype(np.int32),
        )

    def _turns(self, lane: Longs, flow: Longs) -> tuple[Longs, Longs]:
        """Return which flow waits for which so that `in_flight` of a lane are under way; flows stand lane by lane."""
        same = lane[self.in_flight :] == lane[: -self.in_flight]
        return flow[: -self.in_flight][same], flow[self.in_flight :][same]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunks:
    """Tokens from one rank to one node (a lane), in order; `target` is the GPU of the rank's rail there."""

    lane: Longs
    source: Longs
    target: Longs
    tokens: Longs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Legs:
    """Ways over NVLink. The first len(chunk) pass chunks on, the others stay in their node."""

    chunk: Longs
    source: Longs
    target: Longs
    tokens: Longs


def _choices(rank_TK: NDArray[np.int32]) -> tuple[Longs, Longs]:
    """Return token and rank of every choice that is sent, by token, then rank."""
    token, place = np.nonzero(rank_TK != NO_RANK)
    return token, rank_TK[token, place].astype(np.int64)
