"""What holds for all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on who else uses the machine; pytest's timeout bounds each test.
settings.register_profile("fourlane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fourlane")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip soaks unless `-m` chooses tests."""
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run by python -m pytest -m soak"))
