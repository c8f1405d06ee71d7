"""Simulate published observations of networks: collisions, marks, interference.

Each function makes one observation: a scenario as small as shows it, and the figure in the unit of its row in
`published/network.toml`. Not for latency (`fourlane.twin.fabric.latency`) nor for expert exchange
(`fourlane.twin.fabric.exchange_validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourlane.spec.load import load, load_cluster
from fourlane.twin.fabric.builders import leaf_spine
from fourlane.twin.fabric.clos import Tiers, lay_clos
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.draft import Cable, Draft, Gear, Nic
from fourlane.twin.fabric.exchange_validation import Exchange
from fourlane.twin.fabric.expert_kernels import OPERATIONS, kernels_named, published_exchanges
from fourlane.twin.fabric.expert_routing import ExpertRouting, count_messages, ranks_of_experts
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.fabric.flows import Flows, concatenated
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.topology import LEAF, NVLINK
from fourlane.twin.fabric.workloads import between, incast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.topology import Topology

__all__ = ["NetworkRow", "Observation", "decode_dispatch", "observations", "published_network", "simulate_observation"]

_WIRE_SHARE = 4096 / 4160
"""Payload of what a data packet takes on the wire."""


class NetworkRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published observation, and the bounds its simulation is held to. `published` is None where only a sign was."""

    what: str
    unit: str
    published: float | None = None
    least: float
    most: float
    why: str
    differs: str = ""
    source: str

    @property
    def shown(self) -> str:
        """Return what was published; where no figure was, what bounds say."""
        return f"above {self.least:g} {self.unit}" if self.published is None else f"{self.published:g} {self.unit}"


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: dict[str, NetworkRow]


@cache
def published_network() -> dict[str, NetworkRow]:
    """Return the published observations by name."""
    return load(Path(__file__).parent / "published" / "network.toml", _Rows).rows


@dataclass(frozen=True)
class Observation:
    """What a simulation of a published observation showed. `scenario` says what was assumed."""

    name: str
    row: NetworkRow
    figure: float
    scenario: str

    @property
    def within(self) -> bool:
        """Tell whether the figure is within its bounds."""
        return self.row.least <= self.figure <= self.row.most


def observations() -> tuple[str, ...]:
    """Return the names of all observations."""
    return tuple(name for names in _OBSERVED for name in names)


def simulate_observation(name: str) -> list[Observation]:
    """Simulate the observation of a name, and those that come from the same runs."""
    names, run = next((names, run) for names, run in _OBSERVED.items() if name in names)
    figures, scenario = run()
    return [
        Observation(each, published_network()[each], figure, scenario)
        for each, figure in zip(names, figures, strict=True)
    ]


_Found = tuple[tuple[float, ...], str]


def _two_flows() -> _Found:
    """Two hosts of a leaf send to two of another: where the hash sends both over one of two spines, and adaptively."""
    net = leaf_spine(2, 2, 2, rate="100Gbps")
    flows = between(net, [0, 1], [2, 3], "10MB")
    hashed = [Scenario(net, flows, routing="ecmp", seed=seed) for seed in range(16)]
    runs = _all([*hashed, Scenario(net, flows, routing="adaptive")])
    *rates, adaptive = (float(run.flow_rate.mean()) / 1e9 / _WIRE_SHARE for run in runs)
    met = [rate for rate in rates if rate < 75]
    said = f"2 leaves, 2 spines, 100G; 10 MB a flow; {len(met)} of 16 hashes sent both over one spine: the mean rate on"
    return (float(np.mean(met)), adaptive), f"{said} the wire in those; then adaptive routing"


def _deepep_ecmp() -> _Found:
    """Normal kernels on four servers, each on a leaf of its own: adaptive, and hashed, a queue pair for two GPUs."""
    row = msgspec.structs.replace(
        next(row for row in published_exchanges() if row.name == "normal, EP64"),
        name="normal, EP32",
        ranks=32,
        groups=4,
        tokens=1024,
    )
    net = kernels_named(row.kernels).on(_servers_on_leaves(4, 8), forwards=True)
    scenarios: list[Scenario] = []
    sizes: list[float] = []
    for operation in OPERATIONS:
        exchange = Exchange(row, operation, 1)
        flows = expert_flows(net, exchange.traffic, queue_pairs=1)
        pinned = flows.pinned(net.port_node[flows.source] % 8)
        scenarios += [Scenario(net, flows, routing="adaptive"), Scenario(net, pinned, routing="static")]
        scenarios += [Scenario(net, flows, routing="ecmp", transport="go-back-n", seed=seed) for seed in range(1, 6)]
        sizes.append(exchange.logical_bytes)
    taken = np.array([run.makespan_us for run in _all(scenarios)]).reshape(2, -1)
    shares = taken[:, 0] / np.median(taken[:, 2:], axis=1)
    rates = " and ".join(f"{rate:.0f}" for rate in np.array(sizes) / taken[:, 0] / 1e3)
    said = "4 servers, each with a leaf of its own, 8 spines, 400G; 1,024 tokens a rank, top-8 in 4 groups; one queue"
    said = f"{said} pair between two GPUs; the median of five hashes over adaptive routing, which gives {rates} GB/s"
    return (*shares.tolist(), float((taken[:, 0] / taken[:, 1]).min())), f"{said}; static: a spine for each rail"


def _queue_pairs() -> _Found:
    """All-reduce as rings over rails: its time is that of the most crowded link."""
    net = leaf_spine(8, 8, 8)
    few, many = (_spread_pairs(net, pairs, size=16_000_000) for pairs in (4, 16))
    seeds = range(1, 6)
    scenarios = [Scenario(net, few, routing="ecmp", source_port="per-connection", seed=seed) for seed in seeds]
    scenarios += [Scenario(net, many, routing="qp-hash", seed=seed) for seed in seeds]
    taken = np.array([run.makespan_us for run in _all(scenarios)]).reshape(2, -1)
    said = (
        "64 hosts on 8 leaves, each sends 16 MB to its neighbour in the ring, on the next leaf: by 4 queue pairs hashed"
    )
    return (float(np.median(taken[0]) / np.median(taken[1])),), f"{said} by UDP port, then by 16 hashed by queue pair"


def _host_adaptive() -> _Found:
    """Throughput while all flows are under way: what is delivered in a time too short for any to end."""
    net = leaf_spine(8, 8, 8)
    flows = _spread_pairs(net, 4, size=64_000_000)
    limits = {"time": "400us"}
    hashed = [Scenario(net, flows, routing="ecmp", seed=seed, limits=limits) for seed in range(1, 6)]
    runs = _all([*hashed, Scenario(net, flows, routing="adaptive", limits=limits)], partial=True)
    *by_flow, adaptive = (int(run.raw["delivered_payload"]) for run in runs)
    said = "64 hosts on 8 leaves, each sending to one on the next leaf by 4 queue pairs, endlessly; bytes delivered in"
    return (adaptive / float(np.median(by_flow)),), f"{said} 400 us by adaptive routing over those by ECMP, median of 5"


def _marks() -> _Found:
    """A decode dispatch whose senders all begin with the same receiver, marked; then with DCQCN."""
    net = rail_clos(msgspec.structs.replace(load_cluster("h800-ft"), servers=8), nvlink=False)
    flows = decode_dispatch(net)
    order = np.argsort(flows.destination, kind="stable")
    same = replace(flows, source=flows.source[order], destination=flows.destination[order], size=flows.size[order])
    thresholds = {"kmin": "150kB", "kmax": "1500kB", "pmax": 1.0}
    common: dict[str, Any] = {"routing": "adaptive", "ecn": True}
    incast_like: dict[str, Any] = {**common, "queues": {"data": {"ecn": thresholds, "service": "in-order"}}}
    scenarios = [
        Scenario(net, same, **incast_like),
        Scenario(net, same, **incast_like, congestion="dcqcn"),
        Scenario(net, flows, **common, queues={"data": {"ecn": thresholds}}),
    ]
    plain, slowed, turns = _all(scenarios)
    marked, spread = (100 * run.total("marks") / int(run.raw["data_packets_sent"]) for run in (plain, turns))
    said = (
        "EP64 low-latency dispatch, 7.5 MB to each rank, all senders serving receivers one after the other in the same"
    )
    said = f"{said} order (taking turns among them, {spread:.0f} % is marked), buffers of 158 MB; DCQCN with the NIC's"
    return (marked, slowed.makespan_us / plain.makespan_us), f"{said} default parameters"


def _incast_dcqcn() -> _Found:
    net = leaf_spine(16, 8, 8)
    flows = incast(net, "1MiB", sources=range(8, 72), destination=0)
    marking = {"data": {"ecn": {"kmin": "800kB", "kmax": "3200kB", "pmax": 0.2}}}
    common: dict[str, Any] = {"routing": "adaptive", "window_bdp": 1.0, "queues": marking, "ecn": True}
    reacting = {"congestion": "dcqcn", "dcqcn": {"preset": "simulations"}}
    plain, slowed = _all([Scenario(net, flows, **common), Scenario(net, flows, **common, **reacting)])
    said = (
        "I64_1M on 16 leaves and 8 spines; Kmin 800 kB, Kmax 3.2 MB, Pmax 0.2, a window of one bandwidth-delay product"
    )
    return (slowed.makespan_us / plain.makespan_us,), f"{said}; DCQCN as the HPCC and SimAI simulators set it"


def _interference() -> _Found:
    """An EP32 dispatch while every rank receives KV cache at line rate from another server."""
    net = rail_clos(msgspec.structs.replace(load_cluster("h800-ft"), servers=8), nvlink=False)
    experts = decode_dispatch(net, ranks=32)
    cache = between(net, np.arange(32, 64), np.arange(32), "16MB", traffic="kv")
    strict = {"expert": {"scheduler": "strict"}}
    limits = {"time": "5ms"}
    runs = _all(
        [
            Scenario(net, experts, routing="adaptive"),
            Scenario(net, [experts, cache], routing="adaptive", limits=limits),
            Scenario(net, [experts, cache], routing="adaptive", lanes="own", queues=strict, limits=limits),
        ]
    )
    alone, shared, own = (float(run.delivered_us[: len(experts)].max()) for run in runs)
    said = "EP32 low-latency dispatch, while each of its ranks receives KV cache from one NIC of another server at line"
    return (shared / alone, own / alone), f"{said} rate; in the same queue, and with the expert queue strict"


_OBSERVED: dict[tuple[str, ...], Callable[[], _Found]] = {
    ("two-flows", "adaptive"): _two_flows,
    ("deepep-ecmp-dispatch", "deepep-ecmp-combine", "deepep-static"): _deepep_ecmp,
    ("queue-pairs",): _queue_pairs,
    ("host-adaptive",): _host_adaptive,
    ("marks", "marks-slow"): _marks,
    ("incast-dcqcn",): _incast_dcqcn,
    ("interference", "interference-own-queue"): _interference,
}


def _all(scenarios: Sequence[Scenario], *, partial: bool = False) -> list[Results]:
    return run_many(scenarios, partial=partial)


def decode_dispatch(net: Topology, *, ranks: int = 64) -> Flows:
    """Return a balanced dispatch of 128 tokens a rank, top-8 of 256 experts, by NIC alone."""
    drawn = ExpertRouting(tokens=128, experts=256, top_k=8).draw(np.random.default_rng(1), ranks)
    counts = count_messages(ranks_of_experts(drawn, ranks=ranks, experts=256), ranks=ranks)
    return expert_flows(net, LowLatencyKernels().dispatch(counts))


def _spread_pairs(net: Topology, pairs: int, *, size: int) -> Flows:
    """Return a ring over leaves: host h sends to the host in its place on the next leaf, by so many queue pairs."""
    host = np.arange(net.hosts)
    each = np.full(1, size // pairs, dtype=np.int64)
    ring = between(net, host, (host + 8) % net.hosts, each)
    parts = [replace(ring, qp=np.full(len(ring), pair, dtype=np.uint32)) for pair in range(pairs)]
    return concatenated(parts)


def _servers_on_leaves(servers: int, spines: int) -> Topology:
    """Return servers of eight GPUs, all NICs of one on a leaf of its own, NVLink inside."""
    server = np.repeat(np.arange(servers, dtype=np.int32), 8)
    hosts = np.arange(8 * servers, dtype=np.int64)
    draft = Draft("servers on leaves", host_server=server, host_pod=server * 0, gpu_host=hosts.astype(np.int32))
    gear = Gear(latency=700_000, buffer=1 << 27, cut_through=True)
    cable = Cable(rate=400 * 10**9, prop=200_000)
    nic = draft.network("hpn", Nic(tx_latency=700_000, rx_latency=700_000))
    tiers = Tiers(leaves=servers, spines=spines, leaf_up=spines)
    lay_clos(draft, tiers, hosts // 8, gear=(gear, gear, gear), cables=(cable, cable, cable), networks=(nic,))
    nvlink = draft.network(NVLINK, Nic(tx_latency=400_000, rx_latency=400_000))
    inside = Gear(latency=200_000, buffer=1 << 26, cut_through=True)
    first = draft.switches(servers, inside, tier=LEAF, network=nvlink, pod=np.zeros(servers, dtype=np.int64))
    draft.cables(hosts, first + hosts // 8, Cable(rate=1600 * 10**9, prop=0), network=nvlink)
    return draft.finish()
