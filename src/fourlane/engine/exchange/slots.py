"""A placement as an exchange looks things up in it: in which order rows leave, and who gets how many.

Everything follows from the placement and the counts that all ranks have, so that sender and receiver
come to the same layout without a word more. What a split over replicas is: `policy.token_split`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane import _native
from fourlane.engine.exchange.rows import Sorted, join_ranges, sort_by_slot
from fourlane.policy.token_split import equal_tokens, split_equally, split_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.policy.placement import Placement

__all__ = ["Landing", "LayerSlots", "Routes", "SlotTables"]


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the rows of one layer go in one step.

    count_E: int64 [experts], the tokens of all ranks for each expert.
    quota_GP: int64 [ranks, slots], how many rows of each rank go to each slot.
    quota_P: int64 [slots], those of this rank.
    count_GS: int64 [ranks, slots a rank], the rows each rank sends to each slot of this rank.
    tokens_G: int64 [ranks], the rows each rank computes.
    fullest_if_equal: the rows of the fullest rank, had each expert's been spread evenly over its replicas.
    """

    count_E: np.ndarray
    quota_GP: np.ndarray
    quota_P: np.ndarray
    count_GS: np.ndarray
    tokens_G: np.ndarray
    fullest_if_equal: int


class SlotTables:
    """The layers of a placement; made when first looked at, and kept while their slots stay as they are."""

    def __init__(self, placement: Placement, *, rank: int) -> None:
        self._placement = placement
        self._rank = rank
        self._layers: list[LayerSlots | None] = [None] * placement.layers

    def of(self, placement: Placement) -> SlotTables:
        """Return the tables for a placement: these, unless it is another one; layers alike are taken over."""
        old = self._placement
        if placement is old:
            return self
        tables = SlotTables(placement, rank=self._rank)
        if (placement.slot_of_LP.shape, placement.ranks) == (old.slot_of_LP.shape, old.ranks):
            same_L = (placement.slot_of_LP == old.slot_of_LP).all(axis=1).tolist()
            tables._layers = [held if same else None for held, same in zip(self._layers, same_L, strict=True)]
        return tables

    def layer(self, index: int) -> LayerSlots:
        """Return the table of a layer."""
        found = self._layers[index]
        if found is None:
            placement = self._placement
            found = LayerSlots(placement.slot_of_LP[index], experts=placement.experts, ranks=placement.ranks)
            self._layers[index] = found
        return found

    def routes(self, layer: int, count_GE: np.ndarray, *, split: bool, nodes: int = 1) -> Routes:
        """Lay out a layer's rows by the counts of all ranks.

        Args:
            layer: which.
            count_GE: int64 [ranks, experts], the tokens each rank routed to each expert.
            split: level the ranks over replicas; else spread each expert's tokens evenly over its own.
            nodes: hosts of equally many ranks, in rank order; a split keeps on them what it can.
        """
        slots = self.layer(layer)
        if not slots.replicated:
            return slots.only_routes(count_GE, rank=self._rank)
        if split:
            chosen = split_tokens(count_GE, self._placement, layer, nodes=nodes)
        else:
            chosen = split_equally(count_GE, self._placement, layer)
        equal_G = equal_tokens(count_GE, self._placement, layer) if split else chosen.tokens_G
        quota_GP = chosen.quota_GP.astype(np.int64)
        return Routes(
            count_E=count_GE.sum(axis=0),
            quota_GP=quota_GP,
            quota_P=quota_GP[self._rank],
            count_GS=np.ascontiguousarray(slots.of_rank(quota_GP, self._rank)),
            tokens_G=chosen.tokens_G,
            fullest_if_equal=int(equal_G.max()),
        )


class LayerSlots:
    """One layer's slots.

    Args:
        expert_P: the expert in each slot, [slots], -1 if empty.
        experts: logical experts.
        ranks: that share the slots.
    """

    def __init__(self, expert_P: np.ndarray, *, experts: int, ranks: int) -> None:
        self.slots_per_rank = expert_P.size // ranks
        self._ranks = ranks
        self._slots = expert_P.size
        held = np.flatnonzero(expert_P >= 0)
        self.replicated = held.size > experts
        self._by_expert = held[np.argsort(expert_P[held], kind="stable")]
        """The slots that hold something, by expert; an expert's replicas in order of slots."""
        self._expert_P = np.maximum(expert_P, 0).astype(np.int64)
        self._empty = np.flatnonzero(expert_P < 0) if held.size < expert_P.size else None
        # with replicas the slot is not known before the counts: then rows are sorted by expert first
        self._key_E = np.arange(experts) if self.replicated else self._by_expert
        self._keys = experts if self.replicated else self._slots
        self._key_on: dict[torch.device, Tensor] = {}

    def of_rank(self, values_XP: np.ndarray, rank: int) -> np.ndarray:
        """Return the columns of a rank's slots."""
        return values_XP[:, rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank]

    def sort(self, topk_TK: Tensor) -> Sorted:
        """Order (token, k) pairs by slot, or if there are replicas by expert; see `sort_by_slot`."""
        key_E = self._key_on.get(topk_TK.device)
        if key_E is None:
            key_E = self._key_on[topk_TK.device] = torch.from_numpy(self._key_E).to(topk_TK.device)
        return sort_by_slot(topk_TK, key_E, self._keys)

    def node_of_experts(self, nodes: int, device: torch.device) -> Tensor:
        """Return the node of each expert's slot, int64 [experts]; for layers without replicas."""
        return torch.from_numpy(self._by_expert * nodes // self._slots).to(device)

    def by_slot(self, pairs: Sorted, quota_P: np.ndarray) -> Sorted:
        """Return sorted pairs by slot: of each expert's tokens the first go to its first replica, and so on."""
        if not self.replicated:
            return pairs
        quota_R = quota_P[self._by_expert]
        first_P = np.zeros(self._slots, dtype=np.int64)
        first_P[self._by_expert] = quota_R.cumsum() - quota_R
        taken_R = join_ranges(first_P, quota_P, pairs.order_R.device)
        return Sorted(pairs.order_R.index_select(0, taken_R), pairs.rows_R.index_select(0, taken_R), pairs.count_E)

    def only_routes(self, count_GE: np.ndarray, *, rank: int) -> Routes:
        """Lay out rows where each expert has but one slot."""
        count_E = count_GE.sum(axis=0)
        tokens_G = self.spread(count_E).reshape(self._ranks, -1).sum(axis=1)
        quota_GP = self.spread(count_GE)
        return Routes(
            count_E=count_E,
            quota_GP=quota_GP,
            quota_P=quota_GP[rank],
            count_GS=np.ascontiguousarray(self.of_rank(quota_GP, rank)),
            tokens_G=tokens_G,
            fullest_if_equal=int(tokens_G.max()),
        )

    def spread(self, count_XE: np.ndarray) -> np.ndarray:
        """Return what is counted of each slot's expert, [..., slots], 0 if empty; for layers without replicas."""
        count_XP = count_XE.take(self._expert_P, axis=-1)
        if self._empty is not None:
            count_XP[..., self._empty] = 0
        return count_XP


@dataclass(frozen=True, slots=True)
class Landing:
    """Where rows lie among those of all ranks: by slot, and within a slot by the rank they come from.

    first_P: int64 [slots], where a rank's rows for each slot begin among all that the slot's rank gets.
    rows_G: int64 [ranks], the rows it gets from each rank.
    offset_S1: where the rows of each of its own slots begin, and their end.
    """

    first_P: np.ndarray
    rows_G: np.ndarray
    offset_S1: list[int]

    @classmethod
    def of(cls, quota_GP: np.ndarray, rank: int) -> Landing:
        """Lay out rows of which so many go from each rank to each slot, int64 [ranks, slots], as a rank sees it."""
        ranks, slots = quota_GP.shape
        numbers = np.empty(slots + ranks + slots // ranks + 1, dtype=np.int64)
        first_P, rows_G, offset_S1 = numbers[:slots], numbers[slots : slots + ranks], numbers[slots + ranks :]
        _native.lay_out_rows(quota_GP, rank, first_P, rows_G, offset_S1)
        return cls(first_P, rows_G, offset_S1.tolist())
