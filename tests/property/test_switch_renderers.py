"""Every sound plan renders for every switch, the same each time, proven, and reads back."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lane_cases import sound_cases
from msgspec.structs import replace
from sonic_yang import sonic_yang, thinned

from fourlane.errors import CheckFailed
from fourlane.lanes.check import check_plan, errors_of
from fourlane.lanes.plan import Ecn
from fourlane.lanes.ports import switches
from fourlane.lanes.render.eos import render_eos
from fourlane.lanes.render.nvue import render_nvue
from fourlane.lanes.render.sonic import render_sonic
from fourlane.lanes.render.sonic_proof import prove_config_db
from fourlane.lanes.render.sonic_reading import config_db_differences, planned_classes, read_config_db
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Size

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
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_sound_plan_renders_and_always_alike(target: str, case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    files = RENDERERS[target](plan, cluster, every_switch=True)
    assert files == RENDERERS[target](plan, cluster, every_switch=True)
    assert len({name.partition(".")[0] for name in files}) == len(switches(cluster))
    assert all(text.endswith("\n") for text in files.values())


_ECN = st.builds(
    Ecn,
    kmin=st.integers(0, 10**7).map(Size),
    kmax=st.integers(10**7, 10**8).map(Size),
    pmax=st.sampled_from([0.001, 0.015, 0.2, 1.0]),
)
_CHANGES = {
    "dscp": st.integers(0, 63),
    "accept": st.just(()),
    "priority": st.integers(0, 7),
    "queue": st.integers(0, 9),
    "scheduler": st.sampled_from(["strict", "dwrr"]),
    "weight": st.none() | st.integers(1, 100),
    "cap": st.none() | st.integers(1, 100),
    "alpha": st.sampled_from([2.0**exponent for exponent in range(-10, 10)]),
    "reserved": st.sampled_from([0, 1, 4096, 10**6, 10**8]).map(Size),
    "lossless": st.booleans(),
    "trim": st.booleans(),
    "ecn": st.just("off") | _ECN,
    "routing": st.sampled_from(["ecmp", "adaptive"]),
    "network": st.sampled_from(["hpn", "dcn", "both"]),
}


@given(case=sound_cases(), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_plan_changed_at_random_is_refused_in_words_or_renders(
    case: tuple[Cluster, LanePlan], data: st.DataObject
) -> None:
    cluster, plan = case
    for _ in range(data.draw(st.integers(1, 2))):
        kind, field = data.draw(st.sampled_from(TrafficClass)), data.draw(st.sampled_from(sorted(_CHANGES)))
        lane = replace(plan.classes[kind], **{field: data.draw(_CHANGES[field])})
        plan = replace(plan, classes={**plan.classes, kind: lane})
    refusals = () if not errors_of(check_plan(plan, cluster)) else (CheckFailed,)
    for render in RENDERERS.values():
        with suppress(*refusals):  # a sound plan is never refused, and no other is ever met with a crash
            render(plan, cluster, every_switch=True)


@given(case=sound_cases())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_plan_to_sonic_to_plan_is_the_identity(case: tuple[Cluster, LanePlan]) -> None:
    _, plan = case
    for switch, tables in sonic_of(case):
        assert prove_config_db(tables, chip=switch.model, plan=plan, network=switch.network) == []
        planned = planned_classes(plan, switch.network)
        assert all(classes == planned for classes in read_config_db(tables).values())
        assert config_db_differences(tables, plan, switch.network) == []


@given(case=sound_cases())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_yang_models_take_every_sound_plan(case: tuple[Cluster, LanePlan]) -> None:
    for _, tables in sonic_of(case):
        sonic_yang().check(thinned(tables))
