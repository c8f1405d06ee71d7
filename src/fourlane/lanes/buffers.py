"""The buffer of a switch under a plan: what is set aside for pauses and for classes, and what all share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.lanes.headroom import Headroom, port_headroom
from fourlane.units import Size

if TYPE_CHECKING:
    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.ports import Port, Switch
    from fourlane.spec.traffic import TrafficClass

__all__ = ["Budget", "BudgetRow", "classes_by_queue", "headroom_of", "queue_limit", "switch_budget"]


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """So many like ports, so many bytes each, for one purpose."""

    purpose: str
    ports: int
    each: Size

    @property
    def total(self) -> int:
        """Return the bytes of all ports."""
        return self.ports * self.each


@dataclass(frozen=True, slots=True)
class Budget:
    """What becomes of a switch's buffer.

    `headroom_pool` is what headroom takes: the rows' sum, or less of it where it is shared. Then `xoff_pool`
    of it is one pool for what arrives after pauses on any port, and the rest is each port's own.
    `unknown`: lossless ports of which no headroom figure is published, by rate; they count as nothing.

    Units:
        all sizes: bytes; `shared` is below zero when the plan does not fit.
    """

    buffer: Size
    headroom: tuple[BudgetRow, ...]
    headroom_pool: int
    reserved: tuple[BudgetRow, ...]
    shared: int
    unknown: tuple[str, ...]
    xoff_pool: int = 0

    @property
    def reserved_total(self) -> int:
        """Return the bytes set aside for classes."""
        return sum(row.total for row in self.reserved)

    @property
    def fits(self) -> bool:
        """Tell whether something is left to share."""
        return self.shared > 0


def headroom_of(plan: LanePlan, switch: Switch, port: Port) -> Headroom | None:
    """Return the headroom of one lossless class on a port; None where no figure is known."""
    return port_headroom(switch.model, port.rate, port.cable, given=plan.pfc.headroom)


def switch_budget(plan: LanePlan, switch: Switch) -> Budget:
    """Add up what a plan sets aside in a switch."""
    lossless = plan.lossless_on(switch.network)
    headroom: dict[tuple[str, Size], int] = {}
    unknown: set[str] = set()
    xoffs: list[int] = []
    for port in switch.ports if lossless else ():
        room = headroom_of(plan, switch, port)
        if room is None:
            unknown.add(str(port.rate))
            continue
        for kind in lossless:
            key = (f"{kind.value}: headroom, {port.rate} over {port.cable}", room.size)
            headroom[key] = headroom.get(key, 0) + 1
            xoffs.append(int(room.xoff))
    rows = tuple(BudgetRow(purpose, count, each) for (purpose, each), count in headroom.items())
    reserved = tuple(
        BudgetRow(f"{kind.value}: reserved", len(switch.ports), lane.reserved)
        for kind, lane in plan.on(switch.network).items()
        if lane.reserved
    )
    pool = sum(row.total for row in rows)
    xoff_pool = 0
    if plan.pfc.shared_headroom and xoffs:
        xoff_pool = max(*xoffs, -(-sum(xoffs) // plan.pfc.oversubscription))
        pool -= sum(xoffs) - xoff_pool
    shared = switch.model.buffer - pool - sum(row.total for row in reserved)
    return Budget(switch.model.buffer, rows, pool, reserved, shared, tuple(sorted(unknown)), xoff_pool)


def queue_limit(lane: Lane, shared: int, *, congested: int = 1) -> Size:
    """Return how long a class's queue can grow.

    Args:
        lane: the class.
        shared: bytes of the pool the queue draws from.
        congested: queues of the same alpha that are full at once; each gets alpha * shared / (1 + n * alpha).
    """
    return Size(lane.reserved + int(lane.alpha * max(shared, 0) / (1 + congested * lane.alpha)))


def classes_by_queue(plan: LanePlan, switch: Switch) -> dict[int, tuple[TrafficClass, Lane]]:
    """Return the classes of a switch's network by their queue, in order of queues."""
    lanes = plan.on(switch.network).items()
    return dict(sorted((lane.queue, (kind, lane)) for kind, lane in lanes))
