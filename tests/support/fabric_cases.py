"""Small networks and hand-made raw results, for tests of what is shown of a simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fourlane.twin.fabric.compiled import CompiledScenario
from fourlane.twin.fabric.histogram import BUCKETS, bucket_of

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
