"""What lanes do to exchanges beside KV cache, and the way of KV cache itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import Ecn
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange import ExchangeTable, LanesCase, exchange_setting, exchange_times, lanes_case
from fourlane.twin.exchange.filling import key_of_setting
from fourlane.twin.exchange.runs import ExchangeRun
from fourlane.twin.kv_path import kv_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.twin.times import Operation, Phase

CLUSTER = load_cluster("h800-ft")
RANKS = 16


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOURLANE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def case(**lanes: Any) -> LanesCase:
    return lanes_case(Lanes(**lanes), CLUSTER)


def table_of(phase: Phase = "decode", **lanes: Any) -> ExchangeTable:
    setting = exchange_setting(load_architecture("deepseek-v3"), CLUSTER, ranks=RANKS, phase=phase, lanes=case(**lanes))
    return exchange_times(setting, processes=1)


def seconds(table: ExchangeTable, operation: Operation = "combine") -> float:
    return table.operation(operation, 128, 1.0).seconds


def test_what_a_twin_does_not_say_is_as_the_plan_has_it() -> None:
    plan = default_plan(CLUSTER)
    made = case()
    assert made.plan == plan
    assert (made.routing, made.queue, made.ecn) == (plan.classes[TrafficClass.EXPERT].routing, "own", False)
    assert made.kv_network == "dcn"
    assert "adaptive, own queue, ECN off, KV on the DCN" in made.name


def test_kv_on_the_experts_network_gets_the_lane_of_a_cluster_with_no_other() -> None:
    made = case(kv="hpn")
    alone = default_plan(msgspec.structs.replace(CLUSTER, dcn=None)).classes[TrafficClass.KV]
    assert made.plan is not None
    lane = made.plan.classes[TrafficClass.KV]
    assert (lane.network, lane.weight, lane.cap) == ("hpn", alone.weight, alone.cap)


def test_kv_cannot_go_on_a_network_that_is_not_there() -> None:
    with pytest.raises(SpecError, match=r"lanes\.kv: expected \"hpn\", the only network of one-network, got \"dcn\""):
        lanes_case(Lanes(kv="dcn"), load_cluster("one-network"))


def test_a_plan_without_an_expert_lane_is_refused() -> None:
    plan = default_plan(CLUSTER)
    classes = {kind: lane for kind, lane in plan.classes.items() if kind != TrafficClass.EXPERT}
    with pytest.raises(SpecError, match="expected a lane for expert"):
        lanes_case(Lanes(), CLUSTER, msgspec.structs.replace(plan, classes=classes))


def test_where_ecn_is_on_the_expert_queue_marks_in_the_simulated_network() -> None:
    for ecn in (True, False):
        setting = exchange_setting(
            load_architecture("deepseek-v3"), CLUSTER, ranks=RANKS, phase="decode", lanes=case(ecn=ecn, kv="hpn")
        )
        scenario = ExchangeRun(setting, "dispatch", 4, kv_ranks=1, kv_s=1e-6).scenario()
        assert isinstance(scenario.settings.queues["expert"].ecn, Ecn) is ecn
        assert scenario.settings.classes["expert"].congestion == ("dcqcn" if ecn else "none")


def test_kv_in_the_experts_queue_costs_more_than_in_its_own_and_nothing_on_its_own_network() -> None:
    shares = (0.0, 0.001, 0.02, 0.2)
    shared, own, apart = (
        [seconds(table_of(**lanes).with_background(share)) for share in shares]
        for lanes in ({"kv": "hpn", "expert_queue": "shared"}, {"kv": "hpn"}, {"kv": "dcn"})
    )
    assert apart == [apart[0]] * len(shares)
    assert shared[0] == own[0] == apart[0]
    assert shared == sorted(shared)
    assert own == sorted(own)
    assert shared[-1] > 1.5 * shared[0]
    assert own[0] < own[-1] < 1.25 * own[0]


def test_beside_kv_on_every_nic_a_table_is_as_packets_are() -> None:
    table = table_of(kv="hpn", expert_queue="shared")
    beside = table.with_background(1.0)
    alone_s = table.network_s("combine", 64)
    run = ExchangeRun(table.setting, "combine", 64, kv_ranks=RANKS, kv_s=2.5 * alone_s)
    net = table.setting.topology(run.servers)
    assert beside.network_s("combine", 64) == pytest.approx(run.read(run.scenario(net).run(), net).seconds, rel=0.08)
    assert "KV cache on 100.0% of each NIC" in beside.source


def test_cases_that_differ_only_beside_kv_share_a_table() -> None:
    keys = {
        key_of_setting(table_of(**lanes).setting)
        for lanes in ({}, {"kv": "hpn"}, {"expert_queue": "shared"}, {"kv": "hpn", "expert_queue": "shared"})
    }
    assert len(keys) == 1
    assert key_of_setting(table_of(routing="ecmp").setting) not in keys


def test_a_background_below_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"expected a share of the NIC from 0 up, got -0\.1"):
        table_of(kv="hpn").with_background(-0.1)


def test_kv_goes_by_a_ranks_share_of_the_nics_of_its_network() -> None:
    dcn, hpn = kv_path(CLUSTER, case()), kv_path(CLUSTER, case(kv="hpn"))
    assert dcn.line_rate == pytest.approx(2 * 200e9 / 8 / 8)
    assert hpn.line_rate == pytest.approx(400e9 / 8)
    assert dcn.out_rate == pytest.approx(0.87 * dcn.line_rate)
    assert hpn.out_rate == pytest.approx(0.5 * hpn.line_rate), "its lane's cap"
    assert dcn.background(1e9) == 0.0
    assert hpn.background(5e9) == pytest.approx(0.1)
    assert dcn.seconds(0.0) == dcn.latency_s
    assert dcn.seconds(1e9) == pytest.approx(dcn.latency_s + 1e9 / dcn.out_rate)


def test_expert_traffic_slows_kv_down_to_its_lanes_weight_on_the_same_network_only() -> None:
    dcn, hpn = kv_path(CLUSTER, case()), kv_path(CLUSTER, case(kv="hpn"))
    assert dcn.beside(1.0) == dcn
    plan = case(kv="hpn").plan
    assert plan is not None
    kv, expert = plan.classes[TrafficClass.KV].weight, plan.classes[TrafficClass.EXPERT].weight
    assert kv is not None
    assert expert is not None
    assert hpn.beside(1.0).in_rate == pytest.approx(hpn.line_rate * kv / (kv + expert))
    assert hpn.beside(1.0).in_rate < hpn.beside(0.5).in_rate < hpn.in_rate


def test_layers_sent_as_they_are_done_hide_all_but_the_last_behind_a_long_prompt() -> None:
    path = kv_path(CLUSTER, case())
    size, layers = 280e6, 61
    sending = path.seconds(size) - path.latency_s
    assert path.exposed_s(size, 10 * sending, layers) == pytest.approx(path.latency_s + sending / layers)
    assert path.exposed_s(size, 0.0, layers) == pytest.approx(path.seconds(size))
    assert path.exposed_s(size, 0.5 * sending, layers) == pytest.approx(path.latency_s + sending * (1 - 0.5 * 60 / 61))
