"""Place experts behind EPLB's function: the same name, arguments, shapes and meaning.

Better balanced than EPLB's own, and replicas of an expert are never on one rank. NumPy in and out; for tensors see
`fourlane.integrations`.

Source: github.com/deepseek-ai/EPLB, README (the interface).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.placement import EMPTY, Placement, place_experts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["fill_slots", "rebalance_experts"]


def rebalance_experts(
    weight: ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Place experts on GPUs: groups in nodes where nodes divide groups, anywhere otherwise, as EPLB does.

    Args:
        weight: [layers, experts] load statistics.
        num_replicas: physical experts a layer, a multiple of num_gpus.
        num_groups: groups of experts.
        num_nodes: nodes, each with a fast network inside.
        num_gpus: GPUs, a multiple of num_nodes.

    Returns:
        phy2log [layers, num_replicas], the expert of each physical one; log2phy [layers, experts, most replicas], the
        physical ones of each expert, -1 behind the last; logcnt [layers, experts], how many these are. All int64.
    """
    in_nodes = num_groups % num_nodes == 0
    placement = place_experts(
        weight,
        ranks=num_gpus,
        slots=num_replicas,
        nodes=num_nodes if in_nodes else 1,
        groups=num_groups if in_nodes else None,
        split_aware=False,
        every_slot=True,
    )
    placement = fill_slots(placement, np.asarray(weight, dtype=np.float64))
    return placement.phy2log, placement.log2phy, placement.logcnt


def fill_slots(placement: Placement, load_LE: NDArray[np.float64]) -> Placement:
    """Put replicas that cost least where slots are empty all the same: EPLB's tables know no empty slots.

    They are where a previous placement that stays had them.
    """
    table = placement.slot_of_LP.copy()
    count_LE = placement.copies_LE.copy()
    width = placement.slots_per_rank
    for layer, slot in np.argwhere(table == EMPTY).tolist():
        first = slot // width * width
        here = set(table[layer, first : first + width].tolist())
        order = np.argsort(load_LE[layer] / (count_LE[layer] + 1), kind="stable").tolist()
        table[layer, slot] = expert = next(expert for expert in order if expert not in here)
        count_LE[layer, expert] += 1
    return Placement(table, experts=placement.experts, ranks=placement.ranks)
