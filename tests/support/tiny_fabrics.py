"""Small networks as compiled scenarios, every array open to the test.

Arrays named by their full name replace the plain ones; in them `host(n)` is the endpoint of host n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.fabric.builders import leaf_spine, single_switch
from fourlane.twin.fabric.compiled import CompiledScenario
from fourlane.twin.fabric.routing import routing_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.fabric.topology import Topology

TAKEN_OVER = [
    "node_kind",
    "node_tier",
    "node_latency",
    "node_cut_through",
    "node_first_port",
    "port_node",
    "port_peer",
    "port_prop",
    "port_tx_latency",
    "port_rx_latency",
    "port_message_gap",
    "port_ps_q16",
    "switch_index",
    "leaf_index",
]


def compiled(topology: Topology, flows: Sequence[tuple[int, int, int]], **arrays: Any) -> CompiledScenario:
    """Make a scenario of flows (source host, target host, bytes), all from time 0 unless `flow_start` says otherwise.

    `tables` in place of `route_first` and `route_ports`: [tables, ports] of which ports are up.
    """
    ends = topology.endpoint_of[0]
    source = [int(ends[s]) if size else -1 for s, _, size in flows]
    target = [int(ends[t]) if size else -1 for _, t, size in flows]
    made = [routing_table(topology, up) for up in arrays.pop("tables", [None])]
    offsets = np.cumsum([0] + [len(table.ports) for table in made[:-1]])
    given = {name: getattr(topology, name) for name in TAKEN_OVER} | {
        "route_first": np.stack([table.first + offset for table, offset in zip(made, offsets, strict=True)]),
        "route_ports": np.concatenate([table.ports for table in made]),
        "flow_src_port": source,
        "flow_dst_port": target,
        "flow_size": [size for _, _, size in flows],
    }
    return CompiledScenario.of(**(given | arrays))


def star(hosts: int, flows: Sequence[tuple[int, int, int]], **arrays: Any) -> CompiledScenario:
    """Hosts on one switch: 400 Gb/s (20 ps a byte), 100 ns of cable, 500 ns of pipeline."""
    return compiled(single_switch(hosts, buffer="16MiB"), flows, **arrays)


def ls128(flows: Sequence[tuple[int, int, int]], **arrays: Any) -> CompiledScenario:
    """16 leaves of 8 hosts, 8 spines."""
    return compiled(leaf_spine(16, 8, 8), flows, **arrays)


def port_of(scenario: CompiledScenario, host: int) -> int:
    """Return the endpoint of a host of a single network."""
    return int(scenario.node_first_port[host])


def towards(scenario: CompiledScenario, host: int) -> int:
    """Return the switch port that leads to a host."""
    return int(scenario.port_peer[port_of(scenario, host)])


def uplinks(net: Topology, switch: str) -> list[int]:
    """Return a switch's ports to other switches."""
    node = net.node_named(switch)
    beyond = net.node_kind[net.port_node[net.port_peer]]
    return np.flatnonzero((net.port_node == node) & (beyond == 1)).tolist()
