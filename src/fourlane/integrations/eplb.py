"""What engines' balancers have in common: options from the environment, one call for a new map of slots.

Engines call a balancer on every rank and never compare the results, so all of it follows from the arguments
and the environment alone. No torch here; each engine's module turns its tensors into arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.policy.eplb import fill_slots
from fourlane.policy.placement import EMPTY, Placement, place_experts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOVES", "keep_slots", "map_slots", "read_moves", "switched_on", "without_doubles"]

MOVES = "FOURLANE_EPLB_MOVES"


def read_moves(environment: Mapping[str, str]) -> int | None:
    """Read how many experts a layer may receive at a rebalance, on all ranks together; None: no limit.

    Raises:
        SpecError: a value that is no number.
    """
    moves = environment.get(MOVES, "").strip()
    if moves and not (moves.isascii() and moves.isdigit()):
        raise SpecError(f"{MOVES}: expected how many experts a layer may receive, such as 32, got {moves!r}")
    return int(moves) if moves else None


def switched_on(environment: Mapping[str, str], name: str) -> bool:
    """Tell whether a variable is 1 rather than 0, empty or unset.

    Raises:
        SpecError: another value.
    """
    value = environment.get(name, "").strip()
    if value not in {"", "0", "1"}:
        raise SpecError(f"{name}: expected 1 (on) or 0 (off), got {value!r}")
    return value == "1"


def map_slots(
    load: np.ndarray, *, ranks: int, slots: int, held_LP: np.ndarray | None, moves: int | None = None
) -> np.ndarray:
    """Return which expert each physical slot is to hold, [layers, slots] int64, no slot empty.

    Engines split an expert's tokens blindly over its replicas, so the placement is the best for equal shares. It is
    global: groups of experts are not kept on nodes.

    Args:
        load: tokens an expert got, [layers, experts] or [windows, layers, experts].
        ranks: ranks that share the slots.
        slots: physical slots of all ranks.
        held_LP: the map in force, which is mended rather than made anew where that is as good. None, or one of
            another width (ranks come or go): there is none.
        moves: most experts that ranks receive in a layer; no limit where slots of the map in force are to be filled.

    Raises:
        BalanceInputError: sizes that do not fit together, or loads that are not finite and >= 0.
    """
    previous = _previous(held_LP, load.shape[-2:], slots, ranks)
    bounded = previous is not None and not (previous.slot_of_LP == EMPTY).any()
    placement = place_experts(
        load,
        ranks=ranks,
        slots=slots,
        previous=previous,
        moves=moves if bounded else None,
        split_aware=False,
        every_slot=True,
    )
    load_LE = np.asarray(load, dtype=np.float64).reshape(-1, *load.shape[-2:]).sum(axis=0)
    table_LP = fill_slots(placement, load_LE).slot_of_LP.astype(np.int64)
    return table_LP if held_LP is None or held_LP.shape != table_LP.shape else keep_slots(table_LP, held_LP, ranks)


def _previous(held_LP: np.ndarray | None, shape_LE: tuple[int, ...], slots: int, ranks: int) -> Placement | None:
    """Return the map in force as a placement; None where ranks come or go and it says nothing of the new ones."""
    layers, experts = shape_LE
    if held_LP is None or held_LP.shape != (layers, slots) or slots % ranks:
        return None
    held = np.zeros((layers, experts + 1), dtype=bool)
    held[np.arange(layers)[:, None], held_LP] = True  # an empty slot marks the spare column
    if not held[:, :experts].all():
        return None
    return Placement(without_doubles(held_LP, ranks), experts=experts, ranks=ranks)


def without_doubles(table_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return the table with every slot empty whose expert its rank holds in an earlier slot as well."""
    slots_LGS = table_LP.reshape(table_LP.shape[0], ranks, -1)
    same = slots_LGS[..., :, None] == slots_LGS[..., None, :]
    earlier = np.tril(np.ones(same.shape[-2:], dtype=bool), k=-1)
    return np.where((same & earlier).any(axis=-1), EMPTY, slots_LGS).reshape(table_LP.shape)


def keep_slots(table_LP: np.ndarray, held_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return the table with experts that stay on their rank in the slots they have there now.

    What is new on a rank takes the slots left over, in order. The rank's experts stay the same.
    """
    layers, slots = table_LP.shape
    new_LGS = table_LP.reshape(layers, ranks, -1)
    held_LGS = without_doubles(held_LP, ranks).reshape(layers, ranks, -1)
    stays = (held_LGS[..., :, None] == new_LGS[..., None, :]) & (held_LGS[..., :, None] != EMPTY)
    slot_stays, expert_stays = stays.any(axis=-1), stays.any(axis=-2)
    # Free slots first and arriving experts first, each in order: the i-th free slot takes the i-th arrival.
    order_of_slots = np.argsort(slot_stays, axis=-1, kind="stable")
    order_of_experts = np.argsort(expert_stays, axis=-1, kind="stable")
    kept_LGS = np.empty_like(new_LGS)
    np.put_along_axis(kept_LGS, order_of_slots, np.take_along_axis(new_LGS, order_of_experts, axis=-1), axis=-1)
    return np.where(slot_stays, held_LGS, kept_LGS).reshape(layers, slots).astype(table_LP.dtype)
