"""A service simulated request by request, as a page: what happened to requests, to units, to links, and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fourlane.report.page import Card, Page, Section, svg_of
from fourlane.report.serving_tables import (
    against_steady_table,
    bounds_table,
    failures_table,
    kv_table,
    simulated_first_token_table,
    simulated_latency_table,
    simulated_units_table,
    throughput_table,
)
from fourlane.report.tables import number, percent, time_text
from fourlane.report.twin_page import links_section, memory_table, service_line
from fourlane.report.twin_plots import (
    Distribution,
    MakeUp,
    OverTime,
    Span,
    Use,
    latency_figure,
    make_up_figure,
    over_time_figure,
    use_figure,
)
from fourlane.report.twin_tables import lanes_table, sources_table
from fourlane.twin.serving.series import series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from fourlane.twin.cluster_use import ClusterUse
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.serving.results import ServingResults

__all__ = ["serving_page"]


def serving_page(results: ServingResults, point: OperatingPoint, use: ClusterUse | None) -> Page:
    """Return the page of a simulation, beside the steady state for the same load, and with the use of links."""
    twin = results.assembly.twin
    failures = failures_table(results)
    return Page(
        title=twin.name,
        lead=f"{service_line(twin)}\n{results.description}",
        cards=_cards(results),
        sections=(
            Section(
                title="Latency",
                figures=(_latencies(results),),
                tables=(simulated_latency_table(results), simulated_first_token_table(results)),
            ),
            Section(
                title="Throughput",
                tables=(throughput_table(results), *((failures,) if failures.rows else ())),
                folded=(against_steady_table(results, point),),
            ),
            Section(
                title="Over time",
                text="Means over stretches of equal length; it begins empty and runs empty at the end.",
                figures=(_over_time(results),),
            ),
            Section(
                title="Steps",
                text="What a mean step computes, and what travels meanwhile; the dashed line is when it ends.",
                figures=(_steps(results),),
                tables=(bounds_table(results),),
            ),
            Section(
                title="Use",
                figures=(_uses(results),),
                tables=(simulated_units_table(results), kv_table(results), memory_table(results.assembly)),
            ),
            links_section(use),
            Section(title="Lanes", tables=(lanes_table(results.assembly.plan),)),
            Section(title="Sources", tables=(sources_table(results.sources),)),
        ),
        footer=f"simulated in {results.seconds:.1f} s, seed {twin.seed}",
    )


def _cards(results: ServingResults) -> tuple[Card, ...]:
    gpus, attained = results.assembly.twin.gpus, results.attainment
    slo = results.assembly.twin.slo
    cards = [
        Card(name="Requests a second", value=number(results.rate), note=f"{int(results.answered.sum()):,} answered"),
        Card(
            name="Output tokens/s a GPU",
            value=number(results.output_tokens_s / gpus),
            note=f"of all {gpus:,} GPUs",
            mood="mark",
        ),
        Card(name="TTFT, p50", value=time_text(results.ttft.p50), note=f"p99 {time_text(results.ttft.p99)}"),
        Card(name="TPOT, p50", value=time_text(results.tpot.p50), note=f"p99 {time_text(results.tpot.p99)}"),
    ]
    if slo.ttft is not None or slo.tpot is not None:
        met = "met" if attained.met else "not met"
        note = f"asked of {slo.share:.0%}; goodput {number(attained.goodput)} a second"
        mood = "good" if attained.met else "bad"
        cards.append(Card(name=f"SLO {met}", value=percent(attained.share), note=note, mood=mood))
    return tuple(cards)


def _latencies(results: ServingResults) -> str:
    slo, requests, answered = results.assembly.twin.slo, results.requests, results.answered
    drawn = [
        Distribution(
            title="Time to first token",
            values=_floats(requests.ttft[answered]),
            bound=None if slo.ttft is None else slo.ttft.seconds,
        ),
        Distribution(
            title="Time per output token",
            values=_floats(requests.tpot[answered]),
            bound=None if slo.tpot is None else slo.tpot.seconds,
        ),
    ]
    with latency_figure(drawn) as figure:
        return svg_of(figure)


def _floats(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values[np.isfinite(values)]]


def _over_time(results: ServingResults) -> str:
    course = series(results)
    times = _floats(course.times)

    def panel(title: str, lines: Mapping[str, NDArray[np.float64]], *, share: bool = False) -> OverTime:
        drawn = {name: _floats(values) for name, values in lines.items()}
        return OverTime(title=title, times=times, lines=drawn, share=share, limit=1.0 if share else None)

    panels = [
        panel("Tokens a second", {"prompts": course.tokens["prompt"], "answers": course.tokens["answer"]}),
        panel("Requests under way", course.requests),
        panel("Units in a step", course.busy, share=True),
        panel("KV blocks of decode ranks held", {"held": course.blocks}, share=True),
    ]
    faults = results.assembly.twin.faults
    spans = [
        Span(
            name=f"{fault.kind} {fault.target}",
            begin=fault.at.seconds,
            end=math.inf if fault.lasts is None else fault.at.seconds + fault.lasts.seconds,
        )
        for fault in faults
    ]
    with over_time_figure(panels, spans=spans) as figure:
        return svg_of(figure)


def _steps(results: ServingResults) -> str:
    steps = []
    for use, what in ((results.prefill, "tokens"), (results.decode, "rows")):
        parts = {name: share * use.step_s for name, share in use.make_up.parts.items()}
        steps.append(MakeUp(name=f"{use.phase}, {number(use.load)} {what} a rank", seconds=use.step_s, parts=parts))
    with make_up_figure(steps) as figure:
        return svg_of(figure)


def _uses(results: ServingResults) -> str:
    with use_figure(list(_used(results))) as figure:
        return svg_of(figure)


def _used(results: ServingResults) -> Iterator[Use]:
    for use in (results.prefill, results.decode):
        note = f"{percent(min(use.busy_units))} to {percent(max(use.busy_units))}"
        yield Use(name=f"{use.phase} units in a step", share=use.busy, group="units", note=note)
    kv = results.kv
    yield Use(name="NICs out of prefill, KV", share=kv.out_share, group="KV cache", note=f"most {percent(kv.out_most)}")
    yield Use(name="NICs into decode, KV", share=kv.in_share, group="KV cache", note=f"most {percent(kv.in_most)}")
    yield Use(name="decode KV blocks held", share=kv.blocks, group="KV cache")
