"""What steps of a phase's units take, whatever else goes on: KV cache beside expert traffic, links that are down.

Each case is a step model of its own with another exchange, made when it first occurs. Not for how much slower things
get (`twin.kv_path`, `twin.cluster_use`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fourlane.twin.serving.fast_steps import FastSteps
from fourlane.twin.times import Timed

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import PhaseModel
    from fourlane.twin.times import ExchangeTimes, Operation

__all__ = ["BACKGROUNDS", "SlowedExchange", "UnitTimes"]

BACKGROUNDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Shares of a NIC that KV cache takes: the nearest of these is reckoned with."""

_HALFWAY = tuple((low + high) / 2 for low, high in pairwise(BACKGROUNDS))


@dataclass(frozen=True, slots=True)
class SlowedExchange:
    """An exchange that takes `factor` times as long: links or switches of its unit are down."""

    exchange: ExchangeTimes
    factor: float

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank, the fullest receiver getting so many times the mean."""
        alone = self.exchange.operation(operation, tokens, max_over_mean)
        return Timed(
            alone.seconds * self.factor, "fault", f"{alone.source}, x {self.factor:.3g} for links that are down"
        )


class UnitTimes:
    """Step times of one phase, by the case."""

    def __init__(self, model: PhaseModel) -> None:
        self._model = model
        self._cases: dict[tuple[float, float], FastSteps] = {}

    def at(self, background: float = 0.0, slower: float = 1.0) -> FastSteps:
        """Return step times with a share of NICs taken by KV cache, and an exchange so many times as slow."""
        case = (BACKGROUNDS[bisect_left(_HALFWAY, background)] if background else 0.0, slower)
        if case not in self._cases:
            self._cases[case] = self._made(*case)
        return self._cases[case]

    def _made(self, background: float, slower: float) -> FastSteps:
        model = self._model
        exchange: Any = model.exchange
        if background and hasattr(exchange, "with_background"):
            exchange = exchange.with_background(background)
        if slower > 1:
            exchange = SlowedExchange(exchange, slower)
        if exchange is not model.exchange:
            model = model.with_exchange(exchange)
        return FastSteps(model.steps, model.pool.ranks, model.phase)
