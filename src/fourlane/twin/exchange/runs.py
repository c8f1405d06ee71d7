"""Packet runs of one dispatch or combine: what is simulated to fill a table of exchange times.

Not for what becomes of their times (`fourlane.twin.exchange.table`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fourlane.twin.exchange.skewed_routing import deal_messages, draw_ranks
from fourlane.twin.fabric.exchange_validation import busiest_ports
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.workloads import between
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.scenario import Scenario
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.times import Operation

__all__ = ["ExchangeRun", "RunTime", "completed", "side_by_side"]

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
        units: like ones side by side that do the same at once, each with a draw of its own.
        kv_ranks: of each unit, that KV cache comes to (decode) or goes out of (prefill) all the while.
        kv_s: for how long it does, at the rate of the NIC.
        seed: of draws of routing and of the network's hashes.
    """

    setting: ExchangeSetting
    operation: Operation
    tokens: int
    max_over_mean: float = 1.0
    units: int = 1
    kv_ranks: int = 0
    kv_s: float = 0.0
    seed: int = 1

    @property
    def servers(self) -> int:
        """Return the servers of all units, and of those that KV cache comes from or goes to."""
        wanted = self.setting.servers * self.units * (2 if self.kv_ranks else 1)
        return min(wanted, self.setting.cluster.servers)

    @cached_property
    def traffic(self) -> ExpertTraffic:
        """Return what goes from rank to rank of all units, one unit's ranks after the other's."""
        units = [self._traffic_of(unit) for unit in range(self.units)]
        return units[0] if len(units) == 1 else side_by_side(units)

    def scenario(self, topology: Topology | None = None) -> Scenario:
        """Return what to simulate.

        Normal kernels move much, and what they wait for is bandwidth: there a message is a packet, with as many bytes
        of headers as its 4 KiB packets would have. That takes a third of the time and comes out at most 2 % lower.
        """
        net = topology or self.setting.topology(self.servers)
        flows = [expert_flows(net, self.traffic, name=self.operation)]
        if self.kv_ranks:
            flows.append(self._kv(net))
        given: dict[str, Any] = {"seed": self.seed}
        if self.setting.mode == "normal":
            payload = self.setting.message(self.operation)
            given["packets"] = {"payload": Size(payload), "header": Size(-(-payload // PAYLOAD_A_HEADER_BYTE))}
        lanes = self.setting.lanes if self.kv_ranks else self.setting.lanes.plain
        return lanes.scenario(net, flows, **given)

    def compile(self) -> CompiledScenario:
        """Return what to simulate as a simulator reads it: so runs are put together where they are simulated."""
        return self.scenario().compile()

    def read(self, results: Results, topology: Topology) -> RunTime:
        """Return what came out, mean of units."""
        taken = results.delivered_us[results.flows_of("expert")] / 1e6
        nic, nvlink = busiest_ports(topology, results)
        return RunTime(float(self._last(taken).mean()), nic, nvlink)

    def _last(self, taken: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when the last flow of each unit was there."""
        if self.units == 1:
            return taken.max(initial=0.0, keepdims=True)
        last = np.zeros(self.units)
        np.maximum.at(last, self.traffic.source // self.setting.ranks, taken)
        return last

    def _traffic_of(self, unit: int) -> ExpertTraffic:
        setting = self.setting
        seeds = (self.seed, setting.ranks, self.tokens, unit)
        if setting.mode == "normal":
            normal = NormalKernels(hidden=setting.hidden, ranks_per_node=setting.ranks_per_node)
            send = normal.dispatch if self.operation == "dispatch" else normal.combine
            drawn = _drawn(seeds, setting.ranks, self.tokens, self.max_over_mean, **setting.choices)
            made = send(drawn, ranks=setting.ranks)
        else:
            count_GG = deal_messages(
                np.random.default_rng(list(seeds)),
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

    def _kv(self, topology: Topology) -> Flows:
        """Return KV cache on its way: a transfer each to or from some ranks, of the same rail of servers beside.

        Where the units fill the cluster, the next server's ranks stand in for those.
        """
        setting = self.setting
        ranks = setting.ranks * self.units
        rank = np.arange(self.kv_ranks * self.units) * setting.ranks // self.kv_ranks
        away = ranks if topology.gpus >= 2 * ranks else setting.cluster.gpus_per_server
        host, beside = topology.gpu_host[rank], topology.gpu_host[(rank + away) % topology.gpus]
        size = Size(max(1, round(self.kv_s * int(setting.cluster.hpn.rate) / 8)))
        ends = (beside, host) if setting.phase == "decode" else (host, beside)
        return between(topology, *ends, size, traffic="kv", name="kv")


@lru_cache(maxsize=2)
def _drawn(seeds: tuple[int, ...], ranks: int, tokens: int, max_over_mean: float, **choices: int) -> NDArray[np.int32]:
    """Return the rank of every choice of every token; kept, as dispatch and combine have the same."""
    generator = np.random.default_rng(list(seeds))
    drawn = draw_ranks(generator, ranks=ranks, tokens=tokens, max_over_mean=max_over_mean, **choices)
    drawn.setflags(write=False)
    return drawn


def completed(
    runs: Sequence[ExchangeRun], processes: int | None, progress: Callable[[ManyProgress], object] | None = None
) -> list[Results]:
    """Simulate runs, as `run_many` does, to their ends.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    results = run_many(runs, processes=processes, progress=progress)
    if not all(each.complete for each in results):
        raise KeyboardInterrupt
    return results


def side_by_side(units: Sequence[ExpertTraffic]) -> ExpertTraffic:
    """Return traffic of several units at once, the ranks of each after those of the one before."""
    ranks = np.cumsum([0, *(unit.ranks for unit in units)])
    flows = np.cumsum([0, *(unit.flows for unit in units)])

    def joined(name: str, shifts: NDArray[np.int64] | None = None) -> NDArray[Any]:
        arrays = [getattr(unit, name) for unit in units]
        if shifts is not None:
            arrays = [(array + shift).astype(np.int32) for array, shift in zip(arrays, shifts, strict=False)]
        return np.concatenate(arrays)

    return replace(
        units[0],
        ranks=int(ranks[-1]),
        source=joined("source", ranks),
        target=joined("target", ranks),
        size=joined("size"),
        nvlink=joined("nvlink"),
        before=joined("before", flows),
        after=joined("after", flows),
    )
