"""Whole clusters: where units stand, what their traffic does to each other, and to which links."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cluster_services import service

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import TwinPool
from fourlane.twin.cluster_traffic import cluster_traffic
from fourlane.twin.cluster_use import ClusterLoad, cluster_use
from fourlane.twin.unit_placement import place_units

BUSY = ClusterLoad(prefill=0.4, decode=0.5, kv_rate=4e9)
FOUR = {"prefill": TwinPool(units=4, ranks=32), "decode": TwinPool(units=2, ranks=64)}


def test_units_stand_in_rank_order_and_none_straddles_pods_while_there_is_room() -> None:
    twin = service("h800-10k", prefill=TwinPool(units=60, ranks=32), decode=TwinPool(units=20, ranks=144)).twin
    cluster = load_cluster("h800-10k")
    placed = place_units(twin, cluster)
    pod = 256 * 8
    for gpu_UR in placed.gpu_UR.values():
        assert (gpu_UR[:, 0] // pod == gpu_UR[:, -1] // pod).all()
        assert (gpu_UR[:, 0] % 8 == 0).all()
    taken = np.concatenate([gpus.reshape(-1) for gpus in placed.gpu_UR.values()])
    assert (np.diff(taken) > 0).all()
    assert placed.gpus == twin.gpus


def test_units_straddle_pods_where_all_of_them_only_so_find_room_and_too_many_are_refused() -> None:
    cluster = load_cluster("h800-10k")
    full = service("h800-10k", prefill=TwinPool(units=40, ranks=96), decode=TwinPool(units=100, ranks=64)).twin
    straddling = place_units(full, cluster).gpu_UR["prefill"]
    assert (straddling[:, 0] // 2048 != straddling[:, -1] // 2048).any()
    more = msgspec.structs.replace(full, decode=TwinPool(units=101, ranks=64))
    with pytest.raises(SpecError, match=r"expected at most the 10240 GPUs of h800-10k.* got 10304 ranks in 141 units"):
        place_units(more, cluster)


def test_small_units_do_not_straddle_servers() -> None:
    twin = service("h800-ft", prefill=TwinPool(units=2, ranks=8), decode=TwinPool(units=1, ranks=8)).twin
    odd = msgspec.structs.replace(twin, prefill=TwinPool(units=3, ranks=6))
    assert place_units(odd, load_cluster("h800-ft")).gpu_UR["prefill"][:, 0].tolist() == [0, 8, 16]


def test_every_unit_sends_what_its_first_does_between_its_own_gpus() -> None:
    traffic = cluster_traffic(service("h800-ft", **FOUR, kv="hpn"))
    flows, each = traffic.exchange["decode"], traffic.per_unit["decode"]
    host = traffic.topology.port_node[flows.source].reshape(2, each)
    assert (host[1] - host[0] == 64).all()
    assert set(host[0].tolist()) == set(traffic.gpu_UR["decode"][0].tolist())


def test_a_lane_of_its_own_bounds_what_kv_cache_does_to_exchanges_and_a_second_network_ends_it() -> None:
    found = {
        name: cluster_use(service("h800-ft", **FOUR, **lanes), BUSY)
        for name, lanes in {
            "shared": {"kv": "hpn", "expert_queue": "shared"},
            "own": {"kv": "hpn"},
            "dcn": {"kv": "dcn"},
        }.items()
    }
    kv = {name: use.slowdown["prefill"].kv for name, use in found.items()}
    assert kv["own"] == pytest.approx(80 / 70, rel=0.01)  # weights 70 and 10
    assert kv["dcn"] == pytest.approx(1)
    assert kv["shared"] > 1.05
    assert found["own"].kv_slowdown > found["dcn"].kv_slowdown
    assert {tier.network for tier in found["dcn"].tiers} == {"hpn", "nvlink", "dcn"}


def test_the_more_units_meet_in_spines_the_longer_hashed_exchanges_take_and_adaptive_ones_do_not() -> None:
    found = {
        (routing, units): cluster_use(
            service("low-latency", prefill=TwinPool(units=1), decode=TwinPool(units=units, ranks=32), routing=routing),
            ClusterLoad(prefill=0.0, decode=1.0, kv_rate=0.0),
            draws=2,
        ).slowdown["decode"]
        for routing in ("ecmp", "adaptive")
        for units in (1, 6)
    }
    assert found["ecmp", 1].units == pytest.approx(1)
    assert found["ecmp", 6].units > found["ecmp", 1].units
    assert found["ecmp", 6].worst >= found["ecmp", 6].units
    assert found["adaptive", 6].units == pytest.approx(1, abs=0.02)


def test_links_are_used_in_proportion_to_how_long_units_exchange() -> None:
    a, b = (
        cluster_use(service("h800-ft", **FOUR), ClusterLoad(prefill=share, decode=share, kv_rate=0.0), draws=40)
        for share in (0.25, 0.75)
    )
    rare, often = (
        next(tier.mean for tier in use.tiers if (tier.network, tier.tiers) == ("hpn", "host to leaf")) for use in (a, b)
    )
    assert 1.5 < often / rare < 3.5
    assert a.summary()["load"] == {"prefill": 0.25, "decode": 0.25, "kv_rate": 0.0}


def test_the_same_seed_draws_the_same() -> None:
    one, other = (cluster_use(service("h800-ft", **FOUR, kv="hpn"), BUSY).summary() for _ in range(2))
    assert one == other
