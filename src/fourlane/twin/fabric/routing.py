"""Routing tables: every next hop on a shortest path, from each switch towards each leaf.

Found by breadth-first search over switches from every leaf at once, so that what remains after failures of links or
switches is routed too. Not for choosing among the next hops, which packets do (`fourlane.twin.fabric.reference`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.fabric.topology import Topology

__all__ = ["FAR", "RoutingTable", "check_routable", "distances", "routing_table", "unroutable"]

FAR = 1 << 14
"""Distance of what cannot be reached."""
_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTable:
    """Next hops in compressed rows: ports[first[r] : first[r + 1]] for r = switch * leaves + leaf.

    Attributes:
        first: i64 [switches * leaves + 1].
        ports: i32, egress ports, ascending in each row.
        distance: i16 [switches, leaves], links between switch and leaf; FAR where there is no path.
    """

    first: NDArray[np.int64]
    ports: NDArray[np.int32]
    distance: NDArray[np.int16]

    def next_hops(self, switch: int, leaf: int) -> NDArray[np.int32]:
        """Return the egress ports at a switch towards a leaf (indices among switches and leaves)."""
        row = switch * self.distance.shape[1] + leaf
        return self.ports[self.first[row] : self.first[row + 1]]


def routing_table(topology: Topology, up: NDArray[np.uint8] | None = None) -> RoutingTable:
    """Work out the table of a topology, or of what is left of it.

    Args:
        topology: what there is.
        up: [ports], 0 for ports that failed; None for all up.
    """
    distance = distances(topology, up)
    ports, here, there, columns = _between_switches(topology, up)
    at = distance[:, columns]
    near = at[here]
    nearer = (at[there] + 1 == near) & (near < FAR)
    port, column = np.nonzero(nearer)
    row = here[port].astype(np.int64) * topology.leaves + columns[column]
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=topology.switches * topology.leaves)
    first = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=first[1:])
    return RoutingTable(first, ports[port[order]], distance)


def distances(topology: Topology, up: NDArray[np.uint8] | None = None) -> NDArray[np.int16]:
    """Return [switches, leaves]: links between a switch and a leaf on a shortest path; FAR where there is none."""
    distance = np.full((topology.switches, topology.leaves), FAR, dtype=np.int16)
    leaves = np.flatnonzero(topology.leaf_index >= 0)
    distance[topology.switch_index[leaves], topology.leaf_index[leaves]] = 0
    _, here, there, columns = _between_switches(topology, up)
    if not len(here):
        return distance
    pairs = np.unique(np.stack([here, there]), axis=1)  # parallel links once, ascending by `here`
    begins = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    reached = pairs[0][begins]
    part = distance[:, columns]
    while True:
        best = np.minimum.reduceat(part[pairs[1]], begins, axis=0) + 1
        found = np.minimum(part[reached], best.astype(np.int16))
        if np.array_equal(found, part[reached]):
            break
        part[reached] = found
    distance[:, columns] = part
    return distance


def _between_switches(
    topology: Topology, up: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Return the ports between switches that are up, the switches at both ends, and the leaves such a port reaches."""
    here = topology.switch_index[topology.port_node]
    there = here[topology.port_peer]
    chosen = (here >= 0) & (there >= 0)
    if up is not None:
        chosen &= (up != 0) & (up[topology.port_peer] != 0)
    ports = np.flatnonzero(chosen).astype(np.int32)
    leaf_at = topology.leaf_index[topology.port_node[ports]]
    return ports, here[ports], there[ports], np.unique(leaf_at[leaf_at >= 0]).astype(np.int64)


def unroutable(
    topology: Topology,
    table: RoutingTable,
    source: NDArray[np.int32],
    destination: NDArray[np.int32],
    *,
    up: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]:
    """Return for each pair of endpoints (host ports) whether no path joins them."""
    begin = topology.port_node[topology.port_peer[source]]
    end = topology.port_node[topology.port_peer[destination]]
    apart = table.distance[topology.switch_index[begin], topology.leaf_index[end]] >= FAR
    if up is not None:
        for ports in (source, destination):
            apart = apart | (up[ports] == 0) | (up[topology.port_peer[ports]] == 0)
    return apart


def check_routable(
    topology: Topology,
    table: RoutingTable,
    source: NDArray[np.int32],
    destination: NDArray[np.int32],
    *,
    up: NDArray[np.uint8] | None = None,
) -> None:
    """Refuse pairs of endpoints that no path joins.

    Raises:
        SpecError: with the first few of them by name.
    """
    apart = np.flatnonzero(unroutable(topology, table, source, destination, up=up))
    if not len(apart):
        return
    faults = []
    for flow in apart[:_SHOWN]:
        ends = [int(source[flow]), int(destination[flow])]
        names = [f"{topology.node_name(topology.port_node[end])} ({_network(topology, end)})" for end in ends]
        faults.append(f"{topology.name}: flow {flow}: no path from {names[0]} to {names[1]}{_why(topology, ends, up)}")
    if len(apart) > _SHOWN:
        faults.append(f"{topology.name}: {len(apart) - _SHOWN} more flows without a path")
    raise SpecError(*faults)


def _network(topology: Topology, port: int) -> str:
    return topology.networks[topology.port_network[port]]


def _why(topology: Topology, ends: list[int], up: NDArray[np.uint8] | None) -> str:
    if _network(topology, ends[0]) != _network(topology, ends[1]):
        return ": they are ports of different networks; send from and to the same one"
    if up is not None and not all(up[end] and up[topology.port_peer[end]] for end in ends):
        return ": its link to the leaf failed"
    return " with the links and switches that are up" if up is not None and not up.all() else ""
