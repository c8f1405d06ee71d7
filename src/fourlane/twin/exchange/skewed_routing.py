"""Draw which ranks tokens go to, so that the fullest rank gets a chosen multiple of the mean.

Balance is given (by `fourlane.twin.expert_balance`), and what the network makes of it is asked for; so tokens are dealt
to ranks rather than drawn from loads. Loads of ranks are spread like quantiles of a lognormal distribution, in an order
drawn from a generator. Not for how balanced a service is.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deal_messages", "draw_ranks", "rank_weights"]

_STEPS = 60


def rank_weights(ranks: int, max_over_mean: float) -> NDArray[np.float64]:
    """Return shares of ranks, mean 1, in falling order: quantiles of the lognormal whose largest is `max_over_mean`."""
    normal_G = np.array([NormalDist().inv_cdf(1 - (place + 0.5) / ranks) for place in range(ranks)])
    low, high = 0.0, 20.0
    for _ in range(_STEPS):
        width = (low + high) / 2
        weight_G = np.exp(width * (normal_G - normal_G[0]))
        low, high = (width, high) if 1 / weight_G.mean() < max_over_mean else (low, width)
    weight_G = np.exp(low * (normal_G - normal_G[0]))
    return weight_G / weight_G.mean()


def deal_messages(
    generator: np.random.Generator, *, ranks: int, each: int, max_over_mean: float, ranks_per_node: int = 1
) -> NDArray[np.int64]:
    """Return messages from (row) to (column), [ranks, ranks]: every rank sends `each`, and gets just its share.

    The shares are those of `rank_weights`, to a message, and of every node's messages too: so what reaches a rank by
    NIC is no matter of chance either. Which sender of a node sends them is by lot. The diagonal stays at home.
    """
    nodes = ranks // ranks_per_node
    quota_G = _whole(generator.permutation(rank_weights(ranks, max_over_mean)) * each, ranks * each)
    target = np.repeat(np.arange(ranks), quota_G)
    node = (np.arange(len(target)) + generator.integers(nodes)) % nodes
    by_node = generator.permutation(len(target))
    by_node = by_node[np.argsort(node[by_node], kind="stable")]
    source = np.repeat(np.arange(ranks), each)
    return np.bincount(source * ranks + target[by_node], minlength=ranks * ranks).reshape(ranks, ranks)


def draw_ranks(  # noqa: PLR0913 - the shape of a model
    generator: np.random.Generator,
    *,
    ranks: int,
    tokens: int,
    experts: int,
    top_k: int,
    groups: int,
    top_groups: int,
    max_over_mean: float,
) -> NDArray[np.int32]:
    """Return the rank of every choice of every token, [ranks * tokens, top_k], tokens of rank 0 first.

    Choices are distinct experts within a token's best groups, as DeepSeek-V3 limits them, and the experts of a rank are
    chosen in proportion to its share: those whose alarm clocks, exponential with that rate, ring first (Efraimidis and
    Spirakis, Inf. Process. Lett. 97, 2006). Consecutive experts share a rank.
    """
    weight_G = generator.permutation(rank_weights(ranks, max_over_mean))
    rank_E = (np.arange(experts) * ranks // experts).astype(np.int32)
    mean_E = (1.0 / weight_G[rank_E]).astype(np.float32)
    chosen = np.empty((ranks * tokens, top_k), dtype=np.int32)
    at_once = max(1, (1 << 22) // experts)
    for first in range(0, len(chosen), at_once):
        part = chosen[first : first + at_once]
        rings_TE = generator.standard_exponential((len(part), experts), dtype=np.float32) * mean_E
        if top_groups < groups:
            _leave_groups(rings_TE, groups, top_groups)
        part[:] = np.argpartition(rings_TE, top_k - 1, axis=1)[:, :top_k]
    return rank_E[chosen]


def _leave_groups(rings_TE: NDArray[np.floating], groups: int, top_groups: int) -> None:
    """Rule out experts of all groups but those in which one rings first."""
    rings_TGE = rings_TE.reshape(len(rings_TE), groups, -1)
    left = np.argpartition(rings_TGE.min(axis=2), top_groups, axis=1)[:, top_groups:]
    rings_TGE[np.arange(len(left))[:, None], left] = math.inf


def _whole(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return whole numbers that sum to `total`, by largest remainder."""
    exact = shares * (total / shares.sum())
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]] += 1
    return whole
