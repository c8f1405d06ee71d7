"""Hold flow level against packets: the same scenarios by both, and by how much the time of the last flow differs.

Named scenarios, expert exchanges, lanes beside each other, several units in the same spines, a failed switch. Not for
what others measured (`fourlane.twin.fabric.network_validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_kernels import kernels_named
from fourlane.twin.fabric.expert_routing import ExpertRouting, ranks_of_experts
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.fabric.named import named
from fourlane.twin.fabric.network_validation import decode_dispatch
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.workloads import between
from fourlane.twin.flow_level.times import times_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.topology import Topology

__all__ = ["FlowLevelCheck", "check_flow_level", "flow_level_cases"]

_NEAR = (-0.03, 0.03)
_HERDING = (-0.25, 0.03)
_PASSING = (-0.1, 0.1)
_SAYS = {
    _NEAR: "",
    _PASSING: "queues that build up while KV cache passes, and are gone after it, are not known at flow level",
    _HERDING: "packets that all follow the same signal meet in the same queues; flow level knows ideal spreading only",
}


@dataclass(frozen=True, slots=True)
class FlowLevelCheck:
    """A scenario by packets and at flow level.

    Args:
        name: of the scenario.
        packets_us, flows_us: when the last flow of experts was delivered.
        least, most: bounds of the error.
        why: bounds are wider than for others.
    """

    name: str
    packets_us: float
    flows_us: float
    least: float
    most: float
    why: str

    @property
    def error(self) -> float:
        """Return by what share flow level is above packets."""
        return self.flows_us / self.packets_us - 1

    @property
    def within(self) -> bool:
        """Tell whether the error is within its bounds."""
        return self.least <= self.error <= self.most


def flow_level_cases() -> tuple[str, ...]:
    """Return the names of all scenarios."""
    return tuple(_CASES)


def check_flow_level(names: Sequence[str] | None = None, *, processes: int | None = None) -> list[FlowLevelCheck]:
    """Simulate scenarios by packets and at flow level.

    Args:
        names: of scenarios; None: of all.
        processes: that simulate packets at once.

    Raises:
        SpecError: there is no such scenario.
    """
    chosen = list(_CASES) if names is None else list(names)
    unknown = [name for name in chosen if name not in _CASES]
    if unknown:
        raise SpecError(f'flow level: expected some of {", ".join(_CASES)}, got "{unknown[0]}"')
    scenarios = [_CASES[name][0]() for name in chosen]
    packets = run_many(scenarios, processes=processes)
    found = []
    for name, scenario, results in zip(chosen, scenarios, packets, strict=True):
        flows = times_of(scenario)
        least, most = bounds = _CASES[name][1]
        found.append(
            FlowLevelCheck(
                name=name,
                packets_us=_last_us(results),
                flows_us=float(flows.delivered_us[flows.flows_of("expert")].max()),
                least=least,
                most=most,
                why=_SAYS[bounds],
            )
        )
    return found


def _last_us(results: Results) -> float:
    return float(np.nanmax(results.delivered_us[results.flows_of("expert")]))


def _named(name: str, routing: str) -> Callable[[], Scenario]:
    return lambda: named(name, routing=routing)


@cache
def _servers(count: int, *, nvlink: bool = False) -> Topology:
    return rail_clos(msgspec.structs.replace(load_cluster("h800-ft"), servers=count), nvlink=nvlink)


def _beside_kv(size: str = "16MB", **settings: Any) -> Callable[[], Scenario]:
    """An EP32 dispatch while each of its ranks gets KV cache at line rate from one NIC of another server."""

    def scenario() -> Scenario:
        net = _servers(8)
        cache_flows = between(net, np.arange(32, 64), np.arange(32), size, traffic="kv")
        return Scenario(net, [decode_dispatch(net, ranks=32), cache_flows], routing="adaptive", **settings)

    return scenario


def _dispatch(routing: str, **settings: Any) -> Callable[[], Scenario]:
    """An EP64 dispatch by NIC alone."""
    return lambda: Scenario(_servers(8), decode_dispatch(_servers(8)), routing=routing, **settings)


def _units(routing: str) -> Callable[[], Scenario]:
    """Four EP64 dispatches at once, by NIC alone, on leaves of 16 servers under the same 16 spines."""

    def scenario() -> Scenario:
        net = rail_clos(msgspec.structs.replace(load_cluster("low-latency"), gpu=None))
        one = decode_dispatch(net)
        port = net.endpoint_of[0]
        ends = net.port_node[one.source], net.port_node[one.destination]
        units = [replace(one, source=port[ends[0] + first], destination=port[ends[1] + first]) for first in _FIRSTS]
        return Scenario(net, units, routing=routing)

    return scenario


def _normal(routing: str) -> Callable[[], Scenario]:
    """An EP32 dispatch of 512 tokens a rank, once per node and on over NVLink, in chunks that wait for each other."""

    def scenario() -> Scenario:
        net = kernels_named("h800").on(_servers(4, nvlink=True), forwards=True)
        drawn = ExpertRouting(tokens=512, experts=256, top_k=8).draw(np.random.default_rng(1), 32)
        traffic = NormalKernels().dispatch(ranks_of_experts(drawn, ranks=32, experts=256), ranks=32)
        return Scenario(net, expert_flows(net, traffic), routing=routing)

    return scenario


_FIRSTS = (0, 64, 128, 192)
_STRICT = {"lanes": "own", "queues": {"expert": {"scheduler": "strict"}}}
_WEIGHED = {"lanes": "own", "queues": {"expert": {"weight": 70}, "kv": {"weight": 10}}}
_CASES: dict[str, tuple[Callable[[], Scenario], tuple[float, float]]] = {
    "incast, 64 to 1, 1 MiB each": (_named("I64_1M", "ecmp"), _NEAR),
    "all-to-all of 64, ECMP": (_named("A64_64K", "ecmp"), _NEAR),
    "all-to-all of 64, adaptive": (_named("A64_64K", "adaptive"), _NEAR),
    "all-to-all of 128, ECMP": (_named("A128_64K", "ecmp"), _NEAR),
    "all-to-all of 128, spray": (_named("A128_64K", "spray"), _NEAR),
    "permutation of 128, ECMP": (_named("P128_2MB", "ecmp"), _NEAR),
    "permutation of 1,024, ECMP": (_named("P1024_2MB", "ecmp"), _NEAR),
    "permutation of 1,024, spray": (_named("P1024_2MB", "spray"), _NEAR),
    "permutation of 1,024, adaptive": (_named("P1024_2MB", "adaptive"), _HERDING),
    "EP64 dispatch, adaptive": (_dispatch("adaptive"), _NEAR),
    "EP64 dispatch, one spine of four down": (_dispatch("adaptive", failures=[{"switch": "spine0"}]), _NEAR),
    "EP32 dispatch, normal kernels": (_normal("adaptive"), _NEAR),
    "four EP64 dispatches, ECMP": (_units("ecmp"), _NEAR),
    "four EP64 dispatches, adaptive": (_units("adaptive"), _NEAR),
    "EP32 dispatch beside KV, shared queue": (_beside_kv(), _NEAR),
    "EP32 dispatch beside 2 MB of KV each, shared queue": (_beside_kv("2MB"), _PASSING),
    "EP32 dispatch beside KV, weights 70 and 10": (_beside_kv(**_WEIGHED), _NEAR),
    "EP32 dispatch beside KV, experts strict": (_beside_kv(**_STRICT), _NEAR),
}
