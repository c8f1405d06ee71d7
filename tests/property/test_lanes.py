"""Lane plans of every sort: what is sound is taken everywhere, what is not is refused in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_cases import any_plans, clusters, sound_cases

from fourlane.errors import SpecError
from fourlane.lanes.check import check_plan, errors_of
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import DSCPS, load_plan, parse_plan
from fourlane.lanes.qos_maps import qos_maps
from fourlane.lanes.render import TARGETS
from fourlane.lanes.render import render as render_for
from fourlane.lanes.rules import plan_faults
from fourlane.spec.cluster_rules import cluster_faults
from fourlane.spec.load import load_cluster, render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lanes") / "file.toml"


@given(cluster=clusters())
def test_a_cluster_comes_back_from_its_toml(file: Path, cluster: Cluster) -> None:
    assert list(cluster_faults(cluster)) == []
    file.write_text(render(cluster))
    assert load_cluster(file) == cluster


@given(case=sound_cases())
def test_a_plan_comes_back_from_its_toml(file: Path, case: tuple[Cluster, LanePlan]) -> None:
    _, plan = case
    file.write_text(render(plan))
    assert load_plan(file) == plan


@given(case=sound_cases())
def test_every_network_maps_every_code_point(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    for network in cluster.networks():
        maps = qos_maps(plan, network)
        assert list(maps.dscp_to_tc) == list(DSCPS)
        assert set(maps.dscp_to_tc.values()) <= set(maps.tc_to_queue)


@given(cluster=clusters())
def test_every_cluster_has_a_default_plan_of_good_form(cluster: Cluster) -> None:
    assert list(plan_faults(default_plan(cluster))) == []


@given(plan=any_plans())
def test_faults_of_form_of_any_plan_can_be_told(plan: LanePlan) -> None:
    assert all(fault.message for fault in plan_faults(plan))


@given(case=sound_cases())
def test_sound_plans_have_no_errors(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    assert list(map(str, errors_of(check_plan(plan, cluster)))) == []


@given(cluster=clusters())
def test_the_default_plan_of_any_cluster_has_no_errors(cluster: Cluster) -> None:
    assert list(map(str, errors_of(check_plan(default_plan(cluster), cluster)))) == []


@given(cluster=clusters(), plan=any_plans())
def test_any_plan_is_checked_without_a_crash_and_alike_each_time(cluster: Cluster, plan: LanePlan) -> None:
    findings = check_plan(plan, cluster)
    assert findings == check_plan(plan, cluster)
    assert all(finding.found and finding.place and finding.mend for finding in findings)


@given(case=sound_cases())
@settings(max_examples=25)
@pytest.mark.parametrize("target", TARGETS)
def test_every_sound_plan_renders_for_every_target_and_alike_each_time(
    target: str, case: tuple[Cluster, LanePlan]
) -> None:
    cluster, plan = case
    files = render_for(plan, cluster, target)
    assert files == render_for(plan, cluster, target)
    assert all(path.startswith(f"{target}/") and text.endswith("\n") for path, text in files.items())


FIELDS = {
    "dscp": st.integers(0, 63),
    "accept": st.sampled_from([[], ["0-63"], ["7"]]),
    "priority": st.integers(0, 7),
    "queue": st.integers(0, 15),
    "scheduler": st.sampled_from(["strict", "dwrr"]),
    "weight": st.integers(1, 100),
    "cap": st.integers(1, 100),
    "alpha": st.sampled_from([2.0**exponent for exponent in range(-12, 12)]),
    "reserved": st.sampled_from(["0B", "1MB", "100MB"]),
    "lossless": st.booleans(),
    "trim": st.booleans(),
    "ecn": st.just("off"),
    "ecn.kmin": st.sampled_from(["0B", "1MB", "1GB"]),
    "ect": st.booleans(),
    "routing": st.sampled_from(["ecmp", "adaptive"]),
    "network": st.sampled_from(["hpn", "dcn", "both"]),
    "carriers": st.sampled_from([[], ["gloo"], ["deepep-v1"], ["nvshmem", "nccl"]]),
}


@st.composite
def changes(draw: st.DrawFn) -> list[str]:
    """Draw overrides of a plan, each of a value its field may have."""
    fields = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4))
    kinds = [draw(st.sampled_from(TrafficClass)).value for _ in fields]
    return [
        f"classes.{kind}.{field}={json.dumps(draw(FIELDS[field]))}" for kind, field in zip(kinds, fields, strict=True)
    ]


@given(case=sound_cases(), overrides=changes())
@settings(max_examples=60)
def test_a_changed_plan_is_refused_in_words_found_wrong_or_renders(
    case: tuple[Cluster, LanePlan], overrides: list[str]
) -> None:
    cluster, plan = case
    changed, faults = None, ()
    try:
        changed = parse_plan(render(plan), source="plan.toml", overrides=overrides)
    except SpecError as error:
        faults = error.faults
    assert (changed is None) == bool(faults)
    assert all("classes." in fault and ": " in fault for fault in faults)
    if changed is None or errors_of(check_plan(changed, cluster)):
        return
    for target in TARGETS:
        render_for(changed, cluster, target)
