"""The network simulator against theory: small runs of the experiments of docs/validation/fabric-theory.md.

All of them, at full size, behind the marker "slow" (about five minutes):
python -m pytest -m slow tests/validation/test_fabric_theory.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import validate_fabric
from fabric_validation import buffers, collisions, congestion, routing, sharing, waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric_validation.page import Claim, Part

KNOWN_MISSES = {"A64_64K: flow ECMP, 40 runs"}
"""What the page says misses its bar, and why."""


def missed(*parts: Part) -> list[Claim]:
    return [claim for part in parts for claim in part.failed]


def test_closed_forms_are_met_to_the_picosecond() -> None:
    assert not missed(routing.closed_forms())


def test_one_link_is_an_md1_queue_packet_by_packet() -> None:
    assert not missed(waiting.one_link(packets=400_000, runs={0.5: 1, 0.8: 1}))


def test_random_spray_waits_as_md1_and_spray_in_turn_less() -> None:
    assert not missed(waiting.sprayed(packets=200_000, loads=(0.8,)))


def test_hashed_flows_fall_on_links_like_balls_in_bins() -> None:
    assert not missed(collisions.balls_in_bins(trials=640, sizes=((8, 8), (16, 8))))


def test_one_hash_seed_for_two_tiers_leaves_links_unused() -> None:
    assert not missed(collisions.polarised())


def test_windowed_flows_get_max_min_fair_rates() -> None:
    assert not missed(sharing.max_min(cases=1, duration_us=8_000))


def test_queues_share_a_port_by_weight() -> None:
    assert not missed(sharing.weighted(duration_us=1_500))


def test_nothing_is_lost_with_the_headroom_and_something_with_a_packet_less() -> None:
    assert not missed(buffers.lossless(fan_ins=(2, 16), cables_ns=(10, 500), rates=("400Gbps",)))


def test_overloaded_queues_settle_where_the_dynamic_threshold_has_it() -> None:
    assert not missed(buffers.dynamic_threshold())


def test_dcqcn_settles_near_the_fixed_point_of_the_fluid() -> None:
    assert not missed(congestion.dcqcn_fixed_point(flows=(4,), crowds=()))


def test_heeding_marks_costs_an_incast_what_it_costs_in_public_simulators() -> None:
    assert not missed(congestion.dcqcn_incast())


def test_spray_or_adaptive_routing_is_no_slower_than_the_best_public_simulator() -> None:
    assert not [claim for claim in missed(routing.full_load(seeds={"A64_64K": 1})) if "ECMP" not in claim.what]


def test_adaptive_routing_gives_a_permutation_its_link_rate() -> None:
    assert not missed(routing.adaptive_rate())


def test_events_grow_with_packets_and_no_faster() -> None:
    assert not missed(routing.linear_cost())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("experiment", validate_fabric.THEORY.values(), ids=validate_fabric.THEORY.keys())
def test_what_the_page_claims_holds(experiment: Callable[[], Part]) -> None:
    assert {claim.what for claim in experiment().failed} <= KNOWN_MISSES
