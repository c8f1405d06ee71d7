"""Transports, windows, dependencies, clear-to-send: times worked out by hand (see test_ports.py for the star)."""

from __future__ import annotations

import pytest
from tiny_fabrics import star, towards

from fourlane.twin.fabric.reference import simulate

PACKET, ALONE, ACK = 83_200, 866_400, 702_560
FULL = 4096
GO_BACK_N, OUT_OF_ORDER, REORDER_BUFFER = range(3)
GENEROUS = 128 << 16


def room_for(packets: int, hosts: int = 2, more: int = 0) -> dict[str, object]:
    """Give the switch of a star a buffer of so many packets, all of it for whoever comes first."""
    return {"node_shared": [0] * hosts + [packets * 4160 + more], "queue_alpha_q16": [GENEROUS]}


def test_the_last_packet_of_each_message_is_what_is_left() -> None:
    result = simulate(star(2, [(0, 1, 25_000)], flow_message=[10_000]))
    # Two messages of 4,096 + 4,096 + 1,808 and one of 4,096 + 904.
    assert result["data_packets_sent"] == 8
    assert result["port_tx_bytes"][0].tolist() == [25_000 + 8 * 64]
    assert result["delivered_payload"] == 25_000


def test_each_message_costs_the_nic_its_gap() -> None:
    gaps = {"flow_message": [2 * FULL], "port_message_gap": [7_000, 0, 0, 0]}
    result = simulate(star(2, [(0, 1, 6 * FULL)], **gaps))
    assert result["flow_delivered"].tolist() == [ALONE + 5 * PACKET + 3 * 7_000]


def test_a_window_of_one_packet_sends_one_a_round_trip() -> None:
    result = simulate(star(2, [(0, 1, 5 * FULL)], class_window=[4160]))
    assert result["flow_finish"].tolist() == [5 * (ALONE + ACK)]


def test_a_window_smaller_than_a_packet_still_lets_one_out() -> None:
    result = simulate(star(2, [(0, 1, 2 * FULL)], class_window=[1]))
    assert result["flow_finish"].tolist() == [2 * (ALONE + ACK)]


@pytest.mark.parametrize("transport", [GO_BACK_N, OUT_OF_ORDER, REORDER_BUFFER])
def test_acknowledgements_may_be_sparse(transport: int) -> None:
    result = simulate(star(2, [(0, 1, 10 * FULL)], class_transport=[transport], class_ack_every=[4]))
    assert result["status"] == "done"
    assert result["port_tx_packets"][1].tolist() == [3]  # after 4, 8 and the last


def test_go_back_n_begins_again_at_the_first_loss() -> None:
    scenario = star(2, [(0, 1, 10 * FULL)], class_transport=[GO_BACK_N], **room_for(6))
    result = simulate(scenario)
    # Packets 0-5 fill the buffer until 683,200; 6 comes at 682,400 and is lost; 7 is the first out of order: ready at
    # 1,265,600, at the receiver 183,200 later. Its NACK makes the sender go back to 6.
    again = 1_265_600 + 183_200 + ACK
    assert result["port_drops"][towards(scenario, 1)].tolist() == [1]
    assert result["flow_retransmitted"].tolist() == [4]
    assert result["flow_delivered"].tolist() == [again + ALONE + 3 * PACKET]
    assert result["data_packets_sent"] == 14
    assert result["delivered_payload"] == 10 * FULL
    assert result["port_tx_packets"][1].tolist() == [10 + 1]  # one NACK for three packets out of order


def test_go_back_n_finds_a_loss_at_the_end_by_timeout() -> None:
    scenario = star(2, [(0, 1, 7 * FULL)], class_transport=[GO_BACK_N], class_rto=[10_000_000], **room_for(6))
    result = simulate(scenario)
    last_ack = ALONE + 5 * PACKET + ACK
    assert result["flow_delivered"].tolist() == [last_ack + 10_000_000 + ALONE]
    assert result["flow_retransmitted"].tolist() == [1]


def test_a_loss_that_nobody_repeats_leaves_the_run_stuck() -> None:
    result = simulate(star(2, [(0, 1, 7 * FULL)], class_transport=[GO_BACK_N], **room_for(6)))
    assert (result["status"], result["flows_done"]) == ("stuck", 0)


@pytest.mark.parametrize("transport", [OUT_OF_ORDER, REORDER_BUFFER])
def test_selective_repeat_sends_only_what_is_missing(transport: int) -> None:
    scenario = star(2, [(0, 1, 10 * FULL)], class_transport=[transport], class_rto=[10_000_000], **room_for(6))
    result = simulate(scenario)
    # Packet 9 comes last: the gap that 6 left stays, since 7 was ready only when all before were gone.
    last_ack = 1_265_600 + 2 * PACKET + 183_200 + ACK
    assert result["flow_delivered"].tolist() == [last_ack + 10_000_000 + ALONE]
    assert result["flow_retransmitted"].tolist() == [1]
    assert result["flow_reorder"].tolist() == [3]
    assert result["data_packets_sent"] == 11


def test_a_trimmed_packet_is_asked_for_at_once() -> None:
    lanes = {
        "queue_weight": [4160, 0],
        "queue_alpha_q16": [GENEROUS, GENEROUS],
        "class_trim": [1],
        "trim_queue": 1,
        "node_shared": [0, 0, 6 * 4160 + 64],
    }
    scenario = star(2, [(0, 1, 10 * FULL)], **lanes)
    result = simulate(scenario)
    # The header of 6 is ready at 1,182,400, just when 5 has left, takes 1,280, and its NACK as long as an ACK.
    again = 1_182_400 + 1_280 + 100_000 + ACK
    assert result["flow_delivered"].tolist() == [again + ALONE]
    assert result["port_trims"][towards(scenario, 1)].tolist() == [1, 0]
    assert result["port_drops"].sum() == 0
    assert result["flow_retransmitted"].tolist() == [1]
    assert result["flow_reorder"].tolist() == [3]
    assert result["wire_bytes_dropped"] == 4160 - 64


def test_a_flow_waits_for_others_and_gates_pass_on() -> None:
    scenario = star(
        3,
        [(0, 1, FULL), (1, 2, FULL), (0, 0, 0), (2, 0, FULL)],
        flow_start=[0, 400_000, 0, 0],
        flow_delay=[0, 0, 1_000, 2_000],
        flow_after_first=[0, 1, 2, 3, 3],
        flow_after=[2, 2, 3],  # a gate behind the first two flows, the last one behind the gate
        port_tx_latency=[300, 300, 300, 0, 0, 0],
        port_rx_latency=[50, 50, 50, 0, 0, 0],
    )
    result = simulate(scenario)
    first, second = 300 + ALONE + 50, 400_000 + 300 + ALONE + 50
    gate = second + 1_000
    assert result["flow_delivered"].tolist() == [first, second, gate, gate + 2_000 + 300 + ALONE + 50]
    assert result["flow_started"].tolist() == [0, 400_000, gate, gate + 2_000]
    assert result["flow_finish"][2] == gate


def test_a_flow_that_waits_for_itself_never_begins() -> None:
    result = simulate(star(2, [(0, 1, FULL)], flow_after_first=[0, 1], flow_after=[0]))
    assert (result["status"], result["flow_started"].tolist()) == ("stuck", [-1])


def test_clear_to_send_lets_one_sender_after_the_other() -> None:
    lanes = {"class_cc": [2], "class_cts_slots": [1]}
    result = simulate(star(4, [(s, 3, 4 * FULL) for s in range(3)], **lanes))
    body = ALONE + 3 * PACKET
    first = 2 * ACK + body  # a request and its answer take as long as ACKs do
    # The next one's leave goes out behind the last ACK.
    assert result["flow_delivered"].tolist() == [first + n * (1_280 + ACK + body) for n in range(3)]


def test_as_many_senders_are_cleared_as_there_are_slots() -> None:
    lanes = {"class_cc": [2], "class_cts_slots": [2]}
    result = simulate(star(4, [(s, 3, 4 * FULL) for s in range(3)], **lanes))
    delivered = result["flow_delivered"]
    assert delivered[1] - delivered[0] < 2 * PACKET
    assert delivered[2] == delivered[0] + 1_280 + ACK + ALONE + 3 * PACKET


def test_marks_slow_a_sender_down_once_in_a_notification_interval() -> None:
    lanes = {"class_cc": [1], "class_ecn": [1], "queue_kmin": [0], "queue_kmax": [0]}  # marks everything
    result = simulate(star(2, [(0, 1, 40 * FULL)], **lanes))
    # The notification for packet 0 comes before packet 19 is sent; from that one on half the rate.
    half = 19 * PACKET + 20 * 2 * PACKET
    assert result["flow_delivered"].tolist() == [half + ALONE]
    assert result["port_marks"].sum() == 40
    assert result["port_tx_packets"][1].tolist() == [40 + 1]
