"""The value that says where experts live: physical slots to logical experts, and what follows from that.

rank = slot // slots_per_rank. Not for finding a good placement (`policy.placement.place_experts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["EMPTY", "Placement", "Replicas", "linear_placement"]

EMPTY = -1


@dataclass(frozen=True)
class Replicas:
    """Where the replicas of one layer's experts are; an expert's are start_E1[e] .. start_E1[e + 1] - 1, in slot order.

    Args:
        start_E1: [experts + 1] int32, where each expert's replicas begin in the two arrays below.
        slot_R: [held slots] int32.
        rank_R: [held slots] int32, the rank of each of these slots.
    """

    start_E1: NDArray[np.int32]
    slot_R: NDArray[np.int32]
    rank_R: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Placement:
    """An immutable map of slots to experts.

    Args:
        slot_of_LP: [layers, slots] int32, the logical expert in each physical slot, -1 if empty.
        experts: logical experts a layer (E).
        ranks: ranks that share the slots equally (G).

    Raises:
        BalanceInputError: shape or range wrong, an expert without a slot, two replicas on one rank.
    """

    slot_of_LP: NDArray[np.int32]
    experts: int
    ranks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "slot_of_LP", _table(self.slot_of_LP, experts=self.experts, ranks=self.ranks))
        self._refuse_missing_experts()
        self._refuse_crowded_ranks()

    def _refuse_missing_experts(self) -> None:
        layers, experts = np.nonzero(self.copies_LE == 0)
        if layers.size:
            missing = experts[layers == layers[0]].tolist()
            raise BalanceInputError(f"slot_of_LP: layer {layers[0]} has no slot for experts {missing}")

    def _refuse_crowded_ranks(self) -> None:
        expert_LP = np.take_along_axis(self.slot_of_LP, self._order_LP, axis=1)
        rank_LP = self._order_LP // self.slots_per_rank
        again = (expert_LP[:, 1:] == expert_LP[:, :-1]) & (rank_LP[:, 1:] == rank_LP[:, :-1])
        layers, places = np.nonzero(again & (expert_LP[:, 1:] != EMPTY))
        if layers.size:
            expert, rank = expert_LP[layers[0], places[0]], rank_LP[layers[0], places[0]]
            raise BalanceInputError(
                f"slot_of_LP: layer {layers[0]} has two replicas of an expert on rank {rank} (expert {expert})"
            )

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.slot_of_LP.shape[0]

    @property
    def slots(self) -> int:
        """Return the physical slots of a layer, all ranks together (P)."""
        return self.slot_of_LP.shape[1]

    @property
    def slots_per_rank(self) -> int:
        """Return the slots each rank holds in each layer."""
        return self.slots // self.ranks

    @cached_property
    def rank_of_P(self) -> NDArray[np.int32]:  # noqa: N802 - a shape suffix
        """Return the rank of each slot, [slots]."""
        return _frozen(np.repeat(np.arange(self.ranks, dtype=np.int32), self.slots_per_rank))

    def experts_of(self, rank: int, layer: int) -> NDArray[np.int32]:
        """Return the experts in a rank's slots, in slot order, [slots_per_rank], -1 where empty."""
        first = rank * self.slots_per_rank
        return self.slot_of_LP[layer, first : first + self.slots_per_rank]

    @cached_property
    def first_slot_of_LE(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Return each expert's lowest slot, [layers, experts] int64."""
        return _frozen(np.take_along_axis(self._order_LP, self._start_LE1[:, :-1], axis=1))

    @cached_property
    def replicated(self) -> bool:
        """Tell whether some expert has more than one slot in a layer."""
        return bool((self.copies_LE > 1).any())

    @cached_property
    def copies_LE(self) -> NDArray[np.int32]:  # noqa: N802 - a shape suffix
        """Return how many replicas each expert has, [layers, experts]."""
        width = self.experts + 1
        place = self.slot_of_LP + 1 + width * np.arange(self.layers)[:, None]
        counts = np.bincount(place.ravel(), minlength=self.layers * width)
        return _frozen(counts.reshape(self.layers, width)[:, 1:].astype(np.int32))

    @cached_property
    def _order_LP(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Slots sorted by the expert in them, then by slot; empty ones first."""
        narrow = self.slot_of_LP.astype(np.int16) if self.experts < 2**15 else self.slot_of_LP  # radix sort
        return narrow.argsort(axis=1, kind="stable")

    @cached_property
    def _start_LE1(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Where each expert's slots begin in `_order_LP`, and where the last one's end."""
        after_LE = self.copies_LE.cumsum(axis=1)
        empty_L = self.slots - after_LE[:, -1]
        return np.concatenate([np.zeros((self.layers, 1), np.int64), after_LE], axis=1) + empty_L[:, None]

    @cached_property
    def _replicas(self) -> dict[int, Replicas]:
        return {}

    def replicas(self, layer: int) -> Replicas:
        """Return where each expert's replicas are in one layer."""
        found = self._replicas.get(layer)
        if found is None:
            start_E1 = self._start_LE1[layer]
            slot_R = self._order_LP[layer, start_E1[0] :].astype(np.int32)
            found = Replicas(
                _frozen((start_E1 - start_E1[0]).astype(np.int32)), _frozen(slot_R), _frozen(self.rank_of_P[slot_R])
            )
            self._replicas[layer] = found
        return found

    @property
    def phy2log(self) -> NDArray[np.int64]:
        """Return the expert in each slot under EPLB's name and type, [layers, slots] int64."""
        return self.slot_of_LP.astype(np.int64)

    @property
    def logcnt(self) -> NDArray[np.int64]:
        """Return the replicas of each expert under EPLB's name and type, [layers, experts] int64."""
        return self.copies_LE.astype(np.int64)

    @cached_property
    def log2phy(self) -> NDArray[np.int64]:
        """Return each expert's slots in ascending order, [layers, experts, most replicas] int64, -1 behind the last."""
        nth = np.arange(self.copies_LE.max(initial=1))
        place = self._start_LE1[:, :-1, None] + nth
        held = nth < self.copies_LE[:, :, None]
        slot = np.take_along_axis(self._order_LP[:, None, :], np.where(held, place, 0), axis=2)
        return _frozen(np.where(held, slot, EMPTY))

    def only_layer(self, layer: int) -> Placement:
        """Return one layer as a placement of its own."""
        return Placement(self.slot_of_LP[layer : layer + 1], experts=self.experts, ranks=self.ranks)

    def with_layer(self, layer: int, slots_P: ArrayLike) -> Placement:
        """Return a placement in which one layer has other experts in its slots, [slots]."""
        row = np.asarray(slots_P)
        if row.shape != (self.slots,):
            raise BalanceInputError(f"slots_P: expected [{self.slots}] slots, got shape {list(row.shape)}")
        one = Placement(row[None], experts=self.experts, ranks=self.ranks)
        table = self.slot_of_LP.copy()
        table[layer] = one.slot_of_LP[0]
        return Placement(table, experts=self.experts, ranks=self.ranks)

    def rank_load(self, load_LE: ArrayLike) -> NDArray[np.float64]:
        """Return what each rank gets when an expert's load is spread equally over its replicas, [layers, ranks]."""
        load = np.asarray(load_LE, dtype=np.float64)
        if load.shape != self.copies_LE.shape:
            raise BalanceInputError(f"load_LE: expected shape {list(self.copies_LE.shape)}, got {list(load.shape)}")
        share_LE = load / self.copies_LE
        share_LP = np.take_along_axis(share_LE, np.maximum(self.slot_of_LP, 0), axis=1)
        share_LP[self.slot_of_LP == EMPTY] = 0
        return share_LP.reshape(self.layers, self.ranks, -1).sum(axis=2)

    def balance(self, load_LE: ArrayLike) -> NDArray[np.float64]:
        """Return max/mean over the ranks with equal shares, [layers]; 1 is perfect, and so is no load at all."""
        return max_over_mean(self.rank_load(load_LE))

    def lower_bound(self, load_LE: ArrayLike) -> NDArray[np.float64]:
        """Return a max/mean that no placement on so many slots and ranks goes below with equal shares, [layers]."""
        from fourlane.policy.placing.bounds import lower_bound

        return lower_bound(load_LE, ranks=self.ranks, slots=self.slots)

    def moves_from(self, previous: Placement) -> NDArray[np.int64]:
        """Return how many experts ranks must receive that they did not hold before, [layers]."""
        if (previous.layers, previous.experts, previous.ranks) != (self.layers, self.experts, self.ranks):
            raise BalanceInputError(
                f"previous: expected {self.layers} layers, {self.experts} experts and {self.ranks} ranks, "
                f"got {previous.layers}, {previous.experts} and {previous.ranks}"
            )
        now, before = self._held_pairs, previous._held_pairs
        new = now[~np.isin(now, before, assume_unique=True)]
        return np.bincount(new // (self.ranks * self.experts), minlength=self.layers)

    def bytes_from(self, previous: Placement, expert_bytes: int) -> int:
        """Return the bytes that all ranks together must receive to come here from another placement."""
        return int(self.moves_from(previous).sum()) * expert_bytes

    @cached_property
    def _held_pairs(self) -> NDArray[np.int64]:
        """(layer, rank, expert) of every held slot as one number each."""
        layer = np.arange(self.layers)[:, None]
        pair_LP = (layer * self.ranks + self.rank_of_P) * self.experts + self.slot_of_LP
        return pair_LP[self.slot_of_LP != EMPTY]


def max_over_mean(load_LG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the greatest load of each row over the row's mean; 1 for a row without load."""
    mean_L = load_LG.mean(axis=1)
    return np.divide(load_LG.max(axis=1), mean_L, out=np.ones_like(mean_L), where=mean_L > 0)


def linear_placement(*, layers: int, experts: int, ranks: int, redundant: int = 0) -> Placement:
    """Place experts in order without knowing any load; slots left over stay empty.

    Args:
        layers: layers with experts.
        experts: logical experts a layer.
        ranks: ranks that share the slots.
        redundant: further replicas a layer, spread evenly over experts and ranks.
    """
    if redundant < 0:
        raise BalanceInputError(f"redundant: expected 0 or more further replicas, got {redundant}")
    width = -(-(experts + redundant) // ranks)
    if width > experts:
        raise BalanceInputError(
            f"redundant: expected at most {experts * (ranks - 1)} further replicas "
            f"(one of each of {experts} experts on each of {ranks} ranks), got {redundant}"
        )
    row = np.full(width * ranks, EMPTY, dtype=np.int32)
    row[: experts + redundant] = _order_with_copies(experts, redundant, width)
    return Placement(np.tile(row, (layers, 1)), experts=experts, ranks=ranks)


def _order_with_copies(experts: int, redundant: int, width: int) -> NDArray[np.int64]:
    """Return experts in order with copies between them, so that no run of `width` slots holds one twice.

    Evenly between: each copy far from its original. Where that brings two together: the order again and again.
    """
    total = experts + redundant
    again = np.arange(total) % experts
    if redundant == 0 or redundant > experts:
        return again
    copy = np.arange(redundant)
    order = np.insert(
        np.arange(experts),
        copy * experts // redundant,
        (copy + redundant // 2) % redundant * experts // redundant,
    )
    empty = -1 - np.arange(-total % width)
    runs = np.sort(np.concatenate([order, empty]).reshape(-1, width), axis=1)
    return again if (runs[:, 1:] == runs[:, :-1]).any() else order


def _table(given: ArrayLike, *, experts: int, ranks: int) -> NDArray[np.int32]:
    if experts < 1 or ranks < 1:
        raise BalanceInputError(f"experts, ranks: expected at least 1 of each, got {experts} and {ranks}")
    table = np.asarray(given)
    if table.ndim != 2 or table.shape[1] % ranks or table.dtype.kind not in "iu":
        raise BalanceInputError(
            f"slot_of_LP: expected integers [layers, slots] with slots a multiple of {ranks} ranks, "
            f"got {table.dtype} of shape {list(table.shape)}"
        )
    if table.min(initial=0) < EMPTY or table.max(initial=0) >= experts:
        raise BalanceInputError(f"slot_of_LP: expected experts in {EMPTY}..{experts - 1}")
    return _frozen(np.array(table, dtype=np.int32, order="C"))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
