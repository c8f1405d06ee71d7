"""Routing modes, each by what it does on a few uplinks."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_fabrics import compiled, uplinks

from fourlane.twin.fabric.builders import leaf_spine
from fourlane.twin.fabric.reference import simulate
from fourlane.twin.fabric.reference.packet import mix32, mix64

FULL = 4096
ECMP, FLOWLET, SPRAY_RANDOM, SPRAY_ROUND_ROBIN, ADAPTIVE, STATIC = range(6)


def sent_by_uplink(
    routing: int, flows: list[tuple[int, int, int]], leaves: int = 2, spines: int = 4, **arrays: object
) -> list[int]:
    """Return how many packets the first leaf sent up, a spine each."""
    net = leaf_spine(leaves, 4, spines)
    result = simulate(compiled(net, flows, class_routing=[routing], **arrays))
    assert result["status"] == "done"
    return result["port_tx_packets"][uplinks(net, "leaf0"), 0].tolist()


def test_the_finalisers_are_those_of_their_sources() -> None:
    assert (mix32(0), mix32(1), mix32(0xFFFFFFFF)) == (0, 0x514E28B7, 0x81F16F39)
    assert mix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0


def test_ecmp_keeps_a_flow_on_the_uplink_its_hash_says() -> None:
    hashes = [0, 1, 2, 0xFFFFFFFF]
    sent = sent_by_uplink(ECMP, [(s, 4 + s, 10 * FULL) for s in range(4)], flow_hash=hashes)
    wanted = np.bincount([mix32(h) * 4 >> 32 for h in hashes], minlength=4) * 10
    assert sent == wanted.tolist()


def test_tiers_of_different_seeds_choose_independently() -> None:
    seeds = [0, 99, 0, 0, 0, 0, 0, 0]
    sent = sent_by_uplink(ECMP, [(0, 4, 10 * FULL)], flow_hash=[5], tier_seed=seeds)
    assert sent.index(10) == mix32(5 ^ 99) * 4 >> 32


def test_round_robin_uses_all_uplinks_in_turn_beginning_anywhere() -> None:
    begun = [sent_by_uplink(SPRAY_ROUND_ROBIN, [(0, 4, 10 * FULL)], seed=seed) for seed in range(8)]
    assert all(sorted(sent) == [2, 2, 3, 3] for sent in begun)
    assert len({tuple(sent) for sent in begun}) > 1


def test_round_robin_takes_turns_for_each_destination_leaf_by_itself() -> None:
    flows = [(0, 4, 10 * FULL), (1, 8, 10 * FULL)]  # one counter for both would give each uplink 5, always
    sent = [sent_by_uplink(SPRAY_ROUND_ROBIN, flows, leaves=3, seed=seed) for seed in range(8)]
    assert {max(one) for one in sent} > {5}


def test_random_spray_is_even_in_the_long_run_and_depends_on_the_seed() -> None:
    one, again, other = (sent_by_uplink(SPRAY_RANDOM, [(0, 4, 400 * FULL)], seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one == pytest.approx([100] * 4, abs=35)  # sigma is 8.7


def test_adaptive_routing_spreads_a_burst_and_avoids_the_long_queue() -> None:
    flows = [(s, 4 + s, 40 * FULL) for s in range(4)]
    assert sent_by_uplink(ADAPTIVE, flows) == [40] * 4
    # Flow 0 is pinned to uplink 2 and loads it; the adaptive flow goes by the others.
    lanes = {"class_queue": [0, 0], "flow_class": [1, 1, 0], "flow_pin": [2, 2, 0]}
    net = leaf_spine(2, 4, 4)
    flows = [(0, 4, 40 * FULL), (1, 5, 40 * FULL), (2, 6, 30 * FULL)]
    result = simulate(compiled(net, flows, class_routing=[ADAPTIVE, STATIC], **lanes))
    assert result["port_tx_packets"][uplinks(net, "leaf0")[2], 0] < 80 + 5


def test_a_coarse_signal_sees_no_difference_and_a_stale_one_the_past() -> None:
    flows = [(0, 4, 40 * FULL), (1, 5, 40 * FULL)]
    by_lot = sent_by_uplink(SPRAY_RANDOM, flows)
    assert sent_by_uplink(ADAPTIVE, flows) != by_lot
    # With one level all queues look the same, and a signal that is never renewed was taken when all were empty.
    assert sent_by_uplink(ADAPTIVE, flows, ar_levels=1) == by_lot
    assert sent_by_uplink(ADAPTIVE, flows, ar_staleness=1 << 50) == by_lot


def test_a_flowlet_keeps_its_path_until_it_pauses() -> None:
    flows = [(0, 4, 10 * FULL), (0, 4, 10 * FULL)]
    same = {"flow_hash": [7, 7], "flowlet_gap": 1_000_000, "seed": 1}  # the first two lots of seed 1 differ
    # The last packet of the first flow is at the leaf at 932,000; the next one comes at start + 183,200.
    for start, wanted in ((1_700_000, [0, 0, 0, 20]), (1_748_800, [0, 0, 0, 20]), (1_748_801, [0, 0, 10, 10])):
        assert sorted(sent_by_uplink(FLOWLET, flows, flow_start=[0, start], **same)) == wanted


def test_static_routing_takes_a_byte_of_the_pin_for_each_tier() -> None:
    assert sent_by_uplink(STATIC, [(0, 4, 10 * FULL)], flow_pin=[0x0105]) == [0, 10, 0, 0]  # 5 modulo 4
