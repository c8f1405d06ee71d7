"""Simulated networks against published observations: collisions, marks, interference."""

from __future__ import annotations

import pytest

from fourlane.twin.fabric.network_validation import observations, published_network, simulate_observation

QUICK = ("two-flows", "incast-dcqcn", "interference")


def check(name: str) -> None:
    """See that figures are within their bounds, or outside just where a reason is on record."""
    for found in simulate_observation(name):
        known = found.row.differs
        assert found.within is not bool(known), f"{found.name}: {found.figure:.3f}, published {found.row.published}"


@pytest.mark.parametrize("name", QUICK)
def test_what_was_observed_in_networks_shows_in_simulation(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["deepep-ecmp-dispatch", "queue-pairs", "host-adaptive", "marks"])
def test_other_observations_show_too(name: str) -> None:
    check(name)


def test_every_published_observation_is_simulated() -> None:
    assert set(observations()) == set(published_network())
