"""Where experts live: a placement maps physical slots to logical experts.

rank = slot // slots_per_rank. Not here yet: replicas, search and repair (they come with the
balancer); the value already allows them, so nothing that reads a placement need change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Placement", "linear_placement"]

EMPTY = -1


@dataclass(frozen=True, eq=False)
class Placement:
    """An immutable map of slots to experts.

    Args:
        slot_of_LP: [layers, slots] int32, the logical expert in each physical slot, -1 if empty.
        experts: logical experts a layer (E).
        ranks: ranks that share the slots equally (G).

    Raises:
        ValueError: shape or range wrong, an expert without a slot, two replicas on one rank.
    """

    slot_of_LP: np.ndarray
    experts: int
    ranks: int

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.slot_of_LP, dtype=np.int32)
        table.setflags(write=False)
        object.__setattr__(self, "slot_of_LP", table)
        if table.ndim != 2 or table.shape[1] % self.ranks:
            raise ValueError(
                f"slot_of_LP: expected [layers, slots] with slots a multiple of {self.ranks} ranks, "
                f"got shape {table.shape}"
            )
        if table.min(initial=0) < EMPTY or table.max(initial=0) >= self.experts:
            raise ValueError(f"slot_of_LP: expected experts in -1..{self.experts - 1}")
        for layer, row in enumerate(table):
            missing = np.setdiff1d(np.arange(self.experts), row)
            if missing.size:
                raise ValueError(f"slot_of_LP: layer {layer} has no slot for experts {missing.tolist()}")
            for rank, slots in enumerate(row.reshape(self.ranks, -1)):
                held = slots[slots != EMPTY]
                if np.unique(held).size != held.size:
                    raise ValueError(f"slot_of_LP: layer {layer} has two replicas of an expert on rank {rank}")

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.slot_of_LP.shape[0]

    @property
    def slots_per_rank(self) -> int:
        """Return the slots each rank holds in each layer."""
        return self.slot_of_LP.shape[1] // self.ranks

    def experts_of(self, rank: int, layer: int) -> np.ndarray:
        """Return the experts in a rank's slots, in slot order, [slots_per_rank], -1 where empty."""
        first = rank * self.slots_per_rank
        return self.slot_of_LP[layer, first : first + self.slots_per_rank]

    @cached_property
    def first_slot_of_LE(self) -> np.ndarray:  # noqa: N802 - a shape suffix
        """Return each expert's lowest slot, [layers, experts] int64."""
        table = np.empty((self.layers, self.experts), dtype=np.int64)
        for layer, row in enumerate(self.slot_of_LP):
            for slot in range(row.size - 1, -1, -1):
                if row[slot] != EMPTY:
                    table[layer, row[slot]] = slot
        return table

    @cached_property
    def replicated(self) -> bool:
        """Tell whether some expert has more than one slot in a layer."""
        return bool(((self.slot_of_LP != EMPTY).sum(axis=1) > self.experts).any())


def linear_placement(*, layers: int, experts: int, ranks: int) -> Placement:
    """Place experts in order, ceil(experts / ranks) slots a rank; slots left over stay empty."""
    slots = -(-experts // ranks)
    table = np.full((layers, slots * ranks), EMPTY, dtype=np.int32)
    table[:, :experts] = np.arange(experts)
    return Placement(table, experts=experts, ranks=ranks)
