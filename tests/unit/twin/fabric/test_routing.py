"""Routing tables hold exactly the next hops of all shortest paths, before and after failures."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.twin.fabric import Topology, fat_tree, leaf_spine, single_switch
from fourlane.twin.fabric.routing import FAR, check_routable, routing_table, unroutable

NETS = [single_switch(3), leaf_spine(4, 2, 3, links=2), leaf_spine(5, 1, 4), fat_tree(4)]


def _graph(net: Topology, up: np.ndarray) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(net.hosts, net.nodes))
    for port in np.flatnonzero(up):
        here, there = int(net.port_node[port]), int(net.port_node[net.port_peer[port]])
        if here >= net.hosts and there >= net.hosts:
            graph.add_edge(here, there)
    return graph


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NETS), st.data())
def test_next_hops_are_those_of_all_shortest_paths_whatever_failed(net: Topology, data: st.DataObject) -> None:
    failed = data.draw(st.lists(st.integers(0, net.ports - 1), max_size=12))
    up = net.ports_up(failed)
    table = routing_table(net, up)
    graph = _graph(net, up)
    for leaf in np.flatnonzero(net.leaf_index >= 0):
        hops = nx.single_source_shortest_path_length(graph, int(leaf))
        for switch in range(net.hosts, net.nodes):
            found = table.next_hops(net.switch_index[switch], net.leaf_index[leaf]).tolist()
            ports = range(net.node_first_port[switch], net.node_first_port[switch + 1])
            peers = {port: int(net.port_node[net.port_peer[port]]) for port in ports if up[port]}
            there = hops.get(switch, FAR)
            assert table.distance[net.switch_index[switch], net.leaf_index[leaf]] == there
            assert found == [port for port, peer in peers.items() if hops.get(peer, FAR) + 1 == there]


def test_a_pair_cut_off_by_failures_is_reported_by_name() -> None:
    net = leaf_spine(2, 2, 2)
    failed = np.concatenate([net.ports_of(net.node_named(name)) for name in ("spine0", "spine1")])
    up = net.ports_up(failed)
    table = routing_table(net, up)
    source = net.endpoint_of[0][[0, 0, 1]]
    destination = net.endpoint_of[0][[1, 2, 3]]
    assert unroutable(net, table, source, destination, up=up).tolist() == [False, True, True]
    with pytest.raises(SpecError) as caught:
        check_routable(net, table, source, destination, up=up)
    assert caught.value.faults[0] == (
        "leaf_spine(2x2x2): flow 1: no path from host0 (net) to host2 (net) with the links and switches that are up"
    )
    check_routable(net, routing_table(net), source, destination)


def test_a_host_whose_own_link_failed_is_reported() -> None:
    net = single_switch(3)
    up = net.ports_up([1])
    with pytest.raises(
        SpecError, match=r"flow 0: no path from host0 .net. to host1 .net.: its link to the leaf failed"
    ):
        check_routable(net, routing_table(net, up), net.endpoint_of[0][:1], net.endpoint_of[0][1:2], up=up)


def test_only_the_first_few_pairs_without_a_path_are_named() -> None:
    net = leaf_spine(2, 8, 1)
    up = net.ports_up(net.ports_of(net.node_named("spine0")))
    with pytest.raises(SpecError) as caught:
        check_routable(net, routing_table(net, up), net.endpoint_of[0][:8], net.endpoint_of[0][8:], up=up)
    assert len(caught.value.faults) == 6
    assert "3 more flows without a path" in caught.value.faults[-1]
