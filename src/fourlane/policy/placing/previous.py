"""A previous placement as the search takes it: as many slots a rank as the new one has.

Not for how experts get from one to the other (`policy.migration`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.placing.value import EMPTY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.placing.task import Shape
    from fourlane.policy.placing.value import Placement

__all__ = ["checked_moves", "previous_slots", "widened"]


def checked_moves(previous: Placement | None, moves: int | None, shape: Shape) -> None:
    """Refuse a previous placement of another shape, and a limit of moves that makes no sense."""
    if moves is not None and moves < 0:
        raise BalanceInputError(f"moves: expected 0 or more experts a layer, or None for no limit, got {moves}")
    if previous is None:
        if moves is not None:
            raise BalanceInputError("moves: expected a previous placement to move from, got none")
        return
    found = (previous.layers, previous.experts, previous.ranks)
    if found != (shape.layers, shape.experts, shape.ranks):
        raise BalanceInputError(
            f"previous: expected {shape.layers} layers, {shape.experts} experts and {shape.ranks} ranks, "
            f"got {found[0]}, {found[1]} and {found[2]}"
        )


def previous_slots(previous: Placement, chosen_L: NDArray[np.bool_], width: int, unit_ranks: int) -> NDArray[np.int32]:
    """Return some layers of a placement with `width` slots a rank, [layers, slots].

    Raises:
        BalanceInputError: a rank holds more than these, or replicas are not in different units of ranks.
    """
    slot_LP = previous.slot_of_LP[chosen_L]
    if previous.slots_per_rank != width:
        slot_LP = _narrowed(slot_LP.reshape(len(slot_LP), previous.ranks, -1), width)
    unit_LX = slot_LP.reshape(len(slot_LP) * (previous.ranks // unit_ranks), -1)
    in_order = np.sort(unit_LX, axis=1)
    if unit_ranks > 1 and ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != EMPTY)).any():
        raise BalanceInputError("previous: expected replicas of an expert on different nodes, got two on one")
    return np.ascontiguousarray(slot_LP)


def _narrowed(slot_LGS: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Bring what ranks hold to the front of their slots, and these to another number."""
    layers, ranks, given = slot_LGS.shape
    most = int((slot_LGS != EMPTY).sum(axis=2).max())
    if most > width:
        raise BalanceInputError(f"previous: expected at most {width} experts a rank, as many as slots, got {most}")
    order = np.argsort(slot_LGS == EMPTY, axis=2, kind="stable")
    front_LGS = np.take_along_axis(slot_LGS, order, axis=2)[:, :, :width]
    table = np.full((layers, ranks, width), EMPTY, dtype=np.int32)
    table[:, :, : min(given, width)] = front_LGS
    return table.reshape(layers, -1)


def widened(slot_LP: NDArray[np.int32], ranks: int, slots: int) -> NDArray[np.int32]:
    """Return layers with empty slots behind each rank's own, `slots` in all, [layers, slots]."""
    layers = len(slot_LP)
    table = np.full((layers, ranks, slots // ranks), EMPTY, dtype=np.int32)
    table[:, :, : slot_LP.shape[1] // ranks] = slot_LP.reshape(layers, ranks, -1)
    return table.reshape(layers, slots)
