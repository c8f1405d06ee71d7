"""What a failed link or switch does to each unit: how much longer its exchange, and its KV transfers, then take.

    factors = fault_factors(assembly, Fault(at="10s", kind="switch", target="spine0"))

At flow level, with the network as it stands once routing tables have followed: what was sent into the failure in the
time before (some 100 us) is nothing beside a step. Not for failed ranks or cut KV paths, which have no network in them
(`fourlane.twin.serving`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.cluster_traffic import cluster_traffic
from fourlane.twin.cluster_use import ClusterLoad
from fourlane.twin.fabric.failures import epochs_of
from fourlane.twin.fabric.flows import concatenated
from fourlane.twin.fabric.routing import unroutable
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.settings import Failure
from fourlane.twin.flow_level.rates import FlowSets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.spec.twin import Fault
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.cluster_traffic import ClusterTraffic
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.times import Phase

    Doubles = NDArray[np.float64]

__all__ = ["FaultFactors", "fault_factors"]

ALL_AT_ONCE = ClusterLoad(prefill=1.0, decode=1.0, kv_rate=0.0)
_DRAWS = 8
_DCN = "dcn:"


@dataclass(frozen=True)
class FaultFactors:
    """How many times longer than with a whole network. Infinite: cut off, so that the unit stands still.

    Args:
        exchange: of each unit's exchange, by phase.
        kv: of KV transfers out of each prefill unit.
        source: in words.
    """

    exchange: dict[Phase, tuple[float, ...]]
    kv: tuple[float, ...]
    source: str


def fault_factors(assembly: Assembly, fault: Fault, *, load: ClusterLoad = ALL_AT_ONCE) -> FaultFactors:
    """Return what a failed link or switch does to every unit of a service.

    Args:
        assembly: the service.
        fault: of kind "link" or "switch"; its target is of the HPN, or after "dcn:" of the second network.
        load: how much of the time units exchange; the default, all units at once, is the worst.

    Raises:
        SpecError: a fault of another kind, a target that is not there, or a service without a simulated network.
    """
    if fault.kind not in ("link", "switch"):
        raise SpecError(f'faults: kind: expected "link" or "switch", which the network has, got "{fault.kind}"')
    traffic = cluster_traffic(assembly)
    on_dcn = fault.target.startswith(_DCN)
    if on_dcn and traffic.dcn is None:
        raise SpecError(f'faults: target: "{fault.target}": KV cache has no second network here, so nothing uses it')
    target = fault.target.removeprefix(_DCN)
    failure = Failure(link=target) if fault.kind == "link" else Failure(switch=target)
    rng = np.random.default_rng([assembly.twin.seed, 11])
    exchange: dict[Phase, tuple[float, ...]] = {phase: _same(units) for phase, units in traffic.gpu_UR.items()}
    if traffic.exchange and not on_dcn:
        exchange |= _exchanges(traffic, failure, load, rng)
    hurt = on_dcn or traffic.dcn is None
    kv = _transfers(traffic, failure, rng) if hurt else _same(traffic.gpu_UR["prefill"])
    said = f"flow level: {fault.target} down, {traffic.lanes.name}, max-min rates over those with all links up"
    return FaultFactors(exchange, kv, said)


def _same(units: NDArray[np.int64]) -> tuple[float, ...]:
    return (1.0,) * len(units)


def _exchanges(
    traffic: ClusterTraffic, failure: Failure, load: ClusterLoad, rng: np.random.Generator
) -> dict[Phase, tuple[float, ...]]:
    """Return the slowdown of every unit's exchange, mean over draws of what else is under way."""
    pair = _Pair(traffic.topology, concatenated(list(traffic.exchange.values())), traffic.scenario, failure)
    shares: dict[Phase, float] = {"prefill": load.prefill, "decode": load.decode}
    draws = 1 if min(shares[phase] for phase in traffic.exchange) >= 1 else _DRAWS
    rows: dict[Phase, NDArray[np.int64]] = {}
    begin = 0
    for phase, flows in traffic.exchange.items():
        rows[phase] = begin + np.arange(len(flows)).reshape(-1, traffic.per_unit[phase])
        begin += len(flows)
    under_way = {phase: _in_turn(rng, draws, len(units), shares[phase]) for phase, units in rows.items()}
    seen: dict[Phase, list[Doubles]] = {phase: [] for phase in rows}
    for draw in range(draws):
        chosen = np.concatenate([units[under_way[phase][draw]].reshape(-1) for phase, units in rows.items()])
        whole, hurt = pair.durations(chosen)
        for phase, units in rows.items():
            among = under_way[phase][draw]
            slowdown = np.full(len(units), np.nan)
            slowdown[among] = hurt[units[among]].max(axis=1) / whole[units[among]].max(axis=1)
            seen[phase].append(slowdown)
    return {phase: tuple(np.nanmean(found, axis=0).tolist()) for phase, found in seen.items()}


def _in_turn(rng: np.random.Generator, draws: int, units: int, share: float) -> NDArray[np.bool_]:
    """Return what is under way in each draw, [draws, units]: every unit at least once."""
    found = rng.random((draws, units)) < share
    found[np.arange(units) % draws, np.arange(units)] = True
    return found


def _transfers(traffic: ClusterTraffic, failure: Failure, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the slowdown of KV transfers out of every prefill unit: of their mean rate, all ranks sending at once."""
    sources = traffic.gpu_UR["prefill"]
    targets = rng.choice(traffic.gpu_UR["decode"].reshape(-1), sources.size)
    flows = traffic.kv(sources.reshape(-1), targets)
    net = traffic.topology if traffic.dcn is None else traffic.dcn

    def scenario(flows: Flows, **settings: Any) -> Scenario:
        return Scenario(net, flows, plan=traffic.lanes.plan, **settings)

    pair = _Pair(net, flows, scenario, failure)
    whole, hurt = (1 / each.reshape(sources.shape) for each in pair.durations(np.arange(len(flows))))
    with np.errstate(divide="ignore"):
        return tuple((whole.mean(axis=1) / hurt.mean(axis=1)).tolist())


class _Pair:
    """The same flows on a whole network, and on what a failure leaves of it.

    Raises:
        SpecError: no such link or switch.
    """

    def __init__(self, topology: Topology, flows: Flows, scenario: Callable[..., Scenario], failure: Failure) -> None:
        try:
            epochs = epochs_of(topology, [failure])
        except SpecError as error:
            raise SpecError(*(fault.replace("failures[0]", "faults") for fault in error.faults)) from error
        last = int(epochs.table[-1])
        cut = unroutable(topology, epochs.tables[last], flows.source, flows.destination, up=epochs.up[-1])
        self._kept = np.flatnonzero(~cut)
        self._flows = len(flows)
        left = _some(flows, self._kept)
        self._whole = FlowSets(scenario(flows))
        self._hurt = FlowSets(scenario(left, failures=[failure])) if len(left) else None

    def durations(self, chosen: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
        """Return how long each flow takes in both networks, these being under way; infinite for one that is cut off."""
        hurt = np.full(self._flows, math.inf)
        if self._hurt is not None:
            place = np.full(self._flows, -1)
            place[self._kept] = np.arange(len(self._kept))
            among = place[chosen]
            hurt[self._kept] = self._hurt.rates(among[among >= 0]).duration_us
        return self._whole.rates(chosen).duration_us, hurt


def _some(flows: Flows, chosen: NDArray[np.int64]) -> Flows:
    """Return some of the flows, none of which waits for others."""
    of_each = {name: getattr(flows, name) for name in ("size", "message", "start", "delay", "kind", "pin")}
    taken = {name: array if len(array) == 1 else array[chosen] for name, array in of_each.items()}
    queue_pairs = np.arange(len(flows), dtype=np.uint32) if flows.qp is None else flows.qp
    ends = {"source": flows.source[chosen], "destination": flows.destination[chosen], "qp": queue_pairs[chosen]}
    return replace(flows, **ends, **taken, groups=flows.groups[:1])
