"""Topologies of cluster files: rails, planes, pods, NVLink, delays; and what cannot be cabled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.figures import figures
from fourlane.twin.fabric.routing import FAR, routing_table
from fourlane.units import Rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.fabric import Topology

CATALOG = [
    ("dual-plane-10k", "hpn"),
    ("h800-10k", "hpn"),
    ("h800-10k", "dcn"),
    ("h800-ft", "hpn"),
    ("h800-ft", "dcn"),
    ("lab", "hpn"),
    ("lab", "dcn"),
    ("low-latency", "hpn"),
    ("low-latency", "dcn"),
    ("one-network", "hpn"),
]


def _leaf_of(net: Topology, network: int = 0) -> NDArray[np.int32]:
    leaf = net.leaf_index[net.port_node[net.port_peer[net.endpoint_of[network]]]]
    return leaf - leaf.min()


@pytest.mark.parametrize(("name", "network"), CATALOG)
def test_clusters_of_the_catalog_can_be_cabled_and_carry_full_bisection(name: str, network: str) -> None:
    cluster = load_cluster(name)
    net = rail_clos(cluster, network)
    nics = len(cluster.networks()[network].interfaces) // cluster.networks()[network].planes
    assert net.hosts == cluster.servers * nics
    assert net.gpus == cluster.servers * cluster.gpus_per_server
    for each in figures(net).networks:
        assert each.full == pytest.approx(1.0)


def test_nic_r_of_every_server_stands_on_a_leaf_of_rail_r() -> None:
    host = np.arange(512)
    assert (_leaf_of(rail_clos("h800-ft")) == host % 8).all()
    assert (_leaf_of(rail_clos("one-network")) == np.arange(128) % 8 // 4).all()
    assert (_leaf_of(rail_clos("low-latency")) == host % 8 * 4 + host // 8 // 16).all()
    pods = _leaf_of(rail_clos("h800-10k"))
    server, rail = np.divmod(np.arange(10240), 8)
    assert (pods == server // 256 * 32 + rail * 4 + server % 256 // 64).all()


def test_a_cluster_of_10240_gpus_is_built_and_routed_in_seconds() -> None:
    begin = time.process_time()
    net = rail_clos("h800-10k")
    table = routing_table(net)
    assert time.process_time() - begin < 3.0
    assert (net.gpus, net.switches) == (10240, 160 + 160 + 128 + 1280)
    hpn = table.distance[:160, :160]
    assert (hpn < FAR).all()
    pod = np.arange(160) // 32
    expected = np.where(np.eye(160, dtype=bool), 0, np.where(pod[:, None] == pod, 2, 4))
    assert (hpn == expected).all()


def test_planes_share_no_switch_and_are_reached_by_ports_of_their_own() -> None:
    net = rail_clos("dual-plane-10k")
    assert net.networks == ("hpn.0", "hpn.1", "nvlink")
    between = net.port_network[net.port_peer]
    assert (between == net.port_network).all()
    switches = [set(net.port_node[(net.port_network == plane) & (net.port_node >= net.hosts)]) for plane in (0, 1)]
    assert not switches[0] & switches[1]
    assert (_leaf_of(net, 0) == _leaf_of(net, 1)).all()
    assert net.endpoint(5, "hpn.1") == net.endpoint(5, "hpn.0") + 1


def test_rails_with_spines_of_their_own_are_networks_apart_unless_superspines_join_them() -> None:
    apart = load_cluster("low-latency", overrides=["hpn.spines=per-rail"])
    found = figures(rail_clos(apart)).networks[0]
    assert (found.parts, found.full) == (8, 1.0)
    joined = load_cluster("h800-10k", overrides=["hpn.spines=per-rail"])
    found = figures(rail_clos(joined)).networks[0]
    assert (found.parts, set(found.hops)) == (1, {1, 3, 5})


def test_nvlink_joins_the_gpus_of_a_server_and_no_others() -> None:
    net = rail_clos("low-latency")
    switch = net.port_node[net.port_peer[net.endpoint_of[net.networks.index("nvlink")]]]
    assert (switch - switch.min() == net.host_server).all()
    assert (net.gpu_host == np.arange(512)).all()
    assert net.node_name(switch[9]) == "nvswitch1"
    rate = net.port_rate[net.endpoint(9, "nvlink")]
    assert rate == Rate.parse("160GB/s")
    assert rail_clos("low-latency", nvlink=False).networks == ("hpn",)


def test_gpus_that_share_a_nic_share_a_host() -> None:
    net = rail_clos("h800-ft", "dcn")
    assert (net.gpu_host[:16] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]).all()


def test_delays_come_from_cables_error_correction_chips_and_nics() -> None:
    net = rail_clos("low-latency")
    host = net.endpoint(0)
    leaf = net.port_node[net.port_peer[host]]
    assert net.port_prop[host] == 3 * 5_000 + 100_000
    assert net.node_latency[leaf] == 500_000
    assert net.port_tx_latency[host] == net.port_rx_latency[host] == 700_000
    assert net.node_cut_through[leaf] == 1
    spine = net.port_node[net.port_peer[net.links_between(leaf, net.node_named("spine3"))[0]]]
    assert net.node_name(spine) == "spine3"
    assert net.port_prop[net.links_between(leaf, spine)[0]] == 10 * 5_000 + 100_000
    slow = rail_clos(load_cluster("low-latency", overrides=["hpn.leaf.latency=250ns"]))
    assert slow.node_latency[leaf] == 250_000
    assert slow.node_latency[spine] == 500_000


def test_an_oversubscribed_cluster_shows_it_in_its_figures() -> None:
    found = figures(rail_clos(load_cluster("h800-ft", overrides=["hpn.leaf.up_ports=8"])))
    assert found.tiers[0].oversubscription == pytest.approx(4.0)
    assert found.networks[0].full == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["hpn.leaf.down_ports=63"], "hpn.leaf.down_ports: expected at least 64, the most NICs on one leaf, got 63"),
        (["servers=65"], "hpn.leaf.down_ports: expected at least 65"),
        (["hpn.spine.down_ports=60"], "hpn.spine.down_ports: expected at least 64, the most links to one, got 60"),
        (["hpn.leaf.up_ports=3"], "hpn.leaf.up_ports: expected at least 4, one to every spine"),
        (["hpn.leaf.count=12"], "hpn.leaf.count: expected a multiple or a divisor of 8 rails"),
        (["hpn.spine.count=6", "hpn.spines=per-rail"], "hpn.spine.count: expected 8 blocks of equal size"),
        (["gpus_per_server=4"], "hpn.interfaces: with NVLink (gpu = 'h800') expected a NIC for each of 4 GPUs, got 8"),
    ],
)
def test_what_cannot_be_cabled_is_named(changes: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        rail_clos(load_cluster("h800-ft", overrides=changes))
    assert any(f"h800-ft: {message}" in fault for fault in caught.value.faults)


def test_a_network_that_the_cluster_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="one-network: expected one of the networks hpn, got dcn"):
        rail_clos("one-network", "dcn")
