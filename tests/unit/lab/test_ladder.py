"""The ladder's steps and its sums, without a lab."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fourlane.lab.ladder import DECODE, KV_SOURCES, KV_TARGETS, PREFILL, LadderSettings, ladder_steps, ladder_topology
from fourlane.lab.ladder_results import Sample, doubts, sum_up
from fourlane.lanes.render.host import host_queues
from fourlane.spec.traffic import TrafficClass

SETTINGS = LadderSettings()
STEPS = {step.name: step for step in ladder_steps(SETTINGS)}


def sample(step: str, repeat: int, *, slow: float, failed: int = 0, idle: float = 0.5, late: float = 0.001) -> Sample:
    """Return a sample whose times are `slow` seconds, give or take."""
    return Sample(
        step=step,
        repeat=repeat,
        ttft_s=[slow, 2 * slow],
        tpot_s=[slow] * 99 + [3 * slow],
        failed=failed,
        exchange_s=(slow / 2, slow),
        prefill_exchange_s=(slow, slow),
        kv_share=[0.2, 0.4, 0.9],
        kv_sent_of_offered=1.0,
        draws=16,
        uplink_share=0.6,
        dropped=3,
        marked=None,
        idle=idle,
        lateness_s=late,
    )


def test_both_groups_of_the_service_and_all_further_kv_cross_the_spines() -> None:
    topology = ladder_topology(SETTINGS)
    for first, second in (PREFILL, DECODE):
        assert topology.leaf(first) != topology.leaf(second)
    assert {topology.leaf(host) for host in KV_SOURCES} == {0}
    assert {topology.leaf(host) for host in KV_TARGETS} == {1}
    assert set(KV_TARGETS) & set(DECODE)


def test_each_step_changes_one_thing_and_the_last_but_one_takes_a_change_back() -> None:
    changes = []
    for before, after in pairwise(STEPS.values()):
        changed = [name for name in ("spread", "plan", "kv") if getattr(before, name) != getattr(after, name)]
        changes.append(changed)
    assert changes == [["spread"], ["plan"], ["plan"], ["plan"], ["plan", "kv"]]  # lanes follow KV to its network
    assert STEPS["4b"].plan == STEPS["3"].plan


def test_only_step_4a_marks_and_only_the_expert_lane() -> None:
    marked = {
        (name, kind)
        for name, step in STEPS.items()
        if step.plan is not None
        for kind, lane in step.plan.classes.items()
        if lane.marking is not None
    }
    assert marked == {("4a", TrafficClass.EXPERT)}


def test_the_expert_lane_has_the_largest_weight_and_buffer_and_kv_leaves_in_the_last_step() -> None:
    for name in ("3", "4a", "4b", "5"):
        plan = STEPS[name].plan
        assert plan is not None
        queues = host_queues(plan, "hpn", SETTINGS.rate, buffer=SETTINGS.buffer)
        expert = queues.queue(TrafficClass.EXPERT)
        others = [queue for queue in queues.queues if queue is not expert]
        assert all((queue.weight or 0) < (expert.weight or 0) and queue.buffer < expert.buffer for queue in others)
        assert (TrafficClass.KV in plan.on("hpn")) == (name != "5")


def test_figures_are_medians_and_ratios_are_taken_within_each_repetition() -> None:
    steps = [STEPS["1"], STEPS["2"]]
    samples = [sample("1", n, slow=slow) for n, slow in enumerate((1.0, 2.0, 4.0))]
    samples += [sample("2", n, slow=slow) for n, slow in enumerate((0.5, 0.2, 2.0))]
    first, second = sum_up(steps, samples)
    assert first.figures["ttft_p50_s"] == pytest.approx(3.0)
    assert first.figures["tpot_p50_s"] == 2.0
    assert first.ratios["tpot_p99_s"] == 1.0
    assert second.ratios["tpot_p50_s"] == 0.5  # of 0.5, 0.1 and 0.5; of the medians it would be 0.25
    assert (second.lowest["exchange_p99_s"], second.highest["exchange_p99_s"]) == (0.2, 2.0)
    assert second.figures["kv_share"] == 0.4


def test_a_step_that_was_not_taken_has_no_result() -> None:
    assert [result.name for result in sum_up([STEPS["1"], STEPS["4a"]], [sample("1", 0, slow=1.0)])] == ["1"]


def test_a_run_is_doubted_when_the_line_is_not_reached_requests_fail_or_the_processors_are_busy() -> None:
    good = sum_up([STEPS["1"]], [sample("1", 0, slow=1.0)])
    assert doubts(good, stretch=1.02) == []
    assert "1.30 times its ideal time" in doubts(good, stretch=1.3)[0]
    failed = sum_up([STEPS["1"]], [sample("1", 0, slow=1.0, failed=2)])
    assert doubts(failed, stretch=1.0) == ["step 1: 2 requests failed"]
    busy = sum_up([STEPS["1"]], [sample("1", 0, slow=1.0, idle=0.001, late=0.02)])
    late, bottleneck = doubts(busy, stretch=1.0)
    assert "timers rang up to 20.0 ms late" in late
    assert "idle 0.1% of the time" in bottleneck
