"""Put expert traffic on a topology: one dispatch or combine, or layer after layer with computation between.

Not for how many bytes go where (`fourlane.twin.fabric.expert_traffic`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.flows import Flows, concatenated
from fourlane.twin.fabric.quantities import ps_of
from fourlane.twin.fabric.topology import NVLINK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.topology import Topology
    from fourlane.units import Duration

    Ints = NDArray[np.int32]

__all__ = ["expert_flows", "expert_layers"]


def expert_flows(
    topology: Topology,
    traffic: ExpertTraffic,
    *,
    gpus: Sequence[int] | NDArray[np.int64] | None = None,
    queue_pairs: int | None = None,
    kind: str = "expert",
    name: str = "exchange",
) -> Flows:
    """Return the flows of a dispatch or combine, in messages.

    Args:
        topology: every GPU with a NIC of its own. With planes, a pair of ranks keeps to one of them.
        traffic: between ranks.
        gpus: [ranks], the GPU of each rank; None: rank r is GPU r. Ranks of a node must share a server.
        queue_pairs: connections between two ranks, which flows take in turn; None: every flow has its own.
        kind: their class.
        name: what the flows are called.

    Raises:
        SpecError: too few GPUs, a GPU without NIC or NVLink of its own, or a node spread over servers.
    """
    host = _hosts(topology, traffic, gpus)
    planes = [place for place, network in enumerate(topology.networks) if network != NVLINK]
    source, target = host[traffic.source], host[traffic.target]
    network = np.array(planes, dtype=np.int32)[(source + target) % len(planes)]
    if traffic.nvlink.any():
        if NVLINK not in topology.networks:
            raise SpecError(f"{topology.name}: expected NVLink inside servers for this traffic, got only NICs")
        network = np.where(traffic.nvlink, topology.networks.index(NVLINK), network)
    flows = Flows(
        source=topology.endpoint_of[network, source],
        destination=topology.endpoint_of[network, target],
        size=traffic.size,
        message=np.full(1, traffic.message, dtype=np.int64),
        kinds=(kind,),
        edges=np.stack([traffic.before, traffic.after]),
        groups=((name, 0),),
    )
    if min(flows.source.min(initial=0), flows.destination.min(initial=0)) < 0:
        raise SpecError(f"{topology.name}: expected every GPU to have a port in each network its ranks use")
    if queue_pairs is None:
        return flows
    if queue_pairs < 1:
        raise SpecError(f"queue_pairs: expected at least 1, got {queue_pairs}")
    return replace(flows, qp=(np.arange(len(flows)) % queue_pairs).astype(np.uint32))


def expert_layers(
    topology: Topology,
    exchanges: Sequence[tuple[ExpertTraffic, ExpertTraffic]],
    *,
    attention: Duration | str,
    experts: Duration | str,
    gpus: Sequence[int] | NDArray[np.int64] | None = None,
) -> Flows:
    """Return layers one after another: attention, dispatch, experts, combine.

    A rank waits only for what it is sent itself: it computes its experts once all of its tokens have come, and goes on
    to the next layer once all of its results have. Groups of flows are "dispatch 0", "combine 0", "dispatch 1", ...,
    with the computation between them as gates, one a rank: "attention 0", "experts 0", ..., "end".

    Args:
        topology: as for `expert_flows`.
        exchanges: dispatch and combine of each layer.
        attention: from the start of a layer to its dispatch.
        experts: from a rank's last token to its first result.
        gpus: as for `expert_flows`.

    Raises:
        SpecError: no layer, layers of different numbers of ranks, or as for `expert_flows`.
    """
    ranks = {traffic.ranks for pair in exchanges for traffic in pair}
    if len(ranks) != 1:
        raise SpecError(f"layers: expected at least one layer, all of the same ranks, got {sorted(ranks)} ranks")
    waits = {"attention": ps_of("attention", attention), "experts": ps_of("experts", experts)}
    stages = [
        (f"{phase} {layer}", exchange, waits[gate], f"{gate} {layer}")
        for layer, pair in enumerate(exchanges)
        for phase, exchange, gate in zip(("dispatch", "combine"), pair, waits, strict=True)
    ]
    rank = np.arange(ranks.pop(), dtype=np.int32)
    parts: list[Flows] = []
    edges: list[tuple[Ints, Ints]] = []
    at, sent, waited = 0, np.empty((2, 0), dtype=np.int32), np.empty(0, dtype=np.int32)
    for name, traffic, delay, gate_name in stages:
        gate = rank + np.int32(at)
        parts += [
            Flows.gates(len(rank), delay=np.full(1, delay, dtype=np.int64), name=gate_name),
            expert_flows(topology, traffic, gpus=gpus, name=name),
        ]
        edges += [(waited, gate[: len(waited)]), (sent[0], gate[sent[1]])]
        flow = np.arange(traffic.flows, dtype=np.int32) + gate[-1] + np.int32(1)
        edges.append((gate[traffic.source], flow))
        sent, waited, at = np.stack([flow, traffic.target]), gate, at + len(rank) + traffic.flows
    gate = rank + np.int32(at)
    parts.append(Flows.gates(len(rank), name="end"))
    edges += [(waited, gate), (sent[0], gate[sent[1]])]
    before, after = (np.concatenate(column) for column in zip(*edges, strict=True))
    return concatenated(parts).waiting(before, after)


def _hosts(
    topology: Topology, traffic: ExpertTraffic, gpus: Sequence[int] | NDArray[np.int64] | None
) -> NDArray[np.int32]:
    """Return the host of each rank."""
    gpu = np.arange(traffic.ranks) if gpus is None else np.asarray(gpus, dtype=np.int64)
    if len(gpu) != traffic.ranks:
        raise SpecError(f"gpus: expected one for each of {traffic.ranks} ranks, got {len(gpu)}")
    if gpu.min(initial=0) < 0 or gpu.max(initial=0) >= topology.gpus:
        raise SpecError(f"gpus: expected GPUs from 0 to {topology.gpus - 1} ({topology.name}), got up to {gpu.max()}")
    host = topology.gpu_host[gpu]
    if len(np.unique(host)) < len(host):
        raise SpecError(f"{topology.name}: expected a NIC of its own for every rank, got ranks that share one")
    if traffic.nvlink.any():
        server = topology.host_server[host]
        spread = np.flatnonzero(server[traffic.source[traffic.nvlink]] != server[traffic.target[traffic.nvlink]])
        if len(spread):
            rank = int(traffic.source[traffic.nvlink][spread[0]])
            raise SpecError(f"gpus: expected the ranks of a node in one server, got rank {rank}'s on several")
    return host
