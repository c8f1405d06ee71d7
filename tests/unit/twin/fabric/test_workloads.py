"""Workloads: who sends what to whom in each pattern, what waits for what, and what is refused."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric import (
    Flows,
    Steps,
    all_to_all,
    between,
    concatenated,
    halving_doubling_all_reduce,
    in_turn,
    incast,
    kv_transfers,
    leaf_spine,
    matrix,
    permutation,
    poisson,
    repeated,
    ring_all_reduce,
)

if TYPE_CHECKING:
    from fourlane.twin.fabric.topology import Topology

NS = 1000


@pytest.fixture(scope="module")
def net() -> Topology:
    return leaf_spine(leaves=4, hosts_per_leaf=4, spines=2)


def hosts(net: Topology, ports: np.ndarray) -> list[int]:
    return [int(net.port_node[port]) if port >= 0 else -1 for port in ports]


def pairs(net: Topology, flows: Flows) -> list[tuple[int, int]]:
    return list(zip(hosts(net, flows.source), hosts(net, flows.destination), strict=True))


def delivered(flows: Flows, took: int) -> np.ndarray:
    """Return when each flow is delivered on a network where every flow takes `took` ps."""
    flows.check()
    start = np.broadcast_to(flows.start, len(flows)).copy()
    delay, size = (np.broadcast_to(array, len(flows)) for array in (flows.delay, flows.size))
    first, after = flows.awaited()
    waits = np.bincount(after, minlength=len(flows))
    done, ready = np.full(len(flows), -1), [flow for flow in range(len(flows)) if not waits[flow]]
    while ready:
        flow = ready.pop()
        done[flow] = start[flow] + delay[flow] + (took if size[flow] else 0)
        for other in after[first[flow] : first[flow + 1]] if len(first) > 1 else ():
            start[other] = max(start[other], done[flow])
            waits[other] -= 1
            if not waits[other]:
                ready.append(int(other))
    return done


def test_a_permutation_is_one_cycle_drawn_by_sattolos_algorithm(net: Topology) -> None:
    draw, cycle = random.Random(1), list(range(16))
    for i in range(15, 0, -1):
        j = draw.randrange(i)
        cycle[i], cycle[j] = cycle[j], cycle[i]
    found = pairs(net, permutation(net, "2MB"))
    assert found == list(enumerate(cycle))
    at, seen = 0, set()
    while at not in seen:
        seen.add(at)
        at = dict(found)[at]
    assert len(seen) == 16


def test_an_all_to_all_shifts_by_one_more_each_time(net: Topology) -> None:
    flows = all_to_all(net, "64KiB", hosts=[3, 7, 9])
    assert pairs(net, flows) == [(3, 7), (3, 9), (7, 9), (7, 3), (9, 3), (9, 7)]
    assert flows.size.tolist() == [65536]


def test_a_matrix_sends_what_it_says_and_leaves_out_nothing_and_oneself(net: Topology) -> None:
    flows = matrix(net, np.array([[9, 1, 0], [2, 9, 3], [0, 4, 9]]), hosts=[0, 1, 2])
    assert list(zip(pairs(net, flows), flows.size.tolist(), strict=True)) == [
        ((0, 1), 1),
        ((1, 2), 3),
        ((1, 0), 2),
        ((2, 1), 4),
    ]


def test_an_incast_comes_from_all_others(net: Topology) -> None:
    assert pairs(net, incast(net, destination=2)) == [(host, 2) for host in range(16) if host != 2]


def test_kv_goes_layer_by_layer_over_the_same_connections(net: Topology) -> None:
    flows = kv_transfers(net, "1MB", prefill=[0, 1], decode=[8, 9], layers=3, interval="50us")
    assert pairs(net, flows) == [(0, 8), (1, 9)] * 3
    assert flows.start.tolist() == [0, 0, 50_000 * NS, 50_000 * NS, 100_000 * NS, 100_000 * NS]
    assert flows.qp is not None
    assert flows.qp.tolist() == [0, 1] * 3
    assert flows.kinds == ("kv",)


def test_poisson_load_is_the_share_of_the_links_it_is_asked_to_be(net: Topology) -> None:
    flows = poisson(net, "4KiB", utilisation=0.6, duration="2ms")
    per_host = len(flows) * 4160 * 8 / 2e-3 / 16
    assert per_host == pytest.approx(0.6 * 400e9, rel=0.01)
    gaps = np.diff(flows.start[np.array(hosts(net, flows.source)) == 0])
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)  # exponential: as wide as its mean
    targets = np.bincount(hosts(net, flows.destination), minlength=16)
    assert targets.min() > 0.9 * targets.mean()
    assert not any(source == target for source, target in pairs(net, flows))


def test_poisson_load_follows_from_its_seed(net: Topology) -> None:
    one, again, other = (poisson(net, utilisation=0.5, duration="100us", seed=seed) for seed in (1, 1, 2))
    assert one.start.tolist() == again.start.tolist()
    assert one.start.tolist() != other.start.tolist()


def test_a_ring_passes_on_what_it_received_without_a_barrier(net: Topology) -> None:
    flows = ring_all_reduce(net, "4kB", hosts=range(4))
    assert len(flows) == 6 * 4
    assert flows.size.tolist() == [1000]
    assert set(pairs(net, flows)) == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert delivered(flows, 10).tolist() == [10 * (step + 1) for step in range(6) for _ in range(4)]
    late = flows.starting(np.array([50, *[0] * 23]))  # rank 0 is late: that wanders round the ring
    assert delivered(late, 10).reshape(6, 4)[1].tolist() == [20, 70, 20, 20]


def test_halving_and_doubling_sends_twice_all_but_one_share(net: Topology) -> None:
    flows = halving_doubling_all_reduce(net, "8kB", hosts=range(8))
    sent = flows.size.reshape(6, 8)
    assert sent[:, 0].tolist() == [4000, 2000, 1000, 1000, 2000, 4000]
    assert pairs(net, flows)[:8] == [(rank, rank ^ 4) for rank in range(8)]
    assert delivered(flows, 5).max() == 30


def test_steps_wait_for_what_they_are_told_to_and_no_more(net: Topology) -> None:
    steps = Steps()
    dispatch = steps.add(all_to_all(net, hosts=range(4)), name="dispatch")
    steps.add(between(net, [8], [9], "1kB", traffic="bulk"), name="beside")
    steps.add(all_to_all(net, hosts=range(4)), after=[dispatch], delay="2ns", name="combine")
    flows = steps.flows()
    done = dict(
        zip([name for name, _ in flows.groups], [delivered(flows, 7)[at] for _, at in flows.groups], strict=True)
    )
    assert done == {"dispatch": 7, "beside": 7, "end": 7, "begin": 7 + 2 * NS, "combine": 14 + 2 * NS}
    assert flows.edges.shape[1] == 2 * 12 + 1


def test_waiting_costs_edges_in_proportion_to_flows(net: Topology) -> None:
    layers = in_turn([all_to_all(net)] * 4, gap="1us")
    assert len(layers) == 4 * 240 + 6
    assert layers.edges.shape[1] == 6 * 240 + 3
    assert delivered(layers, 1000).max() == 4 * 1000 + 3 * 1000 * NS


def test_repeating_runs_one_after_the_other(net: Topology) -> None:
    assert delivered(repeated(ring_all_reduce(net, "1kB"), 3), 1).max() == 3 * 30


def test_concatenated_flows_keep_their_classes_sizes_and_constants(net: Topology) -> None:
    kv = kv_transfers(net, "1MB", prefill=[0], decode=[5])
    both = concatenated([all_to_all(net, "64KiB"), kv, permutation(net, "64KiB", traffic="kv")])
    assert both.kinds == ("expert", "kv")
    assert np.bincount(both.kind).tolist() == [240, 17]
    assert both.size[240] == 10**6
    assert len(both.start) == len(both.message) == 1
    assert both.groups == (("all_to_all", 0), ("kv", 240), ("permutation", 241))
    assert both.qp is not None
    assert len(set(both.qp.tolist())) == len(both)


def test_a_million_flows_take_little_memory() -> None:
    net = leaf_spine(leaves=64, hosts_per_leaf=16, spines=16)
    flows = all_to_all(net, "1kB")
    held = sum(array.nbytes for array in vars(flows).values() if isinstance(array, np.ndarray))
    assert len(flows) == 1024 * 1023
    assert held < 9 * len(flows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: permutation(net, "-2MB"), 'permutation: size: expected a size such as "64KiB", got "-2MB"'),
        (lambda net: permutation(net, 2_000_000), "permutation: size: .* bare number has no unit"),
        (lambda net: permutation(net, "0B"), "permutation: size: expected at least 1B"),
        (lambda net: incast(net, sources=[1, 99]), "expected a host from 0 to 15, got 99"),
        (lambda net: incast(net, sources=[0, 1]), "incast: flow 0: host 0 would send to itself"),
        (lambda net: all_to_all(net, hosts=[1]), "all_to_all: hosts: expected at least 2, got 1"),
        (lambda net: all_to_all(net, hosts=[1, 1]), "all_to_all: hosts: expected different hosts"),
        (lambda net: between(net, [], [], "1kB"), "flows: expected at least one flow, got none"),
        (lambda net: between(net, [1], [2, 3], "1kB"), "expected as many destinations as 1 sources, got 2"),
        (lambda net: between(net, [1.5], [2], "1kB"), "expected hosts as whole numbers"),
        (lambda net: between(net, [1], [2], "1kB", network="mars"), 'expected one of the networks .*, got "mars"'),
        (lambda net: between(net, [1], [2], np.array([-1])), r"size\[0\]: expected at least 1 bytes, got -1"),
        (lambda net: between(net, [1, 2], [2, 1], ["1kB", "x"]), r"size\[1\]: expected a size"),
        (lambda net: matrix(net, np.full((16, 16), np.nan)), "matrix: bytes: expected whole bytes .* float64"),
        (lambda net: matrix(net, np.zeros((3, 4), int)), "matrix: expected 16 x 16 sizes"),
        (lambda net: matrix(net, np.zeros((16, 16), int)), "matrix: expected at least one flow"),
        (lambda net: poisson(net, utilisation=1.5, duration="1ms"), "poisson: utilisation: expected above 0"),
        (lambda net: poisson(net, utilisation=float("nan"), duration="1ms"), "poisson: utilisation"),
        (lambda net: poisson(net, utilisation=0.1, duration="1ps"), "poisson: duration: expected long enough"),
        (lambda net: kv_transfers(net, "1MB", prefill=[0], decode=[1], layers=0), "kv_transfers: layers"),
        (lambda net: halving_doubling_all_reduce(net, "1MB", hosts=range(6)), "expected a power of two of them, got 6"),
        (lambda net: all_to_all(net).starting(np.array([0.5])), "start: expected whole ps"),
        (lambda net: all_to_all(net).starting(np.array([-5])), r"start\[0\]: expected at least 0 ps, got -5"),
        (lambda net: all_to_all(net).starting(np.array([1, 2])), "start: expected one entry or 240"),
        (lambda net: all_to_all(net).waiting([0], [240]), "waiting: expected flows 0 to 239"),
        (lambda net: all_to_all(net).waiting([3, 4, 5], [4, 5, 3]).check(), "flow 3 waits in a circle"),
        (lambda net: all_to_all(net).waiting([3], [3]).check(), "flow 3 waits in a circle"),
        (lambda _: Steps().flows(), "steps: expected at least one step"),
        (lambda net: Steps().add(all_to_all(net), after=[0]), "steps: after"),
        (lambda _: Flows.gates(0).check(), "flows: expected at least one flow, got none"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(net: Topology, make: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make(net)  # type: ignore[operator]
