"""What is simulated to fill a table: the part of the network, who sends what to whom, and what lanes do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange import ExchangeSetting, exchange_setting, lanes_case
from fourlane.twin.exchange.runs import ExchangeRun
from fourlane.twin.exchange.skewed_routing import deal_messages, draw_ranks, rank_weights
from fourlane.twin.exchange.unit_network import unit_cluster
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.routing import routing_table

if TYPE_CHECKING:
    from fourlane.twin.times import Phase

ALL_CLUSTERS = ("h800-ft", "h800-10k", "low-latency", "dual-plane-10k", "rails-400g", "one-network")


def setting_of(
    ranks: int, cluster: str, *, routing: str | None = None, phase: Phase = "decode", model: str = "deepseek-v3"
) -> ExchangeSetting:
    read = load_cluster(cluster)
    case = lanes_case(Lanes(routing=routing), read)  # type: ignore[arg-type]
    return exchange_setting(load_architecture(model), read, ranks=ranks, phase=phase, lanes=case, gpu="h800")


def seconds(setting: ExchangeSetting, tokens: int, *, units: int = 1) -> float:
    run = ExchangeRun(setting, "combine", tokens, units=units)
    net = setting.topology(run.servers)
    return run.read(run.scenario(net).run(), net).seconds


@pytest.mark.parametrize("name", ALL_CLUSTERS)
@pytest.mark.parametrize("servers", [1, 3, 16])
def test_a_part_of_a_cluster_is_to_its_servers_what_the_cluster_is(name: str, servers: int) -> None:
    cluster = load_cluster(name)
    whole, part = (rail_clos(each, nvlink=False) for each in (cluster, unit_cluster(cluster, servers)))
    nics = servers * cluster.gpus_per_server
    assert part.hosts >= nics
    tables = [routing_table(net) for net in (whole, part)]
    for net in (whole, part):
        assert list(net.host_server[:nics]) == list(np.repeat(np.arange(servers), cluster.gpus_per_server))
    legs = [
        [
            table.distance[net.switch_index[net.port_node[net.port_peer[net.endpoint_of[0, 0]]]], net.leaf_index[leaf]]
            for leaf in net.port_node[net.port_peer[net.endpoint_of[0, :nics]]]
        ]
        for net, table in zip((whole, part), tables, strict=True)
    ]
    assert legs[0] == legs[1], "every NIC is as far from the first one"
    assert part.hosts <= whole.hosts
    if cluster.servers > 1000 and servers == 1:
        assert part.nodes < whole.nodes / 20


def test_a_unit_larger_than_the_cluster_is_refused() -> None:
    with pytest.raises(SpecError, match="one-network: servers: expected at least 17"):
        unit_cluster(load_cluster("one-network"), 17)
    with pytest.raises(SpecError, match=r"decode\.ranks: expected 1 to 128, the GPUs of one-network, got 136"):
        setting_of(136, "one-network")
    with pytest.raises(SpecError, match=r"decode\.ranks: expected whole servers of 8 GPUs, got 12 ranks"):
        setting_of(12, "one-network")


@pytest.mark.parametrize("balance", [1.0, 1.2, 2.5])
def test_every_rank_is_dealt_just_its_share_from_every_node(balance: float) -> None:
    count_GG = deal_messages(np.random.default_rng(1), ranks=32, each=320, max_over_mean=balance, ranks_per_node=8)
    assert (count_GG.sum(axis=1) == 320).all()
    got_G = count_GG.sum(axis=0)
    assert got_G.max() / got_G.mean() == pytest.approx(balance, rel=0.01)
    from_node = count_GG.reshape(4, 8, 32).sum(axis=1)
    assert (from_node.max(axis=0) - from_node.min(axis=0) <= 1).all()


def test_shares_of_ranks_are_spread_up_to_the_fullest() -> None:
    weight_G = rank_weights(64, 1.6)
    assert weight_G.max() == pytest.approx(1.6)
    assert weight_G.mean() == pytest.approx(1.0)
    assert (np.diff(weight_G) <= 0).all()
    assert weight_G.min() > 0.4


def test_tokens_choose_distinct_experts_within_their_groups_in_proportion() -> None:
    drawn = draw_ranks(
        np.random.default_rng(2),
        ranks=16,
        tokens=500,
        experts=64,
        top_k=6,
        groups=8,
        top_groups=3,
        max_over_mean=1.5,
    )
    assert drawn.shape == (8000, 6)
    assert max(len(set(row // 2)) for row in drawn) <= 3, "two ranks hold a group"
    assert max(np.bincount(row).max() for row in drawn) <= 4, "of the four experts on a rank"
    got_G = np.bincount(drawn.ravel(), minlength=16)
    assert 1.2 < got_G.max() / got_G.mean() < 1.6
    evenly = draw_ranks(
        np.random.default_rng(2), ranks=16, tokens=500, experts=64, top_k=6, groups=1, top_groups=1, max_over_mean=1.0
    )
    assert np.bincount(evenly.ravel()).max() < 1.05 * 3000


def test_hashed_paths_cost_more_the_more_ranks_exchange_where_uplinks_are_just_enough() -> None:
    gaps = [
        seconds(setting_of(ranks, "low-latency", routing="ecmp"), 32)
        / seconds(setting_of(ranks, "low-latency", routing="adaptive"), 32)
        for ranks in (16, 64, 128)
    ]
    assert gaps[0] == pytest.approx(1.0, abs=0.01)
    assert gaps[0] <= gaps[1] + 0.01
    assert gaps[2] > 1.08


def test_units_side_by_side_take_longer_where_uplinks_are_too_few() -> None:
    setting = setting_of(64, "rails-400g")
    assert setting.neighbours == 4
    alone, together = (seconds(setting, 8, units=units) for units in (1, setting.neighbours))
    assert together > 1.3 * alone
    roomy = setting_of(64, "h800-ft")
    assert seconds(roomy, 8, units=2) < 1.05 * seconds(roomy, 8)


def test_kernels_of_other_gpus_are_assumed_and_said_to_be() -> None:
    cluster = msgspec.structs.replace(load_cluster("h800-ft"), gpu="h200")
    case = lanes_case(Lanes(), cluster)
    architecture = load_architecture("deepseek-v3")
    setting = exchange_setting(architecture, cluster, ranks=8, phase="decode", lanes=case)
    assert "assumed as on h100" in setting.kernels_source
    published = setting_of(8, "h800-ft")
    assert published.kernels_source == "expert kernels of h800"


def test_messages_are_as_large_as_what_tokens_are_sent_as() -> None:
    fp8 = setting_of(8, "h800-ft")
    assert (fp8.message("dispatch"), fp8.message("combine")) == (7408, 14336)
    bf16 = setting_of(8, "h800-ft", model="qwen3-30b-a3b")
    assert (bf16.message("dispatch"), bf16.message("combine")) == (4096, 4096)
    for setting in (fp8, bf16):
        for phase in ("prefill", "decode"):
            run = ExchangeRun(msgspec.structs.replace(setting, phase=phase), "dispatch", 16)
            assert run.traffic.message == setting.message("dispatch")
            assert (run.traffic.size % run.traffic.message == 0).all()
            assert run.traffic.size.sum() > 0
