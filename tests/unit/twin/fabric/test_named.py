"""Named scenarios: their sizes are those published with them, lossless ones take the time that theory says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric.named import NAMED, named, named_scenario
from fourlane.twin.fabric.simulator import Simulator

# The least times of the closed forms in us, as published; "exact": equal to this in every digit.
PUBLISHED = {
    "P1024_2MB": 47.3,
    "P128_2MB": 44.7,
    "I64_64K": 89.2515,
    "I64_256K": 344.842,
    "I64_1M": 1367.2,
    "A64_64K": 87.9,
    "A128_64K": 173.1,
    "ONE_4K": 4.1379,
    "ONE_1M": 25.3539,
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_scenario_has_the_packets_and_hops_it_is_defined_by(name: str) -> None:
    scenario, what = named(name), NAMED[name]
    net, flows = scenario.topology, scenario.flows
    packets = np.broadcast_to(-(-flows.size // 4096), len(flows))
    assert packets.sum() == what.data_packets
    ends = [net.port_node[port] for port in (flows.source, flows.destination)]
    leaf, to_leaf = (net.port_node[net.port_peer[port]] for port in (flows.source, flows.destination))
    same_pod = net.node_pod[ends[0]] == net.node_pod[ends[1]]
    links = np.where(leaf == to_leaf, 2, np.where(same_pod | (what.links == 4), 4, 6))
    assert (packets * links).sum() == what.hops
    assert links.max() == what.links


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_bound_of_a_named_scenario_is_the_published_one(name: str) -> None:
    digits = len(str(PUBLISHED[name]).partition(".")[2])
    assert round(NAMED[name].bound_us, digits) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["ONE_4K", "ONE_1M", "I64_64K"])
def test_what_cannot_collide_takes_exactly_as_long_as_theory_says(name: str) -> None:
    results = Simulator(named(name).compile(), engine="reference").run()
    assert results.makespan_us == NAMED[name].bound_us
    assert results.data_hops == NAMED[name].hops


def test_the_permutation_is_sattolos_with_seed_one() -> None:
    order, draw = list(range(128)), random.Random(1)
    for i in range(127, 0, -1):
        j = draw.randrange(i)
        order[i], order[j] = order[j], order[i]
    scenario = named("P128_2MB")
    assert scenario.topology.port_node[scenario.flows.destination].tolist() == order


def test_settings_change_a_named_scenario() -> None:
    assert named("ONE_4K", routing="adaptive", seed=9).compile().class_routing.tolist() == [4]
    changed = named_scenario("ONE_4K", ["every.routing=spray", "seed=5"])
    assert changed.compile().class_routing.tolist() == [3]
    assert changed.compile().seed == 5


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(SpecError, match=r'expected one of P1024_2MB, .*, got "A64_64" \(did you mean "A64_64K"\?\)'):
        named("A64_64")
    with pytest.raises(SpecError, match="seeds: unknown key"):
        named_scenario("ONE_4K", ["seeds=5"])
