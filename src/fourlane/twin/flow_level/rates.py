"""Rates of flows that are all under way at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.flow_level.port_use import PortUse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane import _native
    from fourlane.lanes.plan import LanePlan
    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

    Doubles = NDArray[np.float64]

__all__ = ["FlowRates", "FlowSets", "flow_rates", "rates_of"]


@dataclass(frozen=True, eq=False)
class FlowRates:
    """What rate every flow gets.

    Attributes:
        topology: where they run.
        compiled: the scenario.
        wire_rate: f64 [flows], bit/s with headers; 0 for gates, and for what strict queues leave nothing.
        payload_rate: f64 [flows], the same without headers.
        bottleneck: i32 [flows], the port that holds a flow down (of a trunk its first); -1 for gates.
        use: what ports carry.
    """

    topology: Topology
    compiled: CompiledScenario
    wire_rate: Doubles
    payload_rate: Doubles
    bottleneck: NDArray[np.int32]
    use: PortUse

    @cached_property
    def duration_us(self) -> Doubles:
        """Return how long each flow would take if all rates stayed, [flows]; infinite where starved, NaN for gates."""
        size = np.broadcast_to(self.compiled.flow_size, self.payload_rate.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(size > 0, size * 8e6 / self.payload_rate, np.nan)


def flow_rates(
    topology: Topology, flows: Flows | Sequence[Flows], *, plan: LanePlan | None = None, **settings: Any
) -> FlowRates:
    """Return the max-min fair rates of flows, all under way at once, whenever they start and whatever they wait for.

    Args:
        topology: where they run.
        flows: as for `fourlane.twin.fabric.Scenario`.
        plan: the lanes; None: plain ones.
        settings: as for `fourlane.twin.fabric.Scenario`. Links and switches are as failures leave them in the end.

    Raises:
        SpecError: the scenario makes no sense.
    """
    return rates_of(Scenario(topology, flows, plan=plan, **settings))


def rates_of(scenario: Scenario) -> FlowRates:
    """Return the rates of a scenario's flows; see `flow_rates`.

    Raises:
        SpecError: it makes no sense.
    """
    return FlowSets(scenario).rates()


class FlowSets:
    """Rates of some of a scenario's flows after another, its topology, hashes and routing worked out once.

    Args:
        scenario: all flows that any set will have.

    Raises:
        SpecError: it makes no sense.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.topology = scenario.topology
        self.compiled = scenario.compile()
        self._native = native(self.compiled, 0.0)

    def rates(self, flows: NDArray[Any] | None = None) -> FlowRates:
        """Return the rates of these flows, or of all, all under way at once; the others' are 0."""
        chosen = np.arange(self.compiled.flows) if flows is None else flows
        raw = self._native.rates(np.ascontiguousarray(chosen, dtype=np.uint32))
        return FlowRates(
            topology=self.topology,
            compiled=self.compiled,
            wire_rate=raw["rate"] * 8,
            payload_rate=raw["rate"] * 8 * self._payload_share,
            bottleneck=raw["bottleneck"],
            use=PortUse(self.topology, self.compiled.queue_names, raw["port_rate"]),
        )

    @cached_property
    def _payload_share(self) -> Doubles:
        return payload_share(self.compiled)


def native(compiled: CompiledScenario, tolerance: float) -> _native.FlowLevel:
    """Return the native simulation of a scenario at flow level, with links as failures leave them in the end."""
    from fourlane import _native

    return _native.FlowLevel(compiled.flat(), len(compiled.epoch_time) - 1, tolerance)


def payload_share(compiled: CompiledScenario) -> Doubles:
    """Return for each flow the share of its bytes on the wire that are payload; 1 for gates."""
    size, message = np.broadcast_arrays(compiled.flow_size, compiled.flow_message)
    message = np.where((message == 0) | (message > size), size, message)
    whole, rest = np.divmod(size, np.maximum(message, 1))
    packets = whole * -(-message // compiled.mtu) + -(-rest // compiled.mtu)
    share = np.where(size > 0, size / np.maximum(size + packets * compiled.header, 1), 1.0)
    return np.broadcast_to(share, compiled.flow_src_port.shape)
