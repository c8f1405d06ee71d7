"""How others choose a replica for each token, without the batch's counts: at random, by hash, in turn.

Each function returns quotas [ranks, slots] as `policy.token_split` does, from the same counts. Tokens of a rank are
numbered 0 to tokens - 1; which of them chose an expert is drawn.

Source: vLLM 0.32, fused_moe/router/base_router.py (a multiplicative hash of the token's index in its batch), SGLang
    0.5.23 (a random replica), TensorRT-LLM (round robin).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.policy.placement import Replicas

    Choose = Callable[[NDArray[Any], int], NDArray[np.int64]]


class HasReplicas(Protocol):
    """What is asked of a placement."""

    ranks: int
    experts: int

    @property
    def slots(self) -> int:
        """Return the slots of all ranks."""
        ...

    def replicas(self, layer: int) -> Replicas:
        """Return the slots of each expert."""
        ...


__all__ = ["by_hash", "in_turn", "randomly"]

KNUTH = 2654435769  # 2^32 over the golden ratio


def randomly(
    count_GE: NDArray[Any], placement: HasReplicas, layer: int, *, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Send each token to a replica drawn evenly, a token at a time."""

    def choose(count_G: NDArray[Any], copies: int) -> NDArray[np.int64]:
        return rng.multinomial(count_G, np.full(copies, 1.0 / copies))

    return _quotas(count_GE, placement, layer, choose)


def by_hash(
    count_GE: NDArray[Any], placement: HasReplicas, layer: int, *, tokens: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Send each token to the replica that a hash of its number on its rank names: the same numbers on every rank."""
    hash_GT = np.tile(np.arange(tokens) * KNUTH & 0xFFFFFFFF, (placement.ranks, 1))

    def choose(count_G: NDArray[Any], copies: int) -> NDArray[np.int64]:
        chosen_GT = rng.permuted(hash_GT, axis=1) % copies
        chosen_GT[np.arange(tokens) >= count_G[:, None]] = copies  # the first of a random order are the tokens
        return np.stack([(chosen_GT == copy).sum(axis=1) for copy in range(copies)], axis=1)

    return _quotas(count_GE, placement, layer, choose)


def in_turn(count_GE: NDArray[Any], placement: HasReplicas, layer: int) -> NDArray[np.int32]:
    """Send an expert's tokens to its replicas in turn, each rank beginning with the replica of its own number."""

    def choose(count_G: NDArray[Any], copies: int) -> NDArray[np.int64]:
        turn_GC = (np.arange(copies) - np.arange(len(count_G))[:, None]) % copies
        return count_G[:, None] // copies + (turn_GC < count_G[:, None] % copies)

    return _quotas(count_GE, placement, layer, choose)


def _quotas(count_GE: NDArray[Any], placement: HasReplicas, layer: int, choose: Choose) -> NDArray[np.int32]:
    replicas = placement.replicas(layer)
    quota_GP = np.zeros((placement.ranks, placement.slots), dtype=np.int32)
    for expert in range(placement.experts):
        slots = replicas.slot_R[replicas.start_E1[expert] : replicas.start_E1[expert + 1]]
        count_G = count_GE[:, expert]
        quota_GP[:, slots] = choose(count_G, len(slots)) if len(slots) > 1 else count_G[:, None]
    return quota_GP
