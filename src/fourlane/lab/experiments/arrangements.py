"""What experiments have in common: their settings, the lanes they compare, and the order in which they measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import LanePlan
from fourlane.lanes.render.host import host_queues
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.topology import Port
    from fourlane.lanes.render.host import HostQueues

__all__ = ["BUFFER", "Settings", "lanes_of", "one_network_plan", "plan_of", "turns"]

BUFFER = Size(1 << 20)
"""What the queues of one interface share; a FIFO has all of it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an experiment is run; `scale` stretches its measurements, `plan` replaces the default lane plan."""

    rate: Rate | None = None
    repeats: int = 3
    scale: float = 1.0
    plan: LanePlan | None = None

    def seconds(self, usual: float) -> float:
        """Return how long to measure."""
        return usual * self.scale

    def times(self, usual: int) -> int:
        """Return how many messages or rounds to measure."""
        return max(20, round(usual * self.scale))


def plan_of(settings: Settings) -> LanePlan:
    """Return the lane plan: the given one, or the default for a lab with two networks."""
    return settings.plan or default_plan(load_cluster("lab"))


def one_network_plan(settings: Settings) -> LanePlan:
    """Return a lane plan with KV on the expert network: the given one if it is such.

    Else the default for one network, with 90 of 100 parts for expert traffic and no cap on KV. HTB gives a lane that
    asks by fits and starts, as a ping-pong does, little more than its own part: what idle lanes leave goes to those
    with a backlog.
    """
    if settings.plan is not None and settings.plan.classes[TrafficClass.KV].on("hpn"):
        return settings.plan
    plan = default_plan(msgspec.structs.replace(load_cluster("lab"), dcn=None))
    weights = {TrafficClass.EXPERT: 90, TrafficClass.KV: 4}
    classes = {
        kind: lane if lane.weight is None else msgspec.structs.replace(lane, weight=weights.get(kind, 2), cap=None)
        for kind, lane in plan.classes.items()
    }
    return msgspec.structs.replace(plan, classes=classes)


def lanes_of(plan: LanePlan, rate: Rate) -> Callable[[Port], HostQueues]:
    """Return a function that gives each interface the plan's lanes for its network."""
    return lambda port: host_queues(plan, port.network, rate, buffer=BUFFER)


def turns(names: tuple[str, ...], repeats: int) -> list[tuple[int, str]]:
    """Return what is measured when: all arrangements in turn, again and again, so that drift falls on all alike."""
    return [(repeat, name) for repeat in range(repeats) for name in names]
