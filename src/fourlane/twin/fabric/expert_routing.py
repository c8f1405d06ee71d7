"""Which experts tokens go to, and to which ranks: the numbers expert traffic is made of.

Balanced random routing, drawn from a passed generator: every expert is as likely as any other, so what differs
between ranks is chance alone. Measured or skewed loads come as a count matrix instead. Not for bytes and flows
(`fourlane.twin.fabric.expert_traffic`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement

__all__ = ["NO_RANK", "ExpertRouting", "check_counts", "count_messages", "distinct_ranks", "ranks_of_experts"]

NO_RANK = -1
"""Stands for a choice that is not sent: a padded token, or a copy left out."""
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRouting:
    """How each token chooses its experts.

    Args:
        tokens: on each rank (T).
        experts: logical experts (E).
        top_k: distinct experts a token goes to (K).
        groups: equal groups the experts are cut into, for group-limited routing.
        top_groups: groups a token's experts may come from.

    Raises:
        SpecError: a figure makes no sense beside the others.
    """

    tokens: int
    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1

    def __post_init__(self) -> None:
        bounds = {
            "tokens": (self.tokens, 0, 1 << 30),
            "experts": (self.experts, 1, 1 << 20),
            "top_k": (self.top_k, 1, self.experts),
            "groups": (self.groups, 1, self.experts),
            "top_groups": (self.top_groups, 1, self.groups),
        }
        faults = [
            f"routing.{name}: expected a whole number from {least} to {most}, got {value}"
            for name, (value, least, most) in bounds.items()
            if not least <= value <= most
        ]
        if not faults and self.experts % self.groups:
            faults.append(f"routing.groups: expected a divisor of {self.experts} experts, got {self.groups}")
        if not faults and self.top_k > self.experts // self.groups * self.top_groups:
            faults.append(
                f"routing.top_k: expected at most the {self.experts // self.groups * self.top_groups} experts "
                f"of {self.top_groups} groups, got {self.top_k}"
            )
        if faults:
            raise SpecError(*faults)

    def draw(self, generator: np.random.Generator, ranks: int) -> NDArray[np.int32]:
        """Return each token's experts, [ranks * tokens, top_k] int32, tokens of rank 0 first.

        With groups, a token's groups are those with its best scores, and its experts the best in them, as in
        DeepSeek-V3; all scores are independent and alike.
        """
        if self.top_groups == self.groups:
            return self._distinct(generator, ranks * self.tokens)
        return np.concatenate([*self._best(generator, ranks * self.tokens), np.empty((0, self.top_k), np.int32)])

    def _distinct(self, generator: np.random.Generator, tokens: int) -> NDArray[np.int32]:
        """Return distinct experts, any set as likely as any other (Floyd's algorithm, all tokens at once)."""
        chosen_TK = np.empty((tokens, self.top_k), dtype=np.int32)
        for place, last in enumerate(range(self.experts - self.top_k, self.experts)):
            draw = generator.integers(0, last + 1, size=tokens, dtype=np.int32)
            taken = (chosen_TK[:, :place] == draw[:, None]).any(axis=1)
            chosen_TK[:, place] = np.where(taken, last, draw)
        return chosen_TK

    def _best(self, generator: np.random.Generator, tokens: int) -> Iterator[NDArray[np.int32]]:
        """Yield the best experts of the best groups, some tokens at a time."""
        at_once = max(1, _SCORES_AT_ONCE // self.experts)
        for first in range(0, tokens, at_once):
            count = min(at_once, tokens - first)
            score = generator.random((count, self.groups, self.experts // self.groups), dtype=np.float32)
            best = np.argpartition(score.max(axis=2), self.groups - self.top_groups, axis=1)
            allowed = np.zeros((count, self.groups), dtype=bool)
            np.put_along_axis(allowed, best[:, self.groups - self.top_groups :], values=True, axis=1)
            flat = np.where(allowed[:, :, None], score, -1.0).reshape(count, self.experts)
            order = np.argpartition(flat, self.experts - self.top_k, axis=1)
            yield order[:, self.experts - self.top_k :].astype(np.int32)


def ranks_of_experts(
    expert_TK: NDArray[np.int32], *, ranks: int, experts: int, placement: Placement | None = None, layer: int = 0
) -> NDArray[np.int32]:
    """Return the rank that computes each choice, [tokens, top_k] int32; `NO_RANK` stays `NO_RANK`.

    Without a placement rank r has experts r * E/G up to (r + 1) * E/G. Tokens take the replicas of an expert in turn.

    Raises:
        SpecError: experts cannot be shared out equally, or the placement is for other ranks or experts.
    """
    unsent = expert_TK == NO_RANK
    if placement is None:
        if experts % ranks:
            raise SpecError(f"experts: expected a multiple of {ranks} ranks where no placement is given, got {experts}")
        return np.where(unsent, NO_RANK, expert_TK // (experts // ranks)).astype(np.int32)
    if (placement.ranks, placement.experts) != (ranks, experts):
        raise SpecError(
            f"placement: expected one of {experts} experts on {ranks} ranks, "
            f"got {placement.experts} on {placement.ranks}"
        )
    slots_E, copies_E = _slots_of_experts(placement, layer)
    turn_T = np.arange(len(expert_TK), dtype=np.int64)[:, None]
    copy_TK = turn_T % copies_E[expert_TK]
    return np.where(unsent, NO_RANK, slots_E[expert_TK, copy_TK] // placement.slots_per_rank).astype(np.int32)


def _slots_of_experts(placement: Placement, layer: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each expert's slots, [experts, most copies], and how many it has."""
    row = placement.slot_of_LP[layer]
    slots = np.flatnonzero(row >= 0)
    order = slots[np.argsort(row[slots], kind="stable")]
    copies_E = np.bincount(row[slots], minlength=placement.experts)
    first_E = np.cumsum(copies_E) - copies_E
    table = np.full((placement.experts, int(copies_E.max())), -1, dtype=np.int64)
    table[row[order], np.arange(len(order)) - first_E[row[order]]] = order
    return table, copies_E


def count_messages(rank_TK: NDArray[np.int32], *, ranks: int) -> NDArray[np.int64]:
    """Return the choices each rank's tokens make of each rank, [ranks, ranks]; the diagonal stays at home.

    Args:
        rank_TK: [ranks * tokens, top_k], tokens of rank 0 first.
        ranks: ranks of the group (G).
    """
    tokens = _tokens_per_rank(rank_TK, ranks)
    source_TK = np.broadcast_to(np.arange(len(rank_TK))[:, None] // max(tokens, 1), rank_TK.shape)
    sent = rank_TK != NO_RANK
    pair = source_TK[sent] * ranks + rank_TK[sent]
    return np.bincount(pair, minlength=ranks * ranks).reshape(ranks, ranks)


def distinct_ranks(rank_TK: NDArray[np.int32], *, each: int = 1) -> NDArray[np.int32]:
    """Return each token's ranks, or its nodes of `each` ranks, once: [tokens, top_k], `NO_RANK` where repeated."""
    ordered = np.sort(np.where(rank_TK == NO_RANK, NO_RANK, rank_TK // each), axis=1)
    again = np.zeros(ordered.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(again, NO_RANK, ordered).astype(np.int32)


def check_counts(count_GG: NDArray[np.int64]) -> None:
    """Refuse a count matrix that is not one.

    Raises:
        SpecError: not [..., ranks, ranks], not whole numbers, or negative.
    """
    shape = count_GG.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or not shape[-1]:
        raise SpecError(f"counts: expected an array of shape [..., ranks, ranks], got {shape}")
    if not np.issubdtype(count_GG.dtype, np.integer):
        raise SpecError(f"counts: expected whole numbers, got {count_GG.dtype} (round them, or count tokens)")
    if count_GG.min(initial=0) < 0:
        raise SpecError(f"counts: expected at least 0, got {count_GG.min()}")


def _tokens_per_rank(rank_TK: NDArray[np.int32], ranks: int) -> int:
    if len(rank_TK) % ranks:
        raise SpecError(f"tokens: expected the same number on each of {ranks} ranks, got {len(rank_TK)} in all")
    return len(rank_TK) // ranks
