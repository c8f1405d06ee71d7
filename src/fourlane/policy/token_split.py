"""Which replica gets which tokens of the batch about to be dispatched.

Every rank has the batch's counts before it dispatches (contract 3), so all of them find the same split without another
message: the fullest rank gets as few tokens as the placement allows, in whole tokens, and of all transports with these
totals it is one that keeps most tokens on their rank, and then on their node.

Within an expert a rank's tokens go to the replicas in slot order: the first `quota_GP[g, p1]` of them, in token order,
to slot p1, the next to p2 and so on. Not for where replicas should be (`policy.placement`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from fourlane.policy.placement import Placement, Replicas

__all__ = ["TokenSplit", "equal_tokens", "rank_tokens", "split_equally", "split_local_tokens", "split_tokens"]

MOST = 2**31 - 1  # tokens of one rank for one expert, and the width of a quota


@dataclass(frozen=True, eq=False, slots=True)
class TokenSplit:
    """How one batch's tokens are split over replicas.

    Args:
        quota_GP: [ranks, slots] int32, of each rank's tokens for the expert in a slot those that go to that slot.
        tokens_G: [ranks] int64, tokens each rank computes.
        lower_bound: no split of the same counts over the same placement has a smaller maximum, not even one in
            fractions of tokens. The maximum of `split_tokens` is this rounded up.
    """

    quota_GP: NDArray[np.int32]
    tokens_G: NDArray[np.int64]
    lower_bound: float


def split_tokens(count_GE: ArrayLike, placement: Placement, layer: int, *, nodes: int = 1) -> TokenSplit:
    """Split a batch's tokens so that the fullest rank gets as few as the placement allows.

    Args:
        count_GE: [ranks, experts] integers, tokens of each rank for each logical expert.
        placement: where the experts are.
        layer: which of the placement's layers.
        nodes: nodes of equally many ranks, in rank order; tokens rather stay on theirs.

    Raises:
        BalanceInputError: an argument is wrong; the message begins with its name.
    """
    from fourlane import _native

    counts = _counts(count_GE, (placement.ranks, placement.experts))
    replicas = _replicas(placement, layer)
    _check_nodes(nodes, placement.ranks)
    quota_GP = np.empty((placement.ranks, placement.slots), np.int32)
    tokens_G = np.empty(placement.ranks, np.int64)
    bound = _native.split_tokens(counts, replicas.start_E1, replicas.slot_R, replicas.rank_R, nodes, quota_GP, tokens_G)
    if bound < 0:
        raise _bad_count("count_GE", counts)
    return TokenSplit(quota_GP, tokens_G, bound)


def split_equally(count_GE: ArrayLike, placement: Placement, layer: int) -> TokenSplit:
    """Spread each rank's tokens for an expert evenly over its replicas, however full their ranks are.

    Tokens left over begin at another replica on each rank, so that not all ranks favour the same one.

    Raises:
        BalanceInputError: an argument is wrong; the message begins with its name.
    """
    from fourlane import _native

    counts = _counts(count_GE, (placement.ranks, placement.experts))
    replicas = _replicas(placement, layer)
    quota_GP = np.empty((placement.ranks, placement.slots), np.int32)
    tokens_G = np.empty(placement.ranks, np.int64)
    bound = _native.split_equally(counts, replicas.start_E1, replicas.slot_R, replicas.rank_R, quota_GP, tokens_G)
    if bound < 0:
        raise _bad_count("count_GE", counts)
    return TokenSplit(quota_GP, tokens_G, bound)


def equal_tokens(count_GE: ArrayLike, placement: Placement, layer: int) -> NDArray[np.int64]:
    """Return the tokens each rank would compute by `split_equally`, [ranks], in a fraction of its time.

    Raises:
        BalanceInputError: an argument is wrong; the message begins with its name.
    """
    from fourlane import _native

    counts = _counts(count_GE, (placement.ranks, placement.experts))
    replicas = _replicas(placement, layer)
    tokens_G = np.empty(placement.ranks, np.int64)
    if not _native.equal_tokens(counts, replicas.start_E1, replicas.slot_R, replicas.rank_R, placement.slots, tokens_G):
        raise _bad_count("count_GE", counts)
    return tokens_G


def split_local_tokens(
    count_E: ArrayLike, placement: Placement, layer: int, *, rank: int, nodes: int = 1
) -> NDArray[np.int32]:
    """Split one rank's tokens from its own counts alone, as if all ranks had tokens like these.

    For where a round of counts costs too much. Shares that are no integers are rounded up on some ranks and down on
    others, so that together they come true; with few ranks, or few tokens each, the maximum suffers most.

    Args:
        count_E: [experts] integers, this rank's tokens for each logical expert.
        placement: where the experts are.
        layer: which of the placement's layers.
        rank: whose tokens these are.
        nodes: nodes of equally many ranks, in rank order; tokens rather stay on theirs.

    Returns:
        [slots] int32, the rank's row of `TokenSplit.quota_GP`.

    Raises:
        BalanceInputError: an argument is wrong; the message begins with its name.
    """
    from fourlane import _native

    counts = _counts(count_E, (placement.experts,))
    replicas = _replicas(placement, layer)
    _check_nodes(nodes, placement.ranks)
    if not 0 <= rank < placement.ranks:
        raise BalanceInputError(f"rank: expected 0..{placement.ranks - 1}, got {rank}")
    quota_P = np.empty(placement.slots, np.int32)
    if not _native.split_local_tokens(
        counts, replicas.start_E1, replicas.slot_R, replicas.rank_R, rank, placement.ranks, nodes, quota_P
    ):
        raise _bad_count("count_E", counts)
    return quota_P


def rank_tokens(quota_GP: NDArray[np.int32], ranks: int) -> NDArray[np.int64]:
    """Return the tokens each rank computes, [ranks], where so many go to each slot."""
    if quota_GP.ndim != 2 or ranks < 1 or quota_GP.shape[1] % ranks:
        raise BalanceInputError(
            f"quota_GP: expected [ranks, slots] with slots a multiple of {ranks} ranks, got {list(quota_GP.shape)}"
        )
    return quota_GP.sum(axis=0, dtype=np.int64).reshape(ranks, -1).sum(axis=1)


def _counts(given: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64] | NDArray[np.int32]:
    """Return counts as the native core takes them: contiguous, 32 or 64 bits; int64 and int32 are not copied."""
    name = "count_GE" if len(shape) == 2 else "count_E"
    try:
        counts = np.asarray(given)
    except ValueError as error:
        raise BalanceInputError(f"{name}: expected integers of shape {list(shape)}, got ragged rows") from error
    if counts.shape != shape or counts.dtype.kind not in "iu":
        raise BalanceInputError(
            f"{name}: expected integers of shape {list(shape)}, got {counts.dtype} of shape {list(counts.shape)}"
        )
    if counts.dtype == np.uint64:
        counts = np.minimum(counts, MOST + 1)  # what does not fit is refused below, not wrapped round
    return np.ascontiguousarray(counts, dtype=None if counts.dtype in (np.int64, np.int32) else np.int64)


def _bad_count(name: str, counts: NDArray[np.int64] | NDArray[np.int32]) -> BalanceInputError:
    place: Sequence[int] = np.argwhere((counts < 0) | (counts > MOST))[0].tolist()
    return BalanceInputError(f"{name}: expected counts in 0..{MOST}, got {counts[tuple(place)]} at {list(place)}")


def _replicas(placement: Placement, layer: int) -> Replicas:
    if not 0 <= layer < placement.layers:
        raise BalanceInputError(f"layer: expected 0..{placement.layers - 1}, got {layer}")
    return placement.replicas(layer)


def _check_nodes(nodes: int, ranks: int) -> None:
    if nodes < 1 or ranks % nodes:
        raise BalanceInputError(f"nodes: expected a divisor of {ranks} ranks, got {nodes}")
