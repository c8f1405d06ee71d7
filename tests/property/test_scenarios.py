"""Random scenarios: what compiles is sound and always the same, and sound scenarios deliver all they have to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from fabric_cases import scenarios, sound_scenarios
from hypothesis import HealthCheck, given, settings

from fourlane.twin.fabric.reference import simulate

if TYPE_CHECKING:
    from fourlane.twin.fabric import Scenario

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(scenarios())
def test_a_random_scenario_compiles_to_sound_arrays_and_always_to_the_same(scenario: Scenario) -> None:
    one, again = scenario.compile().flat(), scenario.compile().flat()
    for name, value in one.items():
        assert np.array_equal(value, again[name]), name
    scenario.compile().validate()


@few
@given(sound_scenarios())
def test_every_flow_of_a_sound_scenario_is_delivered(scenario: Scenario) -> None:
    raw = simulate(scenario.compile())
    assert raw["status"] == "done"
    assert (raw["flow_delivered"] >= 0).all()
    assert raw["delivered_payload"] == scenario.flows.total_bytes
