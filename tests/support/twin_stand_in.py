"""An assembled twin of which every time is a plain formula, for tests of what is worked out from times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fourlane.lanes.default_plan import default_plan
from fourlane.spec.architecture import Architecture, GroupedQueryAttention
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Assumptions, Slo, Twin, TwinPool, Workload
from fourlane.twin.assembly_parts import Assembly, Overheads, PhaseModel
from fourlane.twin.times import GroupLoad, RankShare, StepTime, Timed

ARCHITECTURE = Architecture(
    name="stand-in",
    layers=10,
    hidden=1024,
    vocabulary=1000,
    attention=GroupedQueryAttention(heads=8, kv_heads=2, head_width=64),
    experts=64,
    top_k=4,
    expert_inner=512,
    source="made up",
)


@dataclass(frozen=True)
class FixedExchange:
    """Dispatch and combine take `seconds` each, more the more KV cache shares the NIC."""

    seconds: float = 0.0

    def operation(self, operation: str, tokens: float, max_over_mean: float) -> Timed:  # noqa: ARG002
        return Timed(self.seconds, "nic", "made up")

    def with_background(self, share: float) -> FixedExchange:
        return FixedExchange(self.seconds / (1 - share))


@dataclass(frozen=True)
class LinearSteps:
    """A step takes `still_s`, so much for each token of the fullest rank and position of its cache, and exchange."""

    still_s: float
    token_s: float
    context_s: float = 0.0
    exchange: FixedExchange = FixedExchange()

    def step(self, load: GroupLoad) -> StepTime:
        computing = self.still_s + self.token_s * (load.prefill_tokens + load.decode_tokens)
        computing += self.context_s * load.decode_context
        travelling = 2 * self.exchange.seconds
        return StepTime(
            computing + travelling,
            1,
            computing,
            travelling,
            travelling,
            {"experts": computing, "dispatch": travelling / 2, "combine": travelling / 2},
            {"experts": "compute", "dispatch": "nic", "combine": "nic"},
            {"experts": "made up", "dispatch": "made up", "combine": "made up"},
        )

    def timeline(self, load: GroupLoad) -> Any:
        return self.step(load), [], []


@dataclass(frozen=True)
class Memory:
    kv_blocks: int
    weights: int = 0
    kv: int = 0
    reserve: int = 0


@dataclass(frozen=True)
class EvenBalance:
    held_experts: int = 1

    def at(self, tokens: float) -> RankShare:  # noqa: ARG002
        return RankShare(1.0, 1.0, 1.0, "made up")


@dataclass(frozen=True)
class PlainKv:
    """Every rank sends and receives at `rate` bytes a second; on its own network, or on that of experts."""

    rate: float = 50e9
    shared: bool = False
    latency_s: float = 0.0
    source: str = "made up"

    @property
    def out_rate(self) -> float:
        return self.rate

    @property
    def in_rate(self) -> float:
        return self.rate

    def seconds(self, size: float) -> float:
        return self.latency_s + size / self.rate

    def background(self, rate: float) -> float:
        return min(0.9, rate / self.rate) if self.shared else 0.0


def stand_in(
    workload: Workload,
    *,
    slo: Slo | None = None,
    prefill: TwinPool | None = None,
    decode: TwinPool | None = None,
    **changed: Any,
) -> Assembly:
    """Return an assembly: prefill 5 ms and 20 us a token, decode 10 ms and 0.1 ms a sequence, unless `changed`."""
    cluster = load_cluster("h800-ft")
    prefill = prefill or TwinPool(units=2, ranks=8, chunk_tokens=4096)
    decode = decode or TwinPool(units=2, ranks=8, max_running=64)
    twin = Twin(
        model="stand-in",
        cluster="h800-ft",
        prefill=prefill,
        decode=decode,
        workload=workload,
        slo=slo or Slo(),
        assumptions=changed.pop("assumptions", Assumptions()),
    )
    exchange = changed.pop("exchange", FixedExchange())
    blocks = changed.pop("kv_blocks", 100_000)
    steps = {
        "prefill": changed.pop("prefill_steps", LinearSteps(5e-3, 20e-6, exchange=exchange)),
        "decode": changed.pop("decode_steps", LinearSteps(10e-3, 1e-4, exchange=exchange)),
    }
    phases: Any = {
        phase: PhaseModel(phase, pool, steps[phase], Memory(blocks), EvenBalance(), exchange)
        for phase, pool in twin.pools().items()
    }
    given = {
        "twin": twin,
        "architecture": ARCHITECTURE,
        "cluster": cluster,
        "hardware": None,
        "plan": default_plan(cluster),
        **phases,
        "kv": PlainKv(),
        "kv_token_bytes": 10_000.0,
        "overheads": Overheads(),
        **changed,
    }
    return Assembly(**given)
