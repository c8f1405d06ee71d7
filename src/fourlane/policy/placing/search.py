"""Hand layers of equally many slots to the native search, and to the design for splitting.

Not for arguments as users write them (`placing.task`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.expert_cost import TOKENS
from fourlane.policy.placing.split_aware import design_for_splitting
from fourlane.policy.placing.task import fixed_point

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.expert_cost import ReplicaCost
    from fourlane.policy.placing.split_aware import DesignRules, Leaning

__all__ = ["search"]

GOOD_ENOUGH = 2**13
"""The search stops within 1/8192 of perfect balance."""
STEPS, STEPS_OF_THREE = 2, 5
"""Candidates the search weighs in a layer, for each pair of slots: more with three slots a rank, where few exchanges
help and counts must be searched as well. (With two, counts are searched apart, in native `PairCounts`.)"""
_OPTIONAL, _FILLED, _WANTED = range(3)
"""Native `Redundancy`: what becomes of slots where no second replica would be better."""
HARDLY = 2.0**-10
"""So much better makes a placement worth moving to, as a part."""


def search(
    load_WLE: NDArray[np.float64],
    width: int,
    cost: ReplicaCost,
    rules: DesignRules,
    leaning: Leaning | None,
    *,
    hardly: float = HARDLY,
) -> NDArray[np.int32]:
    """Return experts in slots, [layers, slots], of layers with `width` slots a rank.

    A previous placement stays unless one found from nothing is better by more than the part `hardly`.
    With a design for splitting, a previous placement may be worse by what the design may cost before it is replaced.
    """
    from fourlane import _native

    slots = width * rules.ranks
    previous_LP = np.empty((0, 0), dtype=np.int32) if rules.previous_LP is None else rules.previous_LP
    cost_LEC = fixed_point(load_WLE, cost, _most_copies(load_WLE, slots, cost, rules))
    least_L = (cost_LEC * np.arange(1, cost_LEC.shape[2] + 1)).min(axis=2).sum(axis=1) // rules.ranks
    found = np.empty((load_WLE.shape[1], slots), dtype=np.int32)
    _native.place(
        cost_LEC,
        rules.ranks,
        rules.unit_ranks,
        least_L + least_L // GOOD_ENOUGH,
        (STEPS_OF_THREE if width == 3 else STEPS) * slots * slots,
        rules.seed,
        previous_LP,
        -1 if rules.moves is None else rules.moves,
        round((hardly + (leaning.equal_split if leaning else 0.0)) * 2**20),
        _WANTED if leaning else _FILLED if rules.every_slot else _OPTIONAL,
        found,
    )
    if leaning is None:
        return found
    designed = design_for_splitting(found, load_WLE, cost_LEC, rules, leaning)
    if rules.previous_LP is not None:
        stayed_L = (found == rules.previous_LP).all(axis=1)
        designed[stayed_L] = found[stayed_L]
    return designed


def _most_copies(load_WLE: NDArray[np.float64], slots: int, cost: ReplicaCost, rules: DesignRules) -> int:
    """Return how many replicas of one expert are worth looking at."""
    experts = load_WLE.shape[2]
    most = min(rules.ranks // rules.unit_ranks, slots - experts + 1)
    if cost is TOKENS:
        load_LE = load_WLE.sum(axis=0)
        share = (load_LE.max(axis=1) / np.maximum(load_LE.sum(axis=1), np.finfo(np.float64).tiny)).max()
        most = min(most, max(3 * int(np.ceil(share * slots)) + 2, -(-slots // experts)))
    if rules.previous_LP is None:
        return most
    held = [np.bincount(row[row >= 0]).max() for row in rules.previous_LP]
    return max(most, *map(int, held))
