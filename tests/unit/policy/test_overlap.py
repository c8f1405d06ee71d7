"""Whether a step runs in one stream or two: what is learnt, tried, found and given up."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from simulated_overlap import Group, play

from fourlane.policy.overlap import Outlook, OverlapRule
from fourlane.policy.overlap_times import Fit, Load, Sample, Times, two_streams

HALF_LINK = {"token_s": 50e-6, "link_token_s": 50e-6, "link_s": 5e-4, "computing_s": 5e-4}
"""About as much time on the link as computing."""


def steps(tokens: int, count: int, ranks: int = 2) -> list[list[int]]:
    return [[tokens] * ranks] * count


def told(*outlooks: Outlook) -> np.ndarray:
    return np.array(outlooks, dtype=np.int64)


def test_a_rank_alone_always_runs_one_stream() -> None:
    rule = OverlapRule(layers=8, ranks=1, mode="always")
    assert rule.decide(told(Outlook(decode_next=500))).mode == "single"
    assert rule.decision.why == "one rank"


@pytest.mark.parametrize(("mode", "runs"), [("never", "single"), ("always", "dual")])
def test_a_fixed_mode_holds_from_the_first_step_whatever_was_measured(
    mode: Literal["never", "always"], runs: str
) -> None:
    rule = OverlapRule(layers=8, ranks=2, mode=mode)
    decisions = play(Group(**HALF_LINK), steps(128, 60), rule).decisions
    assert {(decision.mode, decision.why) for decision in decisions} == {(runs, mode)}


def test_the_phase_of_most_tokens_sets_the_order_of_turns() -> None:
    rule = OverlapRule(layers=8, ranks=2, mode="always")
    assert rule.decide(told(Outlook(prefill_next=40, decode_next=30), Outlook(decode_next=40))).order == "decode"
    assert rule.decide(told(Outlook(prefill_next=90, decode_next=30), Outlook(decode_next=40))).order == "prefill"


def test_the_first_steps_run_one_stream() -> None:
    assert OverlapRule(layers=8, ranks=2).decision.mode == "single"


def test_few_tokens_are_never_split() -> None:
    run = play(Group(link_s=20e-3), steps(15, 400), OverlapRule(layers=8, ranks=2, min_tokens=16))
    assert {decision.mode for decision in run.decisions} == {"single"}
    assert run.decisions[-1].why == "few tokens"


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("link_token_s", [35e-6, 50e-6, 75e-6])
def test_two_streams_are_found_where_the_link_takes_half_of_the_step(ranks: int, link_token_s: float) -> None:
    group = Group(ranks=ranks, noise=0.1, hiccup=0.002, **HALF_LINK | {"link_token_s": link_token_s})
    run = play(group, steps(160, 1500, ranks))
    assert run.speed >= 1.3
    assert run.decisions[-1].measured == pytest.approx(run.decisions[-1].predicted, rel=0.1)


def test_a_prediction_is_near_what_is_then_measured() -> None:
    run = play(Group(**HALF_LINK), [[tokens] * 2 for tokens in (20, 40, 80) for _ in range(8)] + steps(160, 300))
    tried = next(decision for decision in run.decisions if decision.why == "trial")
    after = next(decision for decision in run.decisions if decision.why == "measured")
    assert tried.measured is None
    assert tried.predicted == pytest.approx(after.measured, rel=0.15)


@pytest.mark.parametrize(
    "group",
    [
        Group(noise=0.1),
        Group(wire_cpu_s=1e-3, wire_token_s=30e-6),
        Group(link_s=3e-5, noise=0.05),
    ],
    ids=["computing only", "a processor carries the bytes", "a fast link"],
)
def test_where_nothing_is_to_be_hidden_hardly_a_step_is_tried(group: Group) -> None:
    run = play(group, steps(64, 2000))
    assert sum(decision.mode == "dual" for decision in run.decisions) <= 15
    assert run.speed >= 0.99


def test_waiting_for_a_rank_that_computes_more_is_not_taken_for_communication() -> None:
    # Rank 0 waits two thirds of its time for rank 1, which never waits.
    group = Group(computing_s=0.0, token_s=40e-6)
    run = play(group, [[50, 250]] * 300)
    assert {decision.mode for decision in run.decisions} == {"single"}
    assert run.decisions[-1].predicted < 1


def test_a_gain_that_was_predicted_and_did_not_come_is_given_up_and_seldom_tried_again() -> None:
    run = play(Group(link_token_s=40e-6, link_s=1e-3, dual_penalty=1.7), steps(128, 6000))
    tried = [step for step, decision in enumerate(run.decisions) if decision.mode == "dual"]
    assert 0 < len(tried) <= 24
    assert all(run.decisions[step].why == "trial" for step in tried)
    assert run.decisions[-1].predicted < 1, "what did not come true is no longer predicted"
    assert run.speed >= 0.99


def test_loads_are_decided_apart_and_a_like_load_needs_no_trial_of_its_own() -> None:
    loads = [[8, 8] if step % 2 else [200, 200] for step in range(600)] + steps(450, 60)
    run = play(Group(**HALF_LINK), loads, OverlapRule(layers=8, ranks=2, min_tokens=2))
    later = zip(run.decisions[300:600], loads[300:600], strict=True)
    large = [decision for decision, tokens in later if tokens == [200, 200] and decision.why != "trial"]
    assert {decision.mode for decision in large} == {"dual"}
    assert not [decision for decision in run.decisions[600:] if (decision.mode, decision.why) == ("dual", "trial")]
    assert run.decisions[-1].mode == "dual"


def test_when_the_link_becomes_fast_one_stream_comes_back_and_when_slow_two_do() -> None:
    group = Group(noise=0.05, **HALF_LINK | {"computing_s": 4e-3, "token_s": 20e-6})
    rule = OverlapRule(layers=8, ranks=2)
    assert play(group, steps(128, 400), rule).decisions[-1].mode == "dual"
    group.link_s = group.link_token_s = 0.0
    fast = play(group, steps(128, 3000), rule)
    assert fast.decisions[-1].mode == "single"
    group.link_token_s = 60e-6
    assert play(group, steps(128, 3000), rule).decisions[-1].mode == "dual"


def test_a_gain_below_the_least_wanted_is_left_alone() -> None:
    group = Group(**HALF_LINK)
    eager = play(group, steps(128, 400), OverlapRule(layers=8, ranks=2, min_gain=0.03))
    wanting = play(group, steps(128, 400), OverlapRule(layers=8, ranks=2, min_gain=0.9))
    assert eager.decisions[-1].mode == "dual"
    assert {decision.mode for decision in wanting.decisions if decision.why != "trial"} == {"single"}


def test_ranks_that_hear_the_same_decide_the_same_in_whatever_order_they_are() -> None:
    rules = [OverlapRule(layers=8, ranks=3) for _ in range(2)]
    group = Group(ranks=3, noise=0.2, hiccup=0.01, **HALF_LINK)
    mode, seen = "single", set()
    for step in range(500):
        outlook_GO = told(*(each._replace(prefill_next=step % 7 * 40) for each in group.step([100, 40, 0], mode)))
        first, second = rules[0].decide(outlook_GO), rules[1].decide(outlook_GO[::-1].copy())
        assert first == second
        mode = first.mode
        seen.add(mode)
    assert seen == {"single", "dual"}


def test_a_group_formed_anew_begins_with_one_stream_and_without_memory() -> None:
    rule = OverlapRule(layers=8, ranks=2)
    assert play(Group(**HALF_LINK), steps(160, 300), rule).decisions[-1].mode == "dual"
    rule.reset()
    assert (rule.decision.mode, rule.decision.predicted) == ("single", None)
    assert play(Group(**HALF_LINK), steps(160, 20), rule).decisions[0].mode == "single"


def test_after_a_pause_the_load_of_earlier_first_steps_is_expected() -> None:
    rule = OverlapRule(layers=8, ranks=2)
    group, mode, modes = Group(**HALF_LINK), "single", []
    for _ in range(300):  # prompts that come one by one: nobody ever expects the next
        outlooks = group.step([200, 200], mode)
        mode = rule.decide(told(*outlooks)).mode
        modes.append(mode)
    assert modes[-1] == "dual"


def test_steps_of_a_group_that_did_not_run_alike_teach_nothing() -> None:
    rule = OverlapRule(layers=8, ranks=2)
    odd = Outlook(decode_next=100, decode=100, mode=1, wall_us=5000, idle_us=3000)
    for _ in range(50):
        decision = rule.decide(told(odd, odd._replace(mode=2)))
    assert (decision.mode, decision.why) == ("single", "unmeasured")


def test_a_line_is_found_among_steps_of_different_loads() -> None:
    classes = []
    for prefill, decode in ((0, 10), (0, 80), (300, 20), (100, 0)):
        times = Times()
        for _ in range(5):
            load = Load(prefill, decode)
            times.add(Sample(load, 2e-3 + 30e-6 * prefill + 80e-6 * decode, 1e-3 + 10e-6 * prefill), dual=False)
        classes.append(times)
    fit = Fit.to(classes)
    assert fit is not None
    assert fit.seconds == pytest.approx((2e-3, 30e-6, 80e-6), rel=0.1)
    assert fit.hideable.fixed == pytest.approx(1e-3, rel=0.15)
    assert min(fit.hideable) >= 0


def test_steps_of_one_load_leave_a_fixed_share_to_be_assumed() -> None:
    times = Times()
    for _ in range(4):
        times.add(Sample(Load(0, 100), 10e-3, 5e-3), dual=False)
    fit = Fit.to([times])
    assert fit is not None
    assert fit.seconds.at(Load(0, 100)) == pytest.approx(10e-3)
    assert 0.2 < fit.seconds.fixed / 10e-3 < 0.4


def test_no_steps_no_fit() -> None:
    assert Fit.to([Times()]) is None


def test_two_streams_take_the_longer_part_and_what_each_half_pays_again() -> None:
    assert two_streams(6.0, 4.0, layers=1000) == pytest.approx(6.0, rel=1e-2)
    assert two_streams(4.0, 6.0, layers=1000) == pytest.approx(6.0, rel=1e-2)
    assert two_streams(6.0, 4.0, again=1.0, hideable_again=9.0, layers=1000) == pytest.approx(13.0, rel=1e-2)
    assert two_streams(6.0, 4.0, layers=1) == pytest.approx(8.0), "one layer: half of the communication stands alone"
