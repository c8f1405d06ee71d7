"""A simulated service as a page: figures at a glance, latencies, what steps are made of, sources of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.cluster_tables import cluster_tables, link_uses
from fourlane.report.page import Card, Page, Section, svg_of
from fourlane.report.tables import Table, byte_text, number, percent, time_text
from fourlane.report.twin_plots import MakeUp, make_up_figure, use_figure
from fourlane.report.twin_tables import (
    first_token_table,
    lanes_table,
    latency_table,
    sources_table,
    step_table,
    units_table,
    units_text,
    where_from,
)

if TYPE_CHECKING:
    from fourlane.spec.twin import Twin
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.cluster_use import ClusterUse
    from fourlane.twin.point_values import OperatingPoint

__all__ = ["links_section", "memory_table", "service_line", "steady_cards", "steady_page", "steady_sections"]


def steady_page(assembly: Assembly, point: OperatingPoint, use: ClusterUse | None) -> Page:
    """Return the page of an operating point, with the use of links where it is known."""
    twin = assembly.twin
    return Page(
        title=twin.name,
        lead=f"{service_line(twin)}\nSteady state in closed form. {point.slo.says}",
        cards=steady_cards(point),
        sections=(
            Section(title="Latency", tables=(latency_table(point, twin.slo), first_token_table(point))),
            *steady_sections(assembly, point),
            links_section(use),
            Section(title="Lanes", tables=(lanes_table(assembly.plan),)),
            Section(title="Sources", tables=(sources_table({**assembly.sources, **where_from(point)}),)),
        ),
        footer=f"seed {twin.seed}",
    )


def service_line(twin: Twin) -> str:
    """Return in one line what the service is."""
    return f"{twin.model} on {twin.cluster}: {units_text(twin)}, {twin.gpus:,} ranks in all"


def steady_cards(point: OperatingPoint) -> tuple[Card, ...]:
    """Return an operating point at a glance."""
    verdict = "met" if point.slo.met else "not met"
    return (
        Card(name="Requests a second", value=number(point.rate), note=f"bound by {point.binds}"),
        Card(name="Output tokens/s a GPU", value=number(point.output_tokens_s_gpu), note="of all GPUs", mood="mark"),
        Card(name="TTFT, mean", value=time_text(point.ttft.mean), note=f"p99 {time_text(point.ttft.p99)}"),
        Card(name="TPOT, mean", value=time_text(point.tpot.mean), note=f"p99 {time_text(point.tpot.p99)}"),
        Card(
            name=f"SLO {verdict}",
            value=percent(point.slo.attainment),
            note=f"goodput {number(point.goodput)} a second",
            mood="good" if point.slo.met else "bad",
        ),
    )


def steady_sections(assembly: Assembly, point: OperatingPoint) -> tuple[Section, ...]:
    """Return what the parts of a service do in steady state."""
    phases = (point.prefill, point.decode)
    made = [
        MakeUp(
            name=f"{phase.phase}, {number(phase.load)} {'tokens' if phase.phase == 'prefill' else 'sequences'} a rank",
            seconds=phase.step.seconds,
            parts=phase.step.parts,
        )
        for phase in phases
    ]
    with make_up_figure(made) as figure:
        drawn = svg_of(figure)
    return (
        Section(
            title="Parts", tables=(units_table(assembly.twin, point), memory_table(assembly)), text=_bounds_text(point)
        ),
        Section(
            title="Steps",
            text="What a typical step computes, and what travels; the dashed line is when it ends.",
            figures=(drawn,),
            tables=tuple(step_table(phase.phase, phase.step) for phase in phases),
        ),
    )


def links_section(use: ClusterUse | None) -> Section:
    """Return how busy links are and what that does; nothing to show where no network is simulated."""
    if use is None:
        return Section(title="Links")
    with use_figure(link_uses(use)) as figure:
        drawn = svg_of(figure)
    return Section(
        title="Links",
        text=f"All units' exchanges and KV cache at once. {use.source}",
        figures=(drawn,),
        tables=tuple(cluster_tables(use)),
    )


def _bounds_text(point: OperatingPoint) -> str:
    return f"The rate is bound by {point.binds}. {point.slo.says}"


def memory_table(assembly: Assembly) -> Table:
    """Return what a rank's memory holds, by phase."""
    rows = tuple(
        (
            phase,
            *(byte_text(size) for size in (model.memory.weights, model.memory.kv, model.memory.reserve)),
            f"{model.memory.kv_blocks:,}",
            f"{model.memory.kv_blocks * assembly.twin.block_size:,}",
        )
        for phase, model in assembly.phases().items()
    )
    columns = ("memory of a rank", "weights", "KV cache", "reserve", "KV blocks", "tokens they hold")
    return Table(title="Memory", columns=columns, rows=rows)
