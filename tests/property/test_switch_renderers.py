"""Every sound plan renders for every switch, the same each time, proven, and reads back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from lane_cases import sound_cases
from sonic_yang import sonic_yang, thinned

from fourlane.lanes.ports import switches
from fourlane.lanes.render.eos import render_eos
from fourlane.lanes.render.nvue import render_nvue
from fourlane.lanes.render.sonic import render_sonic
from fourlane.lanes.render.sonic_proof import prove_config_db
from fourlane.lanes.render.sonic_reading import config_db_differences, planned_classes, read_config_db

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.plan import LanePlan
    from fourlane.lanes.ports import Switch
    from fourlane.spec.cluster import Cluster

RENDERERS = {"sonic": render_sonic, "nvue": render_nvue, "eos": render_eos}


def sonic_of(case: tuple[Cluster, LanePlan]) -> Iterator[tuple[Switch, dict[str, Any]]]:
    """Yield each kind of switch with its tables, whatever its operating system."""
    cluster, plan = case
    files = render_sonic(plan, cluster, every_switch=True)
    for switch in switches(cluster):
        names = (f"{switch.name}.ports.json", f"{switch.name}.config_db.json")
        yield switch, {table: entries for name in names for table, entries in json.loads(files[name]).items()}


@pytest.mark.parametrize("target", RENDERERS)
@given(case=sound_cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_sound_plan_renders_and_always_alike(target: str, case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    files = RENDERERS[target](plan, cluster, every_switch=True)
    assert files == RENDERERS[target](plan, cluster, every_switch=True)
    assert len({name.partition(".")[0] for name in files}) == len(switches(cluster))
    assert all(text.endswith("\n") for text in files.values())


@given(case=sound_cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_plan_to_sonic_to_plan_is_the_identity(case: tuple[Cluster, LanePlan]) -> None:
    _, plan = case
    for switch, tables in sonic_of(case):
        assert prove_config_db(tables, chip=switch.model, plan=plan, network=switch.network) == []
        planned = planned_classes(plan, switch.network)
        assert all(classes == planned for classes in read_config_db(tables).values())
        assert config_db_differences(tables, plan, switch.network) == []


@given(case=sound_cases())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_yang_models_take_every_sound_plan(case: tuple[Cluster, LanePlan]) -> None:
    for _, tables in sonic_of(case):
        sonic_yang().check(thinned(tables))
