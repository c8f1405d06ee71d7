"""What advice on balancing experts depends on, and what it is: the values that `policy.advice` works out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Advice", "Balance", "Circumstances", "Following", "LayerBudget", "Need", "RedundancyOption"]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What advice depends on besides loads.

    Args:
        redundant: redundant slots a layer to try; None: the usual sweep.
        targets: max/mean for which the redundancy needed is told.
        batch_tokens: tokens each rank brings to a batch.
        top_k: experts a token goes to.
        lean_sd: by how much batches lean: s.d. of the shift of each expert's log popularity from batch to batch.
        batches: batches drawn for each layer, from the pairs of windows in turn.
        pairs: how many pairs of successive windows, the latest, are looked at.
        moves: experts a layer that a repair may move; None: as many as there are ranks.
        memory: bytes a rank that redundancy may take; None: any.
        expert_bytes: bytes of one expert of one layer; None: unknown, and so is what follows from it.
        rate: bytes/s at which a rank receives weights; None: unknown.
        least_gain: share of the experts' time that must be saved for balancing to be worthwhile.
        slot_gain: share of the experts' time that a further slot a rank must save to be taken.
        seed: of the batches.
    """

    redundant: tuple[int, ...] | None = None
    targets: tuple[float, ...] = (1.2, 1.1, 1.05)
    batch_tokens: int = 128
    top_k: int = 8
    lean_sd: float = 0.2
    batches: int = 2
    pairs: int = 2
    moves: int | None = None
    memory: int | None = None
    expert_bytes: int | None = None
    rate: float | None = None
    least_gain: float = 0.03
    slot_gain: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Balance:
    """max/mean over ranks, layer by layer."""

    balance_L: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Return that of the mean layer."""
        return float(self.balance_L.mean())

    @property
    def worst(self) -> float:
        """Return that of the worst layer."""
        return float(self.balance_L.max())


class Need(NamedTuple):
    """Redundant slots each layer needs for a target.

    Args:
        target: max/mean.
        least_L: no placement and no splitting can do with fewer.
        reached_L: the fewest of the sweep with which a placement reached it, for the load it was made from; -1: none.
    """

    target: float
    least_L: NDArray[np.int64]
    reached_L: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RedundancyOption:
    """What one redundancy brings.

    Args:
        redundant: slots of a layer beyond one an expert.
        slots: all of a layer.
        bound: no placement can be better, replicas sharing equally.
        placed: of the load the placement was made from.
        stale: of the window after the one it was made from; None with one window.
        equal: of single batches of that window, replicas sharing equally.
        split: of the same batches, each split over replicas by its own counts, in a placement designed for that.
        extra_bytes: memory a rank beyond that of linear placement; None where an expert's size is unknown.
        gain: share of the experts' time saved against linear placement, by the slowest ranks of the same batches.
    """

    redundant: int
    slots: int
    bound: Balance
    placed: Balance
    stale: Balance | None
    equal: Balance
    split: Balance
    extra_bytes: int | None
    gain: float


@dataclass(frozen=True, kw_only=True)
class Following:
    """What following the load from window to window costs, with the redundancy chosen; all of a layer in the mean.

    Args:
        replan_moves: experts that ranks receive where every window is placed from nothing.
        repair_moves: where the placement before is repaired, with the budget `moves`.
        replan, repair: balance either has of the window it was made for.
        replan_bytes, repair_bytes: received by a rank, all layers; None where an expert's size is unknown.
        replan_s, repair_s: what that takes; None where the rate is unknown.
    """

    moves: int
    replan_moves: float
    repair_moves: float
    replan: Balance
    repair: Balance
    replan_bytes: float | None
    repair_bytes: float | None
    replan_s: float | None
    repair_s: float | None


@dataclass(frozen=True, kw_only=True)
class LayerBudget:
    """The memory of the redundancy chosen, shared out by layer: slots of each, and balance beside the uniform one."""

    slots_L: NDArray[np.int64]
    by_layer: Balance
    uniform: Balance


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do about a load, and why.

    Args:
        linear: balance of all loads together in linear placement without redundancy.
        linear_batches: of single batches there.
        lag_one: correlation of successive windows' loads, the mean layer; None with one window, or even loads.
        drift: share of the load that is on other experts a window later, the mean layer; None with one window.
        options: one a redundancy, least first.
        chosen: which of them.
        following: None with one window.
        layer_budget: None where the redundancy chosen leaves nothing to share out.
        worthwhile: whether the gain is at least `circumstances.least_gain`.
    """

    layers: int
    experts: int
    ranks: int
    windows: int
    circumstances: Circumstances
    linear: Balance
    linear_batches: Balance
    lag_one: float | None
    drift: float | None
    needs: tuple[Need, ...]
    options: tuple[RedundancyOption, ...]
    chosen: int
    following: Following | None
    layer_budget: LayerBudget | None

    @property
    def choice(self) -> RedundancyOption:
        """Return the redundancy to take."""
        return self.options[self.chosen]

    @property
    def worthwhile(self) -> bool:
        """Tell whether balancing saves enough to be switched on."""
        return self.choice.gain >= self.circumstances.least_gain
