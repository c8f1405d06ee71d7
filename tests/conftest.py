"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes depends on who else uses the machine; pytest's timeout bounds each test.
settings.register_profile("fourlane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fourlane")
