"""The latency budget of an idle path, hop by hop: NICs, PCIe, serialisation, cables, error correction, switches.

Every row names the source of its figure. A switch that cuts through sends on what it has received of a packet as the
simulators do: after the first 64 bytes, unless its egress port is faster than its ingress port; others after the last.
Not for waiting behind other packets (`fourlane.twin.fabric.loaded_latency`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.spec.hardware import latencies, switch_models
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.routing import FAR, routing_table
from fourlane.twin.fabric.topology import LEAF, SPINE
from fourlane.units import Duration, Length, Rate, Size

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster, Network, NetworkName, TierName
    from fourlane.twin.fabric.routing import RoutingTable
    from fourlane.twin.fabric.topology import Topology

__all__ = ["SMALLEST", "BudgetRow", "PathBudget", "idle_time", "latency_budgets", "path_ports"]

SMALLEST = Size(64)
HEAD = 64
"""Bytes after which a switch that cuts through knows where a packet goes."""
_SERIALISATION = "bytes over rate"
_KINDS = {1: "same leaf", 3: "cross leaf", 5: "cross pod"}


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a path: where it is, what takes time there, how long, and who says so."""

    where: str
    what: str
    time: Duration
    source: str


class PathBudget(msgspec.Struct, frozen=True, kw_only=True):
    """An idle path between two hosts, and where its time goes."""

    name: str
    switches: int
    source: str
    destination: str
    size: Size
    rows: list[BudgetRow]

    @property
    def total(self) -> Duration:
        """Return the time from memory to memory."""
        return Duration(sum(int(row.time) for row in self.rows))


def latency_budgets(cluster: Cluster, network: NetworkName = "hpn", *, size: Size = SMALLEST) -> list[PathBudget]:
    """Work out the budget of a packet on each kind of path of a network: same leaf, cross leaf, cross pod.

    Args:
        cluster: whose.
        network: which of its networks.
        size: of the packet on the wire.

    Raises:
        SpecError: the cluster cannot be cabled, or the size is no packet's.
    """
    chosen = cluster.networks().get(network)
    if chosen is not None and not HEAD <= size <= chosen.mtu + HEAD:
        raise SpecError(f"size: expected a packet of {HEAD}B to {chosen.mtu + HEAD}B on the wire, got {size}")
    topology = rail_clos(cluster, network, nvlink=False)
    assert chosen is not None
    table = routing_table(topology)
    source = topology.endpoint(0)
    budgets = []
    for switches, host in _farther_and_farther(topology, table):
        ports = path_ports(topology, table, source, topology.endpoint(host))
        budgets.append(
            PathBudget(
                name=_KINDS.get(switches, f"{switches} switches"),
                switches=switches,
                source=topology.node_name(0),
                destination=topology.node_name(host),
                size=size,
                rows=_rows(topology, chosen, ports, int(size)),
            )
        )
    return budgets


def _farther_and_farther(topology: Topology, table: RoutingTable) -> list[tuple[int, int]]:
    """Return for each number of switches there is from host 0 the first host so far away."""
    leaf = topology.port_node[topology.port_peer[topology.endpoint_of[0]]]
    links = table.distance[topology.switch_index[leaf[0]], topology.leaf_index[leaf]]
    found = {int(each): int(np.flatnonzero(links[1:] == each)[0]) + 1 for each in np.unique(links[1:]) if each < FAR}
    return [(each + 1, host) for each, host in sorted(found.items())]


def path_ports(topology: Topology, table: RoutingTable, source: int, destination: int) -> list[int]:
    """Return the egress ports of a shortest path between two endpoints, the first next hop taken at each switch."""
    leaf = int(topology.port_node[topology.port_peer[destination]])
    ports = [source]
    while (node := int(topology.port_node[topology.port_peer[ports[-1]]])) != leaf:
        hops = table.next_hops(int(topology.switch_index[node]), int(topology.leaf_index[leaf]))
        ports.append(int(hops[0]))
    return [*ports, int(topology.port_peer[destination])]


def idle_time(topology: Topology, ports: list[int], size: int) -> Duration:
    """Return how long a packet takes along idle ports, in ps, from the sender's memory to the receiver's.

    Args:
        topology: where.
        ports: egress ports of the path.
        size: bytes on the wire.
    """
    return Duration(
        int(topology.port_tx_latency[ports[0]])
        + sum(int(topology.port_prop[port]) for port in ports)
        + sum(int(topology.node_latency[topology.port_node[port]]) for port in ports[1:])
        + sum(_serialisations(topology, ports, size))
        + int(topology.port_rx_latency[topology.port_peer[ports[-1]]])
    )


def _serialisations(topology: Topology, ports: list[int], size: int) -> list[int]:
    """Return what each port adds in ps until the next switch may send the packet on (the last one: until its tail)."""
    ps = topology.port_ps_q16

    def added(port: int, count: int) -> int:
        return (count * int(ps[port])) >> 16

    times = []
    for port, following in pairwise(ports):
        switch = topology.port_node[following]
        cuts = topology.node_cut_through[switch] and ps[following] >= ps[port]
        times.append(added(port, min(size, HEAD) if cuts else size))
    return [*times, added(ports[-1], size)]


def _rows(topology: Topology, network: Network, ports: list[int], size: int) -> list[BudgetRow]:
    nic = latencies().nics[network.nic]
    rows = [
        _row("sender", "PCIe read", nic.pcie, nic.source),
        _row("sender", f"NIC ({network.nic})", Duration(nic.tx - nic.pcie), nic.source),
    ]
    for place, (port, time) in enumerate(zip(ports, _serialisations(topology, ports, size), strict=True)):
        where = "sender" if place == 0 else _tier_of(topology, port)
        if place:
            rows.append(_switch_row(topology, network, port))
        rows += _wire_rows(topology, network, where, port=port, time=time)
    return [
        *rows,
        _row("receiver", f"NIC ({network.nic})", Duration(nic.rx - nic.pcie), nic.source),
        _row("receiver", "PCIe write", nic.pcie, nic.source),
    ]


def _wire_rows(topology: Topology, network: Network, where: str, *, port: int, time: int) -> list[BudgetRow]:
    link = latencies().links[network.link]
    length = Length(int(topology.port_length[port]))
    rate = Rate(int(topology.port_rate[port]))
    ps_a_byte = int(topology.port_ps_q16[port]) / 65536
    rows = [
        _row(where, f"{round(time / ps_a_byte):,} bytes at {rate}", Duration(time), _SERIALISATION),
        _row("cable", str(length), Duration(int(topology.port_prop[port]) - int(link.fec)), link.source),
    ]
    return [*rows, _row("cable", "error correction", link.fec, link.source)] if link.fec else rows


def _switch_row(topology: Topology, network: Network, port: int) -> BudgetRow:
    node = int(topology.port_node[port])
    tier = network.tiers()[_tier_of(topology, port)]
    chip = switch_models()[tier.switch].chip
    source = latencies().chips[chip].source if tier.latency is None else "the cluster file"
    return _row(_tier_of(topology, port), f"{tier.switch} ({chip})", Duration(int(topology.node_latency[node])), source)


def _tier_of(topology: Topology, port: int) -> TierName:
    tier = topology.node_tier[topology.port_node[port]]
    return "leaf" if tier == LEAF else "spine" if tier == SPINE else "superspine"


def _row(where: str, what: str, time: Duration, source: str) -> BudgetRow:
    return BudgetRow(where=where, what=what, time=time, source=source)
