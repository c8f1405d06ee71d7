"""Figures of a topology: switches, ports and cables, oversubscription, bisection bandwidth, hops, path diversity.

All are worked out from the arrays, so that they hold for any topology and for what failures leave of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane.twin.fabric.max_flow import max_flow
from fourlane.twin.fabric.routing import FAR, distances
from fourlane.twin.fabric.topology import NVLINK
from fourlane.units import Length, Rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.fabric.topology import Topology

__all__ = ["CableFigures", "NetworkFigures", "TierFigures", "TopologyFigures", "bisection", "figures", "path_counts"]

TIERS = ("host", "leaf", "spine", "superspine")


class TierFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Like switches of one network.

    Units:
        ports: of one switch, the most and, over all switches, the total in use.
        down, up: bit/s of one switch towards hosts and away from them (means).
        oversubscription: down / up; None where nothing is above.
    """

    network: str
    tier: str
    model: str
    switches: int
    ports_of_one: int
    ports: int
    down: Rate
    up: Rate
    oversubscription: float | None


class CableFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Like cables: how many there are between two tiers, of which rate and length."""

    network: str
    between: str
    rate: Rate
    length: Length
    count: int


class NetworkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One network.

    `parts` are pieces without a path between them: rails apart, or what failures cut off. `bisection` is the greatest
    flow from hosts on one half of each part's leaves to those on the other, summed; `full` the share of what those
    hosts' ports could send. `joined`: share of host pairs with a path; `hops`: share of those by switches on a shortest
    path. `fewest_paths`, `most_paths`: shortest paths between hosts of different leaves.
    """

    name: str
    hosts: int
    rate: Rate
    parts: int
    bisection: Rate
    full: float
    joined: float
    hops: dict[int, float]
    mean_hops: float
    fewest_paths: int
    most_paths: int


class TopologyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A topology in figures."""

    name: str
    servers: int
    gpus: int
    hosts: int
    switches: int
    ports: int
    tiers: list[TierFigures]
    cables: list[CableFigures]
    networks: list[NetworkFigures]


def figures(topology: Topology, up: NDArray[np.uint8] | None = None) -> TopologyFigures:
    """Work out all figures; of what is left where `up` [ports] says that some failed."""
    alive = np.ones(topology.ports, dtype=bool) if up is None else (up != 0) & (up[topology.port_peer] != 0)
    distance = distances(topology, up)
    paths = path_counts(topology, distance, alive)
    return TopologyFigures(
        name=topology.name,
        servers=len(np.unique(topology.host_server)),
        gpus=topology.gpus,
        hosts=topology.hosts,
        switches=topology.switches,
        ports=int(alive.sum()),
        tiers=_tiers(topology, alive),
        cables=_cables(topology, alive),
        networks=[_network(topology, place, alive, distance, paths) for place in range(len(topology.networks))],
    )


def _tiers(topology: Topology, alive: NDArray[np.bool_]) -> list[TierFigures]:
    found = []
    node_tier = topology.node_tier.astype(np.int64)
    above = node_tier[topology.port_node[topology.port_peer]] > node_tier[topology.port_node]
    rate = np.where(alive, topology.port_rate, 0)
    up_of = np.bincount(topology.port_node, rate * above, minlength=topology.nodes)
    down_of = np.bincount(topology.port_node, rate * ~above, minlength=topology.nodes)
    used = np.bincount(topology.port_node, alive, minlength=topology.nodes).astype(np.int64)
    kinds = np.stack([topology.node_network, topology.node_tier, topology.node_model]).astype(np.int64)
    for network, tier, model in np.unique(kinds[:, topology.hosts :], axis=1).T:
        here = (kinds == np.array([[network], [tier], [model]])).all(axis=0)
        up, down = up_of[here].mean(), down_of[here].mean()
        found.append(
            TierFigures(
                network=topology.networks[network],
                tier="nvswitch" if topology.networks[network] == NVLINK else TIERS[tier],
                model=topology.models[model] if model >= 0 else "",
                switches=int(here.sum()),
                ports_of_one=int(used[here].max()),
                ports=int(used[here].sum()),
                down=Rate(round(down)),
                up=Rate(round(up)),
                oversubscription=float(down / up) if up else None,
            )
        )
    return found


def _cables(topology: Topology, alive: NDArray[np.bool_]) -> list[CableFigures]:
    node_tier = topology.node_tier.astype(np.int64)
    here, there = node_tier[topology.port_node], node_tier[topology.port_node[topology.port_peer]]
    chosen = alive & (here < there)
    kinds = np.stack([topology.port_network, here, there, topology.port_rate, topology.port_length])[:, chosen]
    rows, counts = np.unique(kinds, axis=1, return_counts=True)
    return [
        CableFigures(
            network=topology.networks[network],
            between=f"{TIERS[one]}-{'nvswitch' if topology.networks[network] == NVLINK else TIERS[other]}",
            rate=Rate(int(rate)),
            length=Length(int(length)),
            count=int(count),
        )
        for (network, one, other, rate, length), count in zip(rows.T, counts, strict=True)
    ]


def _network(
    topology: Topology,
    place: int,
    alive: NDArray[np.bool_],
    distance: NDArray[np.int16],
    paths: NDArray[np.float64],
) -> NetworkFigures:
    leaves, hosts_at, rate_at = _leaves(topology, place, alive)
    columns = topology.leaf_index[leaves]
    between = distance[np.ix_(topology.switch_index[leaves], columns)]
    parts = _parts(between)
    flow = possible = 0
    for part in parts:
        if len(part) == 1:  # a switch does not block inside
            flow, possible = flow + int(rate_at[part[0]]) // 2, possible + int(rate_at[part[0]]) // 2
            continue
        half = _half(hosts_at[part])
        flow += bisection(topology, leaves[part[:half]], leaves[part[half:]], alive)
        possible += min(int(rate_at[part[:half]].sum()), int(rate_at[part[half:]].sum()))
    pairs = np.outer(hosts_at, hosts_at) - np.diag(hosts_at)
    joined = between < FAR
    switches, place_of = np.unique(between[joined] + 1, return_inverse=True)
    weight = np.bincount(place_of, pairs[joined], minlength=len(switches))
    total = weight.sum()
    other = joined & (between > 0)
    counts = paths[np.ix_(topology.switch_index[leaves], columns)][other]
    return NetworkFigures(
        name=topology.networks[place],
        hosts=int(hosts_at.sum()),
        rate=Rate(int(topology.port_rate[topology.endpoint_of[place].max()])),
        parts=len(parts),
        bisection=Rate(flow),
        full=flow / possible if possible else 0.0,
        joined=float(total / pairs.sum()) if pairs.sum() else 1.0,
        hops={int(hop): float(share / total) for hop, share in zip(switches, weight, strict=True) if share},
        mean_hops=float((switches * weight).sum() / total) if total else 0.0,
        fewest_paths=int(counts.min()) if len(counts) else 1,
        most_paths=int(counts.max()) if len(counts) else 1,
    )


def _leaves(
    topology: Topology, place: int, alive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the leaves of a network, and of each how many hosts it has and their ports' rates together."""
    ports = topology.endpoint_of[place]
    ports = ports[ports >= 0]
    ports = ports[alive[ports]]
    at = topology.port_node[topology.port_peer[ports]]
    leaves, where = np.unique(at, return_inverse=True)
    rates = np.bincount(where, topology.port_rate[ports], minlength=len(leaves)).astype(np.int64)
    return leaves.astype(np.int64), np.bincount(where, minlength=len(leaves)), rates


def _parts(between: NDArray[np.int16]) -> list[NDArray[np.int64]]:
    """Return the leaves (rows of `between`) of each part, whose leaves all reach each other."""
    label = np.argmax(between < FAR, axis=1)  # the first leaf that is reached names the part
    return [np.flatnonzero(label == first) for first in np.unique(label)]


def _half(hosts_at: NDArray[np.int64]) -> int:
    """Return how many leaves, in order, make the half nearest to half the hosts; one at least where there are two."""
    if len(hosts_at) < 2:
        return len(hosts_at)
    reached = np.cumsum(hosts_at)
    return int(np.clip(np.argmin(np.abs(reached - reached[-1] / 2)) + 1, 1, len(hosts_at) - 1))


def bisection(
    topology: Topology, one: NDArray[np.int64], other: NDArray[np.int64], alive: NDArray[np.bool_] | None = None
) -> int:
    """Return the greatest flow in bit/s from the hosts of some leaves to those of others."""
    up = np.ones(topology.ports, dtype=bool) if alive is None else alive
    at_host = topology.port_node < topology.hosts
    leaf = topology.port_node[topology.port_peer]
    capacity = np.bincount(leaf[at_host & up], topology.port_rate[at_host & up], minlength=topology.nodes)
    inner = up & ~at_host & (leaf >= topology.hosts)
    ends = topology.port_node[inner].astype(np.int64) * topology.nodes + leaf[inner]
    pairs, place = np.unique(ends, return_inverse=True)
    rates = np.bincount(place, topology.port_rate[inner])
    source, sink = topology.nodes, topology.nodes + 1
    edges = [
        (int(pair) // topology.nodes, int(pair) % topology.nodes, int(rate))
        for pair, rate in zip(pairs, rates, strict=True)
    ]
    edges += [(source, int(node), int(capacity[node])) for node in one]
    edges += [(int(node), sink, int(capacity[node])) for node in other]
    return max_flow(topology.nodes + 2, edges, source, sink)


def path_counts(
    topology: Topology, distance: NDArray[np.int16], alive: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return [switches, leaves]: how many shortest paths lead there, parallel links counted apart."""
    here = topology.switch_index[topology.port_node]
    there = here[topology.port_peer]
    chosen = (here >= 0) & (there >= 0)
    if alive is not None:
        chosen &= alive
    here, there = here[chosen], there[chosen]
    paths = (distance == 0).astype(np.float64)
    if not len(here):
        return paths
    columns = np.flatnonzero(((distance > 0) & (distance < FAR)).any(axis=0))
    begins = np.flatnonzero(np.diff(here, prepend=-1))
    rows = here[begins]
    at = distance[:, columns]
    part = paths[:, columns]
    nearer = (at[there] + 1 == at[here]) & (at[here] < FAR)
    for step in range(1, int(at[at < FAR].max(initial=0)) + 1):
        found = np.add.reduceat(np.where(nearer, part[there], 0.0), begins, axis=0)
        part[rows] = np.where(at[rows] == step, found, part[rows])
    paths[:, columns] = part
    return paths
