"""Compiled scenarios: what may be left out, and that every faulty array is named."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric import CompiledScenario
from fourlane.twin.fabric.compiled import ARRAYS

STAR = {
    "node_kind": [0, 0, 0, 1],
    "port_node": [0, 1, 2, 3, 3, 3],
    "port_peer": [3, 4, 5, 0, 1, 2],
    "port_ps_q16": [20 << 16] * 6,
}


@pytest.fixture
def two_flows() -> CompiledScenario:
    return CompiledScenario.of(**STAR, flow_src_port=[1, 2], flow_dst_port=[0, 0], flow_size=[4096])


def test_what_is_left_out_has_the_right_dimensions(two_flows: CompiledScenario) -> None:
    assert (two_flows.nodes, two_flows.ports, two_flows.flows) == (4, 6, 2)
    assert (two_flows.queues, two_flows.classes, two_flows.leaves, two_flows.switches) == (1, 1, 1, 1)
    assert two_flows.node_first_port.tolist() == [0, 1, 2, 3, 6]
    assert two_flows.switch_index.tolist() == two_flows.leaf_index.tolist() == [-1, -1, -1, 0]


def test_every_array_is_listed_with_its_dtype(two_flows: CompiledScenario) -> None:
    arrays = {field.name for field in fields(two_flows) if isinstance(getattr(two_flows, field.name), np.ndarray)}
    assert arrays == set(ARRAYS)


def test_the_flat_form_holds_all_that_a_simulator_reads(two_flows: CompiledScenario) -> None:
    flat = two_flows.flat()
    assert set(ARRAYS) < set(flat)
    assert flat["dcqcn_g"] == 1 / 256
    assert "class_names" not in flat


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("node_kind", np.zeros(4, np.int64), "node_kind: expected dtype uint8, got int64"),
        ("port_prop", np.zeros((6, 1), np.int64), "port_prop: expected 1 dimensions"),
        ("port_prop", np.zeros(5, np.int64), r"port_prop: expected dimensions \[P\] with P = 6, got \[5\]"),
        ("port_prop", np.zeros(12, np.int64)[::2], "port_prop: expected a C-contiguous array"),
        ("flow_start", np.zeros(3, np.int64), r"flow_start: expected dimensions \[F\*\]"),
        ("flow_size", np.array([4096, -1]), r"flow_size\[1\]: expected 0 to"),
        ("flow_size", np.array([1 << 43]), r"flow_size\[0\]: expected at most 2147483647 packets"),
        ("node_shared", np.array([0, 0, 0, 1 << 40]), r"node_shared\[3\]: expected 0 to 549755813888"),
        ("port_peer", np.array([3, 4, 5, 0, 1, 1], np.int32), r"port_peer\[2\]"),
        ("flow_src_port", np.array([1, 3], np.int32), r"flow_src_port\[1\]: expected a port of a host, got 3"),
        ("flow_src_port", np.array([1, 9], np.int32), r"flow_src_port\[1\]: expected a port of a host, got 9"),
        ("flow_src_port", np.array([1, 0], np.int32), r"flow_dst_port\[1\]: .* a flow to itself"),
        ("flow_class", np.array([1], np.uint8), "flow_class: expected classes 0 to 0, got 1"),
        ("flow_after", np.array([0], np.int32), "flow_after_first: expected 3 entries"),
        ("class_queue", np.array([1], np.uint8), r"class_queue\[0\]: expected a queue 0 to 0"),
        ("queue_weight", np.array([100], np.int64), r"queue_weight\[0\]: expected 0 \(strict\) or at least 4160"),
        ("epoch_time", np.array([5], np.int64), "epoch_time: expected to rise from 0"),
        ("route_ports", np.array([7], np.int32), "route_ports: expected ports 0 to 5"),
        ("mtu", 0, "mtu: expected 1 to"),
        ("seed", -1, "seed: expected 0 to"),
    ],
)
def test_a_faulty_array_is_named(two_flows: CompiledScenario, name: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(two_flows, **{name: value}).validate()


def test_flows_without_bytes_are_gates_and_have_no_ports() -> None:
    CompiledScenario.of(**STAR, flow_src_port=[1, -1], flow_dst_port=[0, -1], flow_size=[1, 0])
    with pytest.raises(SpecError, match=r"flow_src_port\[1\]: expected -1, since the flow has no bytes"):
        CompiledScenario.of(**STAR, flow_src_port=[1, 1], flow_dst_port=[0, -1], flow_size=[1, 0])


def test_flows_are_named_by_group() -> None:
    made = CompiledScenario.of(
        **STAR,
        flow_src_port=[1, 2, 1],
        flow_dst_port=[0, 0, 2],
        flow_size=[1],
        flow_groups=(("incast", 0), ("other", 2)),
    )
    assert [made.flow_name(flow) for flow in range(3)] == ["incast[0]", "incast[1]", "other[0]"]
    assert made.node_name(3) == "node 3"
