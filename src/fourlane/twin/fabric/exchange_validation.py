"""Simulate the published measurements of expert dispatch and combine, and say what limited them.

Each row is run as it was measured: its ranks on a rail-optimised 400G InfiniBand cluster, its tokens routed at random,
its kernels as `fourlane.twin.fabric.expert_kernels` has them. Not for tables and pictures
(`tools/validate_fabric.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_kernels import OPERATIONS, ExchangeRow, Operation, kernels_named
from fourlane.twin.fabric.expert_routing import (
    NO_RANK,
    ExpertRouting,
    count_messages,
    distinct_ranks,
    ranks_of_experts,
)
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels, message_bytes
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.topology import NVLINK
from fourlane.units import Duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fourlane.spec.cluster import Cluster
    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.topology import Topology

__all__ = ["Exchange", "SimulatedExchange", "busiest_ports", "draws", "infiniband", "simulate_exchanges"]

RANKS_PER_NODE = 8
_FP8_MESSAGE_HEADER = 16  # not counted in published rates
_QUANTUM_2_LATENCY = Duration.parse("150ns")


@dataclass(frozen=True)
class Exchange:
    """One operation of a row, with one draw of random routing."""

    row: ExchangeRow
    operation: Operation
    seed: int

    @cached_property
    def rank_TK(self) -> NDArray[np.int32]:  # noqa: N802 - a shape suffix
        """Return the rank of every choice of every token."""
        row = self.row
        routing = ExpertRouting(
            tokens=row.tokens, experts=row.experts, top_k=row.top_k, groups=row.groups, top_groups=row.top_groups
        )
        drawn = routing.draw(np.random.default_rng([self.seed, row.ranks, row.tokens]), row.ranks)
        return ranks_of_experts(drawn, ranks=row.ranks, experts=row.experts)

    @cached_property
    def traffic(self) -> ExpertTraffic:
        """Return what goes from rank to rank."""
        row = self.row
        if row.mode == "normal":
            normal = NormalKernels(hidden=row.hidden, ranks_per_node=RANKS_PER_NODE)
            send = normal.dispatch if self.operation == "dispatch" else normal.combine
            return send(self.rank_TK, ranks=row.ranks)
        direct = LowLatencyKernels(hidden=row.hidden, ranks_per_node=RANKS_PER_NODE, nvlink=row.nvlink)
        send_counts = direct.dispatch if self.operation == "dispatch" else direct.combine
        return send_counts(count_messages(self.rank_TK, ranks=row.ranks))

    @cached_property
    def topology(self) -> Topology:
        """Return the row's servers on InfiniBand, driven by its kernels."""
        return kernels_named(self.row.kernels).on(
            rail_clos(infiniband(self.row.ranks // RANKS_PER_NODE)), forwards=self.row.mode == "normal"
        )

    def scenario(self) -> Scenario:
        """Return what to simulate."""
        flows = expert_flows(self.topology, self.traffic, name=self.operation)
        return Scenario(self.topology, flows, routing="adaptive", seed=self.seed)

    @property
    def beside_ps(self) -> int:
        """Return the time beside the network's: the kernels' own, signals, and what combine reads."""
        row, kernels = self.row, kernels_named(self.row.kernels)
        by_nic = bool((~self.traffic.nvlink).any())
        if row.mode == "normal":
            return kernels.fixed_ps(self.operation, by_nic=by_nic, forwards=True)
        stay = RANKS_PER_NODE if row.nvlink else 1
        return kernels.beside_ps(
            self.operation,
            by_nic=by_nic,
            experts=row.experts * (row.ranks - stay) // row.ranks,
            reduced=row.tokens * row.top_k * message_bytes(row.hidden, "bf16"),
        )

    @property
    def logical_bytes(self) -> float:
        """Return the bytes published rates count, mean of ranks: of all copies of its tokens, or of those it gets."""
        each = RANKS_PER_NODE if self.row.ranks > RANKS_PER_NODE else 1
        copies = int((distinct_ranks(self.rank_TK, each=each) != NO_RANK).sum())
        message = message_bytes(self.row.hidden, "fp8" if self.operation == "dispatch" else "bf16")
        return copies / self.row.ranks * (message - (_FP8_MESSAGE_HEADER if self.operation == "dispatch" else 0))


@dataclass(frozen=True)
class SimulatedExchange:
    """One operation of a row over all draws of routing: what was published, and what came out.

    `figures` are in the row's unit, us or GB/s, one a draw. `nic` and `nvlink` are the mean use of the busiest port of
    each kind while the network was at work. Times are us.
    """

    row: ExchangeRow
    operation: Operation
    figures: tuple[float, ...]
    network_us: float
    beside_us: float
    nic: float
    nvlink: float

    @property
    def figure(self) -> float:
        """Return the mean over draws."""
        return sum(self.figures) / len(self.figures)

    @property
    def published(self) -> float:
        """Return what was published, in the same unit."""
        return self.row.published(self.operation)

    @property
    def error(self) -> float:
        """Return by what share the simulation is above what was published."""
        return self.figure / self.published - 1

    @property
    def bottleneck(self) -> Literal["nic", "nvlink"]:
        """Return the kind of port that was busiest."""
        return "nic" if self.nic >= self.nvlink else "nvlink"

    @property
    def within(self) -> bool:
        """Tell whether figure and bottleneck are those published."""
        return abs(self.error) <= self.row.tolerance and self.bottleneck == self.row.bottleneck


def draws(row: ExchangeRow) -> int:
    """Return how many draws of routing a row is the mean of: chance moves rows of few messages most."""
    return 10 if row.mode == "low-latency" and row.ranks <= 32 else 3


def simulate_exchanges(
    rows: Sequence[ExchangeRow],
    *,
    processes: int | None = None,
    progress: Callable[[ManyProgress], object] | None = None,
) -> list[SimulatedExchange]:
    """Simulate both operations of each row, over all draws of its routing."""
    kinds = [(row, operation) for row in rows for operation in OPERATIONS]
    exchanges = [[Exchange(row, operation, seed) for seed in range(1, draws(row) + 1)] for row, operation in kinds]
    scenarios = [each.scenario() for drawn in exchanges for each in drawn]
    results = iter(run_many(scenarios, processes=processes, progress=progress))
    return [_together([(each, next(results)) for each in drawn]) for drawn in exchanges]


def _together(pairs: Sequence[tuple[Exchange, Results]]) -> SimulatedExchange:
    row, operation = pairs[0][0].row, pairs[0][0].operation
    network = [float(np.nanmax(results.delivered_us)) for _, results in pairs]
    beside = pairs[0][0].beside_ps / 1e6
    figures = [
        exchange.logical_bytes / 1e3 / (taken + beside) if row.in_rates else taken + beside
        for (exchange, _), taken in zip(pairs, network, strict=True)
    ]
    used = [busiest_ports(exchange.topology, results) for exchange, results in pairs]
    nic, nvlink = np.mean(used, axis=0).tolist()
    return SimulatedExchange(row, operation, tuple(figures), float(np.mean(network)), beside, nic, nvlink)


def busiest_ports(topology: Topology, results: Results) -> tuple[float, float]:
    """Return the use of the busiest NIC port and the busiest NVLink port, in either direction."""
    at_host = topology.node_kind[topology.port_node] == 0
    ends = at_host | at_host[topology.port_peer]
    nvlink = np.array([name == NVLINK for name in topology.networks])[topology.port_network]
    return (
        float(results.utilisation[ends & ~nvlink].max(initial=0.0)),
        float(results.utilisation[ends & nvlink].max(initial=0.0)),
    )


def infiniband(servers: int) -> Cluster:
    """Return servers of the catalog's H800 cluster, with InfiniBand's quicker switches."""
    cluster = load_cluster("h800-ft")
    assert cluster.hpn.spine is not None
    quick = {"latency": _QUANTUM_2_LATENCY}
    hpn = msgspec.structs.replace(
        cluster.hpn,
        leaf=msgspec.structs.replace(cluster.hpn.leaf, **quick),
        spine=msgspec.structs.replace(cluster.hpn.spine, **quick),
    )
    return msgspec.structs.replace(cluster, name="h800-infiniband", servers=servers, hpn=hpn)
