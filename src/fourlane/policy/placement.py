"""Where experts live: find the physical slots of logical experts for a load, and say how good a placement can be.

The value itself is `Placement` (`policy.placing.value`). Every rank that calls with the same arguments gets the same
placement, to the bit: the search decides in integers, breaks ties by index, and is bounded by steps, never by time.
Not for batches: `policy.token_split` shares a batch's tokens out over the replicas there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.expert_cost import TOKENS
from fourlane.policy.placing.bounds import lower_bound, redundancy_per_layer
from fourlane.policy.placing.split_aware import DesignRules, Leaning, checked_leaning, design_for_splitting
from fourlane.policy.placing.task import Shape, checked_loads, checked_shape, checked_slots, fixed_point
from fourlane.policy.placing.value import EMPTY, Placement, Replicas, linear_placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from fourlane.policy.expert_cost import ReplicaCost

__all__ = [
    "EMPTY",
    "Leaning",
    "Placement",
    "Replicas",
    "linear_placement",
    "lower_bound",
    "place_experts",
    "redundancy_per_layer",
]

GOOD_ENOUGH = 2**13
"""The search stops within 1/8192 of perfect balance."""


def place_experts(  # noqa: PLR0913 - each is a question of its own, and has a default
    load: ArrayLike,
    *,
    ranks: int,
    slots: int | Sequence[int] | NDArray[np.integer],
    nodes: int = 1,
    cost: ReplicaCost = TOKENS,
    split_aware: bool | Leaning = True,
    spread_nodes: bool = False,
    seed: int = 0,
) -> Placement:
    """Place experts, the loaded ones several times, so that the fullest rank of each layer has little to do.

    Args:
        load: [layers, experts] tokens, or [samples, layers, experts] (windows or batches).
        ranks: ranks that share the slots (G).
        slots: physical slots a layer (P), a multiple of ranks: one number, or one for each layer; then the placement
            is as wide as the widest, and what a layer has no use for stays empty.
        nodes: nodes the ranks are in, equally many in each.
        cost: what a replica costs: tokens, activated experts, a mix, or an object of one's own.
        split_aware: True designs the placement for batch-level splitting (`policy.token_split`) over batches that lean,
            at the cost of what `Leaning.equal_split` allows of the balance with equal shares; a `Leaning` says which
            batches. False is for who splits equally, or at random.
        spread_nodes: keep replicas of an expert on different nodes, so that it has at most `nodes` of them.
        seed: where the search's draws begin.

    Raises:
        BalanceInputError: an argument is not as it must be; the message begins with its name.
    """
    load_WLE = checked_loads(load)
    shape = checked_shape(load_WLE, ranks=ranks, nodes=nodes)
    slots_L = checked_slots(slots, shape)
    leaning = checked_leaning(split_aware)
    rules = DesignRules(ranks, unit_ranks=ranks // nodes if spread_nodes else 1, seed=seed)
    table = np.full((shape.layers, slots_L.max()), EMPTY, dtype=np.int32)
    for width in np.unique(slots_L // ranks).tolist():
        chosen = slots_L == width * ranks
        found = _searched(load_WLE[:, chosen], shape, width, cost, rules, leaning)
        rows = table[chosen].reshape(-1, ranks, table.shape[1] // ranks)
        rows[:, :, :width] = found.reshape(-1, ranks, width)
        table[chosen] = rows.reshape(-1, table.shape[1])
    return Placement(table, experts=shape.experts, ranks=ranks)


def _searched(
    load_WLE: NDArray[np.float64],
    shape: Shape,
    width: int,
    cost: ReplicaCost,
    rules: DesignRules,
    leaning: Leaning | None,
) -> NDArray[np.int32]:
    from fourlane import _native

    slots = width * shape.ranks
    cost_LEC = fixed_point(load_WLE, cost, _most_copies(load_WLE, slots, shape.ranks // rules.unit_ranks, cost))
    least_L = (cost_LEC * np.arange(1, cost_LEC.shape[2] + 1)).min(axis=2).sum(axis=1) // shape.ranks
    found = np.empty((load_WLE.shape[1], slots), dtype=np.int32)
    _native.place(
        cost_LEC, shape.ranks, rules.unit_ranks, least_L + least_L // GOOD_ENOUGH, slots * slots, rules.seed, found
    )
    return found if leaning is None else design_for_splitting(found, load_WLE, cost_LEC, rules, leaning)


def _most_copies(load_WLE: NDArray[np.float64], slots: int, units: int, cost: ReplicaCost) -> int:
    """Return how many replicas of one expert are worth looking at."""
    experts = load_WLE.shape[2]
    most = min(units, slots - experts + 1)
    if cost is not TOKENS:
        return most
    load_LE = load_WLE.sum(axis=0)
    share = (load_LE.max(axis=1) / np.maximum(load_LE.sum(axis=1), np.finfo(np.float64).tiny)).max()
    enough = max(2 * int(np.ceil(share * slots)) + 2, -(-slots // experts))
    return min(most, enough)
