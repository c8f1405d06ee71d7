"""What a step of an expert-parallel group takes: the model's own stages walked with times in place of tensors.

One stream waits at each point where it hands over, two take turns as `policy.overlap_order` says. Layers are alike, so
a few are walked and the rest follow; `timeline` walks all. Not for what parts and exchanges take (`kernel_times`,
`twin.exchange`), nor for which requests make up a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fourlane.policy.overlap_order import ORDERS, Stretch, order_for, timeline
from fourlane.policy.stages import model_stages
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.twin import Assumptions
from fourlane.twin.step_parts import GroupParts, StreamParts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.policy.overlap_order import Interval, OverlapOrder
    from fourlane.policy.stages import Stage
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.efficiencies import Efficiencies
    from fourlane.twin.times import BalanceCurve, ExchangeTimes, GroupLoad, KernelTimes, Phase, StepTime

__all__ = ["StepFigures", "StepModel", "step_figures", "tokens_per_step"]

_WALKED = 6
"""Layers with experts walked, at first, for all of them."""
_SAME_S = 1e-12


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What cannot be worked out from parts and exchanges.

    Args:
        sm_share: of a GPU's processors, taken by communication while it is under way.
        micro_batch_inefficiency: by what share two halves take longer than the roofline says.
        overhead_s: on the host, each step, not hidden.
        source: in words.
    """

    sm_share: float = 0.0
    micro_batch_inefficiency: float = 0.0
    overhead_s: float = 0.0
    source: str = "assumed: none"


def step_figures(phase: Phase, gpu: str, assumptions: Assumptions, reached: Efficiencies | None = None) -> StepFigures:
    """Return the figures of a GPU of the catalog, or those given, where the assumptions do not say otherwise.

    Raises:
        SpecError: the catalog has no such GPU.
    """
    reached = reached or efficiencies(gpu)
    shares = {
        "prefill": (assumptions.sm_share_prefill, reached.sm_share_prefill),
        "decode": (assumptions.sm_share_decode, reached.sm_share_decode),
    }
    said, found = shares[phase]
    inefficiency, overhead = assumptions.micro_batch_inefficiency, assumptions.step_overhead
    how = "the twin's file" if overhead is not None else reached.source("step_overhead")
    return StepFigures(
        found if said is None else said,
        reached.micro_batch_inefficiency if inefficiency is None else inefficiency,
        (reached.step_overhead if overhead is None else overhead).seconds,
        f"{how} ({gpu})",
    )


def tokens_per_step(assumptions: Assumptions) -> float:
    """Return the tokens a decoding sequence gets in a step: one, and drafted ones up to the first refused."""
    return sum(assumptions.mtp_acceptance**drafted for drafted in range(assumptions.mtp_tokens + 1))


@dataclass(frozen=True)
class StepModel:
    """Steps of a group.

    Args:
        architecture: of the model.
        phase: of most tokens; two streams take turns by it.
        kernels: what parts take.
        exchange: what dispatch and combine take.
        balance: how full the fullest rank's experts are.
        overlap: one stream, two, or whichever is faster.
        assumptions: drafted tokens, and whether computing takes time at all.
        figures: what cannot be worked out.
        gpu: whether ranks compute on GPUs; two streams take turns otherwise on CPUs.
        experts_to_attention: how much longer a token's experts take than its attention, where ranks are CPUs.
        turns: by which order of `policy.overlap_order` two streams take turns; None: by phase and GPU.
    """

    architecture: Architecture
    phase: Phase
    kernels: KernelTimes
    exchange: ExchangeTimes
    balance: BalanceCurve
    overlap: Literal["auto", "never", "always"] = "auto"
    assumptions: Assumptions = field(default_factory=Assumptions)
    figures: StepFigures = field(default_factory=StepFigures)
    gpu: bool = True
    experts_to_attention: float = 1.0
    turns: str | None = None

    def step(self, load: GroupLoad) -> StepTime:
        """Return what a step with this load takes, and what it is made of."""
        return min((self._walk(load, streams) for streams in self._streams(load)), key=lambda step: step.seconds)

    def timeline(self, load: GroupLoad) -> tuple[StepTime, list[Interval], list[str]]:
        """Return a step with when what was computed or travelled, all layers, and what each interval is called."""
        step = self.step(load)
        stretches = self.stretches(load, step.streams)
        intervals = timeline([stretches, stretches] if step.streams == 2 else [stretches, []], self.order)
        stages = self._stages(self._moe, cut=step.streams == 2)
        return step, intervals, [_called(stages[each.index], each, streams=step.streams) for each in intervals]

    def stretches(self, load: GroupLoad, streams: Literal[1, 2]) -> list[Stretch]:
        """Return the stretches of a stream, all layers; both streams have the same."""
        parts = self._parts(load, streams)
        return [_stretch(stage, parts, self.architecture) for stage in self._stages(self._moe, cut=streams == 2)]

    @cached_property
    def order(self) -> OverlapOrder:
        """Return the order in which two streams take turns."""
        if self.turns is not None:
            return ORDERS[self.turns]
        return order_for(self.phase, gpu=self.gpu, experts_to_attention=self.experts_to_attention)

    @cached_property
    def layers(self) -> tuple[int, int]:
        """Return how many layers without and with experts a step computes; drafting a token computes one more."""
        return self.architecture.dense_layers, self.architecture.moe_layers + self.assumptions.mtp_tokens

    @cached_property
    def _moe(self) -> tuple[bool, ...]:
        dense, moe = self.layers
        return (False,) * dense + (True,) * moe

    def _streams(self, load: GroupLoad) -> tuple[Literal[1, 2], ...]:
        if self.overlap == "never" or load.ranks == 1:
            return (1,)
        return (2,) if self.overlap == "always" else (1, 2)

    def _stages(self, moe: tuple[bool, ...], *, cut: bool) -> tuple[Stage, ...]:
        key = (len(moe), cut)
        if key not in self._known_stages:
            shared = self.architecture.shared_experts > 0
            self._known_stages[key] = model_stages(moe, shared=shared, cut_experts=cut and self.order.cut_experts)
        return self._known_stages[key]

    @cached_property
    def _known_stages(self) -> dict[tuple[int, bool], tuple[Stage, ...]]:
        return {}

    def _parts(self, load: GroupLoad, streams: Literal[1, 2]) -> StreamParts:
        group = GroupParts(self.architecture, self.kernels, self.exchange, self.balance, self.assumptions)
        parts = group.of(load, streams)
        if streams == 1:
            return parts
        return parts.slowed(1 + self.figures.micro_batch_inefficiency, self.figures.sm_share)

    def _walk(self, load: GroupLoad, streams: Literal[1, 2]) -> StepTime:
        parts = self._parts(load, streams)
        seconds = self._seconds(parts, streams)
        overhead_s = 0.0 if self.assumptions.zero_compute else self.figures.overhead_s
        step = parts.step(self.layers, streams, seconds)
        if not overhead_s:
            return step
        return replace(
            step,
            seconds=seconds + overhead_s,
            parts=step.parts | {"overhead": overhead_s},
            bounds=step.bounds | {"overhead": "host"},
            sources=step.sources | {"overhead": self.figures.source},
        )

    def _seconds(self, parts: StreamParts, streams: Literal[1, 2]) -> float:
        """Return what all layers take: layers with experts until each takes as long as the one before, then times."""
        dense, moe = self.layers
        for walked in (_WALKED, 2 * _WALKED):
            if walked >= moe:
                break
            stages = self._stages((False,) * dense + (True,) * walked, cut=streams == 2)
            intervals = self._timed(stages, parts, streams)
            each = _period(intervals, stages, dense + walked - 3)
            if each is not None:
                return max(interval.end_s for interval in intervals) + (moe - walked) * each
        return max(
            interval.end_s for interval in self._timed(self._stages(self._moe, cut=streams == 2), parts, streams)
        )

    def _timed(self, stages: Sequence[Stage], parts: StreamParts, streams: Literal[1, 2]) -> list[Interval]:
        stretches = [_stretch(stage, parts, self.architecture) for stage in stages]
        return timeline([stretches, stretches] if streams == 2 else [stretches, []], self.order)


def _stretch(stage: Stage, parts: StreamParts, architecture: Architecture) -> Stretch:
    moe = stage.layer >= architecture.dense_layers
    return parts.stretch(stage, moe=moe)


def _period(intervals: Sequence[Interval], stages: Sequence[Stage], layer: int) -> float | None:
    """Return by how much everything in the layer after `layer` comes later than in it; None if not all by the same.

    What follows depends on nothing but when what was begun before ends. So where all of a layer comes as much later
    than the layer before, all that comes after does, too.
    """
    first = next(index for index, stage in enumerate(stages) if stage.layer == layer)
    length = sum(stage.layer == layer for stage in stages)
    ends: dict[tuple[int, int, bool], float] = {
        (each.stream, each.index, each.travels): each.end_s
        for each in intervals
        if first <= each.index < first + 2 * length
    }
    later = [
        ends[stream, index + length, travels] - end_s
        for (stream, index, travels), end_s in ends.items()
        if index < first + length
    ]
    return later[0] if max(later) - min(later) <= _SAME_S * max(1.0, 1e3 * max(later)) else None


def _called(stage: Stage, interval: Interval, *, streams: int) -> str:
    what = stage.then if interval.travels else stage.computes
    stream = f" ({'AB'[interval.stream]})" if streams == 2 else ""
    return f"layer {stage.layer}: {what}{stream}"
