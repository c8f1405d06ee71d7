"""Thresholds, PFC, marking, the watchdog: counts worked out by hand (see test_ports.py for the star)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_fabrics import compiled, star, towards

from fourlane.twin.fabric.builders import leaf_spine
from fourlane.twin.fabric.reference import simulate

PACKET, ALONE, ACK = 83_200, 866_400, 702_560
FULL = 4096


def paused_at_once(headroom: int, packets: int, **arrays: object) -> dict:
    """Send into a switch whose lossless queue may hold nothing but headroom: the first packet pauses the sender."""
    given = {"queue_lossless": [1], "queue_alpha_q16": [0], "port_headroom": [headroom] * 4}
    return simulate(star(2, [(0, 1, packets * FULL)], **given, **arrays))


def test_a_pause_stops_the_sender_and_its_end_lets_it_go_on() -> None:
    result = paused_at_once(headroom=4 * 4160, packets=5)
    # XOFF at 183,200 + 1,280 + 100,000: four packets have begun. Headroom is empty when the fourth leaves, at 932,800.
    # The fifth begins at XON and pauses the sender once more until it leaves the switch, at 1,717,280: just then an ACK
    # begins to be sent to the sender, and the second XON waits for its end.
    xon = 683_200 + 3 * PACKET + 101_280
    assert result["flow_delivered"].tolist() == [xon + ALONE]
    assert result["port_pauses"][2].tolist() == [2]
    assert result["port_paused_ps"][0].tolist() == [xon - 284_480 + 500_000 + 1_280]
    assert result["port_drops"].sum() == 0


@pytest.mark.parametrize(("response", "packets_after"), [(0, 4), (48_320, 4), (48_321, 5), (131_520, 5), (131_521, 6)])
def test_headroom_must_hold_exactly_what_was_sent_before_the_pause_took_effect(
    response: int, packets_after: int
) -> None:
    # Packets begin every 83,200 ps; the pause works from 284,480 + response on. At that very instant it comes first.
    enough = packets_after * 4160
    assert paused_at_once(enough, 10, pfc_response=response)["port_drops"].sum() == 0
    assert paused_at_once(enough - 1, 10, pfc_response=response)["port_drops"].sum() > 0


def test_a_paused_port_goes_on_before_the_link_it_feeds_runs_dry() -> None:
    # Two hosts fill 40 packets of pool again and again, and the third's link must not notice: 400 packets back to back.
    given = {"queue_lossless": [1], "port_headroom": [6 * 4160] * 6, "node_shared": [0, 0, 0, 40 * 4160]}
    result = simulate(star(3, [(0, 2, 200 * FULL), (1, 2, 200 * FULL)], **given))
    assert result["port_pauses"].sum() > 10
    assert result["port_drops"].sum() == 0
    assert result["flow_delivered"].max() == ALONE + 399 * PACKET


def test_a_pause_frame_waits_for_the_packet_being_sent_on_its_cable() -> None:
    # Host 1 sends to host 0 as well, so that the cable on which XOFF must go is busy: from 683,200 on, all the time.
    given = {"queue_lossless": [0, 1], "queue_weight": [0, 0], "class_queue": [1, 0], "flow_class": [0, 1]}
    given |= {"queue_alpha_q16": [65536, 0], "port_headroom": [1 << 20] * 4, "flow_start": [600_000, 0]}
    result = simulate(star(2, [(0, 1, 40 * FULL), (1, 0, 40 * FULL)], class_ack_queue=[0, 0], **given))
    # The first lossless packet is at the switch at 783,200; the packet on the wire ends at 849,600.
    begun = int((849_600 + 101_280 - 600_000 - 1) // PACKET) + 1
    assert result["port_pauses"][2].tolist()[1] >= 1
    assert result["port_max_depth"][3] // 4160 == begun  # beside a few ACKs


def test_a_pause_spreads_to_the_sender_of_the_sender() -> None:
    net = leaf_spine(2, 4, 1)
    flows = [(s, 4, 200 * FULL) for s in range(4)]
    given = {"queue_lossless": [1], "port_headroom": [1 << 20] * net.ports}
    given |= {"node_shared": [0] * 8 + [20 * 4160] * 3, "queue_alpha_q16": [65536]}
    result = simulate(compiled(net, flows, **given))
    paused = result["port_paused_ps"][:, 0] > 0
    assert paused[:4].all()
    assert result["port_drops"].sum() == 0
    assert result["status"] == "done"


def test_equally_loaded_queues_settle_where_the_dynamic_threshold_has_it() -> None:
    # n lossy queues of one switch, each with twice its rate coming in: alpha * B / (1 + n * alpha) each.
    hosts, buffer = 12, 100 * 4160
    flows = [(s, 8 + s % 4, 400 * FULL) for s in range(8)]
    scenario = star(hosts, flows, node_shared=[0] * hosts + [buffer], queue_alpha_q16=[65536])
    result = simulate(replace(scenario, max_time=10_000_000))
    depth = result["port_depth"][[towards(scenario, h) for h in range(8, 12)], 0]
    assert depth.tolist() == pytest.approx([buffer / 5] * 4, abs=2 * 4160)
    assert result["port_drops"].sum() > 0


def test_a_reservation_holds_when_others_have_taken_the_pool() -> None:
    # Queue 0 takes all of the pool; the one packet of queue 1 finds its reservation.
    lanes = {
        "queue_weight": [4160, 4160],
        "class_queue": [0, 1],
        "flow_class": [0, 0, 1],
        "flow_start": [0, 0, 400_000],
    }
    lanes |= {"node_shared": [0, 0, 0, 0, 4 * 4160], "queue_alpha_q16": [128 << 16, 128 << 16]}
    flows = [(0, 3, 20 * FULL), (1, 3, 20 * FULL), (2, 3, FULL)]
    without = simulate(star(4, flows, **lanes))
    held = simulate(star(4, flows, queue_reserved=[0, 4160], **lanes))
    assert without["port_drops"][:, 1].sum() == 1
    assert held["port_drops"][:, 1].sum() == 0


def test_packets_are_marked_by_the_length_of_the_queue_before_them() -> None:
    lanes = {"class_ecn": [1], "queue_kmin": [3 * 4160], "queue_kmax": [3 * 4160]}
    scenario = star(3, [(0, 2, 4 * FULL), (1, 2, 4 * FULL)], **lanes)
    # All eight come before the first leaves; the first three find fewer than three queued.
    assert simulate(scenario)["port_marks"][towards(scenario, 2)].tolist() == [5]


@pytest.mark.parametrize("arrays", [{"class_ecn": [0]}, {"queue_kmin": [-1]}])
def test_nothing_is_marked_where_marking_is_off(arrays: dict) -> None:
    lanes = {"class_ecn": [1], "queue_kmin": [0], "queue_kmax": [0]} | arrays
    assert simulate(star(3, [(0, 2, 4 * FULL), (1, 2, 4 * FULL)], **lanes))["port_marks"].sum() == 0


def test_between_kmin_and_kmax_chance_rises_to_pmax() -> None:
    # A queue that stands at half way, and Pmax 0.5: a quarter is marked. 2,000 packets: sigma is 20.
    lanes = {"class_ecn": [1], "queue_kmin": [0], "queue_kmax": [100 * 4160], "queue_pmax_q32": [1 << 31]}
    lanes |= {"class_window": [56 * 4160], "seed": 7}
    scenario = star(2, [(0, 1, 2_000 * FULL)], port_ps_q16=[10 << 16, 20 << 16, 10 << 16, 20 << 16], **lanes)
    result = simulate(scenario)
    depth = result["port_max_depth"][3] / 4160
    assert result["port_marks"].sum() == pytest.approx(2_000 * 0.5 * (depth - 1) / 100, abs=80)


def slow_receiver(**arrays: object) -> tuple[dict, int]:
    """Send through a spine to a host at 1 Gb/s, whose leaf pauses the spine for as long as a packet takes: 33 us."""
    net = leaf_spine(2, 1, 1)
    pace = net.port_ps_q16.copy()
    pace[[1, net.port_peer[1]]] = 8_000 << 16
    given = {"queue_lossless": [1], "queue_alpha_q16": [65536], "port_headroom": [1 << 20] * net.ports}
    given |= {"node_shared": [0, 0, 100 * 4160, 4160, 100 * 4160], "port_ps_q16": pace}
    spine, leaf = net.node_named("spine0"), net.node_named("leaf1")
    at_spine = next(p for p in range(net.ports) if (net.port_node[p], net.port_node[net.port_peer[p]]) == (spine, leaf))
    return simulate(compiled(net, [(0, 1, 20 * FULL)], class_rto=[1_000_000_000], **given, **arrays)), int(at_spine)


def test_without_a_watchdog_a_long_pause_loses_nothing() -> None:
    result, at_spine = slow_receiver()
    assert result["port_drops"].sum() == 0
    assert result["port_paused_ps"][at_spine, 0] > 100_000_000


def test_the_watchdog_drops_what_a_long_pause_holds() -> None:
    result, at_spine = slow_receiver(watchdog_detection=20_000_000, watchdog_restoration=20_000_000)
    assert result["port_drops"][at_spine, 0] > 0
    assert result["port_drops"].sum() == result["port_drops"][at_spine, 0]
    assert result["flow_retransmitted"][0] == result["data_packets_dropped"]
    assert result["status"] == "done"


def test_the_watchdog_does_not_bark_at_shorter_pauses() -> None:
    assert slow_receiver(watchdog_detection=10_000_000_000)[0]["port_drops"].sum() == 0


def test_the_watchdog_may_let_packets_go_against_the_pause() -> None:
    patient, _ = slow_receiver()
    result, _ = slow_receiver(watchdog_detection=20_000_000, watchdog_restoration=20_000_000, watchdog_drop=0)
    leaf_to_host = leaf_spine(2, 1, 1).port_peer[1]
    assert result["port_drops"].sum() == 0
    assert result["port_max_depth"][leaf_to_host] > 2 * patient["port_max_depth"][leaf_to_host]


def test_a_group_that_holds_nothing_is_not_paused() -> None:
    # No headroom, no pool: everything is lost, but nobody waits for an XON that could not come.
    result = paused_at_once(headroom=0, packets=5, class_rto=[5_000_000], max_time=50_000_000)
    assert result["port_pauses"].sum() == 0
    assert result["port_drops"].sum() > 5
