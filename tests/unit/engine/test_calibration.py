"""What ranks note of their passes becomes tables: quickest round, slowest rank, exchange apart."""

from __future__ import annotations

import pytest

from fourlane.engine.calibration import CasePasses, CaseTimes, PassCase, StageName, case_times, measured_phase
from fourlane.spec.hardware_profile import MeasuredPart

NAMES = [
    StageName(layer=0, parts=("embedding", "attention 0"), then="turn"),
    StageName(layer=0, parts=("attention 1", "router"), then="dispatch"),
    StageName(layer=0, parts=("experts",), then="combine"),
    StageName(layer=1, parts=("attention 0",), then="turn"),
    StageName(layer=1, parts=("attention 1", "mlp"), then="turn"),
    StageName(layer=2, parts=("output",), then="end"),
]
CASE = PassCase(phase="decode", rows=2, context=10)


def a_rank(slow: float, *, stretched: float = 1.0) -> CasePasses:
    """Return what a rank says that computes each stage in `slow` and waits half a second for what others send."""
    stages, at = [], 0.0
    for name in NAMES:
        stages.append((at, at + slow))
        at += 2.0 if name.then in {"dispatch", "combine"} else slow
        at = round(at, 9)
    end = stages[-1][1]
    return CasePasses(
        passes=[(0.0, end * stretched)] * 3,
        stages=[[(begin * stretched, end * stretched) for begin, end in stages]] * 3,
        names=NAMES,
    )


def both(stretched: float = 1.0) -> list[CasePasses]:
    return [a_rank(1.0, stretched=stretched), a_rank(1.0, stretched=stretched)]


def test_a_stage_takes_what_its_slowest_rank_takes_and_the_exchange_what_follows() -> None:
    times = case_times(CASE, [both()])
    assert times.parts["attention 1"] == pytest.approx(1.0)
    assert times.parts["experts"] == pytest.approx(1.0)
    assert times.exchange == {"dispatch": pytest.approx(1.0), "combine": pytest.approx(1.0)}
    assert times.parts["embedding"] == pytest.approx(0.0)
    assert times.parts["mlp"] == pytest.approx(0.0)


def test_the_slower_of_two_ranks_counts() -> None:
    slower = a_rank(1.0)
    slower = CasePasses(
        passes=slower.passes,
        stages=[
            [
                (begin, begin + 1.5) if name.parts == ("experts",) else (begin, end)
                for name, (begin, end) in zip(NAMES, stages, strict=True)
            ]
            for stages in slower.stages
        ],
        names=NAMES,
    )
    times = case_times(CASE, [[a_rank(1.0), slower]])
    assert times.parts["experts"] == pytest.approx(1.5)
    assert times.exchange["combine"] == pytest.approx(0.5)


def test_of_several_rounds_the_quickest_counts() -> None:
    assert case_times(CASE, [both(3.0), both(), both(2.0)]) == case_times(CASE, [both()])


def test_passes_taken_apart_are_scaled_to_whole_ones() -> None:
    said = both()
    whole = [CasePasses(passes=[(0.0, 2 * each.passes[0][1])] * 3, stages=each.stages, names=NAMES) for each in said]
    assert case_times(CASE, [whole]).parts["experts"] == pytest.approx(2.0)


def test_attention_is_told_apart_by_what_it_attends_to() -> None:
    short, long = (PassCase(phase="decode", rows=2, context=context) for context in (9, 109))
    times = [
        CaseTimes(
            case=case,
            pass_s=1.0,
            parts={"attention 0": 0.1, "attention 1": 0.2 + 1e-3 * case.pairs, "experts": 0.3, "output": 0.4},
            exchange={"dispatch": 0.01, "combine": 0.02},
            spread=0.0,
            passes=3,
        )
        for case in (short, long)
    ]
    phase = measured_phase(times, top_k=4, ranks=2, beside=MeasuredPart(rows=(1.0,), seconds=(0.0,)))
    assert phase.parts["attention 1"].attended_s == pytest.approx(1e-3)
    assert phase.parts["attention 1"].seconds == (pytest.approx(0.2),)
    assert phase.parts["experts"].rows == (8.0,)
    assert phase.exchange["dispatch"].rows == (2.0,)


def test_a_lone_rank_gives_the_mean_rank_half_its_rows() -> None:
    case = PassCase(phase="prefill", rows=64, context=64, lone=True)
    found = CaseTimes(
        case=case,
        pass_s=1.0,
        parts={"attention 1": 1.0, "experts": 1.0},
        exchange={"dispatch": 1.0},
        spread=0.0,
        passes=3,
    )
    phase = measured_phase([found], top_k=4, ranks=2, beside=MeasuredPart(rows=(1.0,), seconds=(0.0,)))
    assert phase.parts["attention 1"].rows == (64.0,)
    assert phase.parts["experts"].rows == (128.0,)
    assert phase.exchange["dispatch"].rows == (32.0,)


def test_pairs_of_prompts_are_those_of_each_prompt_by_itself() -> None:
    assert PassCase(phase="prefill", rows=8, context=8).pairs == 36
    assert PassCase(phase="prefill", rows=8, context=4).pairs == 20
    assert PassCase(phase="decode", rows=3, context=4).pairs == 15
