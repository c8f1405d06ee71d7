"""What environment variables a plan wants, library by library: the one place that decides them.

`fourlane.lanes.render.env` writes them as files, `fourlane.lanes.environment.lint` measures existing environments
by them. Where two classes would need the same variable it is left out, and a note says what else tells them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.lanes.environment.libraries import KNOBS, LIBRARIES, STREAMS, Home, Library, Unit, home_of
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lanes.environment.libraries import StreamName
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["ROLES", "LibraryVariables", "Role", "Variable", "wanted_variables"]

Role = Literal["prefill", "decode", "training"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "training")
_ETHERNET_RDMA = ("roce", "erdma")


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """One variable to set. `traffic_class` names the classes it is for, `since` the version it works from."""

    name: str
    value: str
    library: Library
    traffic_class: str
    unit: Unit
    why: str
    since: str
    source: str


class LibraryVariables(msgspec.Struct, frozen=True, kw_only=True):
    """What a library is to find in its environment, and what must be known besides."""

    library: Library
    variables: tuple[Variable, ...]
    notes: tuple[str, ...]


def wanted_variables(plan: LanePlan, cluster: Cluster, role: Role) -> dict[Library, LibraryVariables]:
    """Return what the libraries of a role need, those alone that carry a class of the role.

    Training does without KV cache; prefill and decode have all classes.
    """
    if role == "training":
        plan = msgspec.structs.replace(
            plan, classes={kind: lane for kind, lane in plan.classes.items() if kind is not TrafficClass.KV}
        )
    found: dict[Library, LibraryVariables] = {}
    for library in LIBRARIES:
        draft = _Draft(plan, cluster, library)
        _WRITERS[library](draft)
        if draft.variables or draft.notes:
            found[library] = LibraryVariables(
                library=library, variables=tuple(draft.variables), notes=tuple(draft.notes)
            )
    return found


class _Draft:
    """A library's variables while they are being decided."""

    def __init__(self, plan: LanePlan, cluster: Cluster, library: Library) -> None:
        self.plan = plan
        self.cluster = cluster
        self.library = library
        self.variables: list[Variable] = []
        self.notes: list[str] = []

    def home(self, stream: StreamName) -> Home | None:
        return home_of(self.plan, self.cluster, stream)

    def set(self, name: str, value: object, home: Home, why: str) -> None:
        knob = KNOBS[name]
        self.variables.append(
            Variable(
                name=name,
                value=str(value),
                library=self.library,
                traffic_class=home.names(),
                unit=knob.unit,
                why=why,
                since=knob.since,
                source=knob.source,
            )
        )

    def mark(self, stream: StreamName, home: Home) -> None:
        """Set a stream's ToS byte and service level, those of its first class if it has several."""
        kind, lane = next(iter(home.lanes.items()))
        tos, sl = STREAMS[stream].tos, STREAMS[stream].sl
        if home.fabric in _ETHERNET_RDMA:
            self.set(tos, lane.tos, home, _tos_text(lane.dscp, lane.tos))
        if home.fabric != "erdma":
            what = "virtual lane, by service level" if home.fabric == "infiniband" else "Ethernet priority"
            self.set(sl, lane.priority, home, f"{what}: the priority of {kind.value}")
        if home.only is None:
            self.notes.append(
                f"{stream} carries {home.names()}, but one process has one value: all of it goes as {kind.value}. "
                "Start processes of their own for the others, or give them another carrier in the plan."
            )

    def gid(self, name: str, home: Home) -> None:
        indexes = {network.gid_index for network in home.networks.values()}
        if home.fabric in _ETHERNET_RDMA and len(indexes) == 1:
            self.set(name, indexes.pop(), home, "the address RoCE v2 sends from, as the cluster file says")


def _tos_text(dscp: int, tos: int) -> str:
    ecn = "without ECN bits: switches cannot mark it" if tos & 3 == 0 else "with ECT(0): switches may mark it"
    return f"DSCP {dscp} x 4, {ecn}"


def _listed(devices: tuple[str, ...]) -> str:
    return ",".join(f"{device}:1" for device in devices)


def _nccl(draft: _Draft) -> None:
    data, gin = draft.home("NCCL"), draft.home("NCCL GIN")
    if data is None and gin is None:
        return
    _nccl_devices(draft, data, gin)
    if data is not None and data.fabric in _ETHERNET_RDMA:
        _nccl_on_ethernet(draft, data)
    elif data is not None and data.fabric == "infiniband":
        _nccl_on_infiniband(draft, data, gin)
    elif data is not None:
        draft.notes.append("NCCL's sockets carry no mark of their own: fourlane lanes render --target host marks them.")
    if data is not None and data.fabric in ("roce", "infiniband"):
        adaptive = any(lane.routing == "adaptive" for lane in data.lanes.values())
        why = (
            "packets may overtake each other: data and completion are separate writes"
            if adaptive
            else "packets stay in order"
        )
        draft.set("NCCL_IB_ADAPTIVE_ROUTING", int(adaptive), data, why)


def _nccl_devices(draft: _Draft, data: Home | None, gin: Home | None) -> None:
    homes = [home for home in (data, gin) if home is not None]
    both = Home(
        {kind: lane for home in homes for kind, lane in home.lanes.items()},
        {name: network for home in homes for name, network in home.networks.items()},
    )
    if both.devices():
        draft.set("NCCL_IB_HCA", f"={_listed(both.devices())}", both, "these devices and no others: = is exact")
        draft.gid("NCCL_IB_GID_INDEX", both)
    if data is not None and data.fabric == "ethernet":
        draft.set("NCCL_SOCKET_IFNAME", f"={','.join(data.interfaces())}", data, "data goes over these: = is exact")
        return
    name, network = list(draft.cluster.networks().items())[-1]
    control = Home({TrafficClass.CONTROL: draft.plan.classes[TrafficClass.CONTROL]}, {name: network})
    why = "start-up and control messages alone; = is exact"
    draft.set("NCCL_SOCKET_IFNAME", f"={network.interfaces[0]}", control, why)


def _nccl_on_ethernet(draft: _Draft, data: Home) -> None:
    lane = data.only
    if lane is not None:
        draft.set("NCCL_IB_TC", lane.tos, data, _tos_text(lane.dscp, lane.tos))
        draft.notes.append("With NCCL_IB_TC set, the trafficClass of single communicators is ignored.")
    else:
        draft.notes.append(
            f"NCCL carries {data.names()}: NCCL_IB_TC is left unset, since it beats what communicators ask for. Give "
            "each its own by ncclConfig_t.trafficClass (ProcessGroupNCCL.Options().config in PyTorch): "
            + ", ".join(f"{kind.value} {lane.tos}" for kind, lane in data.lanes.items())
            + "."
        )
    first = next(iter(data.lanes.values()))
    draft.set("NCCL_IB_SL", first.priority, data, "Ethernet priority; unset it becomes the trafficClass")
    control = draft.home("NCCL clear-to-send")
    if control is not None:
        tos = control.lanes[TrafficClass.CONTROL].tos
        why = f"clear-to-send messages go before data: DSCP {tos >> 2} x 4"
        draft.set("NCCL_IB_FIFO_TC", tos, control, why)


def _nccl_on_infiniband(draft: _Draft, data: Home, gin: Home | None) -> None:
    if data.only is not None and gin is None:
        draft.set("NCCL_IB_SL", data.only.priority, data, "virtual lane, by service level")
        return
    draft.notes.append(
        "NCCL_IB_SL is left unset: it would hold for NCCL's collectives and for DeepEP alike. Give each communicator "
        "its service level by ncclConfig_t.trafficClass, which is the service level too where NCCL_IB_SL is unset: "
        + ", ".join(f"{kind.value} {lane.priority}" for kind, lane in data.lanes.items())
        + "."
    )


def _deepep(draft: _Draft) -> None:
    home = draft.home("NCCL GIN")
    if home is None:
        return
    lane = next(iter(home.lanes.values()))
    if home.fabric in _ETHERNET_RDMA:
        draft.set("NCCL_GIN_IB_TC", lane.tos, home, _tos_text(lane.dscp, lane.tos))
        draft.notes.append(
            "EP_OVERRIDE_RDMA_SL is not set: on Ethernet DeepEP V2 hands it to NCCL as a ToS byte, so that a service "
            "level of 5 is DSCP 1. Before NCCL 2.30.7 NCCL_IB_TC holds for DeepEP too: its traffic then shares the "
            "collectives' class."
        )
    elif home.fabric == "infiniband":
        draft.set("EP_OVERRIDE_RDMA_SL", lane.priority, home, "virtual lane, by service level")
    else:
        draft.notes.append("DeepEP needs RDMA; the network of its class is plain Ethernet.")
        return
    if home.devices():
        draft.set("EP_NIC_NAME", home.devices()[0], home, "whose properties are asked for; mlx5_0 otherwise")
    if home.only is None:
        draft.notes.append(f"DeepEP carries {home.names()}, but one process has one value.")


def _nvshmem(draft: _Draft) -> None:
    home = draft.home("NVSHMEM")
    if home is None:
        return
    if home.fabric in ("erdma", "ethernet"):
        draft.notes.append(
            "NVSHMEM's GPU-initiated transport (IBGDA) needs a ConnectX NIC: on this network DeepEP V1 does not run "
            "(DeepEP issue 759)."
        )
        return
    draft.mark("NVSHMEM", home)
    if home.fabric == "infiniband":
        draft.notes.append(
            "NVSHMEM_IB_TRAFFIC_CLASS must not be set on InfiniBand: IBGDA fails to start (NVSHMEM issue 45)."
        )
    draft.gid("NVSHMEM_IB_GID_INDEX", home)
    if home.devices():
        draft.set("NVSHMEM_HCA_LIST", _listed(home.devices()), home, "one device for each GPU in turn")
        why = "without it NVSHMEM_HCA_LIST does nothing, and all ranks can end up on one NIC"
        draft.set("NVSHMEM_ENABLE_NIC_PE_MAPPING", 1, home, why)
    if any(lane.routing == "adaptive" and "deepep-v1" in lane.carriers for lane in home.lanes.values()):
        draft.notes.append(
            "The plan routes this class adaptively: DeepEP V1's first kernels took packets to arrive in order; see "
            "that yours do not (DeepEP README)."
        )


def _ucx(draft: _Draft) -> None:
    home = draft.home("UCX")
    if home is None:
        return
    if home.fabric == "ethernet":
        draft.set("UCX_NET_DEVICES", ",".join(home.interfaces()), home, "these interfaces and no others")
        draft.notes.append(
            "UCX's TCP connections carry no mark of their own: fourlane lanes render --target host does."
        )
        return
    if home.devices():
        draft.set("UCX_NET_DEVICES", _listed(home.devices()), home, "these devices and no others; NIXL goes by it too")
    draft.mark("UCX", home)
    draft.gid("UCX_IB_GID_INDEX", home)
    if home.fabric in _ETHERNET_RDMA:
        draft.notes.append(
            "UCX's help calls UCX_IB_TRAFFIC_CLASS a DSCP; it is the ToS byte, 106 (DSCP 26) if unset. Set it on both "
            "ends: some versions mark one direction only (UCX issue 10325)."
        )


def _mooncake(draft: _Draft) -> None:
    home = draft.home("Mooncake")
    if home is None:
        return
    if home.fabric == "ethernet":
        draft.notes.append(
            "Mooncake's TCP connections carry no mark of their own: fourlane lanes render --target host does."
        )
        return
    draft.mark("Mooncake", home)
    draft.gid("MC_GID_INDEX", home)
    if home.devices():
        draft.notes.append(
            "Mooncake takes its devices from its caller, not from the environment; give it "
            f"{','.join(home.devices())} (SGLang: --disaggregation-ib-device; vLLM: the connector's device_name)."
        )


def _gloo(draft: _Draft) -> None:
    home = draft.home("Gloo")
    if home is None:
        return
    draft.set("GLOO_SOCKET_IFNAME", ",".join(home.interfaces()), home, "chooses the network; Gloo cannot mark")
    draft.notes.append("Gloo's sockets carry no mark of their own: fourlane lanes render --target host marks them.")


_WRITERS: dict[Library, Callable[[_Draft], None]] = {
    "nccl": _nccl,
    "deepep": _deepep,
    "nvshmem": _nvshmem,
    "ucx": _ucx,
    "mooncake": _mooncake,
    "gloo": _gloo,
}
