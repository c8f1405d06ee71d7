"""Arrays that no scenario would hold never crash or hang the native core: it refuses them by name, or ends in time.

More of them: python -m pytest -m soak tests/property/test_fabric_hostile.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_fabrics import fabrics

from fourlane import _native
from fourlane.errors import LimitReached
from fourlane.twin.fabric.compiled import ARRAYS
from fourlane.twin.fabric.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.twin.fabric.compiled import CompiledScenario

EVENTS = 20_000
VALUES = [
    -(1 << 63),
    -(1 << 31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 44,
    1 << 60,
    (1 << 63) - 1,
]
FLOATS = [float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1e300]
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def wrong_entries(draw: Callable[..., Any], array: np.ndarray) -> np.ndarray:
    """Put a few hostile values into an array, wrapped to its dtype."""
    made = array.copy()
    for _ in range(draw(st.integers(1, 3))):
        if made.size:
            at = draw(st.integers(0, made.size - 1))
            made.reshape(-1)[at] = np.array([draw(st.sampled_from(VALUES))]).astype(made.dtype)[0]
    return made


def wrong_form(draw: Callable[..., Any], array: np.ndarray) -> Any:
    """Give an array another length, dtype or number of dimensions."""
    return draw(
        st.sampled_from(
            [
                array.reshape(-1)[:-1].copy(),
                np.concatenate([array.reshape(-1), array.reshape(-1)]),
                array.astype(np.float64),
                array.astype(np.int16),
                array.reshape(1, 1, -1),
                np.repeat(array.reshape(-1), 2)[::2],
                array.tolist(),
                None,
            ]
        )
    )


def wrong_scalar(draw: Callable[..., Any], name: str, value: Any) -> Any:
    if isinstance(value, float):
        return draw(st.sampled_from(FLOATS))
    hostile = draw(st.sampled_from(VALUES))
    return hostile % 4096 if name == "flowlet_entries" else hostile  # large tables are allowed, and slow to make


@st.composite
def hostile_arrays(draw: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """Draw a scenario's arrays with one to three of them spoilt, and the names of those."""
    flat = draw(fabrics()).flat()
    names = draw(st.lists(st.sampled_from(sorted(flat)), min_size=1, max_size=3, unique=True))
    for name in names:
        if name in ARRAYS:
            spoil = draw(st.sampled_from([wrong_entries, wrong_entries, wrong_entries, wrong_form]))
            flat[name] = spoil(draw, flat[name])
        else:
            flat[name] = wrong_scalar(draw, name, flat[name])
    flat["max_events"] = EVENTS
    return flat, names


def survives(spoilt: tuple[dict[str, Any], list[str]]) -> None:
    """See that the core refuses the arrays with a message that names one, or runs them to an end."""
    flat, _ = spoilt
    refusal = ""
    try:
        simulation = _native.FabricSimulation(flat)
    except (ValueError, TypeError, KeyError) as error:
        refusal = str(error)
    if refusal:
        assert any(name in refusal for name in flat), refusal
    else:
        assert simulation.advance(10 * EVENTS)
        assert simulation.result()["status"] in {"done", "stuck", "time", "budget"}


@settings(relaxed, max_examples=150)
@given(hostile_arrays())
def test_spoilt_arrays_are_refused_by_name_or_run_to_an_end(spoilt: tuple[dict[str, Any], list[str]]) -> None:
    survives(spoilt)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(relaxed, max_examples=20_000, phases=[Phase.generate])
@given(hostile_arrays())
def test_no_spoilt_arrays_ever_crash_the_core(spoilt: tuple[dict[str, Any], list[str]]) -> None:
    survives(spoilt)


@settings(relaxed, max_examples=40)
@given(fabrics(), st.sampled_from(sorted(ARRAYS)), st.data())
def test_an_array_of_another_form_is_refused_by_its_name(scenario: CompiledScenario, name: str, data: Any) -> None:
    flat = scenario.flat()
    flat[name] = data.draw(st.sampled_from([flat[name].astype(np.float64), flat[name].astype(np.int16), None]))
    with pytest.raises((ValueError, TypeError, KeyError), match=name):
        _native.FabricSimulation(flat)


@settings(relaxed, max_examples=20)
@given(fabrics(), st.integers(1, 200))
def test_a_run_out_of_events_ends_with_an_error_that_says_so(scenario: CompiledScenario, budget: int) -> None:
    simulator = Simulator(replace(scenario, max_events=budget))
    seen = simulator.run(partial=True)
    assert seen.events <= budget
    if seen.status == "budget":
        with pytest.raises(LimitReached, match=f"max_events: the limit of {budget:,} events was reached"):
            simulator.run()
