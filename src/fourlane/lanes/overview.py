"""A plan at a glance: what each class gets on each network, and what each kind of switch has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.buffers import queue_limit, switch_budget
from fourlane.lanes.ports import switches

if TYPE_CHECKING:
    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.ports import Switch
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.traffic import TrafficClass

__all__ = ["CONGESTED", "BudgetLine", "ClassRow", "Overview", "QueueLimit", "SwitchView", "overview"]

CONGESTED = (1, 16)
"""For how many full queues at once the longest queue is told."""


class ClassRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one class gets on one network.

    Units:
        weight, cap: percent of a link. ecn: as people write it.
    """

    name: str
    dscp: int
    accept: tuple[str, ...]
    more_dscps: int
    tos: int
    priority: int
    queue: int
    scheduler: str
    weight: int | None
    cap: int | None
    alpha: float
    reserved: int
    lossless: bool
    trim: bool
    ecn: str
    routing: str
    carriers: tuple[str, ...]


class BudgetLine(msgspec.Struct, frozen=True, kw_only=True):
    """So many like ports, so many bytes each, for one purpose."""

    purpose: str
    ports: int
    each: int


class QueueLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How long, in bytes, a class's queue can grow, by how many like queues are full at once."""

    name: str
    alpha: float
    longest: dict[int, int]


class SwitchView(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of switch and its buffer, in bytes.

    `shared` is below zero where the plan does not fit; `unknown` are rates of lossless ports of which no
    headroom figure is published.
    """

    name: str
    network: str
    model: str
    os: str
    count: int
    ports: int
    buffer: int
    lines: list[BudgetLine]
    headroom: int
    reserved: int
    shared: int
    unknown: tuple[str, ...]
    queues: list[QueueLimit]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A plan on a cluster."""

    plan: str
    cluster: str
    networks: dict[str, list[ClassRow]]
    switches: list[SwitchView]


def overview(plan: LanePlan, cluster: Cluster) -> Overview:
    """Sum up a plan on a cluster."""
    return Overview(
        plan=plan.name,
        cluster=cluster.name,
        networks={name: [_row(kind, lane) for kind, lane in plan.on(name).items()] for name in cluster.networks()},
        switches=[_view(plan, switch) for switch in switches(cluster)],
    )


def _row(kind: TrafficClass, lane: Lane) -> ClassRow:
    marking = lane.marking
    ecn = "off" if marking is None else f"{marking.kmin} to {marking.kmax}, {marking.pmax * 100:g} %"
    return ClassRow(
        name=kind.value,
        dscp=lane.dscp,
        accept=lane.accept,
        more_dscps=len(set(lane.dscps())) - 1,
        tos=lane.tos,
        priority=lane.priority,
        queue=lane.queue,
        scheduler=lane.scheduler,
        weight=lane.weight,
        cap=lane.cap,
        alpha=lane.alpha,
        reserved=int(lane.reserved),
        lossless=lane.lossless,
        trim=lane.trim,
        ecn=ecn,
        routing=lane.routing,
        carriers=tuple(lane.carriers),
    )


def _view(plan: LanePlan, switch: Switch) -> SwitchView:
    budget = switch_budget(plan, switch)
    lines = [
        BudgetLine(purpose=row.purpose, ports=row.ports, each=int(row.each))
        for row in (*budget.headroom, *budget.reserved)
    ]
    limits = [
        QueueLimit(
            name=kind.value,
            alpha=lane.alpha,
            longest={count: int(queue_limit(lane, budget.shared, congested=count)) for count in CONGESTED},
        )
        for kind, lane in plan.on(switch.network).items()
    ]
    return SwitchView(
        name=switch.name,
        network=switch.network,
        model=switch.tier.switch,
        os=switch.tier.os,
        count=switch.tier.count,
        ports=len(switch.ports),
        buffer=int(budget.buffer),
        lines=lines,
        headroom=int(budget.headroom_pool),
        reserved=int(budget.reserved_total),
        shared=int(budget.shared),
        unknown=budget.unknown,
        queues=limits,
    )
