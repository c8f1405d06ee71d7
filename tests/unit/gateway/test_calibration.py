"""What calibration makes of a running service: gaps between tokens, what steps take beyond passes, who disturbs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from functools import partial

import msgspec
import pytest
from measured_profiles import LAYER_S, STEP_S, TOKEN_S, two_cores

from fourlane.errors import SpecError
from fourlane.gateway.calibration import _decode_cases, _pools, _prefill_cases
from fourlane.gateway.calibration_effort import Effort, Steps
from fourlane.gateway.live_figures import LiveFigures, ServiceCalibration, pooled
from fourlane.gateway.live_steps import Gap, LiveService, Lone, _all_running
from fourlane.gateway.load import Client
from fourlane.gateway.load.results import Record
from fourlane.gateway.mixed_loads import Pace, mixed_loads
from fourlane.gateway.processor_use import ProcessorUse
from fourlane.spec.deployment import Pool
from fourlane.spec.hardware_profile import Crowding, MeasuredOverheads, MeasuredPart
from fourlane.spec.load import load_deployment
from fourlane.twin.assembly_parts import COLD_IDLE_S

LAYERS = 8


def a_record(first_s: float, *gaps_s: float) -> Record:
    return Record(index=0, due_s=0.0, sent_s=0.0, ttft_s=first_s, gaps_s=list(gaps_s), output_tokens=1 + len(gaps_s))


def a_live(rounds: int = 3) -> ServiceCalibration:
    profile = two_cores()
    deployment = load_deployment(None, overrides=["prefill.ranks=2", "decode.ranks=2"])
    phases = {"prefill": profile.prefill, "decode": profile.decode}
    effort = Effort(rounds=rounds)
    return ServiceCalibration(deployment, _pools(deployment), profile.architecture, phases, 1024, effort, Steps(None))


def test_gaps_count_while_all_sequences_are_under_way() -> None:
    live = LiveService(Client("http://127.0.0.1:1"), "bundled", range(10, 20))
    early, late = a_record(1.0, 0.5, 0.5, 0.5, 0.5), a_record(1.5, 1.0, 0.25, 0.25)
    after = _all_running([early, late], 100.0)
    assert after == pytest.approx(102.5)
    gaps = live._gaps([early, late], 100.0, 32, after=after - 1.0)
    assert [(round(gap.begin_s, 3), gap.context) for gap in gaps] == [
        (101.5, 34),
        (102.0, 35),
        (102.5, 36),
        (101.5, 33),
        (102.5, 34),
        (102.75, 35),
    ]


def test_beyond_a_pass_is_what_gaps_are_longer_than_passes() -> None:
    live = a_live()
    gaps = [Gap(0.0, LAYERS * LAYER_S + 2e-3, 40), Gap(0.0, LAYERS * LAYER_S + 4e-3, 41)]
    assert live._beyond(two_cores().decode, 4, gaps) == pytest.approx(3e-3)


def test_a_step_of_prompts_by_itself_has_as_many_a_rank_as_there_are() -> None:
    live, prefill = a_live(), two_cores().prefill
    lone = live._prompts_alone(prefill, 100, 1.0)
    assert lone == pytest.approx(LAYERS * (LAYER_S + 100 * TOKEN_S) + STEP_S)
    assert live._prompts_alone(prefill, 100, 2.0) == pytest.approx(lone)
    assert live._prompts_alone(prefill, 100, 4.0) == pytest.approx(lone + LAYERS * 100 * TOKEN_S)


def test_of_undisturbed_rounds_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.0, 0.9, 0.0, 0.0])
    monkeypatch.setattr(ProcessorUse, "others", lambda _: next(shares))
    values = iter([3.0, 1.0, 2.0, 5.0])

    async def measure(_: str) -> float:
        return next(values)

    live = a_live()
    found = asyncio.run(live._in_turn({"one": partial(measure, "one")}, "{}", lambda value: value))
    assert found == {"one": 3.0}  # of 3, 2 and 5; the quickest was disturbed
    assert live._disturbed == 0


def test_where_all_rounds_are_disturbed_the_quickest_counts_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessorUse, "others", lambda _: 0.5)
    values = iter([3.0, 1.0, 2.0])

    async def measure() -> float:
        return next(values)

    live = a_live(rounds=1)
    assert asyncio.run(live._in_turn({"one": measure}, "{}", lambda value: value)) == {"one": 1.0}
    assert live._disturbed == 1


def test_of_several_services_the_median_counts_figure_by_figure() -> None:
    profile, load = two_cores(), mixed_loads(2, 1024)[0]

    def a_service(beyond_s: float, join_s: float, tpot_s: float, disturbed: int) -> LiveFigures:
        beside = MeasuredPart(rows=(1.0, 4.0), seconds=(beyond_s, 2 * beyond_s))
        return LiveFigures(
            prefill=msgspec.structs.replace(profile.prefill, beside=beside),
            decode=profile.decode,
            overheads=MeasuredOverheads(arrive_s=1e-3, join_s=join_s),
            hand_off_s=beyond_s / 2,
            crowding=Crowding(prefill=1 + tpot_s, decode=2.0, prefill_lone=1.0, decode_lone=1.5),
            mixed={load: Pace(tpot_s, 2 * tpot_s)},
            disturbed=disturbed,
        )

    found = pooled([a_service(1.0, 5.0, 0.2, 1), a_service(2.0, 3.0, 0.1, 0), a_service(9.0, 4.0, 0.3, 2)])
    assert found.prefill.beside.rows == (1.0, 4.0)
    assert found.prefill.beside.seconds == (2.0, 4.0)
    assert found.prefill.parts == profile.prefill.parts
    assert found.decode == profile.decode
    assert found.overheads == MeasuredOverheads(arrive_s=1e-3, join_s=4.0)
    assert found.hand_off_s == 1.0
    assert found.crowding == Crowding(prefill=1.2, decode=2.0, prefill_lone=1.0, decode_lone=1.5)
    assert found.mixed == {load: Pace(0.2, 0.4)}
    assert found.disturbed == 3


def test_what_a_pause_costs_is_told_from_requests_that_came_right_after_another() -> None:
    class Paused(LiveService):
        async def after_pauses(
            self, pairs: int, seconds: float, *, prompt: int, output: int
        ) -> tuple[list[Lone], list[Lone]]:
            assert seconds >= COLD_IDLE_S
            assert prompt + output < 1024
            warm = Lone(20e-3, [3e-3] * (output - 1), 0.4 * COLD_IDLE_S, 0.0)
            cold = Lone(23e-3, [7e-3, 4e-3, *[3e-3] * (output - 3)], seconds, seconds)
            return [cold] * pairs, [warm] * pairs

    found = asyncio.run(a_live()._cold(Paused(Client("http://127.0.0.1:1"), "bundled", range(10, 20))))
    assert found == {"cold_prefill_s": pytest.approx(3e-3 / 0.6), "cold_decode_s": pytest.approx(5e-3)}


def test_a_pause_costs_nothing_that_shows_where_units_rest_as_long_without_one() -> None:
    class Slow(LiveService):
        async def after_pauses(
            self, pairs: int, seconds: float, *, prompt: int, output: int
        ) -> tuple[list[Lone], list[Lone]]:
            assert prompt + output < 1024
            warm = Lone(1.0, [0.1] * (output - 1), 2.0, 1.0)
            cold = Lone(1.1, [0.1] * (output - 1), 2.0 + seconds, 1.0 + seconds)
            return [cold] * pairs, [warm] * pairs

    found = asyncio.run(a_live()._cold(Slow(Client("http://127.0.0.1:1"), "bundled", range(10, 20))))
    assert found == {"cold_prefill_s": 0.0, "cold_decode_s": 0.0}


def test_work_of_others_shows_and_that_of_ones_own_does_not() -> None:
    spin = "import time; end = time.perf_counter() + 1.0\nwhile time.perf_counter() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        foreign, ours = ProcessorUse(), ProcessorUse([other.pid])
        time.sleep(0.8)
        assert foreign.others() - ours.others() > 0.25 / (os.cpu_count() or 1)


def test_cases_stay_within_what_ranks_can_hold() -> None:
    pool = Pool(ranks=2, chunk_tokens=96, max_running=4)
    assert max(case.rows for case in _decode_cases(pool, 200)) == 4
    assert all(case.context < 199 for case in _decode_cases(pool, 200))
    assert max(case.rows for case in _prefill_cases(pool, 200)) == 96
    assert any(case.lone for case in _prefill_cases(pool, 200))
    assert not any(case.lone for case in _decode_cases(Pool(ranks=1), 200))


def test_groups_on_gpus_and_external_ranks_are_refused() -> None:
    deployment = load_deployment(None, overrides=["prefill.ranks=2", "decode.ranks=2", "decode.device=cuda"])
    with pytest.raises(SpecError, match=r"decode\.ranks: expected 1 on a GPU"):
        _pools(deployment)
