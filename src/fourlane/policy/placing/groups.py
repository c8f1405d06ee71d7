"""Placement with groups of experts in nodes, as EPLB's hierarchical one, and the traffic it saves.

Experts are in groups of neighbours, equally many in each; a group and all replicas of its experts are in one node.
Where a token's experts come from few groups (group-limited routing), it is then sent to few nodes. Balance pays for
it: a node with more than its share of the load cannot pass any on.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 2.1.2: at most 4 of 8 groups a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.expert_cost import TOKENS
from fourlane.policy.placing.search import search
from fourlane.policy.placing.split_aware import DesignRules
from fourlane.policy.placing.task import checked_loads, checked_shape
from fourlane.policy.placing.value import EMPTY

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fourlane.policy.expert_cost import ReplicaCost
    from fourlane.policy.placing.split_aware import Leaning
    from fourlane.policy.placing.task import Shape
    from fourlane.policy.placing.value import Placement

__all__ = ["checked_groups", "group_traffic", "search_in_nodes"]

KEEP = 0.01
"""Groups stay in their nodes unless others lower the fullest node by more than this part."""


def checked_groups(groups: int, shape: Shape) -> int:
    """Return the number of groups; nodes divide it, and it divides experts."""
    if groups < 1 or shape.experts % groups or groups % shape.nodes:
        raise BalanceInputError(
            f"groups: expected a divisor of {shape.experts} experts and a multiple of {shape.nodes} nodes, got {groups}"
        )
    return groups


def search_in_nodes(
    load_WLE: NDArray[np.float64],
    width: int,
    cost: ReplicaCost,
    rules: DesignRules,
    leaning: Leaning | None,
    *,
    nodes: int,
    groups: int,
) -> NDArray[np.int32]:
    """Return experts in slots, [layers, slots]: groups packed onto nodes first, then each node placed by itself.

    A limit of moves is shared equally by the nodes, and groups stay in the nodes where they are.
    """
    samples, layers, experts = load_WLE.shape
    load_LQ = load_WLE.reshape(samples, layers, groups, -1).sum(axis=(0, 3))
    held_LQ = _nodes_of_groups(rules.previous_LP, nodes, groups, experts)
    if held_LQ is None and rules.moves is not None:
        raise BalanceInputError(f"previous: expected each of {groups} groups of experts in one of {nodes} nodes")
    # in order within a node, so that the search inside numbers experts alike whoever put the groups there
    group_LNX = np.sort(_groups_in_nodes(load_LQ, nodes, rules, held_LQ), axis=2)
    members = np.arange(experts).reshape(groups, -1)
    expert_LNE = members[group_LNX].reshape(layers, nodes, -1)
    load_WNE = load_WLE[:, np.arange(layers)[:, None, None], expert_LNE].reshape(samples, layers * nodes, -1)
    inside = replace(
        rules,
        ranks=rules.ranks // nodes,
        previous_LP=None,
        moves=None if rules.moves is None else rules.moves // nodes,
    )
    expert_XE = expert_LNE.reshape(layers * nodes, -1)
    local_XP = np.empty((layers * nodes, width * inside.ranks), dtype=np.int32)
    held_XP, known_X = _inside(rules.previous_LP, expert_XE, local_XP.shape[1], experts)
    for known in np.unique(known_X).tolist():
        chosen_X = known_X == known
        one = replace(inside, previous_LP=held_XP[chosen_X]) if known else replace(inside, moves=None)
        local_XP[chosen_X] = search(load_WNE[:, chosen_X], width, cost, one, leaning)
    slot_XP = np.take_along_axis(expert_XE, np.maximum(local_XP, 0), axis=1)
    return np.where(local_XP == EMPTY, EMPTY, slot_XP).astype(np.int32).reshape(layers, -1)


def _groups_in_nodes(
    load_LQ: NDArray[np.float64], nodes: int, rules: DesignRules, held_LQ: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return the groups of each node, [layers, nodes, groups of a node]."""
    held_LP = None
    if held_LQ is not None:
        held_LP = np.argsort(held_LQ, axis=1, kind="stable").astype(np.int32)
    if held_LP is not None and rules.moves is not None:
        return held_LP.astype(np.int64).reshape(len(load_LQ), nodes, -1)
    packing = DesignRules(nodes, previous_LP=held_LP, seed=rules.seed)
    found_LP = search(load_LQ[None], load_LQ.shape[1] // nodes, TOKENS, packing, None, hardly=KEEP)
    return found_LP.astype(np.int64).reshape(len(load_LQ), nodes, -1)


def _nodes_of_groups(
    slot_LP: NDArray[np.int32] | None, nodes: int, groups: int, experts: int
) -> NDArray[np.int64] | None:
    """Return the node of each group, [layers, groups], if a placement has each in one and equally many in all."""
    if slot_LP is None:
        return None
    layers = len(slot_LP)
    node_P = np.arange(slot_LP.shape[1]) * nodes // slot_LP.shape[1]
    there_LQN = np.zeros((layers, groups, nodes), dtype=bool)
    layer, slot = np.nonzero(slot_LP != EMPTY)
    there_LQN[layer, slot_LP[layer, slot] * groups // experts, node_P[slot]] = True
    in_place = (there_LQN.sum(axis=2) == 1).all() and (there_LQN.sum(axis=1) == groups // nodes).all()
    return there_LQN.argmax(axis=2) if in_place else None


def _inside(
    slot_LP: NDArray[np.int32] | None, expert_XE: NDArray[np.int64], slots: int, experts: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return a previous placement in numbers of each node's experts, [nodes of all layers, slots], and where it serves.

    It serves in nodes that held just the experts that they are to hold.
    """
    count = len(expert_XE)
    if slot_LP is None:
        return np.empty((count, slots), dtype=np.int32), np.zeros(count, dtype=bool)
    held_XP = slot_LP.reshape(count, slots)
    local_XE = np.full((count, experts + 1), -2)  # -2: of another node; the last place is that of empty slots
    np.put_along_axis(local_XE, expert_XE, np.arange(expert_XE.shape[1])[None], axis=1)
    local_XE[:, -1] = EMPTY
    local_XP = np.take_along_axis(local_XE, held_XP.astype(np.int64), axis=1)
    there = np.stack([np.bincount(row[row >= 0], minlength=expert_XE.shape[1]).min() > 0 for row in local_XP])
    return local_XP.astype(np.int32), there & (local_XP != -2).all(axis=1)


def group_traffic(
    placement: Placement, load_LE: ArrayLike, *, nodes: int, groups: int, top_k: int = 8, top_groups: int = 4
) -> NDArray[np.float64]:
    """Return to how many other nodes a token is sent in the mean, [layers], once to each.

    One less the ratio of two placements' figures is the traffic between nodes that one saves. A token chooses
    `top_groups` groups with chances in proportion to their load, then equally many experts in each of them, each
    served by any of its replicas, and is at home in any node.

    Args:
        placement: with groups in nodes, or any other.
        load_LE: [layers, experts] tokens; samples are added up.
        nodes: nodes the ranks are in.
        groups: groups of neighbouring experts.
        top_k: experts a token.
        top_groups: groups that these come from.
    """
    load_WLE = checked_loads(load_LE)
    shape = checked_shape(load_WLE, ranks=placement.ranks, nodes=nodes)
    if groups < 1 or shape.experts % groups:
        raise BalanceInputError(f"groups: expected a divisor of {shape.experts} experts, got {groups}")
    if not 1 <= top_groups <= min(groups, top_k):
        raise BalanceInputError(f"top_groups: expected 1..{min(groups, top_k)}, got {top_groups}")
    load = load_WLE.sum(axis=0)
    weight_LQ = load.reshape(shape.layers, groups, -1).sum(axis=2)
    sent_L = np.zeros(shape.layers)
    for node in range(nodes):
        share_LQ = _share_served(placement, load, node, nodes, groups)
        missed_LQ = (1.0 - np.minimum(share_LQ, 1.0)) ** (top_k / top_groups)
        sent_L += 1.0 - _mean_over_choices(weight_LQ, missed_LQ, top_groups)
    return sent_L * (1.0 - 1.0 / nodes)


def _share_served(
    placement: Placement, load_LE: NDArray[np.float64], node: int, nodes: int, groups: int
) -> NDArray[np.float64]:
    """Return the part of each group's load that a node serves, [layers, groups]."""
    slots = placement.slots // nodes
    slot_LP = placement.slot_of_LP[:, node * slots : (node + 1) * slots]
    layer, slot = np.nonzero(slot_LP != EMPTY)
    served_LE = np.zeros(load_LE.shape)
    np.add.at(served_LE, (layer, slot_LP[layer, slot]), 1.0)
    served_LE *= load_LE / placement.copies_LE
    served_LQ, all_LQ = (table.reshape(len(table), groups, -1).sum(axis=2) for table in (served_LE, load_LE))
    return np.divide(served_LQ, all_LQ, out=np.zeros_like(all_LQ), where=all_LQ > 0)


def _mean_over_choices(
    weight_LQ: NDArray[np.float64], factor_LQ: NDArray[np.float64], chosen: int
) -> NDArray[np.float64]:
    """Return the mean product of the factors of so many groups, a choice as likely as the product of its weights.

    Sums over choices are elementary symmetric polynomials, built up one group at a time.
    """
    scale_L1 = np.maximum(weight_LQ.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    weight_LQ = np.maximum(weight_LQ / scale_L1, 1e-12)
    with_LC, without_LC = (np.zeros((len(weight_LQ), chosen + 1)) for _ in range(2))
    with_LC[:, 0] = without_LC[:, 0] = 1.0
    for weight_L, factor_L in zip(weight_LQ.T, factor_LQ.T, strict=True):
        without_LC[:, 1:] += weight_L[:, None] * without_LC[:, :-1]
        with_LC[:, 1:] += (weight_L * factor_L)[:, None] * with_LC[:, :-1]
    return with_LC[:, -1] / without_LC[:, -1]
