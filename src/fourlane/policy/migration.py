"""How experts get from one placement to another: who sends what to whom, which layers are worth it.

Pure, and the same on every rank: each works out from the two rows of a layer what it sends, receives
and keeps. Not for where experts should live (`placement`), nor for bytes (`engine.balance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fourlane.policy.token_split import split_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.policy.placement import Placement

__all__ = [
    "Copy",
    "Expectation",
    "LayerMoves",
    "Transfer",
    "expect_equal_shares",
    "expect_split",
    "gains",
    "layer_moves",
    "worthwhile_layers",
]

EMPTY = -1


class Transfer(NamedTuple):
    """An expert that a rank receives from another; slots are local to their rank."""

    expert: int
    source: int
    source_slot: int
    target: int
    slot: int


class Copy(NamedTuple):
    """An expert that a rank holds already; slots are local to it."""

    source_slot: int
    slot: int


@dataclass(frozen=True, slots=True)
class LayerMoves:
    """What turns one row of a layer into another.

    transfers: every (rank, expert) held then and not now, once, in order of the receiving slot.
    kept_G: of each rank, the experts it holds now and then.
    """

    transfers: tuple[Transfer, ...]
    kept_G: tuple[tuple[Copy, ...], ...]

    def sent_by(self, rank: int) -> list[Transfer]:
        """Return what a rank sends."""
        return [transfer for transfer in self.transfers if transfer.source == rank]

    def received_by(self, rank: int) -> list[Transfer]:
        """Return what a rank receives."""
        return [transfer for transfer in self.transfers if transfer.target == rank]


def layer_moves(before_P: np.ndarray, after_P: np.ndarray, *, ranks: int) -> LayerMoves:
    """Work out what turns one row of a layer into another.

    An expert held by several ranks is sent by the one of them that has least to send so far, the
    lowest of those; experts that few ranks hold are given out first.

    Args:
        before_P: expert in each slot now, -1 where empty; each expert has a slot.
        after_P: expert in each slot then; as many slots.
        ranks: that share the slots equally.
    """
    before_GS, after_GS = before_P.reshape(ranks, -1), after_P.reshape(ranks, -1)
    slot_of_GE: list[dict[int, int]] = [_slots(row) for row in before_GS.tolist()]
    wanted = [
        (expert, rank, slot)
        for rank, row in enumerate(after_GS.tolist())
        for slot, expert in enumerate(row)
        if expert != EMPTY and expert not in slot_of_GE[rank]
    ]
    holders = {expert: [rank for rank in range(ranks) if expert in slot_of_GE[rank]] for expert, _, _ in wanted}
    sends_G = [0] * ranks
    transfers: list[Transfer] = []
    for expert, target, slot in sorted(wanted, key=lambda want: (len(holders[want[0]]), want)):
        source = min(holders[expert], key=lambda rank: (sends_G[rank], rank))
        sends_G[source] += 1
        transfers.append(Transfer(expert, source, slot_of_GE[source][expert], target, slot))
    kept_G = tuple(
        tuple(Copy(slot_of_GE[rank][expert], slot) for slot, expert in enumerate(row) if expert in slot_of_GE[rank])
        for rank, row in enumerate(after_GS.tolist())
    )
    return LayerMoves(tuple(sorted(transfers, key=lambda move: (move.target, move.slot))), kept_G)


class Expectation(NamedTuple):
    """What a step costs in each layer, [layers]: its fullest rank, and its ranks on average."""

    fullest_L: np.ndarray
    mean_L: np.ndarray

    @property
    def balance(self) -> float:
        """Return the sum of the fullest over the sum of the means: what a pass waits for; 1.0 without any cost."""
        mean = float(self.mean_L.sum())
        return float(self.fullest_L.sum()) / mean if mean else 1.0

    @classmethod
    def of_layers(cls, each: Sequence[Expectation]) -> Expectation:
        """Return those of several layers as one."""
        return cls(*(np.concatenate(parts) for parts in zip(*each, strict=True)))

    def with_layers(self, layers: list[int], other: Expectation) -> Expectation:
        """Return the same with some layers as in another."""
        fullest_L, mean_L = self.fullest_L.copy(), self.mean_L.copy()
        fullest_L[layers], mean_L[layers] = other.fullest_L[layers], other.mean_L[layers]
        return Expectation(fullest_L, mean_L)


def expect_equal_shares(placement: Placement, cost_LEC: np.ndarray) -> Expectation:
    """Return what to expect where each expert's tokens are spread evenly over its replicas.

    Args:
        placement: where experts live.
        cost_LEC: [layers, experts, most copies], what one replica costs when its expert has 1, 2, ... of them.
    """
    copies_LE = placement.copies_LE
    cost_LE = np.take_along_axis(cost_LEC, copies_LE[:, :, None] - 1, axis=2)[:, :, 0]
    cost_LG = placement.rank_load(cost_LE * copies_LE)
    return Expectation(cost_LG.max(axis=1), cost_LG.mean(axis=1))


def expect_split(placement: Placement, batch_WLE: np.ndarray) -> Expectation:
    """Return what to expect, in tokens, where every batch is split over the replicas by its counts.

    Args:
        placement: where experts live.
        batch_WLE: int64 [batches, layers, experts], tokens of each expert in batches like those to come.
    """
    fullest_L = np.zeros(placement.layers)
    count_GE = np.zeros((placement.ranks, placement.experts), dtype=np.int64)
    for batch_LE in batch_WLE:
        for layer, batch_E in enumerate(batch_LE):
            count_GE[0] = batch_E  # whose tokens they are does not change how even they can be split
            fullest_L[layer] += split_tokens(count_GE, placement, layer).tokens_G.max()
    return Expectation(fullest_L, batch_WLE.sum(axis=(0, 2)) / placement.ranks)


def gains(before: Expectation, after: Expectation) -> np.ndarray:
    """Return by how much each layer's fullest rank gets less, in parts of what the mean rank had, [layers]."""
    fall_L = before.fullest_L - after.fullest_L
    return np.divide(fall_L, before.mean_L, out=np.zeros_like(fall_L), where=before.mean_L > 0)


def worthwhile_layers(gain_L: np.ndarray, *, min_gain: float) -> list[int]:
    """Return the layers that gain at least `min_gain` (and something), the most promising first, then in order."""
    enough = [layer for layer, gain in enumerate(gain_L.tolist()) if gain > 0 and gain >= min_gain]
    return sorted(enough, key=lambda layer: (-gain_L[layer], layer))


def _slots(row: list[int]) -> dict[int, int]:
    return {expert: slot for slot, expert in enumerate(row) if expert != EMPTY}
