"""Small networks by hand, random ones by Hypothesis, and hand-made raw results.

`scenarios()`: any valid scenario, small enough for the reference simulator: every mechanism is on in some of them,
alone and with others. It may lose packets and, with too little headroom or timeouts off, hang: `partial=True` then
returns what is known. `sound_scenarios()`: those in which every flow must be delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from fourlane.twin.fabric import Scenario, Steps, all_to_all, between, concatenated, fat_tree, leaf_spine, single_switch
from fourlane.twin.fabric.builders import multi_plane
from fourlane.twin.fabric.compiled import CompiledScenario
from fourlane.twin.fabric.histogram import BUCKETS, bucket_of

if TYPE_CHECKING:
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

PS_A_BYTE = 20
"""400 Gbit/s."""


def star(hosts: int, flows: list[tuple[int, int, int]], **given: Any) -> CompiledScenario:
    """Return hosts on one switch and (source, destination, bytes) flows between them."""
    sources, targets, sizes = zip(*flows, strict=True)
    return CompiledScenario.of(
        **{
            "node_kind": [0] * hosts + [1],
            "port_node": [*range(hosts), *[hosts] * hosts],
            "port_peer": [*range(hosts, 2 * hosts), *range(hosts)],
            "port_ps_q16": [PS_A_BYTE << 16] * 2 * hosts,
            "flow_src_port": sources,
            "flow_dst_port": targets,
            "flow_size": sizes,
            **given,
        }
    )


def ring_of_switches(flows: list[tuple[int, int, int]], **given: Any) -> CompiledScenario:
    """Return three switches in a ring, each with a host, all packets going round it one way.

    Hosts are nodes and ports 0 to 2. Switch s is node 3 + s; its ports are 3 + 3 s to its host, then to the next
    switch, then to the one before.
    """
    sources, targets, sizes = zip(*flows, strict=True)
    return CompiledScenario.of(
        **{
            "node_kind": [0, 0, 0, 1, 1, 1],
            "port_node": [0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5],
            "port_peer": [3, 6, 9, 0, 8, 10, 1, 11, 4, 2, 5, 7],
            "port_ps_q16": [PS_A_BYTE << 16] * 12,
            "route_first": [[0, 0, 1, 2, 3, 3, 4, 5, 6, 6]],
            "route_ports": [4, 4, 7, 7, 10, 10],
            "flow_src_port": sources,
            "flow_dst_port": targets,
            "flow_size": sizes,
            **given,
        }
    )


def raw_results(scenario: CompiledScenario, **given: Any) -> dict[str, Any]:
    """Return raw results in which nothing has happened, but for what is given."""
    flows, ports, queues = scenario.flows, scenario.ports, scenario.queues
    raw: dict[str, Any] = dict.fromkeys(("time", "events", "data_hops", "data_packets_sent"), 0)
    raw |= {name: np.full(flows, -1) for name in ("flow_started", "flow_delivered", "flow_finish")}
    raw |= {name: np.zeros(flows, np.uint32) for name in ("flow_retransmitted", "flow_reorder")}
    counters = ("tx_bytes", "tx_packets", "drops", "marks", "trims", "pauses", "paused_ps")
    raw |= {f"port_{name}": np.zeros((ports, queues), np.int64) for name in counters}
    raw |= {"port_depth": np.zeros((ports, queues), np.int64), "port_paused": np.zeros(ports, np.uint8)}
    raw |= {"port_max_depth": np.zeros(ports, np.int64), "sample_time": np.zeros(0, np.int64)}
    raw |= {name: np.zeros((0, len(scenario.sample_ports)), np.int64) for name in ("sample_tx", "sample_depth")}
    raw["latency_counts"] = np.zeros((scenario.classes, BUCKETS), np.int64)
    raw["status"] = "done"
    return raw | {name: np.asarray(value) if isinstance(value, list) else value for name, value in given.items()}


def counted(*times_ps: int) -> np.ndarray:
    """Return [1, BUCKETS]: a histogram of times."""
    counts = np.zeros((1, BUCKETS), np.int64)
    for time_ps in times_ps:
        counts[0, bucket_of(time_ps)] += 1
    return counts


_CLASSES = ("expert", "kv", "bulk")
_ROUTINGS = ("ecmp", "qp-hash", "flowlet", "spray", "spray-random", "adaptive", "static")
_TRANSPORTS = ("go-back-n", "out-of-order", "reorder-buffer")


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Draw a network of 2 to 16 hosts: any builder, rates, delays, store-and-forward or cut-through."""
    equipment: dict[str, Any] = {
        "rate": draw(st.sampled_from(["100Gbps", "400Gbps", "333Gbps"])),
        "propagation": draw(st.sampled_from(["0ns", "100ns", "1us"])),
        "switch_latency": draw(st.sampled_from(["0ns", "500ns"])),
        "nic_latency": draw(st.sampled_from(["0ns", "600ns"])),
        "cut_through": draw(st.booleans()),
    }
    if draw(st.booleans()):
        equipment["uplink_rate"] = draw(st.sampled_from(["100Gbps", "800Gbps"]))
    kind = draw(st.sampled_from(["one", "leaves", "leaves", "tree", "planes"]))
    if kind == "one":
        equipment.pop("uplink_rate", None)
        return single_switch(draw(st.integers(2, 6)), **equipment)
    if kind == "tree":
        return fat_tree(draw(st.sampled_from([2, 4])), **equipment)
    if kind == "planes":
        return multi_plane(2, leaves=2, hosts_per_leaf=2, spines=1, **equipment)
    leaves, hosts, spines = draw(st.integers(1, 4)), draw(st.integers(2, 3)), draw(st.integers(1, 3))
    return leaf_spine(leaves, hosts, spines, links=draw(st.integers(1, 2)), **equipment)


@st.composite
def workloads(draw: st.DrawFn, topology: Topology) -> Flows:
    """Draw one to three workloads, side by side or one after the other, of up to three classes."""
    parts = [draw(_workload(topology)) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        return concatenated(parts)
    steps = Steps()
    for number, part in enumerate(parts):
        after = draw(st.sets(st.integers(0, number - 1))) if number else ()
        steps.add(part, after=after, delay=draw(st.sampled_from(["0ns", "700ns"])))
    return steps.flows()


@st.composite
def _workload(draw: st.DrawFn, topology: Topology) -> Flows:
    traffic = draw(st.sampled_from(_CLASSES))
    network = draw(st.sampled_from(topology.networks))
    host = st.integers(0, topology.hosts - 1)
    if draw(st.integers(0, 3)) == 0 and network == topology.networks[0]:
        flows = all_to_all(topology, draw(st.sampled_from(["1B", "5000B"])), traffic=traffic)
    else:
        pairs = draw(st.lists(st.tuples(host, host).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=12))
        if draw(st.booleans()):  # an incast
            pairs = [(source, pairs[0][1]) for source, _ in pairs if source != pairs[0][1]]
        sizes = draw(st.lists(st.integers(1, 80_000), min_size=len(pairs), max_size=len(pairs)))
        sources, targets = zip(*pairs, strict=True)
        flows = between(topology, sources, targets, np.array(sizes), traffic=traffic, network=network)
    if draw(st.booleans()):
        flows = flows.starting(np.array(draw(_as_many(flows, st.integers(0, 20_000_000)))))
    if draw(st.integers(0, 3)) == 0:
        flows = flows.in_messages(draw(st.sampled_from(["500B", "7408B"])))
    if draw(st.booleans()):
        flows = flows.pinned(np.array(draw(_as_many(flows, st.integers(0, (1 << 32) - 1)))))
    return flows


def _as_many(flows: Flows, each: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    return st.lists(each, min_size=len(flows), max_size=len(flows))


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a table in which every field may be missing."""
    return st.fixed_dictionaries({}, optional=fields)


_MARKS = st.sampled_from(
    [
        "off",
        {"kmin": "0B", "kmax": "0B", "pmax": 1.0},
        {"kmin": "9kB", "kmax": "40kB", "pmax": 0.3},
        {"kmin": "100kB", "kmax": "100kB", "pmax": 1.0},
    ]
)
_QUEUES = _some(
    scheduler=st.sampled_from(["dwrr", "strict"]),
    weight=st.integers(1, 100),
    cap=st.sampled_from([10, 30, 100]),
    alpha=st.sampled_from([0.03125, 0.5, 1.0, 8.0]),
    reserved=st.sampled_from(["0B", "5kB"]),
    lossless=st.booleans(),
    ecn=_MARKS,
    service=st.sampled_from(["round-robin", "in-order"]),
)
_CLASS = _some(
    routing=st.sampled_from(_ROUTINGS),
    transport=st.sampled_from(_TRANSPORTS),
    congestion=st.sampled_from(["none", "dcqcn", "clear-to-send"]),
    source_port=st.sampled_from(["per-connection", "fixed"]),
    window=st.sampled_from(["0B", "1B", "10kB", "1MB"]),
    rto=st.sampled_from(["15us", "60us"]),
    grants=st.integers(1, 3),
    trim=st.booleans(),
    ecn=st.booleans(),
)
_DCQCN = _some(
    preset=st.sampled_from(["paper", "nic", "simulations"]),
    cnp_interval=st.sampled_from(["0ns", "1us", "4us"]),
    timer=st.sampled_from(["1us", "10us"]),
    byte_counter=st.sampled_from(["1B", "10kB"]),
    rate_ai=st.just("5Gbps"),
    min_rate=st.just("1Gbps"),
    clamp=st.booleans(),
)
_OTHER = _some(
    seed=st.integers(0, (1 << 64) - 1),
    packets=_some(
        payload=st.sampled_from(["256B", "1500B", "9000B"]),
        header=st.sampled_from(["0B", "100B"]),
        ack=st.sampled_from(["1B", "84B"]),
    ),
    hash_seeds=st.sampled_from(["per-tier", "same"]),
    flowlets=_some(gap=st.sampled_from(["0ns", "1us"]), entries=st.sampled_from([1, 7, 4096])),
    adaptive=_some(
        quantum=st.sampled_from(["1B", "4kB"]),
        levels=st.integers(1, 8),
        staleness=st.sampled_from(["0ns", "1us"]),
    ),
    dcqcn=_DCQCN,
    sampling=_some(interval=st.sampled_from(["0ns", "3us"])),
)
_PAUSES = _some(response=st.sampled_from(["0ns", "300ns"]), xon_offset=st.sampled_from(["0B", "20kB"]))


@st.composite
def failures(draw: st.DrawFn, topology: Topology) -> list[dict[str, Any]]:
    """Draw up to two cables that fail for a while."""
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 2))):
        port = draw(st.integers(0, topology.ports - 1))
        one, other = int(topology.port_node[port]), int(topology.port_node[topology.port_peer[port]])
        at = draw(st.integers(0, 30))
        found.append(
            {
                "link": f"{topology.node_name(one)}-{topology.node_name(other)}",
                "at": f"{at}us",
                "repaired": f"{at + draw(st.integers(1, 30))}us",
                "reroute": draw(st.sampled_from(["0ns", "5us"])),
            }
        )
    return found


@st.composite
def scenarios(draw: st.DrawFn, *, sound: bool = False) -> Scenario:
    """Draw a valid scenario; with `sound`, one that neither loses for want of headroom nor gives up repeating."""
    topology = draw(topologies())
    flows = draw(workloads(topology))
    own = draw(st.booleans())
    queues = [*flows.kinds, "acks"] if own else ["data", "acks"]
    given: dict[str, Any] = {
        "lanes": "own" if own else "shared",
        "queues": {name: draw(_QUEUES) for name in queues if draw(st.booleans())},
        "classes": {name: draw(_CLASS) for name in flows.kinds},
        "pauses": draw(_PAUSES),
        "failures": draw(failures(topology)) if draw(st.integers(0, 2)) == 0 else [],
        "limits": {"time": "20ms"},
        **draw(_OTHER),
    }
    if sound:
        for table in given["classes"].values():
            table.setdefault("rto", "60us")
            if table.get("congestion") == "clear-to-send":
                given["failures"] = []  # a request or grant that is lost is not repeated
    elif draw(st.integers(0, 3)) == 0:
        given["pauses"] |= {"headroom": draw(st.sampled_from(["0B", "5kB"]))}
    if not sound and draw(st.integers(0, 3)) == 0:
        given["pauses"] |= {"watchdog": True, "detection": "3us", "restoration": "4us"}
        given["pauses"] |= {"action": draw(st.sampled_from(["drop", "forward"]))}
    for table in given["classes"].values():
        if table.get("transport") == "go-back-n" and draw(st.booleans()):
            table["ack_every"] = draw(st.integers(2, 5))
    if draw(st.booleans()):
        topology = _tight(topology, flows, given, 2_000_000 if sound else draw(st.sampled_from([1, 20_000, 200_000])))
    return Scenario(topology, flows, **given)


def _tight(topology: Topology, flows: Flows, given: dict[str, Any], shared: int) -> Topology:
    """Return the topology with buffers of which just so many bytes are left to share."""
    made = Scenario(topology, flows, **given).compile()
    switch = topology.node_kind == 1
    buffers = np.where(switch, topology.node_buffer - made.node_shared + shared, 0)
    return topology.replaced(node_buffer=buffers)


def sound_scenarios() -> st.SearchStrategy[Scenario]:
    """Draw a scenario in which every flow must be delivered within its limits."""
    return scenarios(sound=True)
