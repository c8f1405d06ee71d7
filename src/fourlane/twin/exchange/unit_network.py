"""The part of a cluster's network that an expert-parallel group uses: its servers, their leaves, all spines above.

What is left out carries none of the group's packets, so that a group on 10,240 GPUs is simulated as quickly as on few.
Units are placed in rank order, within one pod where they fit. Not for what other units do to it
(`fourlane.twin.cluster_use`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster, Network

__all__ = ["joins_rails", "servers_on_a_leaf", "unit_cluster"]


def unit_cluster(cluster: Cluster, servers: int) -> Cluster:
    """Return a cluster of the switches that the first `servers` servers of another can use, and no second network.

    Raises:
        SpecError: the cluster has fewer.
    """
    if servers > cluster.servers:
        raise SpecError(
            f"{cluster.name}: servers: expected at least {servers}, for the ranks of one unit, got {cluster.servers}"
        )
    pod = -(-cluster.servers // cluster.hpn.pods)
    if servers > pod:
        kept, hpn = _pods(cluster.hpn, -(-servers // pod))
        held = pod * kept if kept < cluster.hpn.pods else cluster.servers
    else:
        held, hpn = _within_pod(cluster.hpn, servers_on_a_leaf(cluster), servers)
    return msgspec.structs.replace(cluster, servers=held, hpn=hpn, dcn=None)


def servers_on_a_leaf(cluster: Cluster) -> int:
    """Return how many servers share the leaves that one server is on."""
    hpn = cluster.hpn
    pod = -(-cluster.servers // hpn.pods)
    nics, leaves = len(hpn.interfaces) // hpn.planes, hpn.leaf.count // hpn.planes // hpn.pods
    return -(-pod // max(1, leaves // nics))


def joins_rails(cluster: Cluster) -> bool:
    """Tell whether a NIC reaches those of other rails by the network alone."""
    hpn = cluster.hpn
    if hpn.spine is None:
        return hpn.leaf.count // hpn.planes == 1
    return hpn.spines == "shared"


def _pods(network: Network, kept: int) -> tuple[int, Network]:
    """Return a network of fewer pods under the same superspines."""
    leaf, spine = network.leaf, network.spine
    leaf = msgspec.structs.replace(leaf, count=leaf.count * kept // network.pods)
    if spine is not None:
        spine = msgspec.structs.replace(spine, count=spine.count * kept // network.pods)
    return kept, msgspec.structs.replace(network, pods=kept, leaf=leaf, spine=spine)


def _within_pod(network: Network, on_a_leaf: int, servers: int) -> tuple[int, Network]:
    """Return how many servers hang on the leaves that `servers` servers of a pod need, and the network of those."""
    nics = len(network.interfaces) // network.planes
    leaves = network.leaf.count // network.planes // network.pods
    spine = network.spine
    held = servers
    if leaves > nics:
        used = -(-servers // on_a_leaf)
        leaves = used * nics
        held = servers if used == 1 else used * on_a_leaf
    if spine is not None:
        spine = msgspec.structs.replace(spine, count=spine.count // network.pods, up_ports=0)
    leaf = msgspec.structs.replace(network.leaf, count=leaves * network.planes)
    return held, msgspec.structs.replace(network, pods=1, leaf=leaf, spine=spine, superspine=None)
