"""A moment of a service packet by packet: chosen exchanges and KV transfers, beside each other on the whole cluster.

    seen = packets_of_window(assembly, [UnitExchange("decode", 3, tokens=96)], [KvFlow(0, 40, "64MB")])

The same flows run by packets and at flow level, so that what whole-cluster figures are made of can be looked at, and
judged. Not for which exchanges and transfers there are at a moment (`fourlane.twin.serving`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.cluster_traffic import cluster_traffic, setting_of
from fourlane.twin.exchange.runs import ExchangeRun
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.flow_level.times import times_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.cluster_traffic import ClusterTraffic
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.scenario import Scenario
    from fourlane.twin.fabric.simulator import Progress
    from fourlane.twin.flow_level.times import FlowTimes
    from fourlane.twin.times import Operation, Phase

__all__ = ["ExchangeSeen", "KvFlow", "UnitExchange", "WindowPackets", "packets_of_window"]

_PS = 1e12


class UnitExchange(NamedTuple):
    """A dispatch or combine of a unit, of `tokens` a rank, that starts so many seconds after the window does."""

    phase: Phase
    unit: int
    operation: Operation = "dispatch"
    tokens: int = 128
    max_over_mean: float = 1.0
    start_s: float = 0.0


class KvFlow(NamedTuple):
    """KV cache of `size` bytes from a prefill rank to a decode rank, both counted over all units of their phase."""

    source: int
    target: int
    size: int
    start_s: float = 0.0


class ExchangeSeen(NamedTuple):
    """How long the network took over an exchange beside everything else, by packets and at flow level."""

    exchange: UnitExchange
    packets_us: float
    flows_us: float


@dataclass(frozen=True, eq=False)
class WindowPackets:
    """What became of a window.

    Args:
        exchanges: each one's times.
        results: of all packets on the HPN, for pictures and Perfetto.
        flow_level: of the same flows.
        kv_us: when each KV transfer was delivered, by packets.
    """

    exchanges: tuple[ExchangeSeen, ...]
    results: Results
    flow_level: FlowTimes
    kv_us: tuple[float, ...]


def packets_of_window(
    assembly: Assembly,
    exchanges: Sequence[UnitExchange],
    kv: Sequence[KvFlow] = (),
    *,
    progress: Callable[[Progress], object] | None = None,
) -> WindowPackets:
    """Simulate exchanges and KV transfers packet by packet on the service's cluster, all its switches included.

    Args:
        assembly: the service.
        exchanges: at least one.
        kv: transfers; where they have a network of their own they are simulated there, by themselves.
        progress: of the packets.

    Raises:
        SpecError: nothing to exchange, a unit or rank that is not there, or no simulated network.
    """
    _check(assembly, exchanges, kv)
    traffic = cluster_traffic(assembly)
    parts = [_exchange_flows(assembly, traffic, each) for each in exchanges]
    transfers = _kv_flows(traffic, kv)
    on_hpn = [*parts, *(transfers if traffic.dcn is None else ())]
    scenario = traffic.scenario(*on_hpn, seed=assembly.twin.seed)
    results = scenario.run(progress)
    flows = times_of(scenario)
    begins = np.cumsum([0, *map(len, parts)])
    seen = []
    for each, first, end in zip(exchanges, begins[:-1], begins[1:], strict=True):
        began = each.start_s * 1e6
        last = [float(run.delivered_us[first:end].max()) - began for run in (results, flows)]
        seen.append(ExchangeSeen(each, *last))
    kv_us = results.delivered_us[begins[-1] :] if traffic.dcn is None else _on_dcn(traffic, transfers, assembly)
    return WindowPackets(tuple(seen), results, flows, tuple(np.asarray(kv_us).tolist()))


def _check(assembly: Assembly, exchanges: Sequence[UnitExchange], kv: Sequence[KvFlow]) -> None:
    """Refuse what is not there.

    Raises:
        SpecError: with all of it.
    """
    faults = [] if exchanges else ["window: expected at least one exchange, got none"]
    pools = assembly.twin.pools()
    for each in exchanges:
        units = pools[each.phase].units
        if not 0 <= each.unit < units:
            faults.append(f"window: expected a {each.phase} unit from 0 to {units - 1}, got {each.unit}")
        if pools[each.phase].ranks < 2:
            faults.append(f"window: {each.phase} units have one rank each, which exchanges nothing")
    for flow in kv:
        for phase, rank in (("prefill", flow.source), ("decode", flow.target)):
            ranks = pools[phase].units * pools[phase].ranks
            if not 0 <= rank < ranks:
                faults.append(f"window: kv: expected a {phase} rank from 0 to {ranks - 1}, got {rank}")
    if faults:
        raise SpecError(*faults)


def _exchange_flows(assembly: Assembly, traffic: ClusterTraffic, each: UnitExchange) -> Flows:
    setting = setting_of(each.phase, assembly.phases()[each.phase].exchange)
    run = ExchangeRun(setting, each.operation, each.tokens, each.max_over_mean, seed=assembly.twin.seed + 1)
    gpus = traffic.gpu_UR[each.phase][each.unit]
    name = f"{each.phase} {each.unit} {each.operation}"
    return expert_flows(traffic.topology, run.traffic, gpus=gpus, name=name).starting(_ps(each.start_s))


def _kv_flows(traffic: ClusterTraffic, kv: Sequence[KvFlow]) -> list[Flows]:
    ranks = {phase: gpus.reshape(-1) for phase, gpus in traffic.gpu_UR.items()}
    return [
        traffic.kv(ranks["prefill"][[flow.source]], ranks["decode"][[flow.target]], flow.size).starting(
            _ps(flow.start_s)
        )
        for flow in kv
    ]


def _on_dcn(traffic: ClusterTraffic, transfers: Sequence[Flows], assembly: Assembly) -> Any:
    if not transfers:
        return np.zeros(0)
    scenario: Scenario = traffic.dcn_scenario(*transfers, seed=assembly.twin.seed)
    return scenario.run().delivered_us


def _ps(seconds: float) -> Any:
    return np.full(1, round(seconds * _PS), dtype=np.int64)
