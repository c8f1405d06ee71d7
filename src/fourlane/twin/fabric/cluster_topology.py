"""The topology of a cluster file: rail-optimised Clos networks in one or more planes, NVLink inside servers.

NIC r of every server goes to a leaf of rail r: leaves of a pod are shared out to rails in order, servers to the leaves
of a rail in order. Figures come from the cluster and from the catalog of hardware. Not for what a file may say
(`fourlane.spec.cluster_rules`), only for what of it cannot be cabled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.spec.hardware import gpu_models, latencies, switch_models
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.clos import Tiers, lay_clos, wired
from fourlane.twin.fabric.draft import Cable, Draft, Gear, Nic
from fourlane.twin.fabric.topology import LEAF, NVLINK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fourlane.spec.cluster import Cluster, Network, NetworkName, Tier
    from fourlane.twin.fabric.topology import Topology

__all__ = ["rail_clos"]


def rail_clos(cluster: Cluster | str, network: NetworkName = "hpn", *, nvlink: bool = True) -> Topology:
    """Build one network of a cluster.

    A host is a NIC with the GPU it serves: host = server * NICs + NIC. The planes of a network become networks of
    their own ("hpn.0", "hpn.1"), and so does NVLink, on the network of the GPUs where the cluster names their model.

    Args:
        cluster: read, or a file or a name of the catalog.
        network: which of its networks.
        nvlink: with NVLink inside servers, if the cluster has it.

    Raises:
        SpecError: the cluster has no such network, or its counts cannot be cabled.
    """
    read = load_cluster(cluster) if isinstance(cluster, str) else cluster
    chosen = read.networks().get(network)
    if chosen is None:
        raise SpecError(f"{read.name}: expected one of the networks {', '.join(read.networks())}, got {network}")
    counts = _Counts.of(read, chosen)
    faults = [f"{read.name}: {network}.{fault}" for fault in _faults(chosen, counts)]
    with_nvlink = nvlink and network == "hpn" and read.gpu is not None
    if with_nvlink and counts.nics != read.gpus_per_server:
        faults.append(
            f"{read.name}: {network}.interfaces: with NVLink (gpu = {read.gpu!r}) expected a NIC for each of "
            f"{read.gpus_per_server} GPUs, got {counts.nics}; leave gpu out to simulate the network alone"
        )
    if faults:
        raise SpecError(*faults)
    draft = _hosts(read, network, counts)
    _lay(draft, chosen, counts, network)
    if with_nvlink:
        _lay_nvlink(draft, read)
    return draft.finish()


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counts that follow from a network's; leaves, spines and superspines of one plane."""

    servers: int
    nics: int
    servers_per_pod: int
    leaves_per_pod: int
    tiers: Tiers

    @staticmethod
    def of(cluster: Cluster, network: Network) -> _Counts:
        planes, pods = network.planes, network.pods
        nics = len(network.interfaces) // planes
        leaves = network.leaf.count // planes
        spine, superspine = network.spine, network.superspine
        rail_blocks = min(nics, leaves // pods) if network.spines == "per-rail" else 1
        tiers = Tiers(
            leaves=leaves,
            spines=spine.count // planes if spine else 0,
            superspines=superspine.count // planes if superspine else 0,
            leaf_up=network.leaf.up_ports if spine else 0,
            spine_up=spine.up_ports if spine and superspine else 0,
            pods=pods,
            blocks=pods * max(1, rail_blocks),
        )
        return _Counts(cluster.servers, nics, -(-cluster.servers // pods), leaves // pods, tiers)

    def leaf_of(self) -> NDArray[np.int64]:
        """Return [hosts], the leaf of each host's ports, the same in every plane."""
        server, nic = np.divmod(np.arange(self.servers * self.nics, dtype=np.int64), self.nics)
        pod, within = np.divmod(server, self.servers_per_pod)
        if self.leaves_per_pod >= self.nics:
            of_rail = self.leaves_per_pod // self.nics
            leaf = nic * of_rail + within // -(-self.servers_per_pod // of_rail)
        else:
            leaf = nic // (self.nics // self.leaves_per_pod)
        return pod * self.leaves_per_pod + leaf


def _faults(network: Network, counts: _Counts) -> Iterator[str]:
    """Yield what cannot be cabled."""
    more, fewer = max(counts.leaves_per_pod, counts.nics), min(counts.leaves_per_pod, counts.nics)
    if more % fewer:
        what = f"a multiple or a divisor of {counts.nics} rails in each pod and plane"
        yield f"leaf.count: expected {what}, got {counts.leaves_per_pod}"
        return
    most = int(np.bincount(counts.leaf_of()).max())
    if most > network.leaf.down_ports:
        yield f"leaf.down_ports: expected at least {most}, the most NICs on one leaf, got {network.leaf.down_ports}"
    tiers = counts.tiers
    if tiers.spines:
        if tiers.leaves % tiers.blocks or tiers.spines % tiers.blocks:
            counted = f"{tiers.leaves} leaves and {tiers.spines} spines"
            yield f"spine.count: expected {tiers.blocks} blocks of equal size in a plane, got {counted}"
            return
        reach = tiers.spines // tiers.blocks
        if tiers.leaf_up < reach:
            yield f"leaf.up_ports: expected at least {reach}, one to every spine of a leaf's pod, got {tiers.leaf_up}"
        links = wired(tiers.leaves, tiers.leaf_up, tiers.spines, blocks=tiers.blocks, joined=False)
        yield from _too_few("spine", network.spine, links[1])
        links = wired(tiers.spines, tiers.spine_up, tiers.superspines, blocks=tiers.blocks, joined=True)
        yield from _too_few("superspine", network.superspine, links[1])


def _too_few(name: str, tier: Tier | None, upper: NDArray[np.int64]) -> Iterator[str]:
    needed = int(np.bincount(upper).max()) if len(upper) else 0
    if tier is not None and needed > tier.down_ports:
        yield f"{name}.down_ports: expected at least {needed}, the most links to one, got {tier.down_ports}"


def _hosts(cluster: Cluster, network: str, counts: _Counts) -> Draft:
    server = np.repeat(np.arange(counts.servers, dtype=np.int32), counts.nics)
    gpu_server, gpu = np.divmod(np.arange(counts.servers * cluster.gpus_per_server), max(1, cluster.gpus_per_server))
    return Draft(
        f"{cluster.name} {network}",
        host_server=server,
        host_pod=(server // counts.servers_per_pod).astype(np.int32),
        gpu_host=(gpu_server * counts.nics + gpu * counts.nics // max(1, cluster.gpus_per_server)).astype(np.int32),
    )


def _lay(draft: Draft, network: Network, counts: _Counts, name: str) -> None:
    nic = latencies().nics[network.nic]
    host_ports = Nic(tx_latency=int(nic.tx), rx_latency=int(nic.rx))
    names = [name] if network.planes == 1 else [f"{name}.{plane}" for plane in range(network.planes)]
    places = [draft.network(each, host_ports) for each in names]
    tiers = [network.leaf, network.spine or network.leaf, network.superspine or network.leaf]
    link = latencies().links[network.link]
    rate, length = network.rate, network.leaf.down_cable
    cables = []
    for tier in tiers:
        cables.append(Cable(rate=int(rate), prop=int(link.delay(length)), length=int(length)))
        rate, length = tier.up_rate or rate, tier.up_cable or length
    leaf, spine, superspine = (_gear(tier) for tier in tiers)
    lay_clos(
        draft,
        counts.tiers,
        counts.leaf_of(),
        gear=(leaf, spine, superspine),
        cables=(cables[0], cables[1], cables[2]),
        networks=places,
    )


def _gear(tier: Tier) -> Gear:
    model = switch_models()[tier.switch]
    chip = latencies().chips[model.chip]
    latency = chip.latency if tier.latency is None else tier.latency
    return Gear(latency=int(latency), buffer=int(model.buffer), cut_through=chip.cut_through, model=tier.switch)


def _lay_nvlink(draft: Draft, cluster: Cluster) -> None:
    """Add an NVSwitch a server, and a port to it at each host."""
    assert cluster.gpu is not None
    gpu = gpu_models()[cluster.gpu]
    network = draft.network(NVLINK, Nic(tx_latency=int(gpu.latency), rx_latency=int(gpu.latency)))
    pod = np.empty(cluster.servers, dtype=np.int64)
    pod[draft.host_server] = draft.host_pod
    gear = Gear(latency=int(gpu.nvswitch_latency), buffer=NVSWITCH_BUFFER, cut_through=True, model=NVLINK)
    first = draft.switches(cluster.servers, gear, tier=LEAF, network=network, pod=pod)
    hosts = np.arange(len(draft.host_server), dtype=np.int64)
    draft.cables(
        hosts, first + draft.host_server.astype(np.int64), Cable(rate=int(gpu.nvlink_usable), prop=0), network=network
    )


NVSWITCH_BUFFER = 1 << 26
"""Bytes; none is published, and NVLink's credits never let a buffer overflow, so that it is only large enough."""
