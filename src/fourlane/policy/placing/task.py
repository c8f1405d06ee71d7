"""What the search is given: checked arguments, and costs in fixed point.

All decisions of the search are made in integers. Loads become integers here and nowhere else: what a replica costs is
scaled by a power of two, each layer by its own, so that the costliest is just below 2^40, and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from fourlane.policy.expert_cost import ReplicaCost

__all__ = ["Shape", "checked_loads", "checked_shape", "checked_slots", "fixed_point"]

BITS = 40


@dataclass(frozen=True)
class Shape:
    """How many of each there are: layers, experts a layer, ranks, nodes the ranks are in."""

    layers: int
    experts: int
    ranks: int
    nodes: int = 1

    @property
    def ranks_per_node(self) -> int:
        """Return the ranks of a node; rank = node * ranks_per_node + one of these."""
        return self.ranks // self.nodes


def checked_loads(load: ArrayLike) -> NDArray[np.float64]:
    """Return loads as samples, [samples, layers, experts]; a single table is one sample.

    Raises:
        BalanceInputError: ragged, of another shape, empty, negative, infinite or not a number.
    """
    try:
        array = np.asarray(load)
        load_WLE = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise BalanceInputError(f"load: expected numbers [layers, experts] or [samples, ...], got {error}") from error
    if load_WLE.ndim == 2:
        load_WLE = load_WLE[None]
    if load_WLE.ndim != 3 or 0 in load_WLE.shape or array.dtype.kind not in "biuf":
        raise BalanceInputError(
            "load: expected numbers [layers, experts] or [samples, layers, experts], none of these 0, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    wrong = ~(np.isfinite(load_WLE) & (load_WLE >= 0))
    if wrong.any():
        sample, layer, expert = np.argwhere(wrong)[0].tolist()
        raise BalanceInputError(
            f"load: expected finite numbers of at least 0, got {load_WLE[sample, layer, expert]} "
            f"at layer {layer}, expert {expert}"
        )
    return load_WLE


def checked_shape(load_WLE: NDArray[np.float64], *, ranks: int, nodes: int = 1) -> Shape:
    """Return the shape of a task; ranks are positive and nodes divide them."""
    if ranks < 1:
        raise BalanceInputError(f"ranks: expected at least 1, got {ranks}")
    if nodes < 1 or ranks % nodes:
        raise BalanceInputError(f"nodes: expected a divisor of {ranks} ranks, got {nodes}")
    return Shape(load_WLE.shape[1], load_WLE.shape[2], ranks, nodes)


def checked_slots(slots: int | Sequence[int] | NDArray[np.integer], shape: Shape) -> NDArray[np.int64]:
    """Return the physical slots of each layer, [layers]."""
    given = np.asarray(slots)
    if given.dtype.kind not in "iu" or given.shape not in ((), (shape.layers,)):
        raise BalanceInputError(
            f"slots: expected a whole number, or one for each of {shape.layers} layers, got {slots}"
        )
    slots_L = np.broadcast_to(given.astype(np.int64), (shape.layers,))
    for found in np.unique(slots_L).tolist():
        if found % shape.ranks:
            raise BalanceInputError(f"slots: expected a multiple of {shape.ranks} ranks, got {found}")
        if found < shape.experts:
            raise BalanceInputError(f"slots: expected at least one for each of {shape.experts} experts, got {found}")
        if found > shape.experts * shape.ranks:
            raise BalanceInputError(
                f"slots: expected at most {shape.experts} a rank, one for each expert, got {found // shape.ranks}"
            )
    return slots_L


def fixed_point(load_WLE: NDArray[np.float64], cost: ReplicaCost, most: int) -> NDArray[np.int64]:
    """Return what one replica costs when its expert has 1 .. most, in integers, [layers, experts, most].

    Raises:
        BalanceInputError: the cost is not finite, negative, or rises with the number of replicas.
    """
    cost_LEC = np.asarray(cost.replica_cost(load_WLE, most), dtype=np.float64)
    expected = (*load_WLE.shape[1:], most)
    if cost_LEC.shape != expected:
        raise BalanceInputError(
            f"cost: expected replica_cost to return shape {list(expected)}, got {list(cost_LEC.shape)}"
        )
    if not np.isfinite(cost_LEC).all() or (cost_LEC < 0).any():
        raise BalanceInputError("cost: expected replica_cost to return finite numbers of at least 0")
    _, exponent_L = np.frexp(cost_LEC.max(axis=(1, 2)))
    fixed_LEC = np.rint(np.ldexp(cost_LEC, (BITS - exponent_L)[:, None, None])).astype(np.int64)
    if (np.diff(fixed_LEC, axis=2) > 0).any():
        raise BalanceInputError("cost: expected a replica to cost no more when its expert has more of them")
    return fixed_LEC
