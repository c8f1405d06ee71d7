"""Design placements for batch-level splitting: which experts share ranks, so that batches that lean can be levelled.

With equal shares many placements are about as good. They differ in what `policy.token_split` can make of a batch
whose popularity is not that of the statistics: a rank of experts without replicas cannot give anything away, replicas
that all share the same few ranks can only pass load round in a circle. The search draws batches that lean, starts
from a placement that is good with equal shares, and exchanges replicas between ranks, or turns one into a replica of
another expert, wherever that lowers the mean over the batches of the fullest rank after splitting.

Not for finding the start (`policy.placement.place_experts`), which calls this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.placing.task import checked_loads

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fourlane.policy.placing.value import Placement

__all__ = ["DesignRules", "Leaning", "checked_leaning", "design_for_splitting", "split_balance"]

STEPS_PER_SLOT = 64
"""Exchanges tried. A layer of 256 experts takes 8 ms of a core at EP32+32, 14 at EP64+64, 29 at EP128+128."""


@dataclass(frozen=True)
class Leaning:
    """The batches a placement is designed for.

    Args:
        sd: standard deviation of a batch's own shift of each expert's log-popularity.
        tokens: tokens of each rank in a batch, once for each expert they go to; 0 leaves the noise of sampling out.
            With sd 0 as well the given samples are the batches.
        batches: how many are drawn, around each sample in turn.
        equal_split: how much more the fullest rank may have with equal shares than before the design, as a part:
            0.01 is one percent.
    """

    sd: float = 0.2
    tokens: int = 1024
    batches: int = 128
    equal_split: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.sd <= 1:
            raise BalanceInputError(f"sd: expected a standard deviation of log-popularity in 0..1, got {self.sd}")
        if self.tokens < 0:
            raise BalanceInputError(f"tokens: expected 0 or more of each rank, got {self.tokens}")
        if not 1 <= self.batches <= 4096:
            raise BalanceInputError(f"batches: expected 1..4096, got {self.batches}")
        if not (math.isfinite(self.equal_split) and self.equal_split >= 0):
            raise BalanceInputError(f"equal_split: expected a part of at least 0, got {self.equal_split}")

    def drawn(self, samples: int) -> int:
        """Return how many batches come of so many samples."""
        return samples if self.sd == self.tokens == 0 else self.batches


@dataclass(frozen=True)
class DesignRules:
    """What a design keeps to.

    Args:
        ranks: ranks that share the slots.
        unit_ranks: replicas of an expert are in different units of so many ranks: 1, or a node's.
        domain_ranks: experts stay within their domain of so many ranks, a node's; None lets them go anywhere.
        previous_LP: [layers, slots] of the same ranks, from where moves are counted.
        moves: most experts a layer may receive that were not on their rank there; None sets no limit.
        seed: where the search's draws begin.
        every_slot: no slot stays empty, though a replica there only harms balance with equal shares.
    """

    ranks: int
    unit_ranks: int = 1
    domain_ranks: int | None = None
    previous_LP: NDArray[np.int32] | None = None
    moves: int | None = None
    seed: int = 0
    every_slot: bool = False


def checked_leaning(split_aware: bool | Leaning) -> Leaning | None:  # noqa: FBT001 - the name of place_experts's argument
    """Return the batches to design for, or None for no design.

    Raises:
        BalanceInputError: neither a bool nor a `Leaning`.
    """
    if isinstance(split_aware, Leaning):
        return split_aware
    if not isinstance(split_aware, bool):
        raise BalanceInputError(f"split_aware: expected True, False or a Leaning, got {split_aware!r}")
    return Leaning() if split_aware else None


def design_for_splitting(
    slot_LP: NDArray[np.int32],
    load_WLE: NDArray[np.float64],
    cost_LEC: NDArray[np.int64],
    rules: DesignRules,
    leaning: Leaning,
) -> NDArray[np.int32]:
    """Return a placement designed for the splitting of batches that lean, [layers, slots].

    No layer is worse than given for the batches drawn. A layer is left alone if none of its experts has two replicas.

    Args:
        slot_LP: [layers, slots] experts, -1 where empty: a placement that is good with equal shares.
        load_WLE: [samples, layers, experts] checked loads.
        cost_LEC: [layers, experts, most replicas], what a replica costs with equal shares.
        rules: what the design keeps to.
        leaning: the batches it is for.
    """
    from fourlane import _native

    found = np.array(slot_LP, dtype=np.int32, order="C")
    limited = rules.previous_LP is not None and rules.moves is not None
    previous_LP = rules.previous_LP if limited else np.empty((found.shape[0], 0), np.int32)
    _native.design_for_splitting(
        found,
        np.ascontiguousarray(cost_LEC),
        np.ascontiguousarray(load_WLE),
        np.ascontiguousarray(previous_LP, dtype=np.int32),
        (rules.ranks, rules.unit_ranks, rules.domain_ranks or rules.ranks),
        _native_leaning(leaning, load_WLE.shape[0], rules.ranks),
        1.0 + leaning.equal_split,
        rules.moves or 0,
        STEPS_PER_SLOT * found.shape[1],
        rules.seed,
    )
    return found


def split_balance(
    load: ArrayLike, placement: Placement, leaning: Leaning | None = None, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return max/mean after splitting each batch optimally, in the mean over batches that lean, [layers].

    Args:
        load: [layers, experts] tokens, or [samples, layers, experts].
        placement: where the experts are.
        leaning: the batches; None for `Leaning()`.
        seed: where the draws of batches begin.
    """
    from fourlane import _native

    load_WLE = checked_loads(load)
    if load_WLE.shape[1:] != placement.copies_LE.shape:
        raise BalanceInputError(
            f"load: expected loads of {placement.layers} layers and {placement.experts} experts, "
            f"got {load_WLE.shape[1]} and {load_WLE.shape[2]}"
        )
    balance_L = np.empty(placement.layers)
    _native.split_balance(
        placement.slot_of_LP,
        np.ascontiguousarray(load_WLE),
        placement.ranks,
        _native_leaning(leaning or Leaning(), load_WLE.shape[0], placement.ranks),
        seed,
        balance_L,
    )
    return balance_L


def _native_leaning(leaning: Leaning, samples: int, ranks: int) -> tuple[float, float, int]:
    return (leaning.sd, float(leaning.tokens * ranks), leaning.drawn(samples))
