"""What an expert exchange depends on: the ranks and their network, the model's messages, the kernels that send them.

Not for how long it takes (`fourlane.twin.exchange.table`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.cluster import Cluster
from fourlane.spec.hardware import gpu_models
from fourlane.twin.exchange.lanes import LanesCase
from fourlane.twin.exchange.unit_network import joins_rails, servers_on_a_leaf, unit_cluster
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.expert_kernels import ExpertKernels, expert_kernels
from fourlane.twin.fabric.expert_traffic import message_bytes
from fourlane.twin.times import Phase
from fourlane.units import Rate

if TYPE_CHECKING:
    from fourlane.spec.architecture import Architecture
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.times import Operation

__all__ = ["DispatchType", "ExchangeSetting", "exchange_setting", "kernels_of"]

DispatchType = Literal["fp8", "bf16", "fp32"]
_FP32_BYTES = 4
_LIKE = "h100"
"""Whose kernels' figures stand for those of GPUs that none are published of."""


class ExchangeSetting(msgspec.Struct, frozen=True, kw_only=True):
    """All that dispatch and combine of an expert-parallel group depend on, but tokens and their balance.

    Args:
        cluster: of which the group has the first servers; its `gpu` is that of the kernels.
        ranks: of the group, a GPU each.
        phase: decode takes low-latency kernels, which send a message for every choice of a token; prefill normal ones,
            which send a token once to every node, where it is passed on over NVLink. Without NVLink both are alike.
        nvlink: low-latency kernels use it inside the node.
        hidden, experts, top_k, groups, top_groups: of the model. Groups are taken to lie within nodes, as hierarchical
            placement has them.
        slots: physical ones a layer, replicas included: low-latency kernels close a stream to each.
        dispatch: what tokens are sent as; combine is BF16 (FP32 where dispatch is).
        lanes: what the network does with it.
        kernels: their figures; `kernels_source` says whose.
    """

    cluster: Cluster
    ranks: int
    phase: Phase
    nvlink: bool = True
    hidden: int
    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1
    slots: int
    dispatch: DispatchType = "fp8"
    lanes: LanesCase
    kernels: ExpertKernels
    kernels_source: str

    @property
    def mode(self) -> Literal["low-latency", "normal"]:
        """Return the kind of kernels."""
        return "normal" if self.phase == "prefill" and self.cluster.gpu is not None else "low-latency"

    @property
    def servers(self) -> int:
        """Return the servers its ranks are on."""
        return -(-self.ranks // self.cluster.gpus_per_server)

    @property
    def ranks_per_node(self) -> int:
        """Return the ranks of one server."""
        return min(self.ranks, self.cluster.gpus_per_server)

    @property
    def on_nvlink(self) -> bool:
        """Tell whether messages inside a server go over NVLink."""
        return self.cluster.gpu is not None and (self.nvlink or self.mode == "normal")

    @property
    def by_nic(self) -> bool:
        """Tell whether anything goes by NIC."""
        return self.ranks > (self.ranks_per_node if self.on_nvlink else 1)

    @property
    def cross_rail(self) -> Literal["spine", "sender"]:
        """Return how messages change rail: through spines, or where rails are apart over NVLink first."""
        return "spine" if joins_rails(self.cluster) or not self.on_nvlink else "sender"

    @property
    def choices(self) -> dict[str, int]:
        """Return the experts that are drawn from, equally many on each rank and in each group, and how."""
        whole = math.lcm(self.ranks, self.groups)
        experts = -(-self.experts // whole) * whole
        return {"experts": experts, "top_k": self.top_k, "groups": self.groups, "top_groups": self.top_groups}

    def message(self, operation: Operation) -> int:
        """Return the bytes of one message."""
        if self.dispatch == "fp32":
            return self.hidden * _FP32_BYTES
        return message_bytes(self.hidden, self.dispatch if operation == "dispatch" else "bf16")

    def beside_ps(self, operation: Operation, tokens: float) -> float:
        """Return what the kernels take beside what the network does, with so many tokens a rank."""
        if self.mode == "normal":
            return float(self.kernels.fixed_ps(operation, by_nic=self.by_nic, forwards=True))
        stay = self.ranks_per_node if self.on_nvlink else 1
        return float(
            self.kernels.beside_ps(
                operation,
                by_nic=self.by_nic,
                experts=self.slots * (self.ranks - stay) // self.ranks,
                reduced=round(tokens * self.top_k * self.message("combine")),
            )
        )

    @property
    def neighbours(self) -> int:
        """Return how many units fill the leaves that one is on, itself included."""
        on_a_leaf = servers_on_a_leaf(self.cluster)
        filled = min(-(-self.servers // on_a_leaf) * on_a_leaf, self.cluster.servers)
        return max(1, filled // self.servers)

    def topology(self, servers: int | None = None) -> Topology:
        """Return the part of the network that the group can use, its ports as fast as the kernels drive them.

        Args:
            servers: of the cluster's first ones; None: those of the group.
        """
        part = unit_cluster(self.cluster, servers or self.servers)
        return self.kernels.on(rail_clos(part), forwards=self.mode == "normal")


def exchange_setting(  # noqa: PLR0913 - what an exchange depends on
    architecture: Architecture,
    cluster: Cluster,
    *,
    ranks: int,
    phase: Phase,
    lanes: LanesCase,
    gpu: str | None = None,
    dispatch: DispatchType | None = None,
    redundant_experts: int = 0,
) -> ExchangeSetting:
    """Return the setting of one phase's units.

    Args:
        architecture: the model's.
        cluster: where.
        ranks: of a unit.
        phase: prefill takes normal kernels, decode low-latency ones; without NVLink both take low-latency ones.
        lanes: see `fourlane.twin.exchange.lanes`.
        gpu: of the catalog; None: the cluster's. A GPU on a cluster that names none brings NVLink with it.
        dispatch: None: FP8 if the model's experts are, else as they are.
        redundant_experts: slots a layer beyond one of each expert.

    Raises:
        SpecError: more ranks than the cluster has GPUs, a GPU that is not in the catalog, whole servers are not used.
    """
    chosen = gpu or cluster.gpu
    faults = []
    if not 1 <= ranks <= cluster.servers * cluster.gpus_per_server:
        gpus = cluster.servers * cluster.gpus_per_server
        faults.append(f"{phase}.ranks: expected 1 to {gpus}, the GPUs of {cluster.name}, got {ranks}")
    elif ranks > cluster.gpus_per_server and ranks % cluster.gpus_per_server:
        each = cluster.gpus_per_server
        faults.append(f"{phase}.ranks: expected whole servers of {each} GPUs, got {ranks} ranks")
    if faults:
        raise SpecError(*faults)
    placed = msgspec.structs.replace(cluster, gpu=chosen)
    kernels, source = kernels_of(placed)
    return ExchangeSetting(
        cluster=placed,
        ranks=ranks,
        phase=phase,
        hidden=architecture.hidden,
        experts=architecture.experts,
        top_k=architecture.top_k,
        groups=architecture.groups,
        top_groups=architecture.top_groups,
        slots=-(-(architecture.experts + redundant_experts) // ranks) * ranks,
        dispatch=dispatch or architecture.weights,
        lanes=lanes,
        kernels=kernels,
        kernels_source=source,
    )


def kernels_of(cluster: Cluster) -> tuple[ExpertKernels, str]:
    """Return the figures of expert kernels on a cluster's GPUs and NICs, and whose they are.

    Published ones where there are any; else those of H100, with NVLink in proportion to the GPU's.

    Raises:
        SpecError: a GPU that is not in the catalog.
    """
    name = cluster.gpu or _LIKE
    if name not in gpu_models():
        raise SpecError(f"{cluster.name}: gpu: expected one of {', '.join(gpu_models())}, got {name}")
    published = name in expert_kernels()
    kernels = expert_kernels()[name if published else _LIKE]
    words = f"expert kernels of {name}" if published else f"expert kernels assumed as on {_LIKE}, NVLink by {name}'s"
    share = 1.0 if published else int(gpu_models()[name].nvlink) / int(gpu_models()[_LIKE].nvlink)
    rate = cluster.hpn.rate
    forwarding = kernels.forwarding
    if forwarding is not None:
        forwarding = Rate(int(forwarding) * int(rate) // int(kernels.nic))
    nvlink = Rate(round(int(kernels.nvlink) * share))
    return msgspec.structs.replace(kernels, nic=rate, nvlink=nvlink, forwarding=forwarding), words
