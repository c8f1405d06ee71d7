"""What communication libraries read from the environment, and whose traffic each of their connections is.

Facts only: a knob's unit, the version it came with, where that was read. What an environment makes of them is
`fourlane.lanes.environment.effects`, what a plan wants them to be `fourlane.lanes.environment.variables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import Carrier, Lane, LanePlan
    from fourlane.spec.cluster import Cluster, Network, NetworkName

__all__ = [
    "KNOBS",
    "LIBRARIES",
    "STREAMS",
    "Fabric",
    "Home",
    "Knob",
    "Library",
    "Stream",
    "StreamName",
    "Unit",
    "home_of",
]

Library = Literal["nccl", "deepep", "nvshmem", "ucx", "mooncake", "gloo", "hccl", "uccl"]
LIBRARIES: tuple[Library, ...] = ("nccl", "deepep", "nvshmem", "ucx", "mooncake", "gloo")
"""Those that a plan's classes can travel on; of hccl and uccl an environment's marks are only shown."""
Unit = Literal["ToS byte", "service level", "GID index", "devices", "interfaces", "switch"]
Fabric = Literal["roce", "infiniband", "erdma", "ethernet"]
StreamName = Literal["NCCL", "NCCL clear-to-send", "NCCL GIN", "NVSHMEM", "UCX", "Mooncake", "Gloo", "HCCL", "UCCL"]


@dataclass(frozen=True, slots=True)
class Knob:
    """One environment variable: `since` is the version it works from, empty if it always did."""

    library: Library
    unit: Unit
    source: str
    since: str = ""


KNOBS: dict[str, Knob] = {
    "NCCL_IB_TC": Knob("nccl", "ToS byte", "NCCL src/transport/net_ib: NCCL_PARAM(IbTc), written to the GRH"),
    "NCCL_IB_SL": Knob("nccl", "service level", "NCCL src/transport/net_ib: NCCL_PARAM(IbSl)"),
    "NCCL_IB_FIFO_TC": Knob("nccl", "ToS byte", "NCCL pull request 1194 (Meta)", since="NCCL 2.22.3"),
    "NCCL_GIN_IB_TC": Knob("nccl", "ToS byte", "NCCL issue 2138, src/transport/net_ib/gin.cc", since="NCCL 2.30.7"),
    "NCCL_IB_HCA": Knob("nccl", "devices", "NCCL user guide: a list of prefixes; = in front: exact, ^: all but"),
    "NCCL_IB_GID_INDEX": Knob("nccl", "GID index", "NCCL user guide"),
    "NCCL_IB_ADAPTIVE_ROUTING": Knob("nccl", "switch", "NCCL user guide: 1 on InfiniBand, 0 on RoCE by default"),
    "NCCL_IB_DISABLE": Knob("nccl", "switch", "NCCL user guide"),
    "NCCL_SOCKET_IFNAME": Knob(
        "nccl", "interfaces", "NCCL user guide: a list of prefixes; = in front: exact, ^: all but"
    ),
    "EP_OVERRIDE_RDMA_SL": Knob("deepep", "service level", "DeepEP csrc/kernels/backend/nccl.cu", since="DeepEP V2"),
    "EP_NIC_NAME": Knob("deepep", "devices", "DeepEP README, environment variables", since="DeepEP V2"),
    "NVSHMEM_IB_TRAFFIC_CLASS": Knob("nvshmem", "ToS byte", "NVSHMEM ibgda.cpp; NVSHMEM issue 45"),
    "NVSHMEM_IB_SL": Knob("nvshmem", "service level", "NVSHMEM environment variables"),
    "NVSHMEM_IB_GID_INDEX": Knob("nvshmem", "GID index", "NVSHMEM environment variables"),
    "NVSHMEM_HCA_LIST": Knob("nvshmem", "devices", "NVSHMEM environment variables; DeepEP issue 336"),
    "NVSHMEM_ENABLE_NIC_PE_MAPPING": Knob("nvshmem", "switch", "NVSHMEM environment variables; DeepEP issue 336"),
    "UCX_IB_TRAFFIC_CLASS": Knob(
        "ucx", "ToS byte", "UCX src/uct/ib/base/ib_iface.c: DSCP is the value's upper six bits"
    ),
    "UCX_IB_SL": Knob("ucx", "service level", "UCX src/uct/ib/base/ib_iface.c"),
    "UCX_IB_GID_INDEX": Knob("ucx", "GID index", "UCX src/uct/ib/base/ib_iface.c"),
    "UCX_NET_DEVICES": Knob("ucx", "devices", "UCX documentation: exact names, device:port or interface"),
    "MC_IB_TC": Knob("mooncake", "ToS byte", "Mooncake transfer engine, config.cpp; Mooncake issue 1699"),
    "MC_IB_SL": Knob("mooncake", "service level", "Mooncake pull request 2525", since="Mooncake of 2026"),
    "MC_GID_INDEX": Knob("mooncake", "GID index", "Mooncake transfer engine, config.cpp: 3 by default"),
    "HYBRID_EP_IB_TC": Knob("deepep", "ToS byte", "DeepEP pull request 611, not merged; 724, merged, reads NCCL_IB_TC"),
    "HCCL_RDMA_TC": Knob("hccl", "ToS byte", "Ascend HCCL: a multiple of 4, 132 by default"),
    "HCCL_RDMA_SL": Knob("hccl", "service level", "Ascend HCCL"),
    "UCCL_P2P_RDMA_TC": Knob("uccl", "ToS byte", "UCCL issue 665"),
    "UCCL_P2P_RDMA_SL": Knob("uccl", "service level", "UCCL issue 665"),
    "GLOO_SOCKET_IFNAME": Knob("gloo", "interfaces", "PyTorch distributed documentation: exact names"),
}
"""Every variable that is read, set or spoken of; no other is ever looked at or printed."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The connections of one kind that a library makes.

    Args:
        library: whose they are.
        carriers: names by which a plan's class says that it travels on them; empty: none does.
        tos, sl: variables that mark them; empty where there is none.
        kernel: whether the kernel sets up their queue pairs, so that a ToS forced on a device applies.
        dscp_only: whether the library hands on the ToS byte's DSCP and leaves the ECN bits to the NIC.
    """

    library: Library
    carriers: tuple[Carrier, ...] = ()
    tos: str = ""
    sl: str = ""
    kernel: bool = True
    dscp_only: bool = False


STREAMS: dict[StreamName, Stream] = {
    "NCCL": Stream("nccl", ("nccl",), "NCCL_IB_TC", "NCCL_IB_SL"),
    "NCCL clear-to-send": Stream("nccl", (), "NCCL_IB_FIFO_TC", ""),
    "NCCL GIN": Stream("deepep", ("deepep-v2",), "NCCL_GIN_IB_TC", "EP_OVERRIDE_RDMA_SL", kernel=False),
    "NVSHMEM": Stream(
        "nvshmem", ("deepep-v1", "nvshmem"), "NVSHMEM_IB_TRAFFIC_CLASS", "NVSHMEM_IB_SL", kernel=False, dscp_only=True
    ),
    "UCX": Stream("ucx", ("ucx",), "UCX_IB_TRAFFIC_CLASS", "UCX_IB_SL"),
    "Mooncake": Stream("mooncake", ("mooncake",), "MC_IB_TC", "MC_IB_SL"),
    "Gloo": Stream("gloo", ("gloo",), kernel=False),
    "HCCL": Stream("hccl", (), "HCCL_RDMA_TC", "HCCL_RDMA_SL"),
    "UCCL": Stream("uccl", (), "UCCL_P2P_RDMA_TC", "UCCL_P2P_RDMA_SL"),
}


@dataclass(frozen=True, slots=True)
class Home:
    """Where a stream belongs: the classes a plan lets it carry, and the networks they are on, most wanted first."""

    lanes: dict[TrafficClass, Lane]
    networks: dict[NetworkName, Network]

    @property
    def network(self) -> Network:
        """Return the network of its first class."""
        return next(iter(self.networks.values()))

    @property
    def fabric(self) -> Fabric:
        """Return what runs on that network's wire."""
        return self.network.fabric

    @property
    def only(self) -> Lane | None:
        """Return its class if it has just one, which one variable can mark."""
        return next(iter(self.lanes.values())) if len(self.lanes) == 1 else None

    def names(self) -> str:
        """Return the names of its classes."""
        return ", ".join(kind.value for kind in self.lanes)

    def devices(self) -> tuple[str, ...]:
        """Return the RDMA devices of its networks."""
        return tuple(device for network in self.networks.values() for device in network.devices)

    def interfaces(self) -> tuple[str, ...]:
        """Return the interfaces of its networks."""
        return tuple(name for network in self.networks.values() for name in network.interfaces)


def home_of(plan: LanePlan, cluster: Cluster, stream: StreamName) -> Home | None:
    """Return where a stream belongs; None if no class of the plan is carried by it on this cluster.

    Clear-to-send messages of NCCL are control traffic on the network of NCCL's data, where control traffic may go.
    """
    if stream == "NCCL clear-to-send":
        data, control = home_of(plan, cluster, "NCCL"), plan.classes.get(TrafficClass.CONTROL)
        if data is None or control is None or not any(control.on(name) for name in data.networks):
            return None
        return Home({TrafficClass.CONTROL: control}, data.networks)
    carriers = set(STREAMS[stream].carriers)
    lanes = {
        kind: plan.classes[kind]
        for kind in TrafficClass
        if kind in plan.classes and carriers & set(plan.classes[kind].carriers)
    }
    there = cluster.networks()
    wanted = [lane.network for lane in lanes.values() if lane.network != "both"] or ["hpn"] * bool(lanes)
    networks = {name: there[name] for name in wanted if name in there}
    return Home(lanes, networks) if networks else None
