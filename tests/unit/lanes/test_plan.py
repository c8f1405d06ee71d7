"""Lane plans: defaults, what a file may say, what is refused and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from fourlane.errors import SpecError
from fourlane.lanes.buffers import headroom_of, queue_limit, switch_budget
from fourlane.lanes.default_plan import default_plan, spelled_ranges
from fourlane.lanes.plan import DSCPS, dscp_range, load_plan
from fourlane.lanes.ports import switches
from fourlane.lanes.reasons import reasons
from fourlane.spec.cluster import Cluster
from fourlane.spec.load import load_cluster, parse, render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.plan import LanePlan

CLUSTERS = ("h800-ft", "lab", "one-network")


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return load_cluster(request.param)


@pytest.fixture
def plan(cluster: Cluster) -> LanePlan:
    return default_plan(cluster)


def written(plan: LanePlan, folder: Path) -> Path:
    file = folder / "plan.toml"
    file.write_text(render(plan))
    return file


def test_the_default_plan_reads_back_as_it_was_written(plan: LanePlan, tmp_path: Path) -> None:
    assert load_plan(written(plan, tmp_path)) == plan


def test_the_default_plan_maps_every_code_point_once(plan: LanePlan) -> None:
    claimed = [dscp for lane in plan.classes.values() for dscp in lane.dscps()]
    assert sorted(claimed) == list(DSCPS)


def test_expert_traffic_has_the_largest_weight_and_alpha_and_no_ecn(plan: LanePlan, cluster: Cluster) -> None:
    expert = plan.classes[TrafficClass.EXPERT]
    on_hpn = plan.on("hpn").values()
    assert expert.weight == max(lane.weight or 0 for lane in on_hpn)
    assert expert.alpha == max(lane.alpha for lane in on_hpn)
    assert expert.marking is None
    assert expert.routing == "adaptive"
    assert plan.classes[TrafficClass.KV].network == ("dcn" if cluster.dcn else "hpn")


def test_weights_of_each_network_sum_to_100(plan: LanePlan, cluster: Cluster) -> None:
    for network in cluster.networks():
        assert sum(lane.weight or 0 for lane in plan.on(network).values()) == 100


def test_the_default_plan_fits_every_switch(plan: LanePlan, cluster: Cluster) -> None:
    for switch in switches(cluster):
        budget = switch_budget(plan, switch)
        assert budget.fits
        assert budget.shared + budget.headroom_pool + budget.reserved_total == budget.buffer


def test_a_second_lossless_class_doubles_the_headroom_and_sharing_halves_what_pauses_need() -> None:
    cluster = load_cluster("h800-ft")
    plan, leaf = default_plan(cluster), switches(cluster)[0]
    one = switch_budget(plan, leaf).headroom_pool
    collective = replace(plan.classes[TrafficClass.COLLECTIVE], lossless=True)
    two = replace(plan, classes={**plan.classes, TrafficClass.COLLECTIVE: collective})
    assert switch_budget(two, leaf).headroom_pool == 2 * one
    pooled = replace(two, pfc=replace(two.pfc, shared_headroom=True))
    xoff_of_one = sum(room.xoff for port in leaf.ports if (room := headroom_of(plan, leaf, port)))
    assert switch_budget(pooled, leaf).xoff_pool == xoff_of_one
    assert switch_budget(pooled, leaf).headroom_pool == xoff_of_one + 2 * (one - xoff_of_one)
    scarce = replace(two, pfc=replace(two.pfc, shared_headroom=True, oversubscription=1000))
    largest = max(room.xoff for port in leaf.ports if (room := headroom_of(plan, leaf, port)))
    assert switch_budget(scarce, leaf).xoff_pool == largest


def test_no_class_is_lossless_where_the_switch_cannot_pause() -> None:
    assert not any(lane.lossless for lane in default_plan(load_cluster("lab")).classes.values())


def test_every_figure_of_every_class_has_a_reason(cluster: Cluster, plan: LanePlan) -> None:
    for kind, lane in plan.classes.items():
        given = reasons(cluster, kind)
        wanted = {field for field in lane.__struct_fields__ if getattr(lane, field) is not None}
        assert set(given) == wanted
        assert all(reason.why and reason.source for reason in given.values())


def test_full_queues_share_the_pool_as_dynamic_thresholds_do(plan: LanePlan) -> None:
    expert = plan.classes[TrafficClass.EXPERT]
    assert queue_limit(expert, 1000) == expert.reserved + 500
    assert queue_limit(expert, 1000, congested=4) == expert.reserved + 200


@pytest.mark.parametrize(("text", "points"), [("7", [7]), ("9-11", [9, 10, 11]), (" 0-0 ", [0])])
def test_ranges_of_code_points_are_read(text: str, points: list[int]) -> None:
    assert list(dscp_range(text)) == points


@pytest.mark.parametrize("text", ["", "64", "9-", "11-9", "a", "1,2", "-1"])
def test_what_is_no_range_of_code_points_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a DSCP or a range"):
        dscp_range(text)


def test_code_points_are_spelled_as_runs() -> None:
    assert spelled_ranges([5, 1, 2, 3, 9]) == ("1-3", "5", "9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classes.expert.dscp=184", "classes.expert.dscp: expected a whole number from 0 to 63, got 184 (a ToS byte"),
        ("classes.expert.priority=8", "classes.expert.priority: expected a whole number from 0 to 7, got 8"),
        ("classes.expert.queue=99", "classes.expert.queue: expected a whole number from 0 to 15, got 99"),
        ("classes.kv.queue=5", "classes.kv.queue: queue 5 is that of expert already"),
        ("classes.kv.priority=5", "classes.kv.priority: priority 5 is that of expert already"),
        ("classes.experts.dscp=1", 'classes.experts: expected "expert" or "collective"'),
        ("classes.expert.reserved=64", "classes.expert.reserved: expected a size such as"),
        ("classes.expert.alpha=0.3", "classes.expert.alpha: expected a power of two"),
        ("classes.expert.weight=", "classes.expert.weight: expected a weight from 1 to 100"),
        ("classes.control.weight=3", "classes.control.weight: a strict class has none"),
        ("classes.control.cap=101", "classes.control.cap: expected a whole number from 1 to 100, got 101"),
        ("classes.kv.ecn.kmax=1kB", "classes.kv.ecn.kmax: expected at least kmin"),
        ("classes.kv.ecn.kmax=400", "classes.kv.ecn.kmax: expected a size such as"),
        ("classes.kv.ecn.pmax=2.0", "classes.kv.ecn.pmax: expected a probability"),
        ('classes.kv.ecn="on"', "classes.kv.ecn: expected "),
        ('classes.kv.accept=["70"]', 'classes.kv.accept[0]: expected a DSCP or a range within 0-63, such as "9-15"'),
        ("classes.bulk=", "classes.bulk: expected a table [classes.bulk], but it is missing"),
        ("version=2", "version: expected 1, got 2"),
    ],
)
def test_a_value_that_is_none_is_named_with_what_is_allowed(change: str, message: str, tmp_path: Path) -> None:
    file = written(default_plan(load_cluster("h800-ft")), tmp_path)
    with pytest.raises(SpecError) as caught:
        load_plan(file, overrides=[change])
    assert len(caught.value.faults) == 1
    assert message in caught.value.faults[0]


def test_a_lossless_class_that_trims_is_refused(tmp_path: Path) -> None:
    file = written(default_plan(load_cluster("h800-ft")), tmp_path)
    with pytest.raises(SpecError, match="nothing to trim"):
        load_plan(file, overrides=["classes.expert.trim=true"])


def test_only_classes_that_are_marked_declare_themselves_capable_of_it() -> None:
    classes = default_plan(load_cluster("h800-ft")).classes
    assert classes[TrafficClass.EXPERT].tos == 184
    assert classes[TrafficClass.COLLECTIVE].tos == 106
    assert default_plan(load_cluster("lab")).classes[TrafficClass.COLLECTIVE].tos == 104
    assert replace(classes[TrafficClass.COLLECTIVE], ect=False).tos == 104
    assert replace(classes[TrafficClass.EXPERT], ect=True).tos == 186


def test_a_shared_headroom_pool_holds_at_least_what_one_port_needs_and_is_a_plain_number() -> None:
    changes = ["hpn.leaf.down_ports=1", "hpn.leaf.up_ports=1", "hpn.spine.down_ports=1"]
    cluster = parse(render(load_cluster("one-network")), Cluster, changes, source="cluster")
    plan = default_plan(cluster)
    pooled = replace(plan, pfc=replace(plan.pfc, shared_headroom=True, oversubscription=8))
    for switch in switches(cluster):
        budget = switch_budget(pooled, switch)
        needed = max(room.xoff for port in switch.ports if (room := headroom_of(pooled, switch, port)))
        assert type(budget.xoff_pool) is int
        assert budget.xoff_pool == needed
