"""Rates at flow level: closed forms, exact water-filling, shares of lanes, and what packets do over the same links."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.twin.fabric import Flows, Scenario, all_to_all, between, incast, leaf_spine, single_switch
from fourlane.twin.fabric.named import named
from fourlane.twin.fabric.theory import max_min_shares
from fourlane.twin.flow_level import flow_rates, flow_times, times_of

GBPS = 1e9
TINY_ACKS = {"packets": {"ack": "1B"}}


def own(**weights: int | str) -> dict[str, object]:
    """Return settings with a queue for each class: weighted, or strict."""
    queues = {
        name: {"scheduler": "strict"} if weight == "strict" else {"scheduler": "dwrr", "weight": weight}
        for name, weight in weights.items()
    }
    return {"lanes": "own", "queues": queues, **TINY_ACKS}


@pytest.mark.parametrize(
    ("name", "routing"), [("ONE_4K", "ecmp"), ("ONE_1M", "spray"), ("I64_64K", "ecmp"), ("I64_1M", "adaptive")]
)
def test_where_one_link_decides_the_time_is_that_of_packets(name: str, routing: str) -> None:
    scenario = named(name, routing=routing)
    assert times_of(scenario).makespan_us == pytest.approx(scenario.run().makespan_us, rel=1e-3)


@pytest.mark.parametrize(("name", "within"), [("A16s_64K", 0.005), ("A64_64K", 0.03), ("P128_2MB", 0.01)])
def test_collisions_of_hashed_flows_cost_what_they_cost_packets(name: str, within: float) -> None:
    scenario = named(name, routing="ecmp")
    assert times_of(scenario).makespan_us == pytest.approx(scenario.run().makespan_us, rel=within)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rates_of_hosts_that_send_one_flow_each_are_the_exact_max_min_shares(data: st.DataObject) -> None:
    hosts = data.draw(st.integers(2, 8))
    net = single_switch(hosts, rate="400Gbps")
    source = data.draw(st.lists(st.integers(0, hosts - 1), min_size=1, max_size=hosts, unique=True))
    target = [(one + data.draw(st.integers(1, hosts - 1))) % hosts for one in source]
    exact = max_min_shares(
        [[one, hosts + other] for one, other in zip(source, target, strict=True)], [Fraction(400)] * 2 * hosts
    )
    found = flow_rates(net, between(net, source, target, "1MB"), **TINY_ACKS)
    assert found.wire_rate / GBPS == pytest.approx([float(rate) for rate in exact], rel=3e-3)


def test_flows_share_a_queue_by_what_arrives_of_them_as_their_packets_do() -> None:
    net = single_switch(6, rate="400Gbps")
    one_of_many = between(net, [0, 0, 0, 0], [5, 1, 2, 3], "4MB")
    alone = between(net, [4], [5], "4MB", traffic="kv")
    found = flow_rates(net, [one_of_many, alone], **TINY_ACKS).wire_rate / GBPS
    assert found[[0, 4]] == pytest.approx([80, 320], rel=0.01)  # 100 and 400 arrive
    scenario = Scenario(net, [one_of_many, alone])
    assert times_of(scenario).finish_us[4] == pytest.approx(scenario.run().finish_us[4], rel=0.03)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), routing=st.sampled_from(["ecmp", "adaptive", "spray"]))
def test_every_flow_is_held_down_by_a_full_port_and_none_of_its_host_is_faster_there(seed: int, routing: str) -> None:
    net = leaf_spine(4, 4, 2, rate="400Gbps")
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 16, 40)
    flows = between(net, source, (source + rng.integers(1, 16, 40)) % 16, "1MB")
    found = flow_rates(net, flows, routing=routing)
    assert found.use.share.max() <= 1 + 5e-4  # acknowledgements are taken off at rates of the pass before
    assert (found.bottleneck >= 0).all()
    assert found.use.share[found.bottleneck] == pytest.approx(1, abs=0.05 if routing == "adaptive" else 5e-4)
    same_port = found.bottleneck[:, None] == flows.source
    fastest = np.where(same_port, found.wire_rate, 0).max(axis=1)
    assert (found.wire_rate >= fastest * (1 - 1e-6))[same_port.any(axis=1)].all()


def test_hashed_flows_load_the_links_that_their_packets_take() -> None:
    scenario = Scenario(net := leaf_spine(4, 4, 4), all_to_all(net, "64KiB"), routing="ecmp")
    packets, flows = scenario.run(), times_of(scenario)
    inner = (net.node_kind[net.port_node] == 1) & (net.node_kind[net.port_node[net.port_peer]] == 1)
    assert packets.raw["port_tx_bytes"][inner, 0].tolist() == flows.port_bytes[inner, 0].round().astype(int).tolist()


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"expert": 75, "kv": 25}, (300, 100)),
        ({"expert": "strict", "kv": 25}, (400, 0)),
        ({"expert": 1, "kv": "strict"}, (0, 400)),
    ],
)
def test_queues_of_a_link_share_it_as_their_lanes_say(weights: dict[str, int | str], shares: tuple[int, int]) -> None:
    net = single_switch(3, rate="400Gbps")
    pair = [between(net, [0], [2], "1MB"), between(net, [1, 1], [2, 2], "1MB", traffic="kv")]
    found = flow_rates(net, pair, **own(**weights)).wire_rate / GBPS
    assert found == pytest.approx([shares[0], shares[1] / 2, shares[1] / 2], abs=1)


def test_what_a_class_cannot_use_goes_to_the_others() -> None:
    net = single_switch(4, rate="400Gbps")
    narrow = between(net, [0, 0, 0, 0], [1, 2, 3, 3], "1MB")  # its last two get 100 each at most
    kv = between(net, [2], [3], "1MB", traffic="kv")
    found = flow_rates(net, [narrow, kv], **own(expert=90, kv=10)).wire_rate / GBPS
    assert found == pytest.approx([100, 100, 100, 100, 200], rel=1e-3)


def test_a_cap_bounds_a_queue_even_where_nothing_else_is_sent() -> None:
    net = single_switch(3, rate="400Gbps")
    rules = own(kv="strict", expert=10)
    rules["queues"]["kv"]["cap"] = 40  # type: ignore[index]
    alone = flow_rates(
        net, between(net, [0], [2], "1MB", traffic="kv"), **{**rules, "queues": {"kv": rules["queues"]["kv"]}}
    )  # type: ignore[index]
    both = flow_rates(net, [between(net, [0], [2], "1MB", traffic="kv"), between(net, [1], [2], "1MB")], **rules)
    assert alone.wire_rate / GBPS == pytest.approx([160], rel=1e-3)
    assert both.wire_rate / GBPS == pytest.approx([160, 240], rel=1e-3)


def test_adaptive_flows_go_round_a_hashed_one_and_sprayed_ones_do_not() -> None:
    net = leaf_spine(2, 4, 4, rate="400Gbps")
    hashed = between(net, [0], [4], "1MB", traffic="kv")
    others = between(net, [1, 2, 3], [5, 6, 7], "1MB")
    rates = {
        routing: flow_rates(net, [hashed, others], classes={"kv": {"routing": "ecmp"}, "expert": {"routing": routing}})
        for routing in ("adaptive", "spray")
    }
    assert rates["adaptive"].payload_rate / GBPS == pytest.approx([400 * 4096 / 4160] * 4, rel=0.02)
    assert rates["spray"].payload_rate.min() / GBPS < 240  # a quarter of each of the three meets the hashed flow


def test_a_spine_that_failed_leaves_its_share_to_the_others() -> None:
    net = leaf_spine(2, 4, 4, rate="400Gbps")
    flows = between(net, [0, 1, 2, 3], [4, 5, 6, 7], "1MB")
    whole, hurt = (
        flow_rates(net, flows, routing="adaptive", failures=failures).wire_rate.sum() / GBPS
        for failures in ((), ({"switch": "spine1"},))
    )
    assert (whole, hurt) == (pytest.approx(1600, rel=0.02), pytest.approx(1200, rel=0.02))


def test_a_flow_that_waits_begins_when_the_other_is_delivered() -> None:
    net = single_switch(2, rate="400Gbps")
    pair = between(net, [0, 0], [1, 1], "1MB").waiting([0], [1])
    scenario = Scenario(net, pair)
    found, packets = times_of(scenario), scenario.run()
    assert found.start_us[1] == found.delivered_us[0]
    assert found.finish_us == pytest.approx(packets.finish_us, rel=2e-3)


def test_gates_and_later_starts_are_kept() -> None:
    net = single_switch(2, rate="400Gbps")
    late = between(net, [0], [1], "1MB").starting("50us")
    gate = Flows.gates(1, delay="7us")
    found = flow_times(net, [late, gate])
    assert found.start_us.tolist() == pytest.approx([50, 7])
    assert found.finish_us[1] == pytest.approx(7)


def test_rates_that_are_worked_out_less_often_end_flows_little_later() -> None:
    net = leaf_spine(4, 4, 4)
    rng = np.random.default_rng(3)
    source = rng.integers(0, 16, 200)
    flows = between(net, source, (source + rng.integers(1, 16, 200)) % 16, rng.integers(10_000, 1_000_000, 200))
    exact, usual, rough = (flow_times(net, flows, routing="ecmp", tolerance=share) for share in (0.0, 0.01, 0.05))
    assert rough.rounds < usual.rounds < exact.rounds
    assert exact.makespan_us * 0.999 <= usual.makespan_us <= exact.makespan_us * 1.02
    assert usual.makespan_us <= rough.makespan_us <= exact.makespan_us * 1.1


def test_nics_that_spend_time_on_messages_send_small_ones_slower() -> None:
    net = single_switch(2, rate="400Gbps")
    slow = net.replaced(port_message_gap=np.full(net.ports, 83_200))
    flows = between(slow, [0], [1], "4MiB").in_messages("4KiB")
    assert flow_rates(slow, flows).wire_rate[0] / GBPS == pytest.approx(200, rel=1e-3)
    assert times_of(Scenario(slow, flows)).makespan_us == pytest.approx(
        Scenario(slow, flows).run().makespan_us, rel=0.01
    )


def test_a_flow_that_a_strict_queue_starves_goes_on_when_the_queue_is_empty() -> None:
    net = single_switch(3, rate="400Gbps")
    pair = [between(net, [0], [2], "1MB"), between(net, [1], [2], "1MB", traffic="kv")]
    found = flow_times(net, pair, **own(expert="strict", kv=10))
    assert found.delivered_us[1] == pytest.approx(2 * found.delivered_us[0], rel=0.05)


def test_uses_of_tiers_and_links_are_named() -> None:
    net = leaf_spine(4, 4, 4, rate="400Gbps")
    use = flow_rates(net, incast(net, "1MB", sources=[4, 5, 8], destination=0), routing="spray").use
    assert use.busiest(1)[0].name == "leaf0 -> host0"
    assert use.busiest(1)[0].share == pytest.approx(1)
    tiers = {tier.tiers: tier for tier in use.tiers()}
    assert tiers["spine to leaf"].most == pytest.approx(0.25, rel=0.01)
    assert use.busiest(1, between_switches=True)[0].name.startswith("spine")
