"""Scenarios: what is refused and in which words, and what the arrays hold; closed forms on the reference simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric import (
    Dcqcn,
    Failure,
    Flows,
    QueueSettings,
    Scenario,
    all_to_all,
    between,
    concatenated,
    in_turn,
    incast,
    kv_transfers,
    leaf_spine,
    permutation,
    single_switch,
)
from fourlane.twin.fabric.reference import simulate

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.topology import Topology

US = 10**6


@pytest.fixture(scope="module")
def ls128() -> Topology:
    return leaf_spine(leaves=16, hosts_per_leaf=8, spines=8)


@pytest.fixture(scope="module")
def small() -> Topology:
    return leaf_spine(leaves=2, hosts_per_leaf=2, spines=2)


def finish_us(compiled: CompiledScenario) -> float:
    raw = simulate(compiled)
    assert raw["status"] == "done"
    return float(raw["flow_finish"].max()) / US


def test_the_defaults_give_the_closed_forms_of_the_common_setting(ls128: Topology) -> None:
    # n packets of 83.2 ns over 4 links: n s + 3 s + 1.9 us there, 1.9 us + 4 * 1.28 ns back
    one, many = between(ls128, [8], [0], "4096B"), between(ls128, [8], [0], "1MiB")
    assert f"{finish_us(Scenario(ls128, one).compile()):.4f}" == "4.1379"
    assert f"{finish_us(Scenario(ls128, many).compile()):.4f}" == "25.3539"
    many_to_one = incast(ls128, "64KiB", sources=range(8, 72))
    assert f"{finish_us(Scenario(ls128, many_to_one).compile()):.4f}" == "89.2515"


@pytest.mark.parametrize("routing", ["ecmp", "qp-hash", "flowlet", "spray", "spray-random", "adaptive", "static"])
@pytest.mark.parametrize("transport", ["out-of-order", "go-back-n", "reorder-buffer"])
def test_every_routing_and_transport_delivers(small: Topology, routing: str, transport: str) -> None:
    compiled = Scenario(small, all_to_all(small, "20kB"), routing=routing, transport=transport).compile()
    assert simulate(compiled)["flow_delivered"].min() > 0


def test_settings_for_all_classes_give_way_to_those_of_one(small: Topology) -> None:
    flows = [permutation(small), kv_transfers(small, "1MB", prefill=[0], decode=[3])]
    made = Scenario(small, flows, routing="adaptive", classes={"kv": {"routing": "spray", "window": "64KiB"}}).compile()
    assert made.class_names == ("expert", "kv")
    assert made.class_routing.tolist() == [4, 3]
    assert made.class_window.tolist() == [0, 65536]


def test_a_window_can_be_given_in_bandwidth_delay_products(ls128: Topology) -> None:
    made = Scenario(ls128, permutation(ls128), window_bdp=1).compile()
    trip_ns = 2 * (4 * 100 + 3 * 500) + 4 * (4160 + 64) / 50
    assert made.class_window[0] == pytest.approx(trip_ns * 50 + 4160, abs=2)
    again = Scenario(ls128, permutation(ls128), window_bdp=1, classes={"expert": {"window": "0B"}}).compile()
    assert again.class_window[0] == 0


def test_weights_become_quanta_in_exact_proportion(small: Topology) -> None:
    flows = concatenated([permutation(small, traffic=name) for name in ("a", "b", "c")])
    weights = {"a": {"weight": 70}, "b": {"weight": 7}, "c": {"scheduler": "strict", "cap": 40}}
    made = Scenario(small, flows, lanes="own", queues=weights).compile()
    assert made.queue_names == ("a", "b", "c", "acks")
    assert made.queue_weight.tolist() == [70 * 595, 7 * 595, 0, 0]
    assert made.queue_weight[1] >= 4160
    assert made.queue_cap_q16.tolist() == [0, 0, 163840, 0]


def test_switches_share_what_headroom_and_reservations_leave(small: Topology) -> None:
    made = Scenario(small, permutation(small), queues={"data": {"reserved": "10kB"}}).compile()
    # 1 + ceil((2 * 100 ns + 8 pause frames + a packet the other way) / a packet) packets
    room = 4160 * (1 + -(-(200_000 + 8 * 1280 + 83_200) // 83_200))
    at_switch = small.node_kind[small.port_node] == 1
    assert set(made.port_headroom[at_switch].tolist()) == {room}
    assert set(made.port_headroom[~at_switch].tolist()) == {0}
    assert set(made.node_shared[small.node_kind == 1].tolist()) == {
        64 * 2**20 - 4 * (room + 10_000 + 8192),
        64 * 2**20 - 2 * (room + 10_000 + 8192),
    }


def test_ecn_can_be_on_for_one_queue_alone(small: Topology) -> None:
    flows = [permutation(small), permutation(small, traffic="kv")]
    marks = {"kmin": "100kB", "kmax": "400kB", "pmax": 0.25}
    made = Scenario(small, flows, lanes="own", queues={"kv": {"ecn": marks}}).compile()
    assert made.queue_kmin.tolist() == [-1, 100_000, -1]
    assert made.queue_kmax.tolist() == [0, 400_000, 0]
    assert made.queue_pmax_q32[1] == 1 << 30
    assert made.class_ecn.tolist() == [0, 1]


def test_lossy_queues_repeat_after_a_timeout_and_lossless_ones_need_not(small: Topology) -> None:
    flows = [permutation(small), permutation(small, traffic="kv")]
    lossy = {"kv": QueueSettings(lossless=False)}
    assert Scenario(small, flows, lanes="own", queues=lossy).compile().class_rto.tolist() == [0, 1000 * US]
    assert Scenario(small, flows, lanes="own", queues=lossy, rto="20us").compile().class_rto.tolist() == [20 * US] * 2
    failing = Scenario(small, flows, failures=[Failure(link="leaf0-spine0", at="1us")])
    assert failing.compile().class_rto.tolist() == [1000 * US] * 2


def test_hashes_follow_from_the_five_fields_and_queue_pairs_only_where_asked(small: Topology) -> None:
    flows = between(small, [0] * 50, [2] * 50, "1kB")
    distinct = {
        (routing, port): len(
            set(Scenario(small, flows, routing=routing, source_port=port).compile().flow_hash.tolist())
        )
        for routing in ("ecmp", "qp-hash")
        for port in ("per-connection", "fixed")
    }
    assert distinct == {
        ("ecmp", "per-connection"): 50,
        ("ecmp", "fixed"): 1,
        ("qp-hash", "per-connection"): 50,
        ("qp-hash", "fixed"): 50,
    }


def test_flows_of_one_queue_pair_share_a_path_and_seeds_change_paths(small: Topology) -> None:
    flows = kv_transfers(small, "1kB", prefill=[0, 1], decode=[2, 3], layers=4)
    hashes = Scenario(small, flows).compile().flow_hash
    assert len(set(hashes.tolist())) == 2
    assert hashes.tolist() == Scenario(small, flows).compile().flow_hash.tolist()
    assert hashes.tolist() != Scenario(small, flows, seed=2).compile().flow_hash.tolist()


def test_tiers_hash_differently_unless_told_to_hash_alike(small: Topology) -> None:
    assert len(set(Scenario(small, permutation(small)).compile().tier_seed.tolist())) == 8
    assert len(set(Scenario(small, permutation(small), hash_seeds="same").compile().tier_seed.tolist())) == 1


def test_statically_routed_flows_carry_their_pin(small: Topology) -> None:
    flows = permutation(small, "1kB").pinned(np.array([0, 1, 0, 1]))
    made = Scenario(small, flows, routing="static").compile()
    assert made.flow_hash.tolist() == made.flow_back_hash.tolist() == [0, 1, 0, 1]


def test_gates_belong_to_no_class(small: Topology) -> None:
    layers = in_turn([all_to_all(small, "1kB", traffic="kv")] * 3)
    made = Scenario(small, layers).compile()
    assert made.class_names == ("kv",)
    assert (made.flow_src_port == -1).sum() == 4
    assert simulate(made)["status"] == "done"


def test_dcqcn_has_its_published_sets_of_parameters(small: Topology) -> None:
    flows = permutation(small)
    assert Scenario(small, flows, dcqcn={"preset": "paper"}).compile().dcqcn == Dcqcn()
    made = Scenario(small, flows, dcqcn={"preset": "nic", "rate_ai": "1Gbps", "timer": "55us"}).compile().dcqcn
    assert (made.g, made.cnp_interval, made.rate_ai, made.timer) == (5 / 1024, 4 * US, 1e9, 55 * US)


def test_a_failed_link_is_down_at_once_and_routes_follow(small: Topology) -> None:
    failure = Failure(link="leaf0-spine1", at="10us", repaired="50us", reroute="5us")  # type: ignore[arg-type]
    made = Scenario(small, permutation(small), failures=[failure]).compile()
    assert made.epoch_time.tolist() == [0, 10 * US, 15 * US, 50 * US, 55 * US]
    assert (made.epoch_port_up == 0).sum(axis=1).tolist() == [0, 2, 2, 0, 0]
    assert made.route_table.tolist() == [0, 0, 1, 1, 0]
    assert len(made.route_first) == 2
    assert np.diff(made.route_first, axis=1).sum(axis=1).tolist() == [8, 6]


def test_traffic_goes_on_after_a_spine_failed(small: Topology) -> None:
    failures = [{"switch": "spine1", "at": "5us", "reroute": "10us"}]
    made = Scenario(small, all_to_all(small, "200kB"), routing="spray", failures=failures, rto="50us").compile()
    raw = simulate(made)
    assert raw["status"] == "done"
    assert raw["data_packets_dropped"] > 0


def test_what_is_sampled_can_be_narrowed_to_some_nodes(small: Topology) -> None:
    made = Scenario(small, permutation(small), sampling={"interval": "1us", "nodes": ["leaf1"]}).compile()
    assert [made.node_name(int(made.port_node[port])) for port in made.sample_ports] == ["leaf1"] * 4
    assert len(Scenario(small, permutation(small), sampling={"interval": "1us"}).compile().sample_ports) == small.ports


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"routing": "random"}, 'every.routing: expected .*"ecmp" or .*, got "random"'),
    ({"rooting": "ecmp"}, r'rooting: unknown setting \(did you mean "routing"\?\); known: seed'),
    ({"window": 5000}, "every.window: expected a size .* a bare number has no unit|every.window: .*bare number"),
    ({"window": "-5kB"}, "every.window: expected a size"),
    ({"window_bdp": float("nan")}, "every.window_bdp: expected a number, got nan"),
    ({"window_bdp": -1.0}, "classes.expert.window_bdp: expected above 0"),
    ({"seed": -1}, "seed: expected 0 to"),
    ({"classes": {"kv": {"routing": "ecmp"}}}, "classes.kv: unknown; known: expert"),
    ({"queues": {"kv": {"alpha": 1.0}}}, "queues.kv: unknown; known: data, acks"),
    ({"queues": {"data": {"alpha": 0.0}}}, "queues.data.alpha: expected above 0"),
    ({"queues": {"data": {"weight": 0}}}, "queues.data.weight: expected a whole number from 1 to 100"),
    ({"queues": {"data": {"reserved": "64MiB"}}}, "leaf0: headroom and reservations .* leave nothing to share"),
    ({"queues": {"data": {"ecn": {"kmin": "9kB", "kmax": "8kB", "pmax": 0.1}}}}, "queues.data.ecn.kmax: expected"),
    ({"queues": {"data": {"ecn": {"kmin": "1kB", "kmax": "8kB", "pmax": 1.5}}}}, "queues.data.ecn.pmax: expected"),
    ({"queue": "fast"}, 'classes.expert.queue: expected one of the queues data, acks, got "fast"'),
    ({"ack_every": 0}, "classes.expert.ack_every: expected a whole number"),
    ({"ack_every": 4, "rto": "1ms"}, "classes.expert.ack_every: expected 1 with an rto"),
    ({"packets": {"payload": "0B"}}, "packets.payload: expected 1B to"),
    ({"packets": {"payload": "1MB"}}, "packets.payload: expected 1B to"),
    ({"dcqcn": {"g": 2.0}}, "dcqcn.g: expected 0.0 to 1.0, got 2.0"),
    ({"pauses": {"watchdog": True}}, "pauses: with watchdog = true expected detection"),
    ({"failures": [{"link": "leaf0-spine9"}]}, r'failures\[0\]: .* got "spine9"'),
    ({"failures": [{"link": "leaf0-leaf1"}]}, r"failures\[0\]: link: expected two nodes joined by a cable"),
    ({"failures": [{"link": "leaf0"}]}, r"failures\[0\]: link: expected two nodes such as"),
    ({"failures": [{"switch": "host0"}]}, r"failures\[0\]: switch: expected a switch"),
    ({"failures": [{}]}, r"failures\[0\]: expected either link or switch"),
    ({"failures": [{"link": "leaf0-spine0", "cable": 1}]}, r"failures\[0\]: cable: expected 0 to 0"),
    ({"failures": [{"switch": "spine0", "at": "5us", "repaired": "5us"}]}, r"failures\[0\]: repaired: expected after"),
    ({"failures": [{"switch": "spine0", "at": "-5us"}]}, r"failures\[0\].at: expected a duration"),
    (
        {"failures": [{"switch": "spine0", "at": "5us"}, {"switch": "spine1", "at": "7us"}]},
        r"failures: permutation\[\d\]: no path from host\d .* to host\d .* once spine0 has failed at 5us, spine1 has",
    ),
    ({"failures": [{"link": "host2-leaf1"}]}, r"failures: permutation\[\d\]: no path from .*host2"),
    ({"sampling": {"interval": "1us", "nodes": ["leaf7"]}}, 'expected one of .*, got "leaf7"'),
    ({"limits": {"events": 0}}, "limits.events: expected 1 to"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_settings_that_make_no_sense_are_refused_by_name(
    small: Topology, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        Scenario(small, permutation(small), **settings).compile()


def test_all_faults_of_the_settings_are_told_at_once(small: Topology) -> None:
    with pytest.raises(SpecError) as caught:
        Scenario(small, permutation(small), routing="x", window="y", seeds=3)
    assert len(caught.value.faults) == 3


def test_a_pair_cut_off_only_for_a_while_is_not_refused(small: Topology) -> None:
    failures = [{"link": "host2-leaf1", "at": "1us", "repaired": "40us"}]
    raw = simulate(Scenario(small, permutation(small, "100kB"), failures=failures, rto="20us").compile())
    assert raw["status"] == "done"


def test_flows_of_another_topology_are_refused(small: Topology) -> None:
    flows = permutation(single_switch(24))
    with pytest.raises(SpecError, match=r"expected ports of hosts of leaf_spine.*made for another"):
        Scenario(small, flows).compile()


def test_nothing_to_send_is_refused(small: Topology) -> None:
    with pytest.raises(SpecError, match="flows: expected at least one workload, got none"):
        Scenario(small, [])
    with pytest.raises(SpecError, match="flows: expected at least one flow with bytes, got gates only"):
        Scenario(small, Flows.gates(2)).compile()


def test_more_classes_than_queues_of_their_own_are_refused(small: Topology) -> None:
    flows = [permutation(small, traffic=f"c{number}") for number in range(8)]
    with pytest.raises(SpecError, match="lanes: expected at most 7 classes with a queue each, got 8"):
        Scenario(small, flows, lanes="own").compile()
