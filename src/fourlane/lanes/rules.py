"""What makes the values of a lane plan values: ranges, spellings, nothing claimed twice.

These hold for a plan by itself; a plan that breaks one is refused as it is read. Whether it makes
sense on a cluster is `fourlane.lanes.check`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from fourlane.spec.reading import Fault
from fourlane.spec.traffic import MOST_DSCP, TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.plan import Lane, LanePlan

__all__ = ["plan_faults"]

MOST_PRIORITY = 7
MOST_QUEUE = 15


def plan_faults(plan: LanePlan) -> Iterator[Fault]:
    """Yield every rule of form that a plan breaks."""
    from fourlane.lanes.plan import SCHEMA_VERSION

    if plan.version != SCHEMA_VERSION:
        yield Fault("version", f"expected {SCHEMA_VERSION}, got {plan.version}; this fourlane reads no other")
    for kind in TrafficClass:
        if kind not in plan.classes:
            yield Fault(f"classes.{kind.value}", f"expected a table [classes.{kind.value}], but it is missing")
    for kind, lane in plan.classes.items():
        yield from (Fault(f"classes.{kind.value}.{place}", message) for place, message in _lane(lane))
    yield from _claimed_twice(plan, "queue")
    yield from _claimed_twice(plan, "priority")
    if plan.pfc.oversubscription < 1:
        yield Fault("pfc.oversubscription", f"expected at least 1, got {plan.pfc.oversubscription}")
    if plan.trimming.size < 1:
        yield Fault("trimming.size", f"expected more than nothing, got {plan.trimming.size}")


def _lane(lane: Lane) -> Iterator[Fault]:
    yield from _whole("dscp", lane.dscp, 0, MOST_DSCP, hint=_tos_hint(lane.dscp))
    yield from _accepted(lane)
    yield from _whole("priority", lane.priority, 0, MOST_PRIORITY)
    yield from _whole("queue", lane.queue, 0, MOST_QUEUE)
    yield from _scheduler(lane)
    if not (lane.alpha > 0 and math.frexp(lane.alpha)[0] == 0.5):
        yield Fault("alpha", f"expected a power of two such as 0.125, 1 or 8, got {lane.alpha:g}")
    if lane.lossless and lane.trim:
        yield Fault("trim", "a lossless class drops nothing to trim; set lossless = false or trim = false")
    ecn = lane.marking
    if ecn is not None:
        if ecn.kmax < ecn.kmin:
            yield Fault("ecn.kmax", f"expected at least kmin = {ecn.kmin}, got {ecn.kmax}")
        if not 0 < ecn.pmax <= 1:
            yield Fault("ecn.pmax", f"expected a probability above 0 and up to 1, got {ecn.pmax:g}")


def _scheduler(lane: Lane) -> Iterator[Fault]:
    if lane.scheduler == "dwrr" and lane.weight is None:
        yield Fault("weight", 'expected a weight from 1 to 100 with scheduler = "dwrr", but it is missing')
    if lane.scheduler == "strict" and lane.weight is not None:
        yield Fault("weight", 'a strict class has none; remove it, or set scheduler = "dwrr"')
    if lane.weight is not None:
        yield from _whole("weight", lane.weight, 1, 100)
    if lane.cap is not None:
        yield from _whole("cap", lane.cap, 1, 100)


def _accepted(lane: Lane) -> Iterator[Fault]:
    from fourlane.lanes.plan import dscp_range

    for index, text in enumerate(lane.accept):
        try:
            dscp_range(text)
        except ValueError as error:
            yield Fault(f"accept[{index}]", str(error))


def _whole(place: str, value: int, least: int, most: int, *, hint: str = "") -> Iterator[Fault]:
    if not least <= value <= most:
        yield Fault(place, f"expected a whole number from {least} to {most}, got {value}{hint}")


def _tos_hint(dscp: int) -> str:
    from_tos = dscp // 4
    return f" (a ToS byte is four times the DSCP; did you mean {from_tos}?)" if MOST_DSCP < dscp <= 255 else ""


def _claimed_twice(plan: LanePlan, field: str) -> Iterator[Fault]:
    claims: dict[int, list[str]] = defaultdict(list)
    for kind, lane in plan.classes.items():
        claims[getattr(lane, field)].append(kind.value)
    for value, (first, *others) in claims.items():
        for other in others:
            yield Fault(
                f"classes.{other}.{field}", f"{field} {value} is that of {first} already; every class has its own"
            )
