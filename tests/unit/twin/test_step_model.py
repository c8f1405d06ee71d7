"""Steps of a group: a few layers walked for all, one stream and two, and nothing but the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.policy.overlap_order import timeline
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.twin import Assumptions
from fourlane.twin.kernel_times import RooflineTimes
from fourlane.twin.step_model import StepFigures, StepModel, step_figures, tokens_per_step
from fourlane.twin.times import GroupLoad, RankShare, Timed

if TYPE_CHECKING:
    from fourlane.policy.stages import Part
    from fourlane.twin.times import Operation, RankLoad

DEEPSEEK = load_architecture("deepseek-v3")


@dataclass(frozen=True)
class EvenExperts:
    """Every rank has the same."""

    held_experts: int = 2

    def at(self, tokens: float) -> RankShare:
        """Return equal shares."""
        del tokens
        return RankShare(1.0, 1.0, self.held_experts, "even")


@dataclass(frozen=True)
class StraightExchange:
    """A latency and a rate for each operation, in microseconds."""

    dispatch: tuple[float, float] = (15.0, 1.2)
    combine: tuple[float, float] = (15.0, 2.4)

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return latency and tokens at the rate."""
        fixed, each = self.dispatch if operation == "dispatch" else self.combine
        return Timed((fixed + each * tokens * max_over_mean) * 1e-6, "nic", "straight line")


@dataclass(frozen=True)
class GivenKernels:
    """Parts of given times, in microseconds."""

    times: dict[str, float]

    def part(self, part: Part, load: RankLoad) -> Timed:
        """Return the time, whatever the load."""
        del load
        return Timed(self.times.get(part, 0.0) * 1e-6, "compute", "given")


def decode_load(sequences: float, *, ranks: int = 128, context: int = 4096) -> GroupLoad:
    """Return a step of sequences of one length on every rank."""
    return GroupLoad(ranks, 0, 0, sequences, sequences * context, sequences, sequences)


def model(**settings: object) -> StepModel:
    """Return DeepSeek-V3 in decode on H800."""
    given: dict[str, object] = {
        "architecture": DEEPSEEK,
        "phase": "decode",
        "kernels": RooflineTimes(DEEPSEEK, "h800"),
        "exchange": StraightExchange(),
        "balance": EvenExperts(),
    }
    return StepModel(**(given | settings))  # type: ignore[arg-type]


PARTS = ("attention 0", "attention 1", "router", "shared expert", "experts", "mlp", "output", "embedding")
MICROSECONDS = st.floats(min_value=0.0, max_value=400.0)


@settings(max_examples=40, deadline=None)
@given(
    times=st.fixed_dictionaries(dict.fromkeys(PARTS, MICROSECONDS)),
    dispatch=MICROSECONDS,
    combine=MICROSECONDS,
    overlap=st.sampled_from(("never", "always")),
    phase=st.sampled_from(("prefill", "decode")),
)
def test_a_few_layers_walked_give_what_the_whole_walk_does(
    times: dict[str, float], dispatch: float, combine: float, overlap: str, phase: str
) -> None:
    exchange = StraightExchange((dispatch, 0.0), (combine, 0.0))
    steps = model(phase=phase, kernels=GivenKernels(times), exchange=exchange, overlap=overlap)
    step, intervals, names = steps.timeline(decode_load(64))
    assert step.seconds == pytest.approx(max((each.end_s for each in intervals), default=0.0), rel=1e-9)
    assert len(names) == len(intervals)


def test_where_cpus_cut_experts_the_whole_walk_is_met_too() -> None:
    steps = model(overlap="always", gpu=False, experts_to_attention=4.0)
    times = {"attention 0": 20.0, "attention 1": 30.0, "experts 0": 90.0, "experts 1": 80.0, "output": 5.0}
    cut = model(overlap="always", gpu=False, experts_to_attention=4.0, kernels=GivenKernels(times))
    for each in (steps, cut):
        step, intervals, _ = each.timeline(decode_load(64))
        assert each.order.cut_experts
        assert step.seconds == pytest.approx(max(interval.end_s for interval in intervals), rel=1e-9)


def test_one_stream_takes_the_sum_of_its_stages_the_shared_expert_under_its_dispatch() -> None:
    times = {"attention 0": 30.0, "attention 1": 100.0, "router": 5.0, "shared expert": 40.0, "experts": 60.0}
    steps = model(kernels=GivenKernels(times), exchange=StraightExchange((70.0, 0), (110.0, 0)), overlap="never")
    step = steps.step(decode_load(64))
    dense, moe = DEEPSEEK.dense_layers * 130.0, DEEPSEEK.moe_layers * (135.0 + 70.0 + 60.0 + 110.0)
    assert step.seconds * 1e6 == pytest.approx(dense + moe)
    assert step.parts["shared expert"] * 1e6 == pytest.approx(DEEPSEEK.moe_layers * 40.0)
    assert step.exposed_s * 1e6 == pytest.approx(DEEPSEEK.moe_layers * (70.0 - 40.0 + 110.0))


def test_auto_takes_the_faster_of_one_stream_and_two() -> None:
    for sequences in (4, 512):
        load = decode_load(sequences)
        each = [model(overlap=overlap).step(load).seconds for overlap in ("never", "always")]
        assert model().step(load).seconds == min(each)


def test_two_streams_lose_at_small_decode_batches_and_win_at_large_ones() -> None:
    def gain(sequences: int) -> float:
        load = decode_load(sequences)
        return model(overlap="never").step(load).seconds / model(overlap="always").step(load).seconds - 1

    assert gain(8) < 0
    assert gain(256) > 0.1


def test_parts_and_what_is_exposed_add_up_to_the_step() -> None:
    figures = StepFigures(sm_share=0.18, overhead_s=0.002, source="here")
    step = model(figures=figures, overlap="always").step(decode_load(128))
    assert step.seconds == pytest.approx(step.computing_s + step.exposed_s + 0.002)
    computed = sum(seconds for name, seconds in step.parts.items() if name not in ("dispatch", "combine", "overhead"))
    assert computed == pytest.approx(step.computing_s)
    assert step.parts["dispatch"] + step.parts["combine"] == pytest.approx(step.exchange_s)
    assert step.parts.keys() == step.bounds.keys() == step.sources.keys()
    assert all(step.sources.values())


def test_processors_given_to_communication_slow_only_what_they_would_compute_meanwhile() -> None:
    times = {"attention 1": 300.0, "experts": 300.0}
    kernels = GivenKernels(times)
    idle = model(kernels=kernels, overlap="always", exchange=StraightExchange((0, 0), (0, 0)))
    busy = model(kernels=kernels, overlap="always", exchange=StraightExchange((300.0, 0), (300.0, 0)))
    figures = StepFigures(sm_share=0.2)
    for steps, slower in ((idle, 1.0), (busy, 1 / 0.8)):
        plain = steps.step(decode_load(64)).parts["experts"]
        shared = replace(steps, figures=figures)
        assert shared.step(decode_load(64)).parts["experts"] == pytest.approx(slower * plain)


def test_without_computing_the_network_alone_is_left() -> None:
    steps = model(
        assumptions=Assumptions(zero_compute=True),
        overlap="always",
        figures=step_figures("decode", "h800", Assumptions()),
    )
    step = steps.step(decode_load(64))
    assert step.computing_s == 0
    assert step.seconds == pytest.approx(step.exchange_s)
    assert step.seconds == pytest.approx(2 * DEEPSEEK.moe_layers * (30.0 + 32 * 3.6) * 1e-6)


def test_a_drafted_token_computes_a_layer_and_logits_more() -> None:
    drafting = Assumptions(mtp_tokens=1, mtp_acceptance=0.7)
    assert tokens_per_step(drafting) == pytest.approx(1.7)
    assert tokens_per_step(Assumptions(mtp_tokens=3, mtp_acceptance=0.5)) == pytest.approx(1.875)
    times = GivenKernels({"attention 1": 100.0, "output": 50.0})
    exchange = StraightExchange((0, 0), (0, 0))
    plain = model(kernels=times, exchange=exchange, overlap="never").step(decode_load(64))
    more = model(kernels=times, exchange=exchange, overlap="never", assumptions=drafting).step(decode_load(64))
    assert (more.seconds - plain.seconds) * 1e6 == pytest.approx(100.0 + 25.0)


def test_a_rank_alone_exchanges_nothing_and_runs_one_stream() -> None:
    step = model(overlap="always", balance=EvenExperts(256)).step(decode_load(64, ranks=1))
    assert step.streams == 1
    assert step.exchange_s == 0


def test_what_is_posted_before_a_shared_expert_travels_under_it() -> None:
    steps = model(kernels=GivenKernels({"shared expert": 50.0}), exchange=StraightExchange((50.0, 0), (0, 0)))
    stretches = steps.stretches(decode_load(8), 1)
    intervals = timeline([stretches, []], steps.order)
    assert max(each.end_s for each in intervals) * 1e6 == pytest.approx(DEEPSEEK.moe_layers * 50.0)
