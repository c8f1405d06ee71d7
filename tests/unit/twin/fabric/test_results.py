"""Results: figures by flow, class, queue and port over raw arrays, held against values worked out by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from fabric_cases import counted, raw_results, ring_of_switches, star
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.twin.fabric import histogram
from fourlane.twin.fabric.hang import circle_of_pauses, hangs, paused_ports, unfinished_flows
from fourlane.twin.fabric.results import Results

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def two_flows() -> Results:
    """1 -> 0 took 1 us, 2 -> 0 took 3 us; the port to host 0 sent half of the 4 us."""
    scenario = star(3, [(1, 0, 5_000), (2, 0, 15_000)], class_names=("expert",), queue_names=("lane",), seed=7)
    raw = raw_results(
        scenario,
        time=4_000_000,
        events=50,
        data_hops=12,
        flow_started=[1_000_000, 500_000],
        flow_delivered=[1_500_000, 2_500_000],
        flow_finish=[2_000_000, 3_500_000],
        flow_retransmitted=[0, 4],
        flow_reorder=[2, 9],
        latency_counts=counted(*[500_000] * 99, 2_000_000),
    )
    raw["port_tx_bytes"][3, 0] = 100_000
    raw["port_tx_bytes"][1, 0] = 50_000
    raw["port_drops"][3, 0], raw["port_marks"][3, 0], raw["port_max_depth"][3] = 5, 6, 7_000
    raw["port_pauses"][4, 0], raw["port_paused_ps"][1, 0] = 3, 1_250_000
    return Results(scenario, raw)


def test_times_of_flows_are_microseconds(two_flows: Results) -> None:
    assert two_flows.start_us.tolist() == [1.0, 0.5]
    assert two_flows.finish_us.tolist() == [2.0, 3.5]
    assert two_flows.completion_us.tolist() == [1.0, 3.0]
    assert two_flows.makespan_us == 3.5
    assert two_flows.time_us == 4.0


def test_rates_goodput_and_fairness_are_over_payload(two_flows: Results) -> None:
    assert two_flows.flow_rate.tolist() == [40e9, 40e9]
    assert two_flows.fairness() == pytest.approx(1.0)
    assert two_flows.goodput("expert") == pytest.approx(20_000 * 8 / 2e-6)


def test_fairness_is_that_of_jain() -> None:
    scenario = star(3, [(1, 0, 10_000), (2, 0, 10_000)])
    raw = raw_results(scenario, flow_started=[0, 0], flow_finish=[1_000_000, 3_000_000])
    assert Results(scenario, raw).fairness() == pytest.approx((3 + 1) ** 2 / (2 * (9 + 1)))


def test_percentiles_of_packets_are_within_one_percent(two_flows: Results) -> None:
    assert two_flows.percentile("expert", 50) == pytest.approx(0.5, rel=0.01)
    assert two_flows.percentile("expert", 99) == pytest.approx(0.5, rel=0.01)
    assert two_flows.percentile("expert", 99.5) == pytest.approx(2.0, rel=0.01)
    assert two_flows.percentile(None, 100) == two_flows.percentile("expert", 100)


def test_percentiles_of_flows_are_nearest_rank(two_flows: Results) -> None:
    assert [two_flows.completion_percentile("expert", p) for p in (0, 50, 51, 100)] == [1.0, 1.0, 3.0, 3.0]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=60), st.floats(0, 100))
def test_a_percentile_is_never_one_percent_off(times: list[int], percent: float) -> None:
    counts = np.bincount([histogram.bucket_of(time) for time in times], minlength=histogram.BUCKETS)
    exact = sorted(times)[histogram.nearest_rank(percent, len(times)) - 1]
    assert histogram.percentile(counts, percent) == pytest.approx(exact, rel=0.01, abs=0)


@given(st.integers(0, 2**63 - 1))
def test_every_time_lies_in_its_bucket(time: int) -> None:
    bucket = histogram.bucket_of(time)
    assert 0 <= bucket < histogram.BUCKETS
    low = int(histogram.lowest(bucket))
    assert low <= time < low + int(histogram.bucket_width(bucket))


def test_nearest_rank_is_not_led_astray_by_rounding() -> None:
    assert histogram.nearest_rank(99.9, 1_000) == 999
    assert histogram.nearest_rank(7, 100) == 7


def test_ports_are_named_by_node_place_and_neighbour(two_flows: Results) -> None:
    busiest, second = two_flows.hottest_ports(2)
    assert busiest.name == "node 3:0 -> node 0"
    assert (busiest.utilisation, second.utilisation) == (0.5, 0.25)
    assert (busiest.drops, busiest.marks, busiest.max_depth_bytes) == (5, 6, 7_000)
    assert two_flows.total("pauses") == 3
    assert two_flows.total("paused_ps", "lane") == 1_250_000


def test_utilisation_over_time_is_of_the_span_since_the_sample_before() -> None:
    scenario = star(2, [(1, 0, 1)], sample_ports=[2, 0], sample_interval=1_000_000)
    raw = raw_results(
        scenario,
        sample_time=[1_000_000, 2_000_000, 2_500_000],
        sample_tx=[[50_000, 0], [75_000, 0], [100_000, 12_500]],
        sample_depth=[[1, 0], [2, 0], [0, 0]],
    )
    results = Results(scenario, raw)
    assert results.utilisation_over_time.tolist() == [[1.0, 0.0], [0.5, 0.0], [1.0, 0.5]]
    assert results.depth_over_time[1].tolist() == [2, 0]
    assert results.sample_us.tolist() == [1.0, 2.0, 2.5]


def test_unknown_names_are_refused_with_those_there_are(two_flows: Results) -> None:
    with pytest.raises(SpecError, match='class: expected one of expert, got "kv"'):
        two_flows.percentile("kv", 50)
    with pytest.raises(SpecError, match='queue: expected one of lane, got "kv"'):
        two_flows.total("drops", "kv")
    with pytest.raises(SpecError, match="counter: expected one of drops, marks"):
        two_flows.total("losses")
    with pytest.raises(SpecError, match="percentile: expected a number from 0 to 100, got 101"):
        two_flows.percentile("expert", 101)


def test_the_summary_says_it_all_as_text_and_as_json(two_flows: Results) -> None:
    text = str(two_flows.summary())
    assert "all flows finished: 2 of 2, makespan 3.5000 us; 50 events, 12 data packet-hops" in text
    figures = json.loads(two_flows.to_json())
    assert figures["classes"][0]["completion_us"] == {"p50": 1.0, "p99": 3.0, "max": 3.0}
    assert figures["classes"][0]["reorder_depth"] == 9
    assert figures["classes"][0]["retransmitted_packets"] == 4
    assert figures["queues"][0]["paused_us"] == 1.25
    assert figures["hottest_ports"][0]["name"] == "node 3:0 -> node 0"
    assert figures["seed"] == 7


def test_what_is_saved_is_loaded_unchanged(two_flows: Results, tmp_path: Path) -> None:
    two_flows.save(tmp_path / "run.npz")
    loaded = Results.load(tmp_path / "run.npz")
    assert loaded.to_json() == two_flows.to_json()
    assert set(loaded.raw) == set(two_flows.raw)
    for name, value in two_flows.raw.items():
        assert np.array_equal(loaded.raw[name], value)
    loaded.save(tmp_path / "again.npz")
    assert Results.load(tmp_path / "again.npz").to_json() == two_flows.to_json()


def test_a_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", numbers=np.arange(3))
    (tmp_path / "text.npz").write_text("text")
    for name in ("other.npz", "text.npz", "absent.npz"):
        with pytest.raises(SpecError, match=f"{name}: expected results written by Results.save"):
            Results.load(tmp_path / name)


def test_a_file_that_cannot_be_written_is_an_error(two_flows: Results, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"run\.npz: cannot be written: No such file"):
        two_flows.save(tmp_path / "absent" / "run.npz")


def test_flows_without_an_end_are_nan_and_are_named() -> None:
    scenario = star(3, [(1, 0, 5_000), (2, 0, 15_000)], flow_groups=(("dispatch", 0),))
    raw = raw_results(scenario, status="interrupted", flow_started=[0, -1])
    results = Results(scenario, raw)
    assert not results.complete
    assert np.isnan(results.finish_us).all()
    assert np.isnan(results.completion_percentile(None, 50))
    assert results.makespan_us == 0.0
    assert unfinished_flows(results) == [0, 1]
    text = "\n".join(results.summary().hangs)
    assert "unfinished: 2 flows, of which 1 had begun" in text
    assert "dispatch[0]: node 1 to node 0, 5,000 bytes, began at 0.0000 us" in text
    assert "dispatch[1]: node 2 to node 0, 15,000 bytes, has not begun" in text
    assert "NOT ENDED (interrupted)" in str(results.summary())


def test_pauses_that_wait_for_each_other_in_a_circle_are_a_deadlock() -> None:
    scenario = ring_of_switches([(0, 2, 9_000), (1, 0, 9_000), (2, 1, 9_000)], queue_lossless=[1])
    raw = raw_results(scenario, status="stuck", flow_started=[0, 0, 0])
    for port in (0, 4, 7, 10):
        raw["port_paused"][port], raw["port_depth"][port, 0] = 1, 4_160
    results = Results(scenario, raw)
    assert paused_ports(results) == [(0, 0), (4, 0), (7, 0), (10, 0)]
    assert set(circle_of_pauses(results)) == {(4, 0), (7, 0), (10, 0)}
    text = "\n".join(hangs(results))
    assert "its port node 0:0 -> node 3 is paused" in text
    assert "a circle of 3 pauses that wait for each other (PFC deadlock)" in text


def test_a_chain_of_pauses_is_no_circle() -> None:
    scenario = ring_of_switches([(0, 2, 9_000)], queue_lossless=[1])
    raw = raw_results(scenario, status="interrupted", flow_started=[0])
    for port in (0, 4):
        raw["port_paused"][port], raw["port_depth"][port, 0] = 1, 4_160
    assert circle_of_pauses(Results(scenario, raw)) == []
