"""What holds of every simulated network, whatever is asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, given, settings
from random_fabrics import fabrics

from fourlane.twin.fabric.reference import simulate

if TYPE_CHECKING:
    from fourlane.twin.fabric import CompiledScenario

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(fabrics())
def test_bytes_and_packets_sent_are_delivered_dropped_or_under_way(scenario: CompiledScenario) -> None:
    result = simulate(scenario)
    there = sum(result[f"wire_bytes_{name}"] for name in ("delivered", "dropped", "queued"))
    assert result["wire_bytes_sent"] == there
    assert result["wire_bytes_queued"] >= 0
    assert result["data_packets_sent"] >= result["data_packets_delivered"] + result["data_packets_dropped"]
    assert result["port_drops"].sum() >= result["data_packets_dropped"]


@few
@given(fabrics())
def test_what_is_done_was_delivered_in_order_of_time(scenario: CompiledScenario) -> None:
    result = simulate(scenario)
    size = np.broadcast_to(scenario.flow_size, scenario.flows)
    started, delivered, finish = (result[f"flow_{name}"] for name in ("started", "delivered", "finish"))
    done = finish >= 0
    assert result["flows_done"] == done.sum()
    assert (result["status"] == "done") == bool(done.all())
    assert (started[done] <= delivered[done]).all()
    assert result["delivered_payload"] >= size[done].sum()
    assert result["delivered_payload"] <= size.sum()
    target = scenario.flow_dst_port
    tail = np.where(size > 0, scenario.port_rx_latency[target], 0)
    assert (delivered[done] - tail[done] <= finish[done]).all()


@few
@given(fabrics())
def test_buffers_never_overflow_and_switches_end_empty_where_all_flows_do(scenario: CompiledScenario) -> None:
    result = simulate(scenario)
    switch = scenario.node_kind[scenario.port_node] == 1
    reserved = int(scenario.queue_reserved.sum())
    headroom = scenario.port_headroom * int(scenario.queue_lossless.sum())
    for node in np.flatnonzero(scenario.node_kind):
        ports = np.flatnonzero(switch & (scenario.port_node == node))
        most = scenario.node_shared[node] + headroom[ports].sum() + reserved * len(ports)
        assert result["port_depth"][ports].sum() <= most


@few
@given(fabrics())
def test_nothing_is_lost_where_all_queues_are_lossless_and_headroom_is_ample(scenario: CompiledScenario) -> None:
    lossless = replace(
        scenario,
        queue_lossless=np.ones_like(scenario.queue_lossless),
        port_headroom=np.full_like(scenario.port_headroom, 1 << 40),
        epoch_port_up=np.ones_like(scenario.epoch_port_up),
        route_table=np.zeros_like(scenario.route_table),
        watchdog_detection=0,
    )
    lossless.validate()
    result = simulate(lossless)
    assert result["port_drops"].sum() == result["wire_bytes_dropped"] == 0


@few
@given(fabrics())
def test_two_runs_are_the_same(scenario: CompiledScenario) -> None:
    one, other = simulate(scenario), simulate(scenario)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name
