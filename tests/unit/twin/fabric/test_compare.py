"""Comparisons: what differs between variants, and that figures are each variant's own."""

from __future__ import annotations

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric import Scenario, all_to_all, between, leaf_spine, rail_clos
from fourlane.twin.fabric.compare import Variant, compare, variants
from fourlane.twin.fabric.simulator import Simulator


@pytest.fixture
def two_classes() -> Scenario:
    """Experts of eight hosts on four leaves exchange, two KV transfers beside them."""
    net = leaf_spine(4, 2, 2)
    kv = between(net, [0, 2], [5, 7], "256KiB", traffic="kv", name="kv")
    return Scenario(net, [all_to_all(net, "16KiB"), kv])


def test_all_networks_carry_the_same_flows(two_classes: Scenario) -> None:
    made = variants(two_classes)
    assert len(made) == 12
    for scenario in made.values():
        compiled = scenario.compile()
        for name in ("flow_src_port", "flow_dst_port", "flow_size", "flow_start", "flow_hash"):
            assert np.array_equal(getattr(compiled, name), getattr(two_classes.compile(), name))


def test_variants_differ_in_routing_queue_and_marking(two_classes: Scenario) -> None:
    made = {variant: scenario.compile() for variant, scenario in variants(two_classes).items()}
    assert made[Variant("ecmp", "own", ecn=False)].class_routing.tolist() == [0, 0]
    assert made[Variant("adaptive", "own", ecn=False)].class_routing.tolist() == [4, 0]
    assert made[Variant("spray", "shared", ecn=True)].class_routing.tolist() == [3, 0]
    for variant, compiled in made.items():
        assert (compiled.class_queue[0] == compiled.class_queue[1]) == (variant.queue == "shared")
        assert (compiled.queue_kmin[compiled.class_queue[0]] >= 0) == variant.ecn
        assert (compiled.class_cc[0] == 1) == variant.ecn


def test_a_plan_says_how_own_queues_are() -> None:
    cluster = load_cluster("one-network")
    net = rail_clos(cluster)
    flows = [between(net, [0, 1], [4, 5], "64KiB"), between(net, [8], [12], "64KiB", traffic="kv")]
    made = variants(Scenario(net, flows, plan=default_plan(cluster)))
    own = made[Variant("adaptive", "own", ecn=False)].compile()
    plain = Scenario(net, flows, plan=default_plan(cluster)).compile()
    assert all(np.array_equal(getattr(own, name), getattr(plain, name)) for name in ("class_queue", "queue_kmin"))
    shared = made[Variant("adaptive", "shared", ecn=True)].compile()
    assert shared.class_queue[0] == shared.class_queue[1]
    assert shared.queue_kmin[shared.class_queue[0]] == 1_600_000


def test_one_class_alone_has_no_queue_to_share() -> None:
    net = leaf_spine(2, 2, 2)
    assert {variant.queue for variant in variants(Scenario(net, all_to_all(net)))} == {"own"}


def test_a_class_without_flows_is_refused(two_classes: Scenario) -> None:
    with pytest.raises(SpecError, match=r'compare: expected a class of the flows \(expert, kv\), got "bulk"'):
        variants(two_classes, "bulk")


def test_figures_are_those_of_each_variant_alone(two_classes: Scenario) -> None:
    found = compare(two_classes, processes=2)
    made = variants(two_classes)
    best = min(each.done_us for each in found if each.done_us is not None)
    for variant, each in zip(made, found, strict=True):
        alone = Simulator(made[variant].compile()).run()
        assert (each.routing, each.queue, each.ecn, each.status) == (*variant, "done")
        assert each.done_us == alone.finish_us[alone.flows_of("expert")].max()
        assert each.factor == each.done_us / best
        assert each.goodput == alone.goodput("expert")
        assert each.others_goodput == alone.goodput("kv")
        assert each.pauses == alone.total("pauses")
