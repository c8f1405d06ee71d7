"""EPLB, the baseline: written from the published description of its algorithm, to be read and to be compared with.

Replicas are given one by one to the expert with the most load a copy. Copies are packed onto GPUs heaviest first, each
to the lightest GPU that still has a slot (longest processing time). With groups that divide by nodes, groups are
packed onto nodes first, and copies of an expert stay in its node. Nothing keeps two copies of an expert apart.

Source: github.com/deepseek-ai/EPLB, README (the algorithm; none of its code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["balance", "eplb_slots", "pack", "rank_load", "replicate"]


def eplb_slots(load_LE: NDArray[Any], *, slots: int, ranks: int, nodes: int = 1, groups: int = 1) -> NDArray[np.int64]:
    """Return the expert in each slot, [layers, slots]: hierarchical where groups divide by nodes, as EPLB does it."""
    if groups % nodes:
        nodes = groups = 1
    layers, experts = load_LE.shape
    group_load_LQ = load_LE.reshape(layers, groups, -1).sum(axis=2)
    group_of_LQ = pack(group_load_LQ, nodes)  # groups in the order of their nodes
    members = np.arange(experts).reshape(groups, -1)
    expert_of_LE = members[group_of_LQ].reshape(layers * nodes, -1)  # experts of each node
    rows = np.repeat(np.arange(layers), nodes)[:, None]
    load_of_node = load_LE[rows, expert_of_LE]
    copied = replicate(load_of_node, slots // nodes)
    copies = np.stack([np.bincount(row, minlength=expert_of_LE.shape[1]) for row in copied])
    each = np.take_along_axis(load_of_node / copies, copied, axis=1)
    packed = np.take_along_axis(copied, pack(each, ranks // nodes), axis=1)
    return np.take_along_axis(expert_of_LE, packed, axis=1).reshape(layers, slots)


def replicate(load_LE: NDArray[Any], slots: int) -> NDArray[np.int64]:
    """Return the expert of each copy, [layers, slots]: all once, then again and again the one with most load a copy."""
    layers, experts = load_LE.shape
    copied = np.tile(np.arange(slots), (layers, 1))
    copies = np.ones((layers, experts))
    each_layer = np.arange(layers)
    for slot in range(experts, slots):
        hottest = (load_LE / copies).argmax(axis=1)
        copied[:, slot] = hottest
        copies[each_layer, hottest] += 1
    return copied


def pack(weight_LX: NDArray[Any], packs: int) -> NDArray[np.int64]:
    """Return the items in the order of their packs, equally many in each: heaviest first, to the lightest not full."""
    layers, items = weight_LX.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (layers, 1))
    order = np.argsort(-weight_LX, axis=1, kind="stable")
    total, count = np.zeros((layers, packs)), np.zeros((layers, packs), dtype=np.int64)
    packed = np.empty((layers, items), dtype=np.int64)
    each_layer = np.arange(layers)
    for place in range(items):
        item = order[:, place]
        lightest = np.where(count < room, total, np.inf).argmin(axis=1)
        packed[each_layer, lightest * room + count[each_layer, lightest]] = item
        total[each_layer, lightest] += weight_LX[each_layer, item]
        count[each_layer, lightest] += 1
    return packed


def rank_load(slot_of_LP: NDArray[Any], load_LE: NDArray[Any], ranks: int) -> NDArray[np.float64]:
    """Return the load of each rank, [layers, ranks], when every expert's load is split equally over its copies."""
    layers, experts = load_LE.shape
    held = slot_of_LP >= 0
    copies = np.stack([np.bincount(row[row >= 0], minlength=experts) for row in slot_of_LP])
    each = np.take_along_axis(load_LE / copies, np.where(held, slot_of_LP, 0), axis=1)
    return np.where(held, each, 0.0).reshape(layers, ranks, -1).sum(axis=2)


def balance(slot_of_LP: NDArray[Any], load_LE: NDArray[Any], ranks: int) -> NDArray[np.float64]:
    """Return max / mean over ranks of each layer, [layers]."""
    load_LG = rank_load(slot_of_LP, load_LE, ranks)
    return load_LG.max(axis=1) / load_LG.mean(axis=1)
