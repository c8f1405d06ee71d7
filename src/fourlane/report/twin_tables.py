"""A service in steady state as tables: latencies, what each part does and what bounds it, and where figures come from.

For the terminal and for pages alike. Not for how any of it is worked out (`fourlane.twin`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fourlane.report.tables import Table, number, percent, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.twin import Slo, Twin
    from fourlane.twin.point_values import OperatingPoint, PhasePoint
    from fourlane.twin.times import StepTime

__all__ = [
    "first_token_table",
    "lanes_table",
    "latency_table",
    "point_tables",
    "sources_table",
    "step_table",
    "units_table",
    "units_text",
    "where_from",
]

_TTFT_WORDS = {"exposed": "KV cache still travelling"}


def units_text(twin: Twin) -> str:
    """Return how many units there are of how many ranks: "1 prefill unit of 8 and 2 decode units of 16"."""
    return " and ".join(
        f"{pool.units:,} {phase} unit{'s' * (pool.units != 1)} of {pool.ranks}" for phase, pool in twin.pools().items()
    )


def point_tables(twin: Twin, point: OperatingPoint) -> list[Table]:
    """Return the tables that tell an operating point, but for its sources."""
    phases = (point.prefill, point.decode)
    return [
        latency_table(point, twin.slo),
        units_table(twin, point),
        first_token_table(point),
        *(step_table(phase.phase, phase.step) for phase in phases),
    ]


def latency_table(point: OperatingPoint, slo: Slo) -> Table:
    """Return latencies beside what the SLO asks for."""
    rows = []
    asked = (slo.ttft, slo.tpot)
    shares = (point.slo.ttft_share, point.slo.tpot_share)
    for name, times, bound, share in zip(("TTFT", "TPOT"), (point.ttft, point.tpot), asked, shares, strict=True):
        cells = (time_text(each) for each in (times.mean, times.p50, times.p90, times.p99))
        met = ("-", "-") if bound is None else (str(bound), percent(share))
        rows.append((name, *cells, *met))
    columns = ("", "mean", "p50", "p90", "p99", "asked", "within")
    return Table(title="Latency", columns=columns, rows=tuple(rows))


def units_table(twin: Twin, point: OperatingPoint) -> Table:
    """Return what units of both phases and the way of KV cache do, and what bounds each."""
    rows = [_unit_row(twin, phase) for phase in (point.prefill, point.decode)]
    kv = point.kv
    carried = f"{time_text(kv.transfer_s)} a request"
    blocks = f"{percent(kv.blocks_used)} of blocks held"
    rows.append(
        ("KV cache", "", "", carried, "", _rate(kv.capacity), percent(kv.utilisation), "", "", blocks)
    )  # fmt: skip
    columns = (
        "part", "units", "load a rank", "step", "streams", "requests/s at most", "used", "tokens/s a GPU",
        "fullest rank", "bound by",
    )  # fmt: skip
    return Table(title="What each part does", columns=columns, rows=tuple(rows), left=frozenset({"bound by"}))


def _unit_row(twin: Twin, phase: PhasePoint) -> tuple[str, ...]:
    pool = twin.pools()[phase.phase]
    what = "tokens" if phase.phase == "prefill" else "sequences"
    return (
        phase.phase,
        f"{pool.units} x EP{pool.ranks}",
        f"{number(phase.load)} {what}",
        time_text(phase.step.seconds),
        str(phase.step.streams),
        _rate(phase.capacity),
        percent(phase.utilisation),
        number(phase.tokens_s_gpu),
        f"{phase.balance:.2f} x mean",
        phase.bound,
    )


def _rate(rate: float) -> str:
    return number(rate) if math.isfinite(rate) else "no limit"


def first_token_table(point: OperatingPoint) -> Table:
    """Return what the mean time to first token is made of."""
    whole = sum(point.ttft_parts.values())
    rows = tuple(
        (_TTFT_WORDS.get(name, name), time_text(seconds), percent(seconds / whole) if whole else "-")
        for name, seconds in point.ttft_parts.items()
    )
    return Table(title="Mean time to first token", columns=("made of", "time", "share"), rows=rows)


def step_table(phase: str, step: StepTime) -> Table:
    """Return what a step is made of, part by part, with what bounds it."""
    whole = step.seconds
    rows = [
        (name, time_text(seconds), percent(seconds / whole) if whole else "-", step.bounds.get(name, ""))
        for name, seconds in step.parts.items()
        if seconds > 0
    ]
    hidden = step.exchange_s - step.exposed_s
    rows.append(("travelling, not hidden", time_text(step.exposed_s), percent(step.exposed_s / whole or 0.0), ""))
    if hidden > 1e-6 * step.exchange_s:
        rows.append(("travelling, hidden", time_text(hidden), percent(hidden / whole), ""))
    streams = "one stream" if step.streams == 1 else "two streams"
    return Table(
        title=f"A {phase} step: {time_text(step.seconds)}, {streams}",
        columns=("part", "time", "of step", "bound by"),
        rows=tuple(rows),
        left=frozenset({"bound by"}),
    )


def lanes_table(plan: LanePlan) -> Table:
    """Return what each class of traffic gets."""
    rows = tuple(
        (
            kind.value,
            str(lane.queue),
            "first" if lane.scheduler == "strict" else f"{lane.weight} %",
            "-" if lane.cap is None else f"{lane.cap} %",
            f"{lane.alpha:g}",
            "lossless" if lane.lossless else "lossy",
            "-" if lane.marking is None else f"{lane.marking.kmin} to {lane.marking.kmax}",
            lane.routing,
            {"both": "hpn, dcn"}.get(lane.network, lane.network),
        )
        for kind, lane in plan.classes.items()
    )
    columns = ("class", "queue", "weight", "at most", "alpha", "loss", "ECN marks", "routing", "network")
    return Table(
        title=f"Lanes: {plan.name}", columns=columns, rows=rows, left=frozenset({"loss", "routing", "network"})
    )


def sources_table(sources: Mapping[str, str]) -> Table:
    """Return where figures come from, those of one source together."""
    named: dict[str, list[str]] = {}
    for name, text in sources.items():
        named.setdefault(text, []).append(name)
    rows = tuple((_together(names), text) for text, names in named.items())
    return Table(title="Where figures come from", columns=("figure", "source"), rows=rows, left=frozenset({"source"}))


def _together(names: Sequence[str]) -> str:
    """Write "decode: dispatch" and "decode: combine" as "decode: dispatch, combine"."""
    parts: dict[str, list[str]] = {}
    for name in names:
        phase, colon, part = name.partition(": ")
        parts.setdefault(phase if colon else "", []).append(part if colon else name)
    return "; ".join(f"{phase}: {', '.join(each)}" if phase else ", ".join(each) for phase, each in parts.items())


def where_from(point: OperatingPoint) -> dict[str, str]:
    """Return the sources of a point and of its steps' parts, each named once."""
    found = dict(point.sources)
    for phase in (point.prefill, point.decode):
        found |= {f"{phase.phase}: {name}": text for name, text in phase.step.sources.items()}
    return found
