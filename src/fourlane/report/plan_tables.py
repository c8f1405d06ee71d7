"""Plans as a table, as points of a picture, and as a page.

Not for finding them (`fourlane.planner.search`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.page import Card, Page, Section, svg_of
from fourlane.report.plan_plots import Candidate, pareto_figure
from fourlane.report.tables import Table, milliseconds, number, percent, time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.planner.values import PlanResult, PlanRow
    from fourlane.spec.twin import TwinPool
    from fourlane.twin.serving.results import ServingResults

__all__ = ["candidates", "plan_page", "plan_table", "simulated_table", "verdict"]

_COLUMNS = (
    "row", "prefill units", "decode units", "redundant", "streams", "batch", "KV", "GPUs", "requests/s", "goodput/GPU",
    "in/GPU", "out/GPU", "TTFT p50", "p99", "TPOT p50", "p99", "limit", "SLO",
)  # fmt: skip
_LEFT = frozenset({"prefill units", "decode units", "redundant", "streams", "KV", "limit", "SLO"})
_STREAMS = {"never": "1", "always": "2", "auto": "1 or 2"}


def plan_table(result: PlanResult, most: int) -> Table:
    """Return the ranked table, so many rows of it; a star marks the Pareto front."""
    rows = tuple(_cells(number, row) for number, row in enumerate(result.rows[:most], start=1))
    shown = f"{len(rows)} of {len(result.rows)} ways, best goodput a GPU first"
    front = "* no other is better in throughput, TTFT and TPOT at once"
    return Table(title=f"{result.spec.name}: {shown}; {front}", columns=_COLUMNS, rows=rows, left=_LEFT)


def _cells(place: int, row: PlanRow) -> tuple[str, ...]:
    twin, point = row.twin, row.point
    met = "met" if row.meets else percent(point.slo.attainment)
    return (
        f"{place}{'*' if row.front else ''}",
        _units(twin.prefill),
        _units(twin.decode),
        f"{twin.prefill.redundant_experts} : {twin.decode.redundant_experts}",
        f"{_STREAMS[twin.prefill.overlap]} : {_STREAMS[twin.decode.overlap]}",
        f"{point.decode.load:.0f}/{twin.decode.max_running}",
        row.kv.upper() or "-",
        f"{row.gpus:,}",
        number(point.rate),
        f"{row.goodput_gpu:.3f}",
        number(point.input_tokens_s_gpu),
        number(point.output_tokens_s_gpu),
        time_text(point.ttft.p50),
        time_text(point.ttft.p99),
        milliseconds(point.tpot.p50),
        milliseconds(point.tpot.p99),
        point.binds,
        met,
    )


def simulated_table(result: PlanResult, found: Sequence[ServingResults]) -> Table:
    """Return what the simulation makes of the first rows, beside what their closed form promises."""
    rows = []
    for place, (row, results) in enumerate(zip(result.rows, found, strict=False), start=1):
        point = row.point
        cells = [number(point.rate)]
        for promised, seen in ((point.ttft, results.ttft), (point.tpot, results.tpot)):
            cells += [time_text(promised.p50), time_text(seen.p50), time_text(promised.p99), time_text(seen.p99)]
        rows.append((str(place), *cells, percent(point.slo.attainment), percent(results.attainment.share)))
    names = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "in the SLO")
    columns = ("row", "requests/s", *(column for name in names for column in (name, "simulated")))
    return Table(title="Simulated, request by request", columns=columns, rows=tuple(rows))


def _units(pool: TwinPool) -> str:
    return f"{pool.units} x EP{pool.ranks}"


def verdict(result: PlanResult) -> str:
    """Say in a sentence what came of it: the best way, or what the nearest misses."""
    best = result.rows[0]
    where = f"{_units(best.twin.prefill)} : {_units(best.twin.decode)} on {best.gpus:,} GPUs"
    point, slo = best.point, result.spec.slo
    if result.met and slo.ttft is None and slo.tpot is None:
        return f"Row 1, {where}, serves {point.rate:,.1f} requests/s; no SLO is given, {point.binds} limits it"
    if result.met:
        return f"Row 1, {where}, serves {point.rate:,.1f} requests/s within the SLO: {point.slo.says}"
    short = point.slo.says
    if not point.stable:
        short = f"{point.binds} cannot keep up, it does {point.rate:,.1f} of {point.offered or 0:,.1f} requests/s"
    return f"Nothing that was tried meets the SLO. The nearest, {where}: {short}"


def candidates(rows: Sequence[PlanRow]) -> list[Candidate]:
    """Return rows that keep up as points of the picture."""
    return [
        Candidate(
            row=place,
            label=f"{_units(row.twin.prefill)} : {_units(row.twin.decode)}",
            throughput=row.tokens_gpu,
            tpot_s=row.point.tpot.mean,
            ttft_s=row.point.ttft.mean,
            meets=row.meets,
        )
        for place, row in enumerate(rows, start=1)
        if row.point.stable
    ]


def plan_page(result: PlanResult) -> Page:
    """Return the page of a plan."""
    best = result.rows[0]
    mood = "good" if best.meets else "bad"
    cards = (
        Card(name="requests a second, row 1", value=f"{best.point.rate:,.1f}", mood="mark"),
        Card(name="goodput of each GPU", value=f"{best.goodput_gpu:.3f}", note="requests/s in the SLO", mood=mood),
        Card(name="GPUs", value=f"{best.gpus:,}"),
        Card(name="TTFT, median", value=time_text(best.point.ttft.p50)),
        Card(name="TPOT, median", value=milliseconds(best.point.tpot.p50)),
    )
    drawn = candidates(result.rows)
    pictures: tuple[str, ...] = ()
    if drawn:
        with pareto_figure(drawn, title=f"{result.spec.name}: ways to serve") as figure:
            pictures = (svg_of(figure),)
    sections = [
        Section(
            title="Ways to serve",
            text="Each is a twin: fourlane plan render launches a row, fourlane twin run simulates it.",
            figures=pictures,
            tables=(plan_table(result, len(result.rows)),),
        )
    ]
    if result.refused:
        left_out = Table(
            title="Left out",
            columns=("why", "units"),
            rows=tuple((why, str(count)) for why, count in result.refused.items()),
        )
        sections.append(Section(title="Left out", tables=(left_out,)))
    lead = (
        f"{verdict(result)}\n{result.points} operating points of {result.shapes:,} pairs of units that fit were worked "
        f"out in {result.seconds:.1f} s."
    )
    return Page(title=f"Plan: {result.spec.name}", lead=lead, cards=cards, sections=tuple(sections))
