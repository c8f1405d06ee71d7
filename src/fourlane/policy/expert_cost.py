"""What a replica of an expert costs the rank that holds it, when its expert has so many.

Tokens are the right measure where expert GEMMs are compute-bound (prefill, large batches). In memory-bound decode a
rank's time follows the experts it must read: those with at least one token. Not for what a rank costs as a whole
(`Placement.balance`): costs here add up over a rank's replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOKENS", "ExpertCost", "ReplicaCost"]


class ReplicaCost(Protocol):
    """What the balancer asks of a cost; `ExpertCost` is one, a user's own object may be another."""

    def replica_cost(self, load_WLE: NDArray[np.float64], max_copies: int) -> NDArray[np.float64]:
        """Return what one replica costs when its expert has 1 .. max_copies, [layers, experts, max_copies].

        Not negative and not increasing with the replicas. Every rank must compute the same bits.

        Args:
            load_WLE: [samples, layers, experts] tokens; one sample is a batch, or the sum of many.
            max_copies: most replicas asked about.
        """
        ...


@dataclass(frozen=True)
class ExpertCost:
    """A mix of tokens and of activated experts, averaged over samples.

    Args:
        tokens: what a token costs.
        activated: what it costs that a replica has any token at all. It means something only if samples are batches:
            over a long window every expert has tokens.

    Source: METRO (arXiv 2512.09277) for activated experts as the measure of memory-bound decode.
    """

    tokens: float = 1.0
    activated: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tokens) and np.isfinite(self.activated) and min(self.tokens, self.activated) >= 0):
            raise BalanceInputError(
                f"cost: expected finite weights of at least 0, got tokens={self.tokens}, activated={self.activated}"
            )
        if self.tokens == self.activated == 0:
            raise BalanceInputError("cost: expected a weight above 0 for tokens or for activated experts")

    def replica_cost(self, load_WLE: NDArray[np.float64], max_copies: int) -> NDArray[np.float64]:
        """Return what one replica costs when its expert has 1 .. max_copies, [layers, experts, max_copies].

        Each token is taken to go to any replica with the same chance.
        """
        copies_C = np.arange(1, max_copies + 1, dtype=np.float64)
        mean_LE1 = load_WLE.sum(axis=0)[:, :, None] / load_WLE.shape[0]
        cost_LEC = self.tokens * mean_LE1 / copies_C
        if self.activated:
            idle_LEC = np.zeros_like(cost_LEC)
            for load_LE in load_WLE:
                idle_LEC += (1.0 - 1.0 / copies_C) ** load_LE[:, :, None]
            cost_LEC += self.activated * (1.0 - idle_LEC / load_WLE.shape[0])
        return cost_LEC


TOKENS = ExpertCost()
