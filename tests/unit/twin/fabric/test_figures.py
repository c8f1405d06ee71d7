"""Figures of topologies against networkx, formulas and counts by hand."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.twin.fabric import Topology, fat_tree, leaf_spine, single_switch
from fourlane.twin.fabric.figures import bisection, figures, path_counts
from fourlane.twin.fabric.max_flow import max_flow
from fourlane.twin.fabric.routing import distances
from fourlane.units import Rate

EDGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 30)), max_size=30)


@settings(max_examples=200, deadline=None)
@given(EDGES)
def test_maximum_flow_is_that_of_networkx(edges: list[tuple[int, int, int]]) -> None:
    edges = [edge for edge in edges if edge[0] != edge[1]]
    graph = nx.DiGraph()
    graph.add_nodes_from(range(7))
    for one, other, capacity in edges:
        had = graph.get_edge_data(one, other, {"capacity": 0})["capacity"]
        graph.add_edge(one, other, capacity=had + capacity)
    assert max_flow(7, edges, 0, 6) == nx.maximum_flow_value(graph, 0, 6)


def _flow_by_networkx(net: Topology, one: list[int], other: list[int], up: np.ndarray) -> int:
    graph = nx.DiGraph()
    for port in np.flatnonzero(up):
        here, there = int(net.port_node[port]), int(net.port_node[net.port_peer[port]])
        had = graph.get_edge_data(here, there, {"capacity": 0})["capacity"]
        graph.add_edge(here, there, capacity=had + int(net.port_rate[port]))
    for host in one:
        graph.add_edge("from", host)
    for host in other:
        graph.add_edge(host, "to")
    return nx.maximum_flow_value(graph, "from", "to")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([leaf_spine(4, 3, 2), leaf_spine(4, 2, 3, links=2, uplink_rate="100Gbps"), fat_tree(4)]),
    st.data(),
)
def test_bisection_is_the_maximum_flow_between_hosts_of_two_halves(net: Topology, data: st.DataObject) -> None:
    inner = np.flatnonzero(net.port_node >= net.hosts)
    up = net.ports_up(inner[data.draw(st.lists(st.integers(0, len(inner) - 1), max_size=10))])
    leaves = np.flatnonzero(net.leaf_index >= 0)
    half = len(leaves) // 2
    leaf_of = net.port_node[net.port_peer[net.endpoint_of[0]]]
    one = np.flatnonzero(np.isin(leaf_of, leaves[:half])).tolist()
    other = np.flatnonzero(np.isin(leaf_of, leaves[half:])).tolist()
    assert bisection(net, leaves[:half], leaves[half:], up != 0) == _flow_by_networkx(net, one, other, up)


def test_bisection_of_an_oversubscribed_leaf_spine_is_half_the_leaves_uplinks() -> None:
    net = figures(leaf_spine(16, 8, 4)).networks[0]
    assert net.bisection == Rate(8 * 4 * 400 * 10**9)
    assert net.full == pytest.approx(0.5)
    leaf, spine = figures(leaf_spine(16, 8, 4)).tiers
    assert (leaf.oversubscription, spine.oversubscription) == (2.0, None)
    assert (leaf.ports_of_one, spine.ports_of_one) == (12, 16)


def test_half_of_the_hosts_of_one_switch_can_send_to_the_other_half_at_full_rate() -> None:
    net = figures(single_switch(6)).networks[0]
    assert (net.bisection, net.full, net.hops, net.fewest_paths) == (Rate.parse("1200Gbps"), 1.0, {1: 1.0}, 1)


def test_fat_tree_of_16_ports_has_the_hops_and_paths_of_its_definition() -> None:
    found = figures(fat_tree(16))
    net = found.networks[0]
    assert net.bisection == Rate(512 * 400 * 10**9)
    assert net.hops == pytest.approx({1: 7 / 1023, 3: 56 / 1023, 5: 960 / 1023})
    assert (net.fewest_paths, net.most_paths) == (8, 64)
    assert [tier.oversubscription for tier in found.tiers] == [1.0, 1.0, None]
    assert [cable.count for cable in found.cables] == [1024, 1024, 1024]


@pytest.mark.parametrize("net", [leaf_spine(3, 1, 2, links=2), fat_tree(4), fat_tree(6)], ids=lambda net: net.name)
def test_shortest_paths_are_counted_as_by_listing_them(net: Topology) -> None:
    graph = nx.MultiGraph()
    for port in range(net.ports):
        here, there = int(net.port_node[port]), int(net.port_node[net.port_peer[port]])
        if net.hosts <= here < there:
            graph.add_edge(here, there)
    counts = path_counts(net, distances(net))
    leaves = np.flatnonzero(net.leaf_index >= 0)
    for one in leaves[:3]:
        for other in leaves:
            listed = 0
            for path in nx.all_shortest_paths(nx.Graph(graph), int(one), int(other)):
                links = [graph.number_of_edges(*pair) for pair in pairwise(path)]
                listed += int(np.prod(links, dtype=np.int64))
            assert counts[net.switch_index[one], net.leaf_index[other]] == listed


def test_what_failures_cut_off_is_counted_as_parts() -> None:
    net = leaf_spine(4, 2, 1)
    spine = net.node_named("spine0")
    up = net.ports_up(net.links_between(net.node_named("leaf3"), spine))
    found = figures(net, up).networks[0]
    assert found.parts == 2
    assert found.joined == pytest.approx(32 / 56)
    assert found.hops == pytest.approx({1: 8 / 32, 3: 24 / 32})
    assert found.bisection == Rate(400 * 10**9 * (1 + 1))
