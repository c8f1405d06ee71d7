"""How good a placement can be, and how many slots a layer is worth.

Not for placing: nothing here steers where an expert goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.expert_cost import TOKENS
from fourlane.policy.placing.task import checked_loads, checked_shape, checked_slots, fixed_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["lower_bound", "redundancy_per_layer"]

GLANCE = 20_000
"""Steps of the search that looks how much another slot a rank would bring: a millisecond a layer, within a percent."""


def lower_bound(
    load_LE: ArrayLike, *, ranks: int, slots: int | Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return a max/mean over ranks that no placement of so many slots goes below, an expert's load shared equally.

    Proven from what fits on a rank of so many slots together, whatever counts of replicas experts have; with two
    slots a rank by the linear relaxation of all such conditions at once.

    Args:
        load_LE: [layers, experts] tokens; samples are added up.
        ranks: ranks that share the slots.
        slots: physical slots a layer: one number, or one for each layer.
    """
    from fourlane import _native

    load_WLE = checked_loads(load_LE)
    shape = checked_shape(load_WLE, ranks=ranks)
    slots_L = checked_slots(slots, shape)
    load = load_WLE.sum(axis=0)
    _, exponent_L = np.frexp(load.max(axis=1))
    whole_LE = np.floor(np.ldexp(load, (40 - exponent_L)[:, None])).astype(np.int64)
    found_L = np.ones(shape.layers)
    for layer, row in enumerate(whole_LE):
        if row.any():
            greatest = _native.lower_bound(row, ranks, int(slots_L[layer]) // ranks)
            found_L[layer] = max(1.0, greatest * ranks / np.ldexp(load[layer], 40 - exponent_L[layer]).sum())
    return found_L


def redundancy_per_layer(load_LE: ArrayLike, *, ranks: int, extra_slots: int) -> NDArray[np.int64]:
    """Share a budget of redundant slots out over layers, to those where it lowers the fullest rank most.

    A pass waits for the fullest rank of every layer, so that what counts is the sum of these over layers, in tokens.

    Args:
        load_LE: [layers, experts] tokens; samples are added up.
        ranks: ranks that share the slots; each layer's are a multiple of them.
        extra_slots: slots beyond one for each expert, of all layers together. Where ranks do not divide experts,
            filling up the last slot a rank comes first.

    Returns:
        The physical slots of each layer, [layers], for `place_experts(slots=)`.

    Source: redundancy by a layer's benefit: CRAFT (arXiv 2603.28768).
    """
    load_WLE = checked_loads(load_LE)
    shape = checked_shape(load_WLE, ranks=ranks)
    least = -(-shape.experts // ranks)
    left = extra_slots - shape.layers * (least * ranks - shape.experts)
    if left < 0:
        raise BalanceInputError(
            f"extra_slots: expected at least {extra_slots - left} to give {ranks} ranks equally many slots in each of "
            f"{shape.layers} layers, got {extra_slots}"
        )
    rounds = min(left // ranks, shape.experts - least)
    peak_WL = _greatest_loads(load_WLE, ranks, range(least, least + rounds + 1))
    width_L = np.full(shape.layers, least)
    for _ in range(left // ranks):
        layer, further = _best_step(peak_WL, width_L - least, left // ranks - int((width_L - least).sum()))
        if further == 0:
            break
        width_L[layer] += further
    return width_L * ranks


def _best_step(peak_WL: NDArray[np.float64], taken_L: NDArray[np.int64], left: int) -> tuple[int, int]:
    """Return the layer, and how many slots a rank more, that save most for each; 0 if none saves anything.

    More than one at once: often a single slot a rank saves little and the next one much.
    """
    best, chosen = 0.0, (0, 0)
    for layer, taken in enumerate(taken_L.tolist()):
        saved = peak_WL[taken, layer] - peak_WL[taken + 1 : taken + 1 + left, layer]
        for further, each in enumerate((saved / np.arange(1, saved.size + 1)).tolist(), start=1):
            if each > best:
                best, chosen = each, (layer, further)
    return chosen


def _greatest_loads(load_WLE: NDArray[np.float64], ranks: int, widths: range) -> NDArray[np.float64]:
    """Return about what the fullest rank bears with so many slots a rank, [widths, layers], never more with more."""
    from fourlane import _native

    total_L = load_WLE.sum(axis=(0, 2))
    experts = load_WLE.shape[2]
    cost_LEC = fixed_point(load_WLE, TOKENS, min(ranks, widths[-1] * ranks - experts + 1))
    mean_L = cost_LEC[:, :, 0].sum(axis=1) / ranks
    good_enough_L = (mean_L * (1 + 2.0**-10)).astype(np.int64)
    none = np.empty((0, 0), dtype=np.int32)
    peaks = []
    for width in widths:
        found = np.empty((load_WLE.shape[1], width * ranks), dtype=np.int32)
        greatest_L = _native.place(cost_LEC, ranks, 1, good_enough_L, GLANCE, 0, none, -1, 0, 0, found)
        peaks.append(np.asarray(greatest_L) / np.maximum(mean_L, 1.0) * total_L / ranks)
        if (np.asarray(greatest_L) <= mean_L * (1 + 2.0**-9)).all():
            break  # further slots bring nothing to speak of
    return np.minimum.accumulate(np.array(peaks), axis=0)
