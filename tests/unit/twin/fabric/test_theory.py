"""Closed forms against figures published or computed elsewhere, and against brute force."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from fourlane.twin.fabric.dcqcn_theory import DcqcnFluid
from fourlane.twin.fabric.theory import (
    SharedBufferSwitch,
    UniformPath,
    alpha_occupancy,
    bins_used_share,
    dwrr_shares,
    max_min_shares,
    md1_mean_wait,
    md1_wait_at_most,
    md1_wait_percentile,
    most_in_a_bin,
    most_in_a_bin_cdf,
    pfc_headroom,
    work_conserving_finish,
)

PATH_400G = UniformPath(links=4, packet_ps=83_200, ack_ps=1_280, propagation_ps=100_000, switch_latency_ps=500_000)


@pytest.mark.parametrize(
    ("finish_ps", "published_us"),
    [
        (PATH_400G.flow_ps(1), "4.1379"),
        (PATH_400G.flow_ps(256), "25.3539"),
        (PATH_400G.incast_ps(64, 16), "89.2515"),
        (PATH_400G.incast_ps(64, 64), "344.842"),
        (PATH_400G.incast_ps(64, 256), "1367.2"),
        (PATH_400G.all_to_all_ps(64, 16), "87.9"),
        (PATH_400G.all_to_all_ps(128, 16), "173.1"),
    ],
)
def test_bounds_are_what_public_simulators_print(finish_ps: int, published_us: str) -> None:
    digits = len(published_us.split(".")[1])
    assert f"{finish_ps / 1e6:.{digits}f}" == published_us


@pytest.mark.parametrize(("load", "wait"), [(0.5, 0.5), (0.8, 2.0), (0.9, 4.5), (0.95, 9.5), (0.99, 49.5)])
def test_the_mean_of_the_waiting_distribution_is_the_mean_wait(load: float, wait: float) -> None:
    assert md1_mean_wait(load) == pytest.approx(wait)
    if load < 0.9:
        at = np.linspace(0, 40, 321)
        beyond = [1 - md1_wait_at_most(load, float(x)) for x in at]
        assert np.trapezoid(beyond, at) == pytest.approx(wait, rel=5e-3)


def test_an_arrival_to_an_idle_queue_does_not_wait() -> None:
    assert md1_wait_at_most(0.8, 0) == pytest.approx(0.2)
    assert md1_wait_at_most(0.8, -0.1) == 0
    assert md1_wait_percentile(0.8, 99) == pytest.approx(10.356, abs=1e-3)


def test_waiting_times_drawn_at_random_have_the_distribution() -> None:
    rng = np.random.default_rng(1)
    arrival = np.cumsum(rng.exponential(1000 / 0.7, 400_000)).astype(np.int64)
    wait = (work_conserving_finish(arrival, 1000) - arrival) / 1000 - 1
    for most in (0.0, 0.5, 1.0, 2.5, 6.0):
        assert np.mean(wait <= most) == pytest.approx(md1_wait_at_most(0.7, most), abs=0.01)


def test_a_queue_serves_one_after_the_other() -> None:
    assert work_conserving_finish(np.array([0, 1, 2, 100]), 10).tolist() == [10, 20, 30, 110]


@pytest.mark.parametrize(("balls", "bins"), [(3, 3), (5, 2), (4, 4), (6, 3)])
def test_the_fullest_bin_is_that_of_all_ways_to_throw(balls: int, bins: int) -> None:
    fullest = [max(throw.count(b) for b in range(bins)) for throw in itertools.product(range(bins), repeat=balls)]
    exact = [np.mean(np.array(fullest) <= m) for m in range(balls + 1)]
    assert most_in_a_bin_cdf(balls, bins) == pytest.approx(exact)
    assert most_in_a_bin(balls, bins) == pytest.approx(np.mean(fullest))


@pytest.mark.parametrize(("n", "most", "used"), [(8, 2.60, 0.656), (16, 3.08, 0.644), (32, 3.53, 0.638)])
def test_as_many_flows_as_links_collide_as_is_known(n: int, most: float, used: float) -> None:
    assert most_in_a_bin(n, n) == pytest.approx(most, abs=0.005)
    assert bins_used_share(n, n) == pytest.approx(used, abs=0.0005)


@pytest.mark.parametrize(("flows", "over_mean"), [(16, 2.10), (64, 1.53), (1016, 1.13)])
def test_more_flows_on_eight_links_spread_better(flows: int, over_mean: float) -> None:
    assert most_in_a_bin(flows, 8) * 8 / flows == pytest.approx(over_mean, abs=0.005)


def test_max_min_shares_of_the_textbook() -> None:
    """Bertsekas and Gallager, example 6.4: one link of rate 1 crossed by all but the last, others by one long flow."""
    shares = max_min_shares([[0], [0, 1], [0], [1, 2]], [1, 1, 1])
    assert shares == [Fraction(1, 3), Fraction(1, 3), Fraction(1, 3), Fraction(2, 3)]


def test_no_flow_of_a_max_min_allocation_can_grow_but_at_the_cost_of_one_no_larger() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        capacity = [Fraction(int(c)) for c in rng.integers(1, 9, 6)]
        flows = [sorted(rng.choice(6, rng.integers(1, 4), replace=False).tolist()) for _ in range(9)]
        shares = max_min_shares(flows, capacity)
        load = [sum(s for s, links in zip(shares, flows, strict=True) if link in links) for link in range(6)]
        assert all(used <= most for used, most in zip(load, capacity, strict=True))
        for share, links in zip(shares, flows, strict=True):
            bottlenecks = [link for link in links if load[link] == capacity[link]]
            assert any(
                share == max(s for s, others in zip(shares, flows, strict=True) if link in others)
                for link in bottlenecks
            )


def test_weighted_queues_share_by_weight_and_hand_on_what_one_leaves() -> None:
    assert dwrr_shares([50, 30, 20]) == pytest.approx([0.5, 0.3, 0.2])
    assert dwrr_shares([50, 30, 20], [0.1, 1, 1]) == pytest.approx([0.1, 0.54, 0.36])
    assert dwrr_shares([1, 1], [0.2, 0.3]) == pytest.approx([0.2, 0.3])


def test_queues_stop_growing_where_the_threshold_meets_them() -> None:
    held = alpha_occupancy(0.5, 9_000_000, 4)
    assert held == pytest.approx(0.5 * (9_000_000 - 4 * held))


def test_headroom_of_the_model_is_within_the_textbook_formula() -> None:
    for propagation in (0, 5_000, 100_000, 1_000_000):
        need = pfc_headroom(83_200, 4160, propagation, response_ps=60_000, frame_ps=1_280)
        textbook = (2 * propagation + 60_000) / 20 + 2 * 4160 + 64
        assert textbook - 2 * 4160 < need <= textbook
        assert (
            pfc_headroom(83_200, 4160, propagation, response_ps=60_000, frame_ps=1_280, reverse_ps=83_200)
            == need + 4160
        )


def test_thresholds_of_the_published_switch() -> None:
    """Trident II: 12 MB, 32 ports of 40G, 8 priorities, 22.4 KB in flight a port and priority."""
    switch = SharedBufferSwitch(buffer=12_000_000, ports=32, priorities=8)
    assert switch.static_pause_threshold(22_400) == pytest.approx(24_470, abs=10)
    assert switch.mark_threshold(22_400, beta=8) == pytest.approx(21_750, abs=10)
    assert switch.dynamic_pause_threshold(22_400, beta=8, used=0) == 12_000_000 - 256 * 22_400


@pytest.mark.parametrize("flows", [2, 3, 5, 8])
def test_the_fluid_settles_near_the_published_approximation_while_marks_are_rare(flows: int) -> None:
    fluid = DcqcnFluid()
    point = fluid.fixed_point(flows)
    assert point.marked == pytest.approx(fluid.approximate_marking(flows), rel=0.35)
    assert point.rate == fluid.link / flows
    assert point.queue is not None
    assert fluid.kmin < point.queue < fluid.kmax


def test_derivatives_of_the_published_fluid_are_zero_at_the_fixed_point() -> None:
    """Equations 5 to 7 of the paper, written out as printed, with the solution put in."""
    fluid, flows = DcqcnFluid(), 4
    point = fluid.fixed_point(flows)
    p, rate, target = point.marked, point.rate / 8 / fluid.packet, point.target / 8 / fluid.packet
    tau, timer, counter = fluid.cnp_interval, fluid.timer, fluid.byte_counter / fluid.packet
    additive, rounds = fluid.rate_ai / 8 / fluid.packet, fluid.fast_rounds
    cut = 1 - (1 - p) ** (tau * rate)
    by_bytes = p / ((1 - p) ** -counter - 1)
    by_timer = p / ((1 - p) ** (-timer * rate) - 1)
    d_target = (
        -(target - rate) / tau * cut
        + additive * rate * (1 - p) ** (rounds * counter) * by_bytes
        + additive * rate * (1 - p) ** (rounds * timer * rate) * by_timer
    )
    d_rate = -rate * point.alpha / (2 * tau) * cut + (target - rate) / 2 * rate * (by_bytes + by_timer)
    assert point.alpha == pytest.approx(1 - (1 - p) ** (fluid.alpha_period * rate))
    assert d_target / target == pytest.approx(0, abs=1e-3)
    assert d_rate / rate == pytest.approx(0, abs=1e-3)


def test_many_flows_leave_the_marking_line_and_then_the_reach_of_the_algorithm() -> None:
    fluid = DcqcnFluid(packet=1500)
    most = fluid.most_flows_on_the_line()
    assert fluid.fixed_point(most).queue is not None
    assert fluid.fixed_point(most + 1).queue is None
    assert fluid.most_flows_heard() == pytest.approx(166.7, abs=0.1)
