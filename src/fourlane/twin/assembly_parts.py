"""What a twin consists of once everything its file names has been found: models of both phases, and of what joins them.

`fourlane.twin.assembly.assemble` makes one. Everything that works with a twin (operating point, simulation, ladder,
planner) starts from it. Not for how the parts work: each is behind a protocol of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.lanes.plan import LanePlan
    from fourlane.policy.overlap_order import Interval
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.hardware_profile import Crowding
    from fourlane.spec.twin import Twin, TwinPool
    from fourlane.twin.times import BalanceCurve, ExchangeTimes, GroupLoad, Phase, StepTime

__all__ = [
    "COLD_IDLE_S",
    "DISPATCHED",
    "Assembly",
    "KvTransfer",
    "MemoryBudget",
    "Overheads",
    "PhaseModel",
    "StepTimes",
    "cold",
]

COLD_IDLE_S = 0.5
"""After so long without work a unit is as slow at first as it gets."""
DISPATCHED = 0.25
"""Of the time that gateway and client are busy with a request, what passes until they turn to the next one."""


class StepTimes(Protocol):
    """What steps of an expert-parallel group take (`fourlane.twin.step_model.StepModel`)."""

    def step(self, load: GroupLoad) -> StepTime:
        """Return what a step with this load takes, and what it is made of."""
        ...

    def timeline(self, load: GroupLoad) -> tuple[StepTime, Sequence[Interval], Sequence[str]]:
        """Return it with when what was computed or travelled, and what each interval is called."""
        ...


class MemoryBudget(Protocol):
    """What a rank's memory is used for (`fourlane.twin.memory.MemoryUse`). Units: bytes; `kv_blocks` blocks."""

    @property
    def weights(self) -> int:
        """Return what weights take."""
        ...

    @property
    def kv(self) -> int:
        """Return what the KV cache takes."""
        ...

    @property
    def reserve(self) -> int:
        """Return what is kept free for activations, buffers and the runtime."""
        ...

    @property
    def kv_blocks(self) -> int:
        """Return the blocks the KV cache has."""
        ...


class KvTransfer(Protocol):
    """How KV cache gets from a prefill rank to a decode rank (`fourlane.twin.kv_path.KvPath`).

    Units:
        out_rate, in_rate: bytes a second out of a prefill rank and into a decode rank, alone; latency_s: of the first
        byte.
    """

    @property
    def out_rate(self) -> float:
        """Return the rate out of a prefill rank."""
        ...

    @property
    def in_rate(self) -> float:
        """Return the rate into a decode rank."""
        ...

    @property
    def latency_s(self) -> float:
        """Return the time to the first byte."""
        ...

    @property
    def source(self) -> str:
        """Return where these come from, in words."""
        ...

    def seconds(self, size: float) -> float:
        """Return what a transfer of so many bytes takes alone."""
        ...

    def background(self, rate: float) -> float:
        """Return which share of a rank's NIC so many bytes of KV a second take beside expert traffic.

        0 where KV cache has a network of its own.
        """
        ...


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a request waits for beside computing and transfers.

    Args:
        arrive_s: from the client's sending to the gateway's choice of ranks: HTTP, template, tokenizing.
        reserve_s: to the decode rank and back, for pages.
        deliver_s: from a rank's sampling to the client's reading.
        request_host_s: how long gateway and client are busy with a request; others wait for `DISPATCHED` of it when it
            comes, and again when its pages are reserved and its prompt is sent on.
        wake_s: from when an idle prefill unit gets a prompt until it begins with all that have come by then.
        join_s: by how much a decode unit's next step is later for each sequence that joins.
        cold_prefill_s, cold_decode_s: by how much a unit's first step is later if it did nothing for `COLD_IDLE_S` or
            longer; after less in proportion.
        source: in words.
    """

    arrive_s: float = 0.0
    reserve_s: float = 0.0
    deliver_s: float = 0.0
    request_host_s: float = 0.0
    wake_s: float = 0.0
    join_s: float = 0.0
    cold_prefill_s: float = 0.0
    cold_decode_s: float = 0.0
    source: str = "assumed: none"

    @property
    def dispatch_s(self) -> float:
        """Return how long the gateway is busy with a request until it turns to the next."""
        return self.request_host_s * DISPATCHED

    @property
    def gateway_s(self) -> float:
        """Return all of a lone request's time that is neither step nor reservation."""
        return self.arrive_s + self.dispatch_s + self.wake_s + self.deliver_s


def cold(idle_s: float) -> float:
    """Return how cold a unit is that did nothing for so long, as a share of as cold as it gets."""
    return min(1.0, idle_s / COLD_IDLE_S)


@dataclass(frozen=True, slots=True, eq=False)
class PhaseModel:
    """Like units of one phase.

    Args:
        phase: which.
        pool: as the twin's file has it.
        steps: what steps of a unit take.
        memory: of a rank.
        balance: how full the fullest rank's experts are.
        exchange: of a unit, alone in the network.
    """

    phase: Phase
    pool: TwinPool
    steps: StepTimes
    memory: MemoryBudget
    balance: BalanceCurve
    exchange: ExchangeTimes

    @property
    def ranks(self) -> int:
        """Return the ranks of all units."""
        return self.pool.units * self.pool.ranks

    def with_exchange(self, exchange: ExchangeTimes) -> PhaseModel:
        """Return the same units with another exchange."""
        steps: Any = self.steps  # a dataclass that has its exchange as a field
        return replace(self, steps=replace(steps, exchange=exchange), exchange=exchange)


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """A twin, ready to be asked.

    Args:
        twin: what it was made from.
        architecture: of the model.
        cluster: it runs on.
        hardware: a GPU of the catalog (`spec.hardware.GpuModel`) or a hardware profile.
        plan: lanes of the cluster, as the twin's file changes them.
        prefill, decode: models of both phases.
        kv: how KV cache travels between them.
        kv_token_bytes: KV cache of a token, all layers.
        tokens_per_step: tokens a decoding sequence gets in a step; more than 1 where drafted ones are accepted.
        overheads: of a request.
        cores: processors that the ranks of all units share (a host without GPUs); None: every rank has its own.
        crowding: how units of both phases slow each other down on them, where that was measured.
        sources: of whatever has no source of its own, by name.
    """

    twin: Twin
    architecture: Architecture
    cluster: Cluster
    hardware: Any
    plan: LanePlan
    prefill: PhaseModel
    decode: PhaseModel
    kv: KvTransfer
    kv_token_bytes: float
    tokens_per_step: float = 1.0
    overheads: Overheads = field(default_factory=Overheads)
    cores: int | None = None
    crowding: Crowding | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def phases(self) -> dict[Phase, PhaseModel]:
        """Return both phases' models, by name."""
        return {"prefill": self.prefill, "decode": self.decode}
