"""What `lanes show`, `explain` and `diff` say: the same figures as the plan, the budget and the check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from lane_cases import sound_cases
from msgspec.structs import replace

from fourlane.lanes.buffers import switch_budget
from fourlane.lanes.compare import differences
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.explain import SUBJECTS, explain
from fourlane.lanes.overview import overview
from fourlane.lanes.plan import parse_plan
from fourlane.lanes.ports import switches
from fourlane.spec.load import load_cluster, render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster


@given(case=sound_cases())
def test_an_overview_adds_up_to_the_buffer_of_every_switch(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    view = overview(plan, cluster)
    assert list(view.networks) == list(cluster.networks())
    for shown, switch in zip(view.switches, switches(cluster), strict=True):
        assert shown.headroom + shown.reserved + shown.shared == shown.buffer == int(switch.model.buffer)
        assert shown.shared == switch_budget(plan, switch).shared
        for queue in shown.queues:
            assert queue.longest[16] <= queue.longest[1] <= shown.buffer


@given(case=sound_cases())
@settings(max_examples=40)
def test_every_figure_of_any_plan_can_be_explained(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    for subject in SUBJECTS:
        explained = explain(plan, cluster, subject)
        assert all(line.why and line.source and line.text for line in explained)
        assert len({line.field for line in explained}) == len(explained)


def test_a_figure_of_ones_own_is_told_beside_the_default_and_its_reason() -> None:
    cluster = load_cluster("h800-ft")
    plan = parse_plan(render(default_plan(cluster)), source="plan", overrides=["classes.expert.weight=60"])
    lines = {line.field: line for line in explain(plan, cluster, "expert")}
    assert lines["weight"].text.startswith("yours; default 70, because the largest share")
    assert not lines["dscp"].text.startswith("yours")
    headroom = lines["(headroom, hpn-leaf, 400Gbps over 5m)"]
    assert headroom.value == "254,976 B"
    assert "235,520 B may still arrive after a pause" in headroom.why


def test_a_field_the_default_leaves_out_has_a_reason_too() -> None:
    cluster = load_cluster("h800-ft")
    plan = parse_plan(
        render(default_plan(cluster)),
        source="plan",
        overrides=["classes.expert.cap=90", "classes.kv.ect=true", "pfc.headroom=1MB"],
    )
    texts = {
        (subject, line.field): line.text
        for subject in ("expert", "kv", "pfc")
        for line in explain(plan, cluster, subject)
    }
    for place in (("expert", "cap"), ("kv", "ect"), ("pfc", "headroom")):
        assert texts[place].startswith("yours; default not set, because "), place


@given(case=sound_cases())
def test_plans_differ_just_where_they_are_not_equal(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    usual = default_plan(cluster)
    assert differences(plan, plan) == []
    assert bool(differences(plan, usual)) == (plan != usual)
    assert {line.place for line in differences(plan, usual)} == {line.place for line in differences(usual, plan)}


def test_differences_name_the_field_and_both_values() -> None:
    plan = default_plan(load_cluster("one-network"))
    kv = replace(plan.classes[TrafficClass.KV], cap=None, ecn="off")
    found = differences(plan, replace(plan, classes={**plan.classes, TrafficClass.KV: kv}))
    assert [(line.place, line.a, line.b) for line in found] == [
        ("classes.kv.cap", "50", None),
        ("classes.kv.ecn.kmin", '"1600kB"', None),
        ("classes.kv.ecn.kmax", '"6400kB"', None),
        ("classes.kv.ecn.pmax", "0.2", None),
        ("classes.kv.ecn", None, '"off"'),
    ]


@pytest.mark.parametrize("name", ["h800-ft", "lab", "one-network"])
def test_the_default_plan_is_nowhere_ones_own(name: str) -> None:
    cluster = load_cluster(name)
    for subject in SUBJECTS:
        assert all(line.default is None for line in explain(default_plan(cluster), cluster, subject))
