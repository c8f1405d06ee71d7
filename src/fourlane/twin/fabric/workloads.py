"""Patterns of flows over a topology's hosts: by hand, permutation, incast, all-to-all, KV transfers, Poisson load.

Hosts are numbers; None is all of them in order. Sizes and times are text with a unit ("2MB", "3us") or quantities.
For training's collectives see `fourlane.twin.fabric.collectives`; for dispatch and combine of experts
`fourlane.twin.fabric.expert_traffic`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.flows import Flows
from fourlane.twin.fabric.hashing import exponential, random_words
from fourlane.twin.fabric.quantities import bytes_of, ps_of, sizes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fourlane.twin.fabric.topology import Topology
    from fourlane.units import Duration, Size

    Array = npt.NDArray[Any]
    Hosts = Sequence[int] | npt.NDArray[Any] | None
    Amount = Size | str

__all__ = ["all_to_all", "between", "endpoints", "incast", "kv_transfers", "matrix", "permutation", "poisson"]

PAYLOAD, HEADER = 4096, 64
_ONE = np.ones(1, np.int64)


def between(
    topology: Topology,
    sources: Sequence[int] | Array,
    destinations: Sequence[int] | Array,
    size: Amount | Sequence[Amount] | Array,
    *,
    traffic: str = "expert",
    network: int | str = 0,
    name: str = "flows",
) -> Flows:
    """Return a flow from each source to the destination beside it.

    Args:
        topology: where they run.
        sources: hosts.
        destinations: as many hosts.
        size: of every flow, or of each; an array holds bytes.
        traffic: their class.
        network: where the hosts' ports are meant that send and receive.
        name: what the flows are called.

    Raises:
        SpecError: an unknown host or network, a flow to itself, a size that is none.
    """
    source, destination = endpoints(topology, sources, network), endpoints(topology, destinations, network)
    if len(source) != len(destination):
        raise SpecError(f"{name}: expected as many destinations as {len(source)} sources, got {len(destination)}")
    if not len(source):
        raise SpecError(f"{name}: expected at least one flow, got none")
    itself = np.flatnonzero(source == destination)
    if len(itself):
        raise SpecError(f"{name}: flow {itself[0]}: host {np.asarray(sources)[itself[0]]} would send to itself")
    sizes = sizes_of(f"{name}: size", size, least=1)
    if sizes.shape not in ((1,), source.shape):
        raise SpecError(f"{name}: size: expected one size or {len(source)}, got {len(sizes)}")
    return Flows(source=source, destination=destination, size=sizes, kinds=(traffic,), groups=((name, 0),))


def endpoints(topology: Topology, hosts: Hosts, network: int | str = 0) -> npt.NDArray[np.int32]:
    """Return the ports of hosts in a network.

    Raises:
        SpecError: an unknown host or network, or a host without a port in it.
    """
    topology.endpoint(0, network)  # refuses unknown networks
    place = network if isinstance(network, int) else topology.networks.index(network)
    if hosts is None:
        return np.ascontiguousarray(topology.endpoint_of[place])
    chosen = np.asarray(hosts)
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise SpecError(f"{topology.name}: expected hosts as whole numbers, got {chosen.dtype} {chosen.flat[0]}")
    chosen = chosen.reshape(-1).astype(np.int64)
    unknown = chosen[(chosen < 0) | (chosen >= topology.hosts)]
    if len(unknown):
        raise SpecError(f"{topology.name}: expected a host from 0 to {topology.hosts - 1}, got {unknown[0]}")
    ports = topology.endpoint_of[place, chosen]
    without = chosen[ports < 0]
    if len(without):
        raise SpecError(f"{topology.name}: host {without[0]} has no port in network {topology.networks[place]}")
    return np.ascontiguousarray(ports)


def _chosen(topology: Topology, hosts: Hosts, name: str, *, least: int = 2) -> npt.NDArray[np.int64]:
    chosen = np.arange(topology.hosts) if hosts is None else np.asarray(hosts, dtype=np.int64).reshape(-1)
    if len(chosen) < least:
        raise SpecError(f"{name}: hosts: expected at least {least}, got {len(chosen)}")
    if len(np.unique(chosen)) < len(chosen):
        raise SpecError(f"{name}: hosts: expected different hosts, got one twice")
    return chosen


def permutation(
    topology: Topology, size: Amount = "2MB", *, hosts: Hosts = None, seed: int = 1, traffic: str = "expert"
) -> Flows:
    """Return a flow from every host to another, each receiving one: one cycle over all, drawn from `seed`.

    Sattolo's algorithm on list(range(n)) with `random.Random(seed)`: for i from n - 1 down to 1, j = randrange(i),
    swap i and j; host s then sends to host a[s].

    Raises:
        SpecError: fewer than two hosts, or an unknown one.
    """
    chosen = _chosen(topology, hosts, "permutation")
    draw = random.Random(seed)  # noqa: S311 - a workload is no secret
    cycle = list(range(len(chosen)))
    for i in range(len(chosen) - 1, 0, -1):
        j = draw.randrange(i)
        cycle[i], cycle[j] = cycle[j], cycle[i]
    return between(topology, chosen, chosen[cycle], size, traffic=traffic, name="permutation")


def incast(
    topology: Topology, size: Amount = "1MiB", *, sources: Hosts = None, destination: int = 0, traffic: str = "expert"
) -> Flows:
    """Return a flow from every source to one destination; None: from every other host.

    Raises:
        SpecError: an unknown host, or the destination among the sources.
    """
    senders = np.delete(np.arange(topology.hosts), destination) if sources is None else np.asarray(sources)
    return between(topology, senders, np.full(len(senders), destination), size, traffic=traffic, name="incast")


def all_to_all(topology: Topology, size: Amount = "64KiB", *, hosts: Hosts = None, traffic: str = "expert") -> Flows:
    """Return a flow from every host to every other: rank s to rank (s + k) mod n, for k from 1 to n - 1 in this order.

    Raises:
        SpecError: fewer than two hosts, or an unknown one.
    """
    chosen = _chosen(topology, hosts, "all_to_all")
    ranks = len(chosen)
    source = np.repeat(np.arange(ranks, dtype=np.int32), ranks - 1)
    shift = np.tile(np.arange(1, ranks, dtype=np.int32), ranks)
    target = (source + shift) % np.int32(ranks)
    return between(topology, chosen[source], chosen[target], size, traffic=traffic, name="all_to_all")


def matrix(
    topology: Topology, bytes_RR: Array, *, hosts: Hosts = None, traffic: str = "expert", network: int | str = 0
) -> Flows:
    """Return an all-to-all of given bytes: rank s sends bytes_RR[s, d] to rank d, in the order of `all_to_all`.

    What a rank sends to itself, and nothing sent, makes no flow.

    Raises:
        SpecError: not a square matrix of whole bytes with a row for every host, or nothing to send.
    """
    chosen = _chosen(topology, hosts, "matrix")
    ranks = len(chosen)
    if np.shape(bytes_RR) != (ranks, ranks):
        raise SpecError(
            f"matrix: expected {ranks} x {ranks} sizes, one for each pair of hosts, got {np.shape(bytes_RR)}"
        )
    sizes = sizes_of("matrix: bytes", np.asarray(bytes_RR))
    source = np.repeat(np.arange(ranks), ranks - 1)
    target = (source + np.tile(np.arange(1, ranks), ranks)) % ranks
    sent = sizes[source, target]
    some = sent > 0
    ends = chosen[source[some]], chosen[target[some]]
    return between(topology, *ends, sent[some], traffic=traffic, network=network, name="matrix")


def kv_transfers(
    topology: Topology,
    layer_size: Amount,
    *,
    prefill: Sequence[int] | Array,
    decode: Sequence[int] | Array,
    layers: int = 1,
    interval: Duration | str = "0ns",
    network: int | str = 0,
) -> Flows:
    """Return the KV cache going from prefill hosts to the decode hosts beside them, layer by layer.

    Args:
        topology: where.
        layer_size: KV of one layer that each pair moves.
        prefill: hosts.
        decode: as many hosts.
        layers: of the model.
        interval: from one layer's start to the next's; prefill computes that long at a layer.
        network: which carries it.

    Raises:
        SpecError: an unknown host, a host that would send to itself, no layers.
    """
    if layers < 1:
        raise SpecError(f"kv_transfers: layers: expected at least 1, got {layers}")
    pairs = between(
        topology,
        prefill,
        decode,
        _ONE * bytes_of("layer_size", layer_size, least=1),
        traffic="kv",
        network=network,
        name="kv",
    )
    starts = np.arange(layers, dtype=np.int64) * ps_of("interval", interval)
    return replace(
        pairs,
        source=np.tile(pairs.source, layers),
        destination=np.tile(pairs.destination, layers),
        start=np.repeat(starts, len(pairs)) if layers > 1 else starts,
        qp=np.tile(np.arange(len(pairs), dtype=np.uint32), layers),
    )


def poisson(
    topology: Topology,
    size: Amount = "4KiB",
    *,
    utilisation: float,
    duration: Duration | str,
    hosts: Hosts = None,
    seed: int = 1,
    traffic: str = "bulk",
) -> Flows:
    """Return background load: every host sends flows to random others, at random times, at a share of its link's rate.

    The share is of bytes on the wire, with the headers of packets of 4 KiB.

    Args:
        topology: where.
        size: of a flow.
        utilisation: above 0, below 1.
        duration: flows start from 0 until then.
        hosts: who sends and receives.
        seed: what is drawn follows from it.
        traffic: their class.

    Raises:
        SpecError: the share is none, or nothing would start in that time.
    """
    if not 0 < utilisation < 1:
        raise SpecError(f"poisson: utilisation: expected above 0 and below 1, got {utilisation}")
    chosen = _chosen(topology, hosts, "poisson")
    amount, until = bytes_of("poisson: size", size, least=1), ps_of("poisson: duration", duration, least=1)
    rates = topology.port_rate[endpoints(topology, chosen)]
    wire = amount + -(-amount // PAYLOAD) * HEADER
    source, start = _arrivals((wire * 8 * 1e12 / (rates * utilisation)).tolist(), until, seed)
    if not len(source):
        raise SpecError(f"poisson: duration: expected long enough for a flow of {size} to start, got {duration}")
    shift = 1 + random_words(seed, len(chosen), len(source)) % np.uint64(len(chosen) - 1)
    target = (source + shift.astype(np.int64)) % len(chosen)
    flows = between(topology, chosen[source], chosen[target], _ONE * amount, traffic=traffic, name="poisson")
    return flows.starting(start)


def _arrivals(means: Sequence[float], until: int, seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Draw arrivals at each host with its mean gap; return hosts and times, host by host."""
    hosts: list[Array] = []
    times: list[Array] = []
    for host, mean in enumerate(means):
        expected = until / mean
        draws = int(expected + 8 * expected**0.5 + 16)
        at = np.cumsum(exponential(random_words(seed, host, draws))) * mean
        starts = at[at < until].astype(np.int64)
        hosts.append(np.full(len(starts), host))
        times.append(starts)
    return np.concatenate(hosts), np.concatenate(times)
