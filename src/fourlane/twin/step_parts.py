"""What the parts of a layer take on the fullest rank of a group, for one stream or each of two halves.

Not for the order in which they come (`fourlane.twin.step_model`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from fourlane.policy.overlap_order import Stretch
from fourlane.policy.stages import Part
from fourlane.twin.times import Operation, RankLoad, StepTime, Timed

if TYPE_CHECKING:
    from fourlane.policy.stages import Stage
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.twin import Assumptions
    from fourlane.twin.times import BalanceCurve, ExchangeTimes, GroupLoad, KernelTimes

__all__ = ["GroupParts", "StreamParts"]

_NOTHING = Timed(0.0, "none", "nothing is computed")
_NO_EXCHANGE = Timed(0.0, "none", "one rank exchanges nothing")
_ONCE = ("embedding", "output")
_HALVES = ("experts 0", "experts 1")


@dataclass(frozen=True)
class StreamParts:
    """Times of the parts of a stream, in one layer each.

    Args:
        parts: by name, in layers without exchange.
        moe: in layers with experts: two streams may slow each other there.
        travels: dispatch and combine.
    """

    parts: dict[str, Timed]
    moe: dict[str, Timed]
    travels: dict[Operation, Timed]

    def stretch(self, stage: Stage, *, moe: bool) -> Stretch:
        """Return a stage as a stretch of computing and what follows."""
        times = self.moe if moe else self.parts
        computes_s = sum(times[part].seconds for part in stage.parts)
        if stage.then not in ("dispatch", "combine"):
            return Stretch(computes_s, stage.then)
        posted_s = times["shared expert"].seconds if "shared expert" in stage.parts else 0.0
        return Stretch(computes_s, stage.then, self.travels[stage.then].seconds, posted_s)

    def slowed(self, factor: float, sm_share: float) -> StreamParts:
        """Return the parts as two streams compute them.

        Args:
            factor: all take so many times as long.
            sm_share: of processors, missing to what computing bounds while something travels.
        """
        computing_s = factor * sum(self.moe[part].seconds for part in self.moe if part not in (*_ONCE, "mlp", *_HALVES))
        travelling_s = sum(travel.seconds for travel in self.travels.values())
        under_way = min(1.0, travelling_s / computing_s) if computing_s else 0.0
        slow = factor / (1 - sm_share * under_way)
        return StreamParts(
            {name: replace(time, seconds=factor * time.seconds) for name, time in self.parts.items()},
            {
                name: replace(time, seconds=(slow if time.bound == "compute" else factor) * time.seconds)
                for name, time in self.moe.items()
            },
            self.travels,
        )

    def step(self, layers: tuple[int, int], streams: Literal[1, 2], seconds: float) -> StepTime:
        """Return a step of so many layers, without and with experts, that takes so long."""
        dense, moe = layers
        plain = {"embedding": 1, "attention 0": dense, "attention 1": dense, "mlp": dense, "output": 1}
        spent = {name: count * self.parts[name].seconds for name, count in plain.items() if count}
        for name in ("attention 0", "attention 1", "router", "shared expert", "experts"):
            spent[name] = spent.get(name, 0.0) + moe * self.moe[name].seconds
        spent = {name: streams * each_s for name, each_s in spent.items() if each_s}
        computing_s = sum(spent.values())
        travels = {str(name): streams * moe * travel.seconds for name, travel in self.travels.items() if travel.seconds}
        times: dict[str, Timed] = {**self.parts, **self.moe, **self.travels}
        spent |= travels
        return StepTime(
            seconds=seconds,
            streams=streams,
            computing_s=computing_s,
            exchange_s=sum(travels.values()),
            exposed_s=max(0.0, seconds - computing_s),
            parts=spent,
            bounds={name: times[name].bound for name in spent},
            sources={name: times[name].source for name in spent},
        )


@dataclass(frozen=True)
class GroupParts:
    """What the parts of a group's steps take."""

    architecture: Architecture
    kernels: KernelTimes
    exchange: ExchangeTimes
    balance: BalanceCurve
    assumptions: Assumptions

    def of(self, load: GroupLoad, streams: Literal[1, 2]) -> StreamParts:
        """Return the times of one stream's parts."""
        tokens = load.tokens / streams
        share = self.balance.at(tokens)
        rank = RankLoad(
            prefill_tokens=load.prefill_tokens / streams,
            prefill_pairs=load.prefill_pairs / streams,
            decode_tokens=load.decode_tokens / streams,
            decode_context=load.decode_context / streams,
            logits=load.logits / streams,
            expert_rows=tokens * self.architecture.top_k * share.max_over_mean,
            active_experts=share.active_experts,
            held_experts=self.balance.held_experts,
        )
        parts: dict[str, Timed] = {name: self._part(name, rank) for name in get_args(Part)}
        return StreamParts(parts, parts, self._travels(load, tokens, rank, share.received_max_over_mean))

    def _part(self, part: Part, rank: RankLoad) -> Timed:
        if self.assumptions.zero_compute:
            return _NOTHING
        if (part == "shared expert" and not self.architecture.shared_experts) or (
            part == "mlp" and not self.architecture.dense_layers
        ):
            return _NOTHING
        time = self.kernels.part(part, rank)
        drafts = self.assumptions.mtp_tokens
        if part == "output" and drafts:
            time = replace(time, seconds=time.seconds * (1 + drafts / (1 + drafts)))
        return time

    def _travels(self, load: GroupLoad, tokens: float, rank: RankLoad, received: float) -> dict[Operation, Timed]:
        if load.ranks == 1 or not tokens:
            return {"dispatch": _NO_EXCHANGE, "combine": _NO_EXCHANGE}
        fullest = max(received, rank.tokens / tokens)
        return {
            "dispatch": self.exchange.operation("dispatch", tokens, fullest),
            "combine": self.exchange.operation("combine", tokens, fullest),
        }
