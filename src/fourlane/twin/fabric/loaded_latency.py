"""Latency under load: packets of expert messages to random GPUs, at a share of what NICs can send, in the plan's lanes.

Every host sends messages at random times to random others; a share of background traffic runs in another class. What
is measured is each expert packet's way from its first bit at the sender to the receiver's memory, NICs included, as
the idle budget has it (`fourlane.twin.fabric.latency`); waiting in the sender for its own earlier packets is not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.histogram import bucket_of
from fourlane.twin.fabric.latency import idle_time, path_ports
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.routing import routing_table
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.settings import Packets
from fourlane.twin.fabric.workloads import poisson
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster
    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.topology import Topology

__all__ = ["BUDGET", "LOADS", "LoadedLatency", "Traffic", "idle_packet", "loaded_latencies"]

BUDGET = Duration.parse("4us")
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MOST_MESSAGES = 400_000
_SHORTEST, _LONGEST = Duration.parse("15us"), Duration.parse("200us")
_EXPERT = "expert"


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What hosts send: expert messages of one size, and a background.

    The usual message is that of a dispatch in DeepSeek-V3: 7,168 values of 8 bits with their scales and a header. The
    background, a share of the NICs' rate, is in flows of `background_flow`, of a class that the plan has there.
    """

    message: Size = Size(7408)
    background: float = 0.0
    background_flow: Size = Size.parse("64KiB")
    background_class: str = "collective"
    seed: int = 1


class LoadedLatency(msgspec.Struct, frozen=True, kw_only=True):
    """Latency of expert packets at one load, in us.

    Units:
        load: of expert bytes on the wire over the NICs' rate. within: share of packets that took less than the budget.
    """

    load: float
    p50_us: float
    p99_us: float
    p999_us: float
    within: float
    packets: int
    dropped: int
    marked: int
    pauses: int


def loaded_latencies(
    cluster: Cluster,
    loads: Sequence[float] = LOADS,
    *,
    plan: LanePlan | None = None,
    traffic: Traffic | None = None,
    budget: Duration = BUDGET,
    progress: Callable[[ManyProgress], object] | None = None,
    engine: str = "native",
) -> list[LoadedLatency]:
    """Simulate expert traffic at each load on the GPUs' network of a cluster.

    Args:
        cluster: whose.
        loads: of expert traffic, above 0 and, with the background, below 1.
        plan: the lanes; None for the cluster's default plan.
        traffic: what is sent.
        budget: for `within`.
        progress: called some times a second.
        engine: as for `fourlane.twin.fabric.simulator.Simulator`.

    Raises:
        SpecError: a load or the traffic makes no sense on that cluster.
    """
    sent = traffic or Traffic()
    wrong = [load for load in loads if not 0 < load < 1 - sent.background]
    if wrong or not loads or not 0 <= sent.background < 1:
        shown = ", ".join(f"{load:g}" for load in wrong) or "none"
        raise SpecError(f"load: expected above 0 and below {1 - sent.background:g}, all traffic together, got {shown}")
    topology = rail_clos(cluster, nvlink=False)
    lanes = plan or default_plan(cluster)
    scenarios = [_scenario(topology, load, lanes, sent) for load in loads]
    results = run_many(scenarios, progress=progress, engine=engine)
    return [_figures(load, each, budget) for load, each in zip(loads, results, strict=True)]


def idle_packet(cluster: Cluster, message: Size) -> Duration:
    """Return how long a message's longest packet takes between hosts farthest apart, when all is idle."""
    topology = rail_clos(cluster, nvlink=False)
    table = routing_table(topology)
    leaf = topology.port_node[topology.port_peer[topology.endpoint_of[0]]]
    links = table.distance[topology.switch_index[leaf[0]], topology.leaf_index[leaf]]
    ports = path_ports(topology, table, topology.endpoint(0), topology.endpoint(int(links.argmax())))
    packets = Packets()
    return idle_time(topology, ports, int(min(message, packets.payload)) + int(packets.header))


def _scenario(topology: Topology, load: float, plan: LanePlan, traffic: Traffic) -> Scenario:
    duration = _duration(topology, load, traffic)
    flows = [
        poisson(topology, traffic.message, utilisation=load, duration=duration, seed=traffic.seed, traffic=_EXPERT)
    ]
    if traffic.background:
        flows.append(
            poisson(
                topology,
                traffic.background_flow,
                utilisation=traffic.background,
                duration=duration,
                seed=traffic.seed + 1,
                traffic=traffic.background_class,
            )
        )
    return Scenario(topology, flows, plan=plan, seed=traffic.seed)


def _duration(topology: Topology, load: float, traffic: Traffic) -> Duration:
    """Return how long to send: long enough for a steady state, short enough for so many messages."""
    rate = int(topology.port_rate[topology.endpoint_of[0]].sum())
    gap = int(traffic.message) * 8 * 10**12 / (rate * load)
    return Duration(int(min(max(_MOST_MESSAGES * gap, _SHORTEST), _LONGEST)))


def _figures(load: float, results: Results, budget: Duration) -> LoadedLatency:
    raw = results.raw
    counts = raw["latency_counts"][results.class_names.index(_EXPERT)]
    packets = int(counts.sum())
    return LoadedLatency(
        load=load,
        p50_us=results.percentile(_EXPERT, 50),
        p99_us=results.percentile(_EXPERT, 99),
        p999_us=results.percentile(_EXPERT, 99.9),
        within=float(counts[: bucket_of(int(budget))].sum() / packets),
        packets=packets,
        dropped=int(raw["port_drops"].sum()),
        marked=int(raw["port_marks"].sum()),
        pauses=int(raw["port_pauses"].sum()),
    )
