"""Plain topologies: their arrays fit together, and they are the networks they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric import Topology, fat_tree, leaf_spine, single_switch
from fourlane.twin.fabric.routing import distances
from fourlane.twin.fabric.topology import LEAF, SPINE, SUPERSPINE

PLAIN = [single_switch(3), leaf_spine(4, 2, 3, links=2), fat_tree(4)]


@pytest.mark.parametrize("net", PLAIN, ids=lambda net: net.name)
def test_every_port_has_a_peer_of_the_same_cable_and_ports_of_a_node_are_contiguous(net: Topology) -> None:
    assert (net.port_peer[net.port_peer] == np.arange(net.ports)).all()
    assert (net.port_node[net.port_peer] != net.port_node).all()
    assert (net.port_prop == net.port_prop[net.port_peer]).all()
    assert (net.port_rate == net.port_rate[net.port_peer]).all()
    for node in range(net.nodes):
        assert (net.port_node[net.node_first_port[node] : net.node_first_port[node + 1]] == node).all()
    assert net.node_first_port[-1] == net.ports
    for array in (net.port_peer, net.node_tier):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_leaf_spine_of_128_hosts_places_host_h_on_leaf_h_div_8() -> None:
    net = leaf_spine(leaves=16, hosts_per_leaf=8, spines=8)
    assert (net.hosts, net.switches, net.ports) == (128, 24, 2 * (128 + 128))
    leaf = net.port_node[net.port_peer[net.endpoint_of[0]]]
    assert (net.leaf_index[leaf] == np.arange(128) // 8).all()
    assert (net.port_ps_q16 == 20 << 16).all()
    assert set(net.node_latency[128:]) == {500_000}
    assert set(net.port_prop) == {100_000}


def test_fat_tree_of_16_ports_has_1024_hosts_16_pods_and_64_superspines() -> None:
    net = fat_tree(16)
    assert net.hosts == 1024
    assert [int((net.node_tier == tier).sum()) for tier in (LEAF, SPINE, SUPERSPINE)] == [128, 128, 64]
    for node in range(net.hosts, net.nodes):
        peers = net.port_node[net.port_peer[net.node_first_port[node] : net.node_first_port[node + 1]]]
        assert len(set(peers.tolist())) == 16
    table = distances(net)
    leaf = net.leaf_index[net.port_node[net.port_peer[net.endpoint_of[0]]]]
    leaves = net.switch_index[np.flatnonzero(net.leaf_index >= 0)]
    links = table[leaves][np.ix_(leaf, leaf)] + 2
    host = np.arange(1024)
    same_leaf = host[:, None] // 8 == host // 8
    same_pod = host[:, None] // 64 == host // 64
    assert (links == np.where(same_leaf, 2, np.where(same_pod, 4, 6))).all()


def test_superspines_of_a_fat_tree_see_every_pod_once() -> None:
    net = fat_tree(8)
    for node in np.flatnonzero(net.node_tier == SUPERSPINE):
        peers = net.port_node[net.port_peer[net.node_first_port[node] : net.node_first_port[node + 1]]]
        assert sorted(net.node_pod[peers].tolist()) == list(range(8))


def test_names_lead_to_nodes_and_back() -> None:
    net = fat_tree(4)
    assert all(net.node_named(net.node_name(node)) == node for node in range(net.nodes))
    assert net.node_name(net.hosts) == "leaf0"
    with pytest.raises(
        SpecError, match=r'expected one of host0..host15, leaf0..leaf7, .*got "leav3" \(did you mean "le'
    ):
        net.node_named("leav3")
    with pytest.raises(SpecError, match=r"superspine0\.\.superspine3"):
        net.node_named("leaf8")


def test_a_host_or_network_that_is_not_there_is_refused() -> None:
    net = single_switch(4)
    assert net.endpoint(3) == net.endpoint(3, "net") == 3
    with pytest.raises(SpecError, match="expected a host from 0 to 3, got 4"):
        net.endpoint(4)
    with pytest.raises(SpecError, match='one of the networks net, got "nvlink"'):
        net.endpoint(0, "nvlink")


def test_a_failed_port_takes_the_other_end_of_its_cable_down() -> None:
    net = leaf_spine(4, 2, 3, links=2)
    link = net.links_between(net.node_named("leaf1"), net.node_named("spine2"))
    assert len(link) == 4
    assert np.flatnonzero(net.ports_up(link[:2]) == 0).tolist() == sorted(link.tolist())
    assert (net.ports_up(net.ports_of(net.node_named("spine0"))) == 0).sum() == 2 * 8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: single_switch(0), "single_switch: hosts: expected a whole number of at least 1, got 0"),
        (lambda: leaf_spine(2, 2, -1), "leaf_spine: spines: expected a whole number of at least 1, got -1"),
        (lambda: fat_tree(3), "fat_tree: k: expected an even number"),
        (lambda: single_switch(2, rate="400"), "single_switch: rate: expected a rate such as"),
        (lambda: single_switch(2, rate="0bps"), "single_switch: rate: expected at least 1Mbps, got 0bps"),
        (lambda: leaf_spine(buffer="x"), "leaf_spine: buffer: expected a size"),
        (lambda: leaf_spine(speed="400Gbps"), "leaf_spine: speed: unknown; known: rate"),
    ],
)
def test_a_wrong_count_or_quantity_is_named(build: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build()
    assert message in str(caught.value)


def test_arrays_can_be_replaced_by_others_of_the_same_shape() -> None:
    net = single_switch(2)
    gap = np.full(net.ports, 7)
    assert (net.replaced(port_message_gap=gap).port_message_gap == 7).all()
    assert (net.port_message_gap == 0).all()
    with pytest.raises(SpecError, match=r"port_message_gap: expected an array of shape \(4,\), got \(3,\)"):
        net.replaced(port_message_gap=gap[:3])
