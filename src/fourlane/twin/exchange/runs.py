"""Packet runs of one dispatch or combine: what is simulated to fill a table of exchange times.

Not for what becomes of their times (`fourlane.twin.exchange.table`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fourlane.twin.exchange.skewed_routing import deal_messages, draw_ranks
from fourlane.twin.fabric.exchange_validation import busiest_ports
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.units import Size

if TYPE_CHECKING:
    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.scenario import Scenario
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.times import Operation

__all__ = ["ExchangeRun", "RunTime"]

PAYLOAD_A_HEADER_BYTE = 64
"""Of packets of 4 KiB with headers of 64 bytes."""


@dataclass(frozen=True)
class RunTime:
    """What a run took on the network, and the use of the busiest ports of both kinds meanwhile."""

    seconds: float
    nic: float
    nvlink: float

    @property
    def bound(self) -> Literal["nic", "nvlink"]:
        """Return the kind of port that was busiest."""
        return "nic" if self.nic >= self.nvlink else "nvlink"


@dataclass(frozen=True)
class ExchangeRun:
    """One operation of a setting.

    Args:
        setting: what is exchanged, and where.
        operation: dispatch or combine.
        tokens: of each rank.
        max_over_mean: what the fullest rank gets.
        seed: of the draw of routing and of the network's hashes.
    """

    setting: ExchangeSetting
    operation: Operation
    tokens: int
    max_over_mean: float = 1.0
    seed: int = 1

    def traffic(self) -> ExpertTraffic:
        """Return what goes from rank to rank."""
        setting = self.setting
        generator = np.random.default_rng([self.seed, setting.ranks, self.tokens])
        if setting.mode == "normal":
            normal = NormalKernels(hidden=setting.hidden, ranks_per_node=setting.ranks_per_node)
            send = normal.dispatch if self.operation == "dispatch" else normal.combine
            made = send(self._ranks_of_tokens(generator), ranks=setting.ranks)
        else:
            count_GG = deal_messages(
                generator,
                ranks=setting.ranks,
                each=self.tokens * setting.top_k,
                max_over_mean=self.max_over_mean,
                ranks_per_node=setting.ranks_per_node,
            )
            direct = LowLatencyKernels(
                hidden=setting.hidden,
                ranks_per_node=setting.ranks_per_node,
                nvlink=setting.on_nvlink,
                cross_rail=setting.cross_rail,
            )
            made = direct.dispatch(count_GG) if self.operation == "dispatch" else direct.combine(count_GG)
        message = setting.message(self.operation)
        return replace(made, message=message, size=made.size // made.message * message)

    def scenario(self, topology: Topology | None = None) -> Scenario:
        """Return what to simulate.

        Normal kernels move much, and what they wait for is bandwidth: there a message is a packet, with as many bytes
        of headers as its 4 KiB packets would have. That takes a third of the time and comes out at most 2 % lower.
        """
        net = topology or self.setting.topology()
        flows = expert_flows(net, self.traffic(), name=self.operation)
        given: dict[str, Any] = {"seed": self.seed}
        if self.setting.mode == "normal":
            payload = self.setting.message(self.operation)
            given["packets"] = {"payload": Size(payload), "header": Size(-(-payload // PAYLOAD_A_HEADER_BYTE))}
        return self.setting.lanes.scenario(net, flows, **given)

    def read(self, results: Results, topology: Topology) -> RunTime:
        """Return what came out."""
        nic, nvlink = busiest_ports(topology, results)
        return RunTime(float(np.nanmax(results.delivered_us)) / 1e6, nic, nvlink)

    def _ranks_of_tokens(self, generator: np.random.Generator) -> np.ndarray:
        setting = self.setting
        return draw_ranks(
            generator,
            ranks=setting.ranks,
            tokens=self.tokens,
            experts=setting.experts,
            top_k=setting.top_k,
            groups=setting.groups,
            top_groups=setting.top_groups,
            max_over_mean=self.max_over_mean,
        )
