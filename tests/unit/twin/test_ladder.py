"""The ladder of measures, and what it must show."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster, load_twin
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.exchange.runs import ExchangeRun, completed
from fourlane.twin.exchange.setting import exchange_setting
from fourlane.twin.ladder import RATE_SHARE, ladder, measures

if TYPE_CHECKING:
    from fourlane.spec.twin import Twin
    from fourlane.twin.ladder_values import LadderResult

NAMES = [
    "Baseline",
    "Adaptive routing",
    "Own queue",
    "ECN off",
    "KV on the DCN",
    "Balanced experts",
    "Dual stream",
]


def published_units() -> Twin:
    """Return one prefill unit EP32 and one decode unit EP144, of which the package has the tables."""
    return load_twin("deepseek-512", overrides=["prefill.units=1", "decode.units=1"])


@pytest.fixture(scope="module")
def climbed() -> LadderResult:
    return ladder(published_units(), processes=1)


def test_rungs_take_the_measures_in_order_each_one_more() -> None:
    skipped: dict[str, str] = {}
    twin = published_units()
    rungs = list(measures(twin, load_cluster(twin.cluster), skipped))
    assert [rung.name for rung in rungs] == NAMES
    assert not skipped
    for before, after in pairwise(rungs):
        changed = {
            f"{table}.{name}"
            for table in ("lanes", "experts", "prefill", "decode")
            for name in getattr(before.twin, table).__struct_fields__
            if getattr(getattr(before.twin, table), name) != getattr(getattr(after.twin, table), name)
        }
        assert (
            changed
            == {
                "Adaptive routing": {"lanes.routing"},
                "Own queue": {"lanes.expert_queue"},
                "ECN off": {"lanes.ecn"},
                "KV on the DCN": {"lanes.kv"},
                "Balanced experts": {
                    "experts.placement",
                    "experts.split",
                    "prefill.redundant_experts",
                    "decode.redundant_experts",
                },
                "Dual stream": {"prefill.overlap", "decode.overlap"},
            }[after.name]
        )


def test_measures_that_do_not_apply_are_left_out_with_the_reason() -> None:
    twin = msgspec.structs.replace(published_units(), cluster="one-network")
    twin = msgspec.structs.replace(twin, experts=msgspec.structs.replace(twin.experts, forced=True))
    skipped: dict[str, str] = {}
    rungs = [rung.name for rung in measures(twin, load_cluster("one-network"), skipped)]
    assert rungs == [name for name in NAMES if name not in ("KV on the DCN", "Balanced experts")]
    assert "one network only" in skipped["KV on the DCN"]
    assert "forced" in skipped["Balanced experts"]


def test_latencies_of_all_rungs_are_at_one_rate_that_all_serve(climbed: LadderResult) -> None:
    assert [rung.name for rung in climbed.rungs] == NAMES
    assert climbed.rate == pytest.approx(RATE_SHARE * min(rung.peak.rate for rung in climbed.rungs))
    for rung in climbed.rungs:
        assert rung.point.rate == climbed.rate
        assert rung.point.stable


def test_gains_of_rungs_multiply_to_the_whole(climbed: LadderResult) -> None:
    throughput = ttft = 1.0
    for rung in climbed.rungs[1:]:
        throughput *= 1 + rung.gain["throughput"]
        ttft *= 1 - rung.gain["ttft"]
    assert throughput == pytest.approx(1 + climbed.total["throughput"])
    assert ttft == pytest.approx(1 - climbed.total["ttft"])
    assert climbed.rungs[0].gain == {}


def test_the_ladder_pays_in_throughput_and_in_both_latencies(climbed: LadderResult) -> None:
    assert climbed.total["throughput"] > 0.5
    assert climbed.total["ttft"] > 0.1
    assert climbed.total["tpot"] > 0.03
    by_name = {rung.name: rung for rung in climbed.rungs}
    assert by_name["Own queue"].gain["tpot"] > 0.005
    assert by_name["Balanced experts"].gain["decode"] > 0.2
    assert by_name["Dual stream"].gain["prefill"] > 0.1


def test_a_ladder_is_plain_data_with_sources(climbed: LadderResult) -> None:
    document = climbed.summary()
    assert len(document["rungs"]) == len(NAMES)
    assert "twin" not in document["rungs"][0]
    assert "packets" in climbed.rungs[0].point.decode.step.sources["dispatch"]


def test_ecmp_against_adaptive_routing_widens_with_the_ep_degree() -> None:
    """Uplinks of a unit's leaves fill up with its ranks: what collides on one of them is what others leave idle."""
    architecture, cluster = load_architecture("deepseek-v3"), load_cluster("low-latency")
    ratio = {}
    for ranks in (32, 128):
        seconds = {}
        for routing in ("ecmp", "adaptive"):
            lanes = lanes_case(Lanes(routing=routing, expert_queue="own", ecn=False), cluster)
            setting = exchange_setting(architecture, cluster, ranks=ranks, phase="decode", lanes=lanes, gpu="h800")
            run = ExchangeRun(setting, "dispatch", 16)
            net = setting.topology(run.servers)
            seconds[routing] = run.read(completed([run.scenario(net)], 1)[0], net).seconds
        ratio[ranks] = seconds["ecmp"] / seconds["adaptive"]
    assert ratio[32] < 1.02
    assert ratio[128] > ratio[32] + 0.03
