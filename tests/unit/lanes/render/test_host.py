"""The host scripts: golden; lanes that a host interface cannot hold are refused. Run for real in tests/lab."""

from __future__ import annotations

import pytest
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.render.host import dscp_blocks, host_queues
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate, Size


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_scripts_are_the_golden_ones(name: str) -> None:
    assert rendered(name, "host") == kept(name, "host")


def test_code_points_are_covered_by_the_fewest_blocks() -> None:
    assert dscp_blocks(range(64)) == [(0, 0)]
    assert dscp_blocks([46]) == [(46 << 2, 0xFC)]
    assert dscp_blocks(range(8, 16)) == [(8 << 2, 0xE0)]
    for wanted in ({0, 1, 2, 3, 5}, set(range(1, 63)), {63}):
        covered = {dscp for value, mask in dscp_blocks(wanted) for dscp in range(64) if dscp << 2 & mask == value}
        assert covered == wanted


def test_lanes_that_an_interface_cannot_hold_are_all_named() -> None:
    plan = default_plan(load_cluster("lab"))
    classes = dict(plan.classes)
    classes[TrafficClass.CONTROL] = replace(classes[TrafficClass.CONTROL], cap=None)
    classes[TrafficClass.EXPERT] = replace(classes[TrafficClass.EXPERT], weight=80)
    with pytest.raises(SpecError) as refused:
        host_queues(replace(plan, classes=classes), "hpn", Rate.parse("1Gbps"), buffer=Size(1 << 20))
    assert "classes.control.cap: a strict class needs one" in str(refused.value)
    assert "classes on hpn: expected weights that add up to 100, got 110" in str(refused.value)
