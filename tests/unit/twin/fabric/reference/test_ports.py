"""Queues, scheduling, the wire, failures: times worked out by hand.

In the star: 20 ps a byte, so a full packet of 4,160 B takes 83,200 ps and an ACK of 64 B 1,280; cables 100,000 ps,
pipeline 500,000. A packet sent at 0 is at the switch at 183,200, leaves from 683,200 on, and arrives at 866,400. Its
ACK takes 702,560.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_fabrics import compiled, port_of, star, towards, uplinks

from fourlane.twin.fabric.builders import leaf_spine, single_switch
from fourlane.twin.fabric.reference import simulate

PACKET, ALONE, ACK = 83_200, 866_400, 702_560
FULL = 4096


def test_one_packet_is_stored_and_forwarded_once_and_acknowledged() -> None:
    result = simulate(star(2, [(0, 1, FULL)]))
    assert result["status"] == "done"
    assert result["flow_delivered"].tolist() == [ALONE]
    assert result["flow_finish"].tolist() == [ALONE + ACK] == [result["time"]]
    assert result["data_hops"] == 2
    assert result["latency_counts"].sum() == 1


def test_two_flows_share_a_link_packet_by_packet() -> None:
    result = simulate(star(3, [(0, 2, 10 * FULL), (1, 2, 10 * FULL)]))
    last = ALONE + 19 * PACKET
    assert result["flow_delivered"].tolist() == [last - PACKET, last]


def test_flows_of_a_host_take_turns_or_go_one_after_the_other() -> None:
    flows = [(0, 1, 4 * FULL), (0, 1, 4 * FULL)]
    turns, in_order = (simulate(star(2, flows, queue_service=[service])) for service in (0, 1))
    assert turns["flow_delivered"].tolist() == [ALONE + 6 * PACKET, ALONE + 7 * PACKET]
    assert in_order["flow_delivered"].tolist() == [ALONE + 3 * PACKET, ALONE + 7 * PACKET]


def test_strict_queues_go_before_weighted_ones_and_higher_before_lower() -> None:
    lanes = {"queue_weight": [4160, 0, 0], "class_queue": [0, 1, 2], "flow_class": [0, 1, 2]}
    result = simulate(star(4, [(s, 3, 10 * FULL) for s in range(3)], **lanes))
    assert result["flow_delivered"].tolist() == [ALONE + n * PACKET for n in (29, 19, 9)]


def test_deficit_round_robin_shares_by_weight() -> None:
    lanes = {"queue_weight": [3 * 4160, 4160], "class_queue": [0, 1], "flow_class": [0, 1]}
    scenario = star(3, [(0, 2, 40 * FULL), (1, 2, 40 * FULL)], **lanes)
    cut = replace(scenario, max_time=683_200 + 20 * PACKET - 1)  # twenty packets have begun
    assert simulate(cut)["port_tx_packets"][towards(scenario, 2)].tolist() == [15, 5]
    assert simulate(cut)["status"] == "time"


def test_a_queue_that_has_been_empty_begins_without_credit() -> None:
    # The small packets of 1,024 + 64 B leave most of a quantum of 4,160; it must not add up while there is nothing.
    lanes = {
        "queue_weight": [4160, 4160],
        "class_queue": [0, 1],
        "flow_class": [0, 0, 1],
        "flow_start": [0, 5_000_000, 0],
    }
    scenario = star(4, [(0, 3, 1024), (1, 3, 20 * FULL), (2, 3, 200 * FULL)], **lanes)
    cut = replace(scenario, max_time=5_683_200 + 20 * PACKET)
    sent = simulate(cut)["port_tx_packets"][towards(scenario, 3)]
    assert sent[0] - 1 <= 11


def test_a_capped_queue_gets_its_share_and_no_more() -> None:
    capped = star(2, [(0, 1, 400 * FULL)], queue_weight=[0], queue_cap_q16=[4 * 65536])
    result = simulate(capped)
    # A quarter of the link; the first 16 KiB come out of what the idle queue had saved up.
    spacing = 4 * PACKET
    assert result["flow_delivered"][0] == pytest.approx(399 * spacing, rel=0.01)


def test_a_lower_queue_uses_what_a_cap_leaves() -> None:
    lanes = {
        "queue_weight": [0, 0],
        "queue_cap_q16": [0, 2 * 65536],
        "class_queue": [0, 1],
        "flow_class": [0, 1],
    }
    scenario = star(3, [(0, 2, 400 * FULL), (1, 2, 400 * FULL)], **lanes)
    sent = simulate(replace(scenario, max_time=683_200 + 200 * PACKET))["port_tx_packets"][towards(scenario, 2)]
    assert sent.tolist() == pytest.approx([100, 100], abs=5)


def test_a_cut_through_switch_forwards_what_it_has_only_begun_to_read() -> None:
    scenario = compiled(single_switch(2, cut_through=True), [(0, 1, FULL)])
    assert simulate(scenario)["flow_delivered"].tolist() == [ALONE - 4096 * 20]  # all but 64 B


def test_cut_through_needs_an_idle_egress() -> None:
    scenario = compiled(single_switch(3, cut_through=True), [(0, 2, FULL), (1, 2, FULL)])
    first = ALONE - 4096 * 20
    # The second waits for the first, whose end on the wire is after its own pipeline's.
    assert simulate(scenario)["flow_delivered"].tolist() == [first, first + PACKET]
    late = compiled(single_switch(3, cut_through=True), [(0, 2, FULL), (1, 2, FULL)], flow_start=[0, 50_000])
    # At 601,280 + 50,000 the wire is still busy: stored, then forwarded.
    assert simulate(late)["flow_delivered"].tolist() == [first, ALONE + 50_000]


def test_a_packet_ahead_in_the_pipeline_that_will_be_gone_does_not_hinder_cut_through() -> None:
    # The first is on the wire from 601,280 to 684,480; the second's header is there at 701,280.
    behind = compiled(single_switch(3, cut_through=True), [(0, 2, FULL), (1, 2, FULL)], flow_start=[0, 100_000])
    first = ALONE - 4096 * 20
    assert simulate(behind)["flow_delivered"].tolist() == [first, first + 100_000]


def test_cut_through_never_goes_to_a_faster_link() -> None:
    net = leaf_spine(2, 1, 1, cut_through=True, uplink_rate="800Gbps")
    slow_to_fast, fast, fast_to_slow = 83_200 + 600_000, 64 * 10 + 600_000, 64 * 10 + 600_000
    delivered = simulate(compiled(net, [(0, 1, FULL)]))["flow_delivered"]
    assert delivered.tolist() == [slow_to_fast + fast + fast_to_slow + 83_200 + 100_000]


def test_a_failed_link_loses_what_is_on_it_and_queued_for_it_and_the_rest_goes_round() -> None:
    net = leaf_spine(2, 1, 2)
    cable = net.links_between(net.node_named("leaf0"), net.node_named("spine0"))
    left = net.ports_up(cable)
    scenario = compiled(
        net,
        [(0, 1, 20 * FULL)],
        tables=[None, left],
        route_table=[0, 1],
        epoch_time=[0, 1_000_000],
        epoch_port_up=[np.ones(net.ports, np.uint8), left],
        class_routing=[5],
        class_rto=[20_000_000],
    )
    result = simulate(scenario)
    up = uplinks(net, "leaf0")
    # The leaf sends one every 83,200 ps from 683,200 on; each is at the spine 183,200 later. At 1,000,000 two are
    # there, two are on the cable, and six that came since wait.
    assert result["port_drops"][up].tolist() == [[8], [0]]
    assert result["port_tx_packets"][up].tolist() == [[4], [10 + 8]]
    assert result["flow_retransmitted"].tolist() == [8]
    assert result["status"] == "done"
    assert result["delivered_payload"] == 20 * FULL


def test_a_host_waits_for_its_link_to_come_back() -> None:
    net = single_switch(2)
    down = net.ports_up([0])
    scenario = compiled(
        net, [(0, 1, FULL)], epoch_time=[0, 7_000_000], epoch_port_up=[down, np.ones(4)], route_table=[0, 0]
    )
    assert simulate(scenario)["flow_delivered"].tolist() == [7_000_000 + ALONE]


def test_a_run_without_a_way_is_stuck_and_says_what_was_lost() -> None:
    net = single_switch(2)
    scenario = compiled(net, [(0, 1, 3 * FULL)], epoch_port_up=[net.ports_up([int(net.port_peer[1])])])
    result = simulate(scenario)
    assert result["status"] == "stuck"
    assert result["port_drops"][port_of(scenario, 0)].tolist() == [3]
    assert result["wire_bytes_dropped"] == result["wire_bytes_sent"] == 3 * 4160


def test_a_run_ends_at_its_budget_of_events() -> None:
    scenario = star(2, [(0, 1, 100 * FULL)])
    whole = simulate(scenario)
    cut = simulate(replace(scenario, max_events=50))
    assert (cut["status"], cut["events"]) == ("budget", 50)
    assert simulate(replace(scenario, max_events=whole["events"]))["status"] == "done"


def test_samples_show_bytes_sent_and_queued() -> None:
    scenario = star(3, [(0, 2, 10 * FULL), (1, 2, 10 * FULL)], sample_interval=500_000)
    result = simulate(replace(scenario, sample_ports=np.array([towards(scenario, 2)], np.int32)))
    assert result["sample_time"][:3].tolist() == [500_000, 1_000_000, 1_500_000]
    # At 500,000 four of each have come; at 1,000,000 four in all have begun to leave, and ten of each have come.
    assert result["sample_tx"][:2, 0].tolist() == [0, 4 * 4160]
    assert result["sample_depth"][:2, 0].tolist() == [8 * 4160, 16 * 4160]


def test_bytes_sent_are_delivered_dropped_or_under_way() -> None:
    scenario = star(3, [(0, 2, 40 * FULL), (1, 2, 40 * FULL)], node_shared=[0, 0, 0, 9 * 4160])
    for end in (1_000_000, 2_000_000, 1 << 60):
        result = simulate(replace(scenario, max_time=end))
        there = sum(result[f"wire_bytes_{name}"] for name in ("delivered", "dropped", "queued"))
        assert result["wire_bytes_sent"] == there > 0
