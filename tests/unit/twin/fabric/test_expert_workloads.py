"""Expert traffic on a topology: every flow leaves by the right port, and layers wait for what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.builders import single_switch
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_routing import ExpertRouting, count_messages, ranks_of_experts
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows, expert_layers
from fourlane.twin.fabric.topology import NVLINK, Topology

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster


def two(cluster: str) -> Cluster:
    return msgspec.structs.replace(load_cluster(cluster), servers=2)


@pytest.fixture(scope="module")
def two_servers() -> Topology:
    return rail_clos(two("h800-ft"))


@pytest.fixture(scope="module")
def rank_TK() -> np.ndarray:  # noqa: N802 - a shape suffix
    drawn = ExpertRouting(tokens=6, experts=32, top_k=4).draw(np.random.default_rng(1), 16)
    return ranks_of_experts(drawn, ranks=16, experts=32)


def test_flows_of_a_server_go_over_nvlink_and_others_by_nic(two_servers: Topology, rank_TK: np.ndarray) -> None:
    traffic = LowLatencyKernels(nvlink=True).dispatch(count_messages(rank_TK, ranks=16))
    flows = expert_flows(two_servers, traffic)
    flows.check()
    place = two_servers.networks.index(NVLINK)
    inside = traffic.source // 8 == traffic.target // 8
    assert ((two_servers.port_network[flows.source] == place) == inside).all()
    assert (two_servers.port_network[flows.source] == two_servers.port_network[flows.destination]).all()
    assert two_servers.port_node[flows.source].tolist() == traffic.source.tolist()
    assert two_servers.port_node[flows.destination].tolist() == traffic.target.tolist()
    assert (flows.size % flows.message == 0).all()


def test_ranks_may_be_any_gpus(two_servers: Topology) -> None:
    traffic = LowLatencyKernels().dispatch(np.array([[0, 3], [1, 0]]))
    flows = expert_flows(two_servers, traffic, gpus=[12, 5])
    assert two_servers.port_node[flows.source].tolist() == [12, 5]
    assert two_servers.port_node[flows.destination].tolist() == [5, 12]


def test_planes_share_pairs_of_ranks(rank_TK: np.ndarray) -> None:
    planes = rail_clos(two("dual-plane-10k"))
    flows = expert_flows(planes, LowLatencyKernels().dispatch(count_messages(rank_TK, ranks=16)))
    assert (planes.port_network[flows.source] == planes.port_network[flows.destination]).all()
    used = np.bincount(planes.port_network[flows.source], minlength=2)[:2] / len(flows)
    assert used == pytest.approx([0.5, 0.5], abs=0.1)


def test_queue_pairs_are_taken_in_turn(two_servers: Topology, rank_TK: np.ndarray) -> None:
    traffic = NormalKernels(chunk=2).dispatch(rank_TK, ranks=16)
    assert expert_flows(two_servers, traffic).qp is None
    flows = expert_flows(two_servers, traffic, queue_pairs=3)
    assert flows.qp is not None
    assert set(flows.qp.tolist()) == {0, 1, 2}


def test_layers_wait_for_what_a_rank_is_sent_itself_and_for_nothing_else(two_servers: Topology) -> None:
    count_GG = np.zeros((16, 16), dtype=int)
    count_GG[0, 9] = count_GG[3, 9] = count_GG[9, 4] = 2
    pair = LowLatencyKernels().dispatch(count_GG), LowLatencyKernels().combine(count_GG)
    flows = expert_layers(two_servers, [pair, pair], attention="10us", experts="3us")
    flows.check()
    first = dict(flows.groups)
    assert list(first) == [
        f"{stage} {n}" for n in (0, 1) for stage in ("attention", "dispatch", "experts", "combine")
    ] + ["end"]
    before = {after: set(flows.edges[0][flows.edges[1] == after].tolist()) for after in range(len(flows))}
    dispatch, experts, combine = first["dispatch 0"], first["experts 0"], first["combine 0"]
    assert not before[first["attention 0"]]
    assert before[dispatch] == {first["attention 0"]}
    assert before[experts + 9] == {first["attention 0"] + 9, dispatch, dispatch + 1}
    assert before[experts + 5] == {first["attention 0"] + 5}
    back = np.flatnonzero(two_servers.port_node[flows.source[combine : combine + 3]] == 9) + combine
    assert all(before[flow] == {experts + 9} for flow in back.tolist())
    assert before[first["attention 1"] + 3] >= {experts + 3}
    assert len(before[first["attention 1"] + 3]) == 2
    assert np.unique(flows.delay[first["attention 0"] : dispatch]).tolist() == [10_000_000]
    assert np.unique(flows.delay[experts:combine]).tolist() == [3_000_000]


def test_what_does_not_fit_the_topology_is_refused(two_servers: Topology, rank_TK: np.ndarray) -> None:
    counts = count_messages(rank_TK, ranks=16)
    with pytest.raises(SpecError, match="expected GPUs from 0 to 7"):
        expert_flows(single_switch(8), LowLatencyKernels().dispatch(counts))
    with pytest.raises(SpecError, match="expected NVLink inside servers"):
        expert_flows(
            rail_clos(two("h800-ft"), nvlink=False),
            LowLatencyKernels(nvlink=True).dispatch(counts),
        )
    spread = [*range(7), 8, 7, *range(9, 16)]
    with pytest.raises(SpecError, match=r"expected the ranks of a node in one server, got rank \d+'s on several"):
        expert_flows(two_servers, LowLatencyKernels(nvlink=True).dispatch(counts), gpus=spread)
    with pytest.raises(SpecError, match="expected one for each of 16 ranks, got 3"):
        expert_flows(two_servers, LowLatencyKernels().dispatch(counts), gpus=[0, 1, 2])
    with pytest.raises(SpecError, match="a NIC of its own for every rank"):
        expert_flows(two_servers, LowLatencyKernels().dispatch(counts), gpus=[0] * 16)
    with pytest.raises(SpecError, match="queue_pairs: expected at least 1, got 0"):
        expert_flows(two_servers, LowLatencyKernels().dispatch(counts), queue_pairs=0)
    with pytest.raises(SpecError, match="at least one layer"):
        expert_layers(two_servers, [], attention="1us", experts="1us")
