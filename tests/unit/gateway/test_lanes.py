"""What the gateway tells of lanes: on the terminal, in /health, in /metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import msgspec
from fake_service import FakeService, deployment_of

from fourlane.gateway.lanes import lane_lines, lane_states, unlike_marks
from fourlane.lanes.connections import LikeConnections
from fourlane.lanes.marking import LaneMark, default_marks
from fourlane.spec.deployment import Exchange
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

GOOD = LikeConnections(TrafficClass.EXPERT, "eth0", 46, 5, complete=True, connections=3)
BAD = LikeConnections(TrafficClass.EXPERT, "eth0", 46, None, complete=False, connections=1)


def test_a_lane_has_a_line_with_its_mark_its_carrier_and_its_connections() -> None:
    over_tcp = msgspec.structs.replace(deployment_of(), exchange=Exchange(implementation="tcp"))
    lines = lane_lines(lane_states(over_tcp, default_marks(), [], [GOOD, BAD]))
    assert lines[0].startswith("lane expert   DSCP 46, priority 5: tcp at 127.0.0.1; 4 connection ends on eth0")
    assert lines[0].endswith("1 of them not marked as planned")
    assert "no connections yet" in lines[1]
    assert "UNIX socket, which no network sees" in lines[2]


def test_ranks_alone_in_their_groups_exchange_over_no_network() -> None:
    states = lane_states(deployment_of(prefill=1, decode=1), default_marks(), [], [])
    assert states["expert"].carrier == "within each rank, no network"


def test_ranks_that_share_memory_exchange_over_no_network() -> None:
    states = lane_states(deployment_of(prefill=2, decode=2), default_marks(), [], [])
    assert states["expert"].carrier == "shared_memory, no network"


def test_health_and_metrics_tell_of_connections(model_folder: Path) -> None:
    with FakeService(model_folder) as service, httpx.Client(base_url=service.url) as http:
        known = {"connections": [GOOD, BAD]}
        service.call(lambda: [service.ranks.stats(name, **known) for name in service.router.ranks])
        time.sleep(0.05)
        lane = http.get("/health").json()["lanes"]["expert"]
        text = http.get("/metrics").text
    assert (lane["dscp"], lane["connections"], lane["incomplete"], lane["interfaces"]) == (46, 16, 4, ["eth0"])
    labels = 'as_planned="no",dscp="46",interface="eth0",lane="expert",rank="decode/1"'
    assert f"fourlane_lane_connections_total{{{labels}}} 1.0" in text


def test_a_rank_with_another_plan_is_told_apart(model_folder: Path) -> None:
    with FakeService(model_folder) as service:
        hello = service.router.ranks["decode/0"].hello
    assert hello is not None
    marks = default_marks()
    assert unlike_marks(msgspec.structs.replace(hello, marks=list(marks.values())), marks) == ""
    other = LaneMark(TrafficClass.KV, 10, 1, 40)
    said = unlike_marks(msgspec.structs.replace(hello, marks=[other]), marks)
    assert said == "kv: expected DSCP 18, priority 2, got DSCP 10, priority 1"
