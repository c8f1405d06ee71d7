"""Flow level held against packets."""

from __future__ import annotations

import pytest

from fourlane.errors import SpecError
from fourlane.twin.flow_level.validation import check_flow_level, flow_level_cases

QUICK = [
    "all-to-all of 64, ECMP",
    "EP64 dispatch, one spine of four down",
    "EP32 dispatch beside KV, shared queue",
    "EP32 dispatch beside KV, weights 70 and 10",
]


def test_flow_level_is_within_its_bounds_of_packets_in_scenarios_of_each_kind() -> None:
    checks = check_flow_level(QUICK, processes=1)
    assert [check.name for check in checks] == QUICK
    assert [check.name for check in checks if not check.within] == []
    assert all(-0.03 <= check.least < check.most <= 0.03 for check in checks)


@pytest.mark.slow
def test_flow_level_is_within_its_bounds_of_packets_in_all_scenarios() -> None:
    checks = check_flow_level()
    assert [f"{check.name}: {check.error:+.1%}" for check in checks if not check.within] == []
    assert all(check.why for check in checks if check.least < -0.03)


def test_a_scenario_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match=r'flow level: expected some of incast.*, got "outcast"'):
        check_flow_level(["outcast"])
    assert "four EP64 dispatches, ECMP" in flow_level_cases()
