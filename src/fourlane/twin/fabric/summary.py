"""The figures of a simulation in brief: by class, by queue, the hottest ports; as a value, and as plain text."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from fourlane.twin.fabric.results import Results

__all__ = ["ClassFigures", "PortUse", "QueueFigures", "Summary", "Times", "port_use", "summarise"]


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution, by nearest rank; None when nothing was counted.

    Units:
        us.
    """

    p50: float | None
    p99: float | None
    max: float | None


class ClassFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One class of traffic.

    `completion_us`: of its flows, from start to last acknowledgement. `latency_us`: of its packets, from the first
    bit sent to the receiver's memory. `fairness` is Jain's index over its flows' rates.

    Units:
        goodput: bit/s.
    """

    name: str
    flows: int
    finished: int
    payload_bytes: int
    completion_us: Times
    latency_us: Times
    goodput: float
    fairness: float | None
    retransmitted_packets: int
    reorder_depth: int


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One queue, over all ports. `pauses`: XOFF frames sent for it; `paused_us`: how long ports stood paused, added."""

    name: str
    sent_bytes: int
    sent_packets: int
    marks: int
    drops: int
    trims: int
    pauses: int
    paused_us: float


class PortUse(msgspec.Struct, frozen=True, kw_only=True):
    """One egress port. `utilisation`: share of the time it sent; `paused_us`: over its queues, added."""

    name: str
    port: int
    utilisation: float
    max_depth_bytes: int
    drops: int
    marks: int
    paused_us: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A simulation in brief. Where it did not end by itself, `status` says why and flows that hang are named."""

    status: str
    complete: bool
    flows: int
    finished: int
    makespan_us: float
    simulated_us: float
    events: int
    data_hops: int
    seed: int
    classes: list[ClassFigures]
    queues: list[QueueFigures]
    hottest_ports: list[PortUse]
    hangs: list[str]

    def __str__(self) -> str:
        """Return it as text of a few aligned lines."""
        return "\n".join(_lines(self))


def summarise(results: Results) -> Summary:
    """Work out the figures of a simulation in brief."""
    from fourlane.twin.fabric.hang import hangs

    return Summary(
        status=results.status,
        complete=results.complete,
        flows=results.flows,
        finished=results.flows_finished,
        makespan_us=results.makespan_us,
        simulated_us=results.time_us,
        events=results.events,
        data_hops=results.data_hops,
        seed=results.scenario.seed,
        classes=[_class_figures(results, name) for name in results.class_names if results.flows_of(name).any()],
        queues=[_queue_figures(results, name) for name in results.queue_names if results.total("tx_bytes", name)],
        hottest_ports=results.hottest_ports(5),
        hangs=[] if results.complete else hangs(results),
    )


def port_use(results: Results, port: int) -> PortUse:
    """Return the figures of one port."""
    raw = results.raw
    return PortUse(
        name=results.port_name(port),
        port=port,
        utilisation=float(results.utilisation[port]),
        max_depth_bytes=int(raw["port_max_depth"][port]),
        drops=int(raw["port_drops"][port].sum()),
        marks=int(raw["port_marks"][port].sum()),
        paused_us=float(raw["port_paused_ps"][port].sum()) / 1e6,
    )


def _class_figures(results: Results, name: str) -> ClassFigures:
    chosen = results.flows_of(name)
    return ClassFigures(
        name=name,
        flows=int(chosen.sum()),
        finished=int((~np.isnan(results.finish_us[chosen])).sum()),
        payload_bytes=int(results.flow_bytes[chosen].sum()),
        completion_us=Times(
            p50=_known(results.completion_percentile(name, 50)),
            p99=_known(results.completion_percentile(name, 99)),
            max=_known(results.completion_percentile(name, 100)),
        ),
        latency_us=Times(
            p50=_known(results.percentile(name, 50)),
            p99=_known(results.percentile(name, 99)),
            max=_known(results.percentile(name, 100)),
        ),
        goodput=results.goodput(name),
        fairness=_known(results.fairness(name)),
        retransmitted_packets=int(results.retransmitted[chosen].sum()),
        reorder_depth=int(results.reorder_depth[chosen].max(initial=0)),
    )


def _queue_figures(results: Results, name: str) -> QueueFigures:
    return QueueFigures(
        name=name,
        sent_bytes=results.total("tx_bytes", name),
        sent_packets=results.total("tx_packets", name),
        marks=results.total("marks", name),
        drops=results.total("drops", name),
        trims=results.total("trims", name),
        pauses=results.total("pauses", name),
        paused_us=results.total("paused_ps", name) / 1e6,
    )


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def _lines(summary: Summary) -> list[str]:
    ended = "all flows finished" if summary.complete else f"NOT ENDED ({summary.status})"
    flows = f"{summary.finished:,} of {summary.flows:,}"
    work = f"{summary.events:,} events, {summary.data_hops:,} data packet-hops"
    return [
        f"{ended}: {flows}, makespan {summary.makespan_us:,.4f} us; {work}",
        *summary.hangs,
        "",
        *_aligned(
            ("class", "flows", "completion p50", "p99", "max us", "packet p50", "p99 us", "Gbit/s", "fairness"),
            [
                (
                    each.name,
                    f"{each.finished:,}",
                    *map(_time, (each.completion_us.p50, each.completion_us.p99, each.completion_us.max)),
                    *map(_time, (each.latency_us.p50, each.latency_us.p99)),
                    f"{each.goodput / 1e9:,.1f}",
                    "-" if each.fairness is None else f"{each.fairness:.3f}",
                )
                for each in summary.classes
            ],
        ),
        "",
        *_aligned(
            ("queue", "packets", "marks", "drops", "trims", "pauses", "paused us"),
            [
                (
                    each.name,
                    *(f"{n:,}" for n in (each.sent_packets, each.marks, each.drops, each.trims, each.pauses)),
                    f"{each.paused_us:,.1f}",
                )
                for each in summary.queues
            ],
        ),
    ]


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _aligned(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
