"""The native core gives the reference's results bit for bit, whatever is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_fabrics import fabrics

from fourlane import _native
from fourlane.twin.fabric.reference import simulate

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def native(scenario: CompiledScenario, *, steps: int = 1 << 40) -> dict[str, Any]:
    simulation = _native.FabricSimulation(scenario.flat())
    while not simulation.advance(steps):
        pass
    return simulation.result()


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype, name


@settings(relaxed, max_examples=150)
@given(fabrics())
def test_the_native_core_equals_the_reference(scenario: CompiledScenario) -> None:
    assert_same(native(scenario), simulate(scenario))


@settings(relaxed, max_examples=20)
@given(fabrics(), st.integers(1, 1000))
def test_how_a_run_is_cut_into_steps_leaves_no_trace(scenario: CompiledScenario, steps: int) -> None:
    assert_same(native(scenario, steps=steps), native(scenario))
