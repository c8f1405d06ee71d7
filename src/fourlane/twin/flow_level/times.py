"""Flows from begin to end: rates hold until some flows begin or end, and are then worked out anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.flow_level.port_use import PortUse
from fourlane.twin.flow_level.rates import native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fourlane.lanes.plan import LanePlan
    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

    Doubles = NDArray[np.float64]

__all__ = ["FlowTimes", "flow_times", "times_of"]

TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class FlowTimes:
    """When flows began and ended. Times are us from the scenario's start, as in `fourlane.twin.fabric.Results`.

    Attributes:
        topology: where they ran.
        compiled: the scenario.
        start_us: f64 [flows].
        delivered_us: f64 [flows], when the receiver had all.
        finish_us: f64 [flows], when the sender had the last acknowledgement.
        rounds: how often rates were worked out.
        port_bytes: f64 [ports, queues], on the wire.
    """

    topology: Topology
    compiled: CompiledScenario
    start_us: Doubles
    delivered_us: Doubles
    finish_us: Doubles
    rounds: int
    port_bytes: Doubles

    @property
    def makespan_us(self) -> float:
        """Return when the last flow ended."""
        return float(self.finish_us.max(initial=0.0))

    def flows_of(self, traffic_class: str) -> NDArray[np.bool_]:
        """Return which flows carry bytes of a class, [flows]."""
        kind = np.broadcast_to(self.compiled.flow_class, self.start_us.shape)
        size = np.broadcast_to(self.compiled.flow_size, self.start_us.shape)
        return (size > 0) & (kind == self.compiled.class_names.index(traffic_class))

    @cached_property
    def use(self) -> PortUse:
        """Return what ports carried on average."""
        seconds = max(self.makespan_us, 1e-6) * 1e-6
        return PortUse(self.topology, self.compiled.queue_names, self.port_bytes / seconds)


def flow_times(
    topology: Topology,
    flows: Flows | Sequence[Flows],
    *,
    plan: LanePlan | None = None,
    tolerance: float = TOLERANCE,
    progress: Callable[[int, int], object] | None = None,
    **settings: Any,
) -> FlowTimes:
    """Return when each flow ends.

    Args:
        topology: where they run.
        flows: as for `fourlane.twin.fabric.Scenario`.
        plan: the lanes; None: plain ones.
        tolerance: rates hold for at least this share of the time of the shortest flow under way, and what flows that
            end meanwhile leave is not used; 0: they are always up to date.
        progress: called after each round with how many flows have ended, and how many there are.
        settings: as for `fourlane.twin.fabric.Scenario`. Links and switches are as failures leave them in the end.

    Raises:
        SpecError: the scenario makes no sense.
    """
    scenario = Scenario(topology, flows, plan=plan, **settings)
    return times_of(scenario, tolerance=tolerance, progress=progress)


def times_of(
    scenario: Scenario, *, tolerance: float = TOLERANCE, progress: Callable[[int, int], object] | None = None
) -> FlowTimes:
    """Return when each flow of a scenario ends; see `flow_times`.

    Raises:
        SpecError: it makes no sense.
    """
    compiled = scenario.compile()
    simulation = native(compiled, tolerance)
    ended = False
    while not ended:
        ended = simulation.advance()
        if progress is not None:
            progress(simulation.flows_done(), compiled.flows)
    raw = simulation.times()
    assert (raw["finished"] >= 0).all(), "every flow gets a rate in the end"
    return FlowTimes(
        topology=scenario.topology,
        compiled=compiled,
        start_us=raw["started"] * 1e6,
        delivered_us=raw["delivered"] * 1e6,
        finish_us=raw["finished"] * 1e6,
        rounds=raw["rounds"],
        port_bytes=raw["port_bytes"],
    )
