"""An assembly whose steps take times one can work out in one's head."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from fourlane.spec.twin import Assumptions, Slo, Twin, TwinPool, Workload
from fourlane.twin.assembly_parts import Assembly, Overheads, PhaseModel
from fourlane.twin.times import GroupLoad, StepTime, Timed


@dataclass(frozen=True)
class PlainExchange:
    """An exchange that takes so long, whatever there is to send, and longer beside KV cache."""

    seconds: float = 0.0

    def operation(self, operation: Any, tokens: float, max_over_mean: float) -> Timed:  # noqa: ARG002 - a protocol's
        return Timed(self.seconds, "nic", "made up")

    def with_background(self, share: float) -> PlainExchange:
        return PlainExchange(self.seconds / (1 - share))


@dataclass
class PlainSteps:
    """Steps that take `fixed` seconds and so much for each token, pair and position; counts how often it is asked."""

    fixed: float = 0.0
    token: float = 0.0
    pair: float = 0.0
    position: float = 0.0
    exchange: Any = field(default_factory=PlainExchange)
    asked: list[GroupLoad] = field(default_factory=list)

    def step(self, load: GroupLoad) -> StepTime:
        self.asked.append(load)
        parts = {
            "attention 1": load.prefill_pairs * self.pair + load.decode_context * self.position,
            "experts": self.fixed + load.tokens * self.token,
        }
        travelling = self.exchange.operation("dispatch", load.tokens, 1.0)
        parts["dispatch"] = travelling.seconds
        seconds = sum(parts.values())
        bounds = {"attention 1": "memory", "experts": "compute", "dispatch": travelling.bound}
        sources = dict.fromkeys(parts, "made up")
        return StepTime(seconds, 1, seconds - travelling.seconds, *[travelling.seconds] * 2, parts, bounds, sources)

    def timeline(self, load: GroupLoad) -> tuple[StepTime, list[Any], list[str]]:
        return self.step(load), [], []


@dataclass
class PlainKv:
    """KV transfers at a rate."""

    out_rate: float = 1e9
    in_rate: float = 1e9
    latency_s: float = 0.0
    source: str = "made up"
    nic_share: float = 0.0
    """Share of a NIC that a byte a second takes beside expert traffic."""

    def seconds(self, size: float) -> float:
        return self.latency_s + size / min(self.out_rate, self.in_rate)

    def beside(self, exchanging: float) -> PlainKv:
        return replace(self, out_rate=self.out_rate * (1 - exchanging / 2))

    def background(self, rate: float) -> float:
        return self.nic_share * rate


def plain_assembly(  # noqa: PLR0913 - every piece may be another
    *,
    workload: Workload,
    prefill: TwinPool | None = None,
    decode: TwinPool | None = None,
    prefill_steps: Any = None,
    decode_steps: Any = None,
    kv: PlainKv | None = None,
    blocks: int = 1000,
    prefill_blocks: int | None = None,
    token_bytes: float = 1000.0,
    overheads: Overheads | None = None,
    cores: int | None = None,
    tokens_per_step: float = 1.0,
    block_size: int = 16,
    **changed: Any,
) -> Assembly:
    """Return a service of two prefill and two decode ranks, changed as the arguments say."""
    twin = Twin(
        model="made-up",
        cluster="made-up",
        prefill=prefill or TwinPool(ranks=2, chunk_tokens=512),
        decode=decode or TwinPool(ranks=2),
        workload=workload,
        slo=changed.pop("slo", Slo()),
        assumptions=changed.pop("assumptions", Assumptions()),
        block_size=block_size,
        **changed,
    )

    def phase(name: Any, pool: TwinPool, steps: Any, kv_blocks: int) -> PhaseModel:
        memory: Any = SimpleNamespace(weights=0, kv=0, reserve=0, kv_blocks=kv_blocks)
        nothing: Any = None
        return PhaseModel(name, pool, steps, memory, nothing, steps.exchange)

    made_up: Any = SimpleNamespace(layers=10, name="made-up")
    return Assembly(
        twin=twin,
        architecture=made_up,
        cluster=made_up,
        hardware=None,
        plan=made_up,
        prefill=phase("prefill", twin.prefill, prefill_steps or PlainSteps(token=1e-3), prefill_blocks or blocks),
        decode=phase("decode", twin.decode, decode_steps or PlainSteps(fixed=0.01), blocks),
        kv=kv or PlainKv(),
        kv_token_bytes=token_bytes,
        tokens_per_step=tokens_per_step,
        overheads=overheads or Overheads(),
        cores=cores,
    )
