"""`fourlane twin run`: a service simulated under its load."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import CheckFailed, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fourlane.report.page import Page
    from fourlane.report.tables import Table
    from fourlane.spec.twin import Twin
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.cluster_use import ClusterUse
    from fourlane.twin.serving.results import ServingResults
    from fourlane.twin.window_packets import WindowPackets

__all__ = ["run"]

EXAMPLES = """\b
Examples:
  fourlane twin run deepseek-512                           requests, one by one
  fourlane twin run deepseek-512 -o found                  writes found/index.html and results.json
  fourlane twin run deepseek-512 -o found --window 10s..10.2s    and found/window.pftrace, for ui.perfetto.dev
  fourlane twin run mine.toml --steady                     the steady state in closed form, at once
  fourlane twin run mine.toml --steady --set workload.rate=    ... at the greatest rate within the SLO
  fourlane twin run --deployment two_by_two --hardware profile.toml --set workload.concurrency=4
"""
_WINDOW = re.compile(r"(.+?)\.\.(.+)")


@click.command(epilog=EXAMPLES)
@click.argument("file", required=False)
@click.option("--deployment", help="In place of FILE: the twin of this deployment, on --hardware.")
@click.option("--hardware", help="A GPU of the catalog, or a profile (`fourlane twin calibrate`), in place of FILE's.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field; again for more.")
@click.option("--steady", is_flag=True, help="The steady state in closed form, without simulating requests.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write page and figures.")
@click.option("--window", metavar="FROM..TO", help="Write a Perfetto trace of this time, such as 10s..10.2s.")
@click.option(
    "--packets",
    type=click.IntRange(0),
    default=0,
    metavar="UNITS",
    help="Of the window: simulate the next exchange of so many units of each phase packet by packet.",
)
@click.option("--check", is_flag=True, help="Exit with status 1 if the SLO is not met.")
def run(*, file: str | None, overrides: tuple[str, ...], steady: bool, output: Path | None, **options: object) -> None:
    """Simulate a service under its load: latencies, throughput, what bounds each part, and where every figure is from.

    FILE is a twin file, or a name of the catalog (`fourlane twin show`). Where exchange times are not known yet they
    are simulated packet by packet first, and kept for the next time.

    With --deployment the pools are those of what `fourlane serve` runs, and the load by default that of
    `fourlane bench serve`; --set changes the twin's fields, such as workload.rate.
    """
    from fourlane.cli.fabric.run import make_folder
    from fourlane.cli.twin.progress import work_bar
    from fourlane.twin.assembly import assemble

    window = _window(options["window"], output=output, steady=steady)
    units = int(str(options["packets"]))
    if units and window is None:
        raise SpecError("--packets: expected --window FROM..TO beside it")
    twin = _twin(file, options["deployment"], options["hardware"], overrides)
    if steady and twin.faults:
        raise SpecError("--steady: expected no faults, which a steady state does not have; leave out one or the other")
    if output is not None:
        make_folder(output)
    with work_bar("{done:,} of {total:,} packet runs") as show:
        assembly = assemble(twin, progress=show)
    assembly, use = _beside_others(assembly)
    if steady:
        met = _steady(assembly, use, output, as_json=bool(options["as_json"]))
    else:
        met = _simulated(assembly, use, output, window and (*window, units), as_json=bool(options["as_json"]))
    if options["check"] and not met:
        raise CheckFailed("the SLO is not met")


def _twin(file: str | None, deployment: object, hardware: object, overrides: tuple[str, ...]) -> Twin:
    """Return the twin that is asked for.

    Raises:
        SpecError: there is none, or more than one; or with every fault of its file.
    """
    from fourlane.spec.load import load_deployment, load_twin, parse, render
    from fourlane.spec.twin import Twin, Workload
    from fourlane.twin.of_deployment import twin_of

    if (file is None) == (deployment is None):
        found = "neither" if file is None else "both"
        raise SpecError(f"expected either FILE, a twin, or --deployment, got {found}")
    if file is not None:
        return load_twin(file, overrides=[*overrides, *([] if hardware is None else [f"hardware={hardware}"])])
    if hardware is None:
        raise SpecError("--deployment: expected --hardware PROFILE beside it; measure one: fourlane twin calibrate")
    served = Workload(concurrency=16, requests=64, input_len="128", output_len="64")
    twin = twin_of(load_deployment(str(deployment)), str(hardware), workload=served)
    return parse(render(twin), Twin, overrides, source=str(deployment))


def _window(text: object, *, output: Path | None, steady: bool) -> tuple[float, float] | None:
    """Read --window, in seconds.

    Raises:
        SpecError: it is none, or there is nowhere to write it, or nothing to write.
    """
    from fourlane.units import Duration

    if text is None:
        return None
    if output is None or steady:
        raise SpecError("--window: expected -o FOLDER beside it, and requests simulated (no --steady)")
    match = _WINDOW.fullmatch(str(text))
    if match is None:
        raise SpecError(f'--window: expected two times such as "10s..10.2s", got "{text}"')
    try:
        begin, end = (Duration.parse(part).seconds for part in match.groups())
    except ValueError as error:
        raise SpecError(f"--window: {error}") from error
    if end <= begin:
        raise SpecError(f'--window: expected the second time after the first, got "{text}"')
    return begin, end


def _beside_others(assembly: Assembly) -> tuple[Assembly, ClusterUse | None]:
    """Return the service with units that slow each other down; as it is where no network is simulated."""
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.twin.cluster_exchange import beside_others
    from fourlane.twin.exchange.table import ExchangeTable
    from fourlane.twin.operating_point import operating_point

    if not all(isinstance(model.exchange, ExchangeTable) for model in assembly.phases().values()):
        return assembly, None
    with steps_bar() as show:

        def told(done: int, total: int) -> None:
            show(done, total, "rates of the whole cluster")

        return beside_others(assembly, operating_point(assembly), progress=told)


def _steady(assembly: Assembly, use: ClusterUse | None, output: Path | None, *, as_json: bool) -> bool:
    """Tell the steady state; return whether it meets the SLO."""
    from fourlane.report.cluster_tables import cluster_tables
    from fourlane.report.twin_page import memory_table, steady_page
    from fourlane.report.twin_tables import lanes_table, point_tables, sources_table, where_from
    from fourlane.twin.operating_point import operating_point

    point = operating_point(assembly)
    summary = {**point.summary(), "links": None if use is None else use.summary()}
    if output is not None:
        _write(output, steady_page(assembly, point, use), summary)
    if as_json:
        _show_json(summary)
    else:
        tables = [*point_tables(assembly.twin, point), memory_table(assembly)]
        tables += [*([] if use is None else cluster_tables(use)), lanes_table(assembly.plan)]
        _print(assembly, [*tables, sources_table({**assembly.sources, **where_from(point)})], point.slo.says)
    return point.slo.met


def _simulated(
    assembly: Assembly,
    use: ClusterUse | None,
    output: Path | None,
    window: tuple[float, float, int] | None,
    *,
    as_json: bool,
) -> bool:
    """Simulate requests and tell what came of them; return whether the SLO was met."""
    from fourlane.cli.twin.progress import work_bar
    from fourlane.report.cluster_tables import cluster_tables, packets_table
    from fourlane.report.serving_page import serving_page
    from fourlane.report.serving_tables import against_steady_table, serving_tables
    from fourlane.report.twin_page import memory_table
    from fourlane.report.twin_tables import lanes_table, sources_table
    from fourlane.twin.operating_point import operating_point
    from fourlane.twin.serving.simulation import simulate

    with work_bar("{done:,} of {total:,} requests") as show:
        results = simulate(assembly, progress=show)
    recorded = assembly.twin.workload.trace is not None
    point = operating_point(assembly, rate=results.rate if recorded else None)
    summary = {**results.summary(), "links": None if use is None else use.summary()}
    if output is not None:
        _write(output, serving_page(results, point, use), summary)
        if window is not None:
            _write_window(results, *window[:2], output)
    seen = None if window is None or output is None or not window[2] else _packets(results, *window, output)
    if as_json:
        _show_json(summary)
    else:
        tables = [*serving_tables(results), against_steady_table(results, point), memory_table(assembly)]
        tables += [] if use is None else cluster_tables(use)
        tables += [] if seen is None else [packets_table(seen)]
        tables += [lanes_table(assembly.plan), sources_table(results.sources)]
        _print(assembly, tables, f"{results.description}; simulated in {results.seconds:.1f} s")
    return results.attainment.met


def _print(assembly: Assembly, tables: Iterable[Table], says: str) -> None:
    from fourlane.report.tables import console, print_table
    from fourlane.report.twin_page import service_line

    out = console(width=200)
    out.print(service_line(assembly.twin), markup=False, soft_wrap=True)
    out.print(says, markup=False, soft_wrap=True)
    for table in tables:
        out.print()
        print_table(out, table)


def _show_json(summary: Mapping[str, object]) -> None:
    from fourlane.cli.experts.inputs import show_json

    show_json(summary)


def _write(output: Path, page: Page, summary: Mapping[str, object]) -> None:
    from fourlane.report.page import write_page
    from fourlane.report.tables import write_json

    write_page(output / "index.html", page)
    write_json(output / "results.json", summary)
    click.echo(f"written: {output}/index.html, results.json", file=sys.stderr)


def _write_window(results: ServingResults, begin: float, end: float, output: Path) -> None:
    from fourlane.report.perfetto import write_trace
    from fourlane.report.serving_trace import window_tracks

    write_trace(output / "window.pftrace", window_tracks(results, begin, end))
    click.echo(f"written: {output}/window.pftrace, for https://ui.perfetto.dev", file=sys.stderr)


def _packets(results: ServingResults, begin: float, end: float, units: int, output: Path) -> WindowPackets:
    """Simulate exchanges of a window packet by packet, and draw what came of them."""
    from fourlane.cli.fabric.progress import run_bar
    from fourlane.cli.fabric.run import picture_of
    from fourlane.report.fabric_plots import plot_run
    from fourlane.twin.serving.window_exchanges import window_exchanges
    from fourlane.twin.window_packets import packets_of_window

    exchanges, kv = window_exchanges(results, begin, end, units=units)
    with run_bar() as show:
        seen = packets_of_window(results.assembly, exchanges, kv, progress=show)
    title = f"{results.assembly.twin.name}: {len(exchanges)} exchanges after {begin:g} s, packet by packet"
    plot_run([output / "packets.png"], picture_of(seen.results), title=title)
    click.echo(f"written: {output}/packets.png", file=sys.stderr)
    return seen
