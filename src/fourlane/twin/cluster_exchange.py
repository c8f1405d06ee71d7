"""Exchange of a unit beside all other traffic of its cluster: times from packets, and what the others multiply them by.

Not for how much that is (`fourlane.twin.cluster_use`), nor for KV cache, of which tables of packet runs know themselves
(`ExchangeTable.with_background`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fourlane.twin.cluster_use import cluster_use, load_of
from fourlane.twin.times import Timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.twin.assembly_parts import Assembly, PhaseModel
    from fourlane.twin.cluster_use import ClusterUse
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.times import ExchangeTimes, Operation

__all__ = ["SlowedExchange", "beside_others"]


@dataclass(frozen=True)
class SlowedExchange:
    """An exchange that takes `factor` times as long as `alone`; `source` says why."""

    alone: ExchangeTimes
    factor: float
    source: str

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes beside the others."""
        time = self.alone.operation(operation, tokens, max_over_mean)
        return Timed(time.seconds * self.factor, time.bound, f"{time.source}; {self.source}")

    def with_background(self, share: float) -> SlowedExchange:
        """Return it with KV cache on the network, too."""
        alone: Any = self.alone
        shared = getattr(alone, "with_background", None)
        return self if shared is None else replace(self, alone=shared(share))


def beside_others(
    assembly: Assembly, point: OperatingPoint, *, progress: Callable[[int, int], object] | None = None
) -> tuple[Assembly, ClusterUse]:
    """Return a service of which units slow each other's exchange down as they do at an operating point.

    Args:
        assembly: the service, each unit as if alone.
        point: how much is under way.
        progress: called while rates are worked out.

    Raises:
        SpecError: the cluster has too few GPUs.
    """
    use = cluster_use(assembly, load_of(assembly, point), progress=progress)
    prefill, decode = (_slowed(model, use) for model in assembly.phases().values())
    return replace(assembly, prefill=prefill, decode=decode), use


def _slowed(model: PhaseModel, use: ClusterUse) -> PhaseModel:
    if model.phase not in use.slowdown:
        return model
    factor = max(1.0, use.slowdown[model.phase].units)
    says = f"{factor:.3g} times as long beside other units ({use.source})"
    return model.with_exchange(SlowedExchange(model.exchange, factor, says))
