"""Courses over time and windows of it agree with the figures of the whole."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from serving_doubles import PlainSteps, plain_assembly

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.twin import Assumptions, TwinPool, Workload
from fourlane.twin.exchange.table import IdealExchange
from fourlane.twin.expert_balance import ForcedBalance
from fourlane.twin.kernel_times import RooflineTimes
from fourlane.twin.serving.series import series
from fourlane.twin.serving.simulation import simulate
from fourlane.twin.serving.window import window
from fourlane.twin.step_model import StepModel

if TYPE_CHECKING:
    from fourlane.twin.serving.results import ServingResults


@pytest.fixture(scope="module")
def results() -> ServingResults:
    workload = Workload(rate=20.0, requests=100, input_len="64..512", output_len="8..64")
    return simulate(
        plain_assembly(
            workload=workload,
            prefill=TwinPool(units=2, ranks=2, chunk_tokens=256),
            decode_steps=PlainSteps(fixed=0.01, position=1e-6),
        )
    )


def test_courses_add_up_to_the_whole(results: ServingResults) -> None:
    course = series(results, stretches=50)
    width = results.duration / 50
    assert course.tokens["prompt"].sum() * width == pytest.approx(results.prefill.tokens)
    assert course.tokens["answer"].sum() * width == pytest.approx(results.decode.tokens)
    for phase, records in (("prefill", results.prefill_steps), ("decode", results.decode_leaps)):
        units = results.assembly.phases()[phase].pool.units
        busy = sum(end - begin for _, begin, end in records)
        assert course.busy[phase].mean() == pytest.approx(busy / units / results.duration)
    under_way = sum(lines.mean() for lines in course.requests.values())
    assert under_way == pytest.approx(results.requests.e2e.sum() / results.duration)
    assert course.kv.sum() * width == pytest.approx(results.kv_bytes)


def test_throughput_and_use_are_those_of_the_time_between_first_answers_and_last_arrivals() -> None:
    """However long the last answers take: what is offered is what comes out."""
    workload = Workload(rate=20.0, requests=600, input_len="100", output_len="101", burstiness=0.0)
    steps = PlainSteps(fixed=0.01)
    results = simulate(plain_assembly(workload=workload, decode_steps=steps, prefill_steps=PlainSteps(fixed=0.01)))
    begin, end = results.steady
    assert begin == pytest.approx(results.e2e.p90)
    assert end == pytest.approx(599 / 20)
    assert results.rate == pytest.approx(20.0, rel=0.01)
    assert results.attainment.goodput == pytest.approx(20.0, rel=0.01)
    assert results.output_tokens_s == pytest.approx(2020.0, rel=0.02)
    assert results.input_tokens_s == pytest.approx(2000.0, rel=0.02)
    assert results.prefill.tokens_s_gpu == pytest.approx(1000.0, rel=0.02)
    assert results.decode.tokens_s_gpu == pytest.approx(1000.0, rel=0.02)
    assert results.prefill.busy == pytest.approx(0.2, rel=0.05)
    assert results.decode.busy == pytest.approx(1.0, rel=0.01)
    # a request of 100 tokens holds seven blocks for its prompt, more and more for its answer
    assert results.kv.blocks == pytest.approx(20 * 1.02 * (150.5 / 16 + 0.5) / 2000, rel=0.05)
    assert results.kv.out_share == pytest.approx(20 * 100 * 1000 / 2 / 1e9, rel=0.05)


def test_a_window_shows_steps_one_after_another_and_requests_in_their_stages(results: ServingResults) -> None:
    tracks = window(results, 1.0, 2.0)
    processes = {track.process for track in tracks}
    assert processes == {"prefill unit 0", "prefill unit 1", "decode unit 0", "requests"}
    for track in tracks:
        for before, after in pairwise(track.slices):
            assert before.end_s <= after.begin_s + 1e-9
    (steps,) = (track.slices for track in tracks if (track.process, track.name) == ("decode unit 0", "steps"))
    assert all(each.end_s > 1.0 and each.begin_s < 2.0 for each in steps)
    busy = sum(each.end_s - each.begin_s for each in steps)
    assert busy == pytest.approx(1.0, abs=0.05)
    lasting = [each.end_s - each.begin_s for each in steps]
    assert min(lasting) >= 0.01 - 1e-9
    one = next(track.slices for track in tracks if track.process == "requests")
    assert one[-1].name == "decoding"


def test_what_a_step_is_made_of_is_shown_as_the_model_has_it() -> None:
    model = load_architecture("qwen3-30b-a3b")
    steps = StepModel(
        architecture=model,
        phase="decode",
        kernels=RooflineTimes(model, "h800", Assumptions()),
        exchange=IdealExchange(dispatch_bytes=2048.0, combine_bytes=4096.0, copies=8.0, rate=4e10),
        balance=ForcedBalance(held_experts=64, top_k=8),
        overlap="always",
    )
    workload = Workload(rate=20.0, requests=3, input_len="64", output_len="8")
    shown = window(simulate(plain_assembly(workload=workload, decode_steps=steps)), 0.0, 1.0)
    rows = {track.name for track in shown if track.process == "decode unit 0"}
    assert rows == {"steps", *(f"stream {n}: {what}" for n in (1, 2) for what in ("computing", "network"))}
    (whole,) = (track.slices[0] for track in shown if (track.process, track.name) == ("decode unit 0", "steps"))
    inside = [
        each
        for track in shown
        if track.process == "decode unit 0" and track.name != "steps"
        for each in track.slices
        if each.begin_s < whole.end_s - 1e-12
    ]
    assert min(each.begin_s for each in inside) == pytest.approx(whole.begin_s)
    assert max(each.end_s for each in inside) == pytest.approx(whole.end_s)
