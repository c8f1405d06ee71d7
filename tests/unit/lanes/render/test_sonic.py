"""SONiC tables: what a plan becomes, that the YANG models take it, and that it reads back as the plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace
from sonic_yang import YangError, sonic_yang, thinned

from fourlane.errors import CheckFailed
from fourlane.lanes.buffers import switch_budget
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import DSCPS
from fourlane.lanes.ports import switches
from fourlane.lanes.render.sonic import render_sonic
from fourlane.lanes.render.sonic_reading import config_db_differences, planned_classes, read_config_db
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Size

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

SMALL = ("hpn.leaf.down_ports=2", "hpn.leaf.up_ports=2", "hpn.spine.down_ports=2")


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster("h800-ft", overrides=SMALL)


@pytest.fixture
def plan(cluster: Cluster) -> LanePlan:
    return default_plan(cluster)


def leaf_tables(plan: LanePlan, cluster: Cluster, switch: str = "hpn-leaf") -> dict[str, Any]:
    files = render_sonic(plan, cluster, every_switch=True)
    return {**json.loads(files[f"{switch}.ports.json"]), **json.loads(files[f"{switch}.config_db.json"])}


def changed(plan: LanePlan, kind: TrafficClass, **fields: Any) -> LanePlan:
    return replace(plan, classes={**plan.classes, kind: replace(plan.classes[kind], **fields)})


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_example_clusters_render_as_kept(name: str) -> None:
    assert rendered(name, "sonic") == kept(name, "sonic")


def test_only_switches_with_sonic_are_rendered() -> None:
    files = rendered("h800-ft", "sonic")
    assert {file.partition(".")[0] for file in files} == {"hpn-leaf", "hpn-spine"}
    assert rendered("lab", "sonic") == {}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_yang_models_take_every_switch_of_every_example(name: str) -> None:
    cluster = load_cluster(name)
    for switch in switches(cluster):
        sonic_yang().check(thinned(leaf_tables(default_plan(cluster), cluster, switch.name)))


@pytest.mark.slow
def test_the_yang_models_take_a_switch_with_all_its_ports() -> None:
    cluster = load_cluster("h800-ft")
    sonic_yang().check(leaf_tables(default_plan(cluster), cluster))


def test_the_yang_models_refuse_tables_fields_and_values_they_do_not_know(plan: LanePlan, cluster: Cluster) -> None:
    tables = leaf_tables(plan, cluster)
    models = sonic_yang()
    models.check(tables)
    for table, key, fields, message in (
        ("ARS_PROFILE", "x", {}, "no model has such a table"),
        ("SCHEDULER", "x", {"wait": "1"}, "no model has the field"),
        ("SCHEDULER", "x", {"weight": "400Gbps"}, "is no"),
        ("SCHEDULER", "x", {"weight": "101"}, "expected uint8 value|is no"),
        ("SCHEDULER", "x", {"weight": 1}, "expected text"),
        ("QUEUE", "Ethernet0|7", {"scheduler": "nobody"}, "instance-required"),
    ):
        with pytest.raises(YangError, match=message):
            models.check({**tables, table: {**tables.get(table, {}), key: fields}})


def test_expert_traffic_has_its_own_queue_weight_group_headroom_and_no_marking(
    plan: LanePlan, cluster: Cluster
) -> None:
    tables = leaf_tables(plan, cluster)
    expert = plan.classes[TrafficClass.EXPERT]
    assert tables["DSCP_TO_TC_MAP"]["FOURLANE"]["46"] == "5"
    assert tables["TC_TO_QUEUE_MAP"]["FOURLANE"]["5"] == "5"
    assert tables["PORT_QOS_MAP"]["Ethernet0"]["pfc_enable"] == "3,5"
    assert tables["QUEUE"]["Ethernet0|5"] == {"scheduler": "fourlane_expert"}
    assert tables["SCHEDULER"]["fourlane_expert"] == {"type": "DWRR", "weight": str(expert.weight)}
    group = tables["BUFFER_PROFILE"][tables["BUFFER_PG"]["Ethernet0|5"]["profile"]]
    assert int(group["xoff"]) >= 231_424  # NVIDIA's table for SN5600, 400G over 5 m
    assert group["dynamic_th"] == "0"


def test_a_strict_class_is_capped_in_bytes_per_second_of_each_port_rate(plan: LanePlan, cluster: Cluster) -> None:
    schedulers = leaf_tables(plan, cluster)["SCHEDULER"]
    assert schedulers["fourlane_control_400g"]["pir"] == str(400_000_000_000 * 5 // 100 // 8)
    assert schedulers["fourlane_control_800g"]["pir"] == str(800_000_000_000 * 5 // 100 // 8)
    assert schedulers["fourlane_control_400g"]["type"] == "STRICT"


def test_every_code_point_is_mapped_and_those_of_absent_classes_are_default(plan: LanePlan, cluster: Cluster) -> None:
    points = leaf_tables(plan, cluster)["DSCP_TO_TC_MAP"]["FOURLANE"]
    assert list(points) == [str(dscp) for dscp in DSCPS]
    assert points["18"] == "0"  # kv travels on the dcn
    assert leaf_tables(plan, cluster, "dcn-leaf")["DSCP_TO_TC_MAP"]["FOURLANE"]["46"] == "0"


def test_marking_never_drops(plan: LanePlan, cluster: Cluster) -> None:
    profiles = leaf_tables(plan, cluster)["WRED_PROFILE"]
    assert set(profiles) == {"fourlane_collective", "fourlane_bulk"}
    for profile in profiles.values():
        assert profile["ecn"] == "ecn_all"
        assert {profile[f"wred_{colour}_enable"] for colour in ("green", "yellow", "red")} == {"false"}


def test_pools_and_reservations_take_the_whole_buffer_and_no_more(plan: LanePlan, cluster: Cluster) -> None:
    tables = leaf_tables(plan, cluster)
    buffer = switches(cluster)[0].model.buffer
    groups = [tables["BUFFER_PROFILE"][entry["profile"]] for entry in tables["BUFFER_PG"].values()]
    queues = [tables["BUFFER_PROFILE"][entry["profile"]] for entry in tables["BUFFER_QUEUE"].values()]
    set_aside = sum(int(profile["size"]) for profile in [*groups, *queues])
    assert int(tables["BUFFER_POOL"]["ingress_lossless_pool"]["size"]) + set_aside == buffer


def test_shared_headroom_is_one_pool_and_groups_keep_what_is_theirs(plan: LanePlan, cluster: Cluster) -> None:
    pooled = replace(plan, pfc=replace(plan.pfc, shared_headroom=True))
    tables = leaf_tables(pooled, cluster)
    budget = switch_budget(pooled, switches(cluster)[0])
    pool = tables["BUFFER_POOL"]["ingress_lossless_pool"]
    assert int(pool["xoff"]) == budget.xoff_pool
    groups = [tables["BUFFER_PROFILE"][entry["profile"]] for entry in tables["BUFFER_PG"].values()]
    queues = [tables["BUFFER_PROFILE"][entry["profile"]] for entry in tables["BUFFER_QUEUE"].values()]
    set_aside = sum(int(profile["size"]) for profile in [*groups, *queues])
    assert int(pool["size"]) + int(pool["xoff"]) + set_aside == budget.buffer
    sonic_yang().check(tables)


def test_trimmed_classes_drop_nothing_whole_and_say_what_becomes_of_the_rest(plan: LanePlan, cluster: Cluster) -> None:
    trimmed = changed(plan, TrafficClass.EXPERT, lossless=False, trim=True)
    trimmed = changed(trimmed, TrafficClass.COLLECTIVE, lossless=False)
    tables = leaf_tables(trimmed, cluster)
    assert tables["BUFFER_PROFILE"]["fourlane_expert_queue"]["packet_discard_action"] == "trim"
    assert tables["SWITCH_TRIMMING"] == {"GLOBAL": {"size": "256", "dscp_value": "48", "queue_index": "6"}}
    assert tables["PORT_QOS_MAP"]["Ethernet0"]["pfc_enable"] == ""
    assert "PFC_WD" not in tables
    sonic_yang().check(tables)


def test_adaptive_routing_stays_out_of_what_upstream_reads(plan: LanePlan, cluster: Cluster) -> None:
    files = render_sonic(plan, cluster)
    assert not any(name.startswith("ARS_") for name in json.loads(files["hpn-leaf.config_db.json"]))
    adaptive = json.loads(files["hpn-leaf.adaptive-routing.not-upstream.json"])
    assert list(adaptive["ARS_INTERFACE"]) == ["Ethernet8", "Ethernet16"]  # the two links to spines
    assert adaptive["ARS_NEXTHOP_GROUP"]["fourlane"]["assign_mode"] == "per_packet"
    exempt = {rule["DSCP"] for rule in adaptive["ACL_RULE"].values()}
    assert exempt == {str(dscp) for dscp in DSCPS} - {"46"}
    hashed = changed(plan, TrafficClass.EXPERT, routing="ecmp")
    assert "hpn-leaf.adaptive-routing.not-upstream.json" not in render_sonic(hashed, cluster)


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_rendered_reads_back_as_the_plan(name: str) -> None:
    cluster = load_cluster(name)
    plan = default_plan(cluster)
    for switch in switches(cluster):
        tables = leaf_tables(plan, cluster, switch.name)
        planned = planned_classes(plan, switch.network)
        assert read_config_db(tables) == dict.fromkeys(tables["PORT"], planned)
        assert config_db_differences(tables, plan, switch.network) == []


def test_a_device_that_differs_is_told_of_class_by_class(plan: LanePlan, cluster: Cluster) -> None:
    tables = leaf_tables(plan, cluster)
    other = changed(plan, TrafficClass.EXPERT, weight=50, alpha=2.0)
    other = changed(other, TrafficClass.BULK, weight=25, ecn="off", reserved=Size(2048))
    told = [str(difference) for difference in config_db_differences(tables, other, "hpn")]
    assert told == [
        "Ethernet0 and 3 more: bulk.weight: planned 25, found 5",
        "Ethernet0 and 3 more: bulk.reserved: planned 2KiB, found 0B",
        "Ethernet0 and 3 more: bulk.ecn: planned off, found 1600kB to 6400kB, 20%",
        "Ethernet0 and 3 more: expert.weight: planned 50, found 70",
        "Ethernet0 and 3 more: expert.alpha: planned 2, found 1",
    ]
    tables["QUEUE"]["Ethernet0|5"] = {"scheduler": "fourlane_bulk"}
    told = [str(difference) for difference in config_db_differences(tables, plan, "hpn")]
    assert told == ["Ethernet0: expert.weight: planned 70, found 5"]


def test_an_unsound_plan_is_not_rendered(plan: LanePlan, cluster: Cluster) -> None:
    with pytest.raises(CheckFailed, match=r"hpn-leaf: weights: QUEUE\|Ethernet0 .*105 in all"):
        render_sonic(changed(plan, TrafficClass.EXPERT, weight=75), cluster)
    with pytest.raises(CheckFailed, match=r"watchdog: .*pauses without a watchdog"):
        render_sonic(replace(plan, pfc=replace(plan.pfc, watchdog=False)), cluster)
