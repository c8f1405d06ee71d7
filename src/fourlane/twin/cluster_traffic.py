"""All traffic of a service on its cluster: every unit's exchange, and KV cache from prefill to decode ranks.

As flows of the network simulators, so that rates (`fourlane.twin.flow_level`) and packets (`fourlane.twin.fabric`) are
of the same. Not for how much of it is under way at once (`fourlane.twin.cluster_use`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.exchange.skewed_routing import draw_ranks
from fourlane.twin.exchange.table import ExchangeTable
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.fabric.flows import Flows, concatenated
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.topology import NVLINK
from fourlane.twin.unit_placement import place_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.exchange.lanes import LanesCase
    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.times import Phase

    Longs = NDArray[np.int64]

__all__ = ["ClusterTraffic", "cluster_traffic", "setting_of", "unit_exchange"]

KV_BYTES = 1 << 20
"""Of a KV flow, where only rates are asked for."""
_TOKENS = 64  # a rank, of which the mean exchange of normal kernels is drawn
_ONE_CHUNK = 1 << 30


@dataclass(frozen=True, eq=False)
class ClusterTraffic:
    """Flows of a service on the network of its GPUs, and perhaps on a second one.

    Attributes:
        topology: the HPN, its NICs as fast as the kernels drive them.
        dcn: the second network; None where KV cache goes by the first.
        lanes: what networks do with flows.
        gpu_UR: the GPUs of units, by phase.
        exchange: flows of one exchange of every unit, by phase, unit by unit; sizes only in proportion.
        per_unit: flows of a unit, by phase; 0 where a unit sends nothing by network.
    """

    topology: Topology
    dcn: Topology | None
    lanes: LanesCase
    gpu_UR: dict[Phase, Longs]
    exchange: dict[Phase, Flows]
    per_unit: dict[Phase, int]

    def kv(self, sources: Longs, targets: Longs, size: int = KV_BYTES) -> Flows:
        """Return KV flows from GPUs to the GPUs beside them, on the network that carries them."""
        net = self.topology if self.dcn is None else self.dcn
        here, there = net.gpu_host[sources], net.gpu_host[targets]
        planes = [place for place, network in enumerate(net.networks) if network != NVLINK]
        network = np.array(planes, dtype=np.int64)[(here + there) % len(planes)]
        ends = net.endpoint_of[network, here], net.endpoint_of[network, there]
        return Flows(
            source=ends[0],
            destination=ends[1],
            size=np.full(1, size, dtype=np.int64),
            kinds=("kv",),
            groups=(("kv", 0),),
        )

    def scenario(self, *flows: Flows, **settings: Any) -> Scenario:
        """Return flows on the HPN, some of them of experts, as the lanes have it."""
        return self.lanes.scenario(self.topology, list(flows), **settings)

    def dcn_scenario(self, *flows: Flows, **settings: Any) -> Scenario:
        """Return flows on the second network."""
        assert self.dcn is not None
        return Scenario(self.dcn, list(flows), plan=self.lanes.plan, **settings)


def cluster_traffic(assembly: Assembly) -> ClusterTraffic:
    """Return the traffic of all units of a service, placed on its cluster.

    Raises:
        SpecError: its exchange does not go by a simulated network, or the cluster has too few GPUs.
    """
    settings = {phase: setting_of(phase, model.exchange) for phase, model in assembly.phases().items()}
    placed = place_units(assembly.twin, assembly.cluster)
    lanes = settings["decode"].lanes
    topology = _topology(settings, placed.gpu_UR)
    exchange: dict[Phase, Flows] = {}
    per_unit: dict[Phase, int] = {}
    for phase, setting in settings.items():
        traffic = unit_exchange(setting)
        per_unit[phase] = 0 if traffic is None else traffic.flows
        if traffic is not None:
            parts = [expert_flows(topology, traffic, gpus=gpus, name=phase) for gpus in placed.gpu_UR[phase]]
            exchange[phase] = replace(concatenated(parts), groups=((phase, 0),))
    return ClusterTraffic(
        topology=topology,
        dcn=rail_clos(assembly.cluster, "dcn") if lanes.kv_network == "dcn" else None,
        lanes=lanes,
        gpu_UR=placed.gpu_UR,
        exchange=exchange,
        per_unit=per_unit,
    )


def unit_exchange(setting: ExchangeSetting) -> ExpertTraffic | None:
    """Return a unit's mean dispatch, its flows free of what they wait for; None for a unit of one rank.

    Every pair of ranks exchanges alike: balance is the exchange table's matter, here only the network is.
    """
    if setting.ranks == 1:
        return None
    if setting.mode == "normal":
        rank_TK = draw_ranks(
            np.random.default_rng(setting.ranks),
            ranks=setting.ranks,
            tokens=_TOKENS,
            experts=setting.experts,
            top_k=setting.top_k,
            groups=setting.groups,
            top_groups=setting.top_groups,
            max_over_mean=1.0,
        )
        normal = NormalKernels(hidden=setting.hidden, ranks_per_node=setting.ranks_per_node, chunk=_ONE_CHUNK)
        traffic = _evened(normal.dispatch(rank_TK, ranks=setting.ranks))
    else:
        direct = LowLatencyKernels(
            hidden=setting.hidden,
            ranks_per_node=setting.ranks_per_node,
            nvlink=setting.on_nvlink,
            cross_rail=setting.cross_rail,
        )
        traffic = direct.dispatch(np.ones((setting.ranks, setting.ranks), dtype=np.int64))
    nowhere = np.empty(0, dtype=np.int32)
    return replace(traffic, before=nowhere, after=nowhere)


def _evened(traffic: ExpertTraffic) -> ExpertTraffic:
    """Return traffic whose flows by NIC, and whose flows over NVLink, are alike: what chance made different is not."""
    size = traffic.size.astype(np.float64)
    for chosen in (traffic.nvlink, ~traffic.nvlink):
        size[chosen] = size[chosen].mean() if chosen.any() else 0
    return replace(traffic, size=size.round().astype(np.int64), message=0)


def setting_of(phase: Phase, exchange: Any) -> ExchangeSetting:
    """Return what a phase's exchange depends on.

    Raises:
        SpecError: it does not go by a simulated network.
    """
    exchange = getattr(exchange, "alone", exchange)
    if not isinstance(exchange, ExchangeTable):
        raise SpecError(
            f"{phase}: expected an exchange over a cluster's network, got one of another kind "
            f"({type(exchange).__name__}): it has no flows"
        )
    return exchange.setting


def _topology(settings: dict[Phase, ExchangeSetting], gpu_UR: dict[Phase, Longs]) -> Topology:
    """Return the HPN and NVLink, every host's ports as fast as the kernels of its phase drive them."""
    net = rail_clos(settings["decode"].cluster)
    driven = {phase: each.kernels.on(net, forwards=each.mode == "normal") for phase, each in settings.items()}
    prefill = np.zeros(net.hosts, dtype=bool)
    prefill[net.gpu_host[gpu_UR["prefill"].reshape(-1)]] = True
    at_host = net.node_kind[net.port_node] == 0
    host = net.port_node[np.where(at_host, np.arange(net.ports), net.port_peer)]
    of_prefill = (host < net.hosts) & prefill[np.minimum(host, net.hosts - 1)]
    arrays = {
        name: np.where(of_prefill, getattr(driven["prefill"], name), getattr(driven["decode"], name))
        for name in ("port_rate", "port_message_gap")
    }
    return net.replaced(**arrays)
