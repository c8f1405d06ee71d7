"""Lane plans of every sort: what is sound is taken everywhere, what is not is refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from lane_cases import any_plans, clusters, sound_cases

from fourlane.lanes.check import check_plan, errors_of
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import DSCPS, load_plan
from fourlane.lanes.qos_maps import qos_maps
from fourlane.lanes.rules import plan_faults
from fourlane.spec.cluster_rules import cluster_faults
from fourlane.spec.load import load_cluster, render

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
