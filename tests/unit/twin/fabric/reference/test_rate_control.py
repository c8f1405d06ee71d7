"""DCQCN's equations, by hand on a 40 Gb/s port; and the published parameters as compiled scenarios take them."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_fabrics import star

from fourlane.twin.fabric.congestion import NIC, PAPER, PUBLISHED, SIMULATIONS
from fourlane.twin.fabric.reference.rate_control import RateLimiter

PS_Q16 = 200 << 16  # 40 Gb/s
MEASURED = Path(__file__).parents[6] / "shared" / "data" / "validation" / "fabric.toml"
US = 1_000_000


@pytest.fixture
def paper() -> RateLimiter:
    return RateLimiter(PAPER.dcqcn, PS_Q16)


def test_a_flow_begins_at_line_rate_without_pacing(paper: RateLimiter) -> None:
    assert (paper.rate, paper.limited, paper.spacing(1000)) == (40e9, False, 0)


def test_the_first_notification_halves_the_rate(paper: RateLimiter) -> None:
    assert paper.cut(500 * US)  # alpha is still what it began as
    assert (paper.rate, paper.target, paper.alpha) == (20e9, 40e9, 1.0)
    assert paper.spacing(1000) == 400_000


def test_five_rounds_of_fast_recovery_halve_the_distance_and_then_the_target_rises(paper: RateLimiter) -> None:
    paper.cut(0)
    paper.target = 30e9  # below line rate, to see it rise
    rates = []
    for _ in range(6):
        paper.tick()
        rates.append(paper.rate)
    assert rates[:5] == [25e9, 27.5e9, 28.75e9, 29.375e9, 29.6875e9]
    assert paper.target == 30e9 + 40e6
    assert rates[5] == (30e9 + 40e6 + 29.6875e9) / 2


def test_hyper_increase_needs_both_counters_and_grows_each_time(paper: RateLimiter) -> None:
    paper.cut(0)
    paper.target = 30e9
    for _ in range(7):
        paper.tick()
    assert paper.target == 30e9 + 2 * 40e6
    for _ in range(5):
        paper.sent(10_000_000)
    assert paper.target == 30e9 + 7 * 40e6  # bytes have not passed F
    paper.sent(10_000_000)
    paper.sent(10_000_000)
    assert paper.target == 30e9 + 7 * 40e6 + 400e6 + 2 * 400e6


def test_the_target_never_passes_line_rate(paper: RateLimiter) -> None:
    paper.cut(0)
    for _ in range(100):
        paper.tick()
    assert paper.rate == paper.target == 40e9
    assert not paper.limited


def test_alpha_fades_by_whole_periods_after_the_first_notification(paper: RateLimiter) -> None:
    paper.cut(0)
    paper.fade(2 * 55 * US + 54 * US)
    assert paper.alpha == (255 / 256) * (255 / 256)
    paper.fade(3 * 55 * US)
    assert paper.alpha == (255 / 256) * (255 / 256) * (255 / 256)


def test_a_second_notification_cuts_by_what_alpha_has_become(paper: RateLimiter) -> None:
    paper.cut(0)
    paper.cut(56 * US)
    assert paper.rate == 20e9 * (1 - (255 / 256) / 2)
    assert paper.target == 20e9
    assert paper.alpha == 255 / 256 * (255 / 256) + 1 / 256


def test_notifications_within_the_gate_are_ignored() -> None:
    nic = RateLimiter(NIC.dcqcn, PS_Q16)
    assert nic.cut(0)
    rate = nic.rate
    assert not nic.cut(4 * US - 1)
    assert nic.rate == rate
    assert nic.cut(4 * US)
    assert nic.rate < rate


def test_without_clamping_the_target_stays_unless_the_timer_raised_the_rate() -> None:
    nic = RateLimiter(NIC.dcqcn, PS_Q16)
    nic.cut(0)
    nic.cut(4 * US)
    assert nic.target == 40e9
    nic.tick()
    raised = nic.rate
    nic.cut(8 * US)
    assert nic.target == raised


def test_rates_keep_to_their_bounds() -> None:
    gentle = RateLimiter(replace(PAPER.dcqcn, max_decrease=0.25), PS_Q16)
    gentle.cut(0)
    assert gentle.rate == 30e9
    floored = RateLimiter(SIMULATIONS.dcqcn, PS_Q16)
    for round_trip in range(20):
        floored.cut(round_trip * 4 * US)
    assert floored.rate == 100e6


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_sets_are_sound(name: str) -> None:
    star(2, [(0, 1, 4096)], class_cc=[1], dcqcn=PUBLISHED[name].dcqcn)


@pytest.mark.skipif(not MEASURED.exists(), reason="needs the published measurements in ../shared/data")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_sets_are_those_of_the_data(name: str) -> None:
    given = tomllib.loads(MEASURED.read_text(encoding="utf-8"))["dcqcn"][name]
    dcqcn, marking = PUBLISHED[name].dcqcn, PUBLISHED[name].marking
    assert dcqcn.g == eval(given["g"])
    scaled = {
        "alpha_update_us": (dcqcn.alpha_period, US),
        "cnp_interval_us": (dcqcn.cnp_interval, US),
        "decrease_gate_us": (dcqcn.decrease_gate, US),
        "increase_timer_us": (dcqcn.timer, US),
        "byte_counter_MB": (dcqcn.byte_counter, 10**6),
        "byte_counter": (dcqcn.byte_counter, 1),
        "max_decrease": (dcqcn.max_decrease, 1),
        "fast_recovery_rounds": (dcqcn.fast_rounds, 1),
        "rate_ai_Mbps": (dcqcn.rate_ai, 10**6),
        "rate_hai_Mbps": (dcqcn.rate_hai, 10**6),
        "min_rate_Mbps": (dcqcn.min_rate, 10**6),
        "kmin_KB": (marking and marking.kmin, 1000),
        "kmax_KB": (marking and marking.kmax, 1000),
        "pmax": (marking and marking.pmax, 1),
    }
    assert {key: scaled[key][0] for key in given if key in scaled} == {
        key: value * scaled[key][1] for key, value in given.items() if key in scaled
    }
