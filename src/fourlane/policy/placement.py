"""Where experts live: find the physical slots of logical experts for a load, and say how good a placement can be.

The value itself is `Placement` (`policy.placing.value`). Every rank that calls with the same arguments gets the same
placement, to the bit: the search decides in integers, breaks ties by index, and is bounded by steps, never by time.
Not for batches: `policy.token_split` shares a batch's tokens out over the replicas there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.expert_cost import TOKENS
from fourlane.policy.placing.bounds import lower_bound, redundancy_per_layer
from fourlane.policy.placing.groups import checked_groups, group_traffic, search_in_nodes
from fourlane.policy.placing.previous import checked_moves, previous_slots, widened
from fourlane.policy.placing.search import search
from fourlane.policy.placing.split_aware import DesignRules, Leaning, checked_leaning
from fourlane.policy.placing.task import checked_loads, checked_shape, checked_slots
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
    "group_traffic",
    "linear_placement",
    "lower_bound",
    "place_experts",
    "redundancy_per_layer",
]


def place_experts(  # noqa: PLR0913 - each is a question of its own, and has a default
    load: ArrayLike,
    *,
    ranks: int,
    slots: int | Sequence[int] | NDArray[np.integer],
    nodes: int = 1,
    groups: int | None = None,
    previous: Placement | None = None,
    moves: int | None = None,
    cost: ReplicaCost = TOKENS,
    split_aware: bool | Leaning = True,
    spread_nodes: bool = False,
    every_slot: bool = False,
    seed: int = 0,
) -> Placement:
    """Place experts, the loaded ones several times, so that the fullest rank of each layer has little to do.

    Args:
        load: [layers, experts] tokens, or [samples, layers, experts] (windows or batches).
        ranks: ranks that share the slots (G).
        slots: physical slots a layer (P), a multiple of ranks: one number, or one for each layer; then the placement
            is as wide as the widest, and what a layer has no use for stays empty.
        nodes: nodes the ranks are in, equally many in each.
        groups: None places experts anywhere. A number of groups of neighbouring experts keeps each group, with all
            replicas, in one node (EPLB's hierarchical placement); `group_traffic` tells what that saves.
        previous: where experts are now. A layer whose placement found from nothing is hardly better (by a thousandth)
            stays as it is; otherwise ranks and slots are named so that as many experts as may be stay where they are.
        moves: most experts that ranks receive in a layer; the previous placement is mended as far as these go.
        cost: what a replica costs: tokens, activated experts, a mix, or an object of one's own.
        split_aware: True designs the placement for batch-level splitting (`policy.token_split`) over batches that lean,
            at the cost of what `Leaning.equal_split` allows of the balance with equal shares; a `Leaning` says which
            batches. False is for who splits equally, or at random.
        spread_nodes: keep replicas of an expert on different nodes, so that it has at most `nodes` of them.
        every_slot: use every slot, for who knows no empty ones. False may leave slots empty where a second replica of
            any expert would only harm balance with equal shares; a design for splitting uses all in any case.
        seed: where the search's draws begin.

    Raises:
        BalanceInputError: an argument is not as it must be; the message begins with its name.
    """
    load_WLE = checked_loads(load)
    shape = checked_shape(load_WLE, ranks=ranks, nodes=nodes)
    slots_L = checked_slots(slots, shape)
    leaning = checked_leaning(split_aware)
    checked_moves(previous, moves, shape)
    if groups is not None and spread_nodes and nodes > 1:
        raise BalanceInputError("spread_nodes: expected False with groups, which keep replicas in one node, got True")
    in_nodes = None if groups is None else checked_groups(groups, shape)
    unit_ranks = shape.ranks_per_node if spread_nodes else 1
    table = np.full((shape.layers, slots_L.max()), EMPTY, dtype=np.int32)
    for width in np.unique(slots_L // ranks).tolist():
        chosen_L = slots_L == width * ranks
        held_LP = None if previous is None else previous_slots(previous, chosen_L, width, unit_ranks)
        rules = DesignRules(ranks, unit_ranks, previous_LP=held_LP, moves=moves, seed=seed, every_slot=every_slot)
        if in_nodes is None:
            found = search(load_WLE[:, chosen_L], width, cost, rules, leaning)
        else:
            found = search_in_nodes(load_WLE[:, chosen_L], width, cost, rules, leaning, nodes=nodes, groups=in_nodes)
        table[chosen_L] = widened(found, ranks, table.shape[1])
    return Placement(table, experts=shape.experts, ranks=ranks)
