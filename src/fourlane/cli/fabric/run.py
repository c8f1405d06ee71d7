"""`fourlane fabric run`: simulate a scenario and show what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import SimulationError, SpecError

if TYPE_CHECKING:
    from fourlane.report.fabric_plots import RunPicture
    from fourlane.report.tables import Table
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.summary import Summary

__all__ = ["picture_of", "run"]

EXAMPLES = """\b
Examples:
  fourlane fabric run A64_64K --set every.routing=adaptive     a scenario by name
  fourlane fabric run scenario.toml --set seed=3 -o found      results, figures and picture in a folder
  fourlane fabric run P1024_2MB --json --plot p1024.png
"""

_PERCENTS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 99.95, 99.99)


@click.command(epilog=EXAMPLES)
@click.argument("scenario")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the scenario.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write all results here.")
@click.option("--plot", "plot", type=click.Path(path_type=Path), help="Draw them here (.png, .svg, .pdf, .html).")
def run(*, scenario: str, overrides: tuple[str, ...], as_json: bool, output: Path | None, plot: Path | None) -> None:
    """Simulate SCENARIO, a file or a name, packet by packet.

    Ctrl-C ends it with what is known so far. A run that gets stuck or reaches a limit shows what is known and
    names the flows that hang.

    \b
    Exit codes: 0 every flow finished, 1 the run did not end by itself, 2 the scenario or an option is wrong,
    130 interrupted.
    """  # noqa: D301 - click wants the character
    from fourlane.cli.fabric.progress import run_bar
    from fourlane.cli.fabric.scenarios import scenario_of
    from fourlane.twin.fabric.simulator import INTERRUPTED, Simulator

    simulator = Simulator(scenario_of(scenario, overrides).compile())
    if output is not None:
        make_folder(output)
    failure: SimulationError | None = None
    with run_bar() as show:
        try:
            results = simulator.run(show)
        except SimulationError as error:
            failure, results = error, error.results
    if as_json:
        click.echo(results.to_json())
    else:
        _print(results.summary())
    _write(results, scenario, output=output, plot=plot)
    if failure is not None:
        raise failure
    if results.status == INTERRUPTED:
        raise KeyboardInterrupt


def make_folder(folder: Path) -> None:
    """Make a folder for what is written.

    Raises:
        SpecError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--output {folder}: cannot be made: {error.strerror}") from error


def _write(results: Results, name: str, *, output: Path | None, plot: Path | None) -> None:
    from fourlane.report.fabric_plots import plot_run
    from fourlane.report.tables import write_json

    paths = [] if plot is None else [plot]
    if output is not None:
        results.save(output / "results.npz")
        write_json(output / "summary.json", results.summary())
        paths.append(output / "run.png")
    if not paths:
        return
    ended = "" if results.complete else f" - NOT ENDED ({results.status})"
    title = f"{Path(name).stem}: {results.flows_finished:,} flows, {results.makespan_us:,.1f} us{ended}"
    plot_run(paths, picture_of(results), title=title)
    written = [*paths, *([output / "results.npz", output / "summary.json"] if output is not None else [])]
    click.echo(f"written: {', '.join(map(str, written))}", file=sys.stderr)


def picture_of(results: Results) -> RunPicture:
    """Return what is drawn of a simulation."""
    import numpy as np

    from fourlane.report.fabric_plots import ClassTimes, PortsOverTime, RunPicture

    classes = []
    for name in results.class_names:
        taken = results.completion_us[results.flows_of(name)]
        if len(taken):
            latencies = [(percent, results.percentile(name, percent)) for percent in _PERCENTS]
            classes.append(ClassTimes(name, taken[~np.isnan(taken)], latencies))
    ports = None
    if len(results.sample_us):
        sampled = results.scenario.sample_ports
        names = [results.port_name(int(port)) for port in sampled]
        ports = PortsOverTime(names, results.sample_us, results.utilisation_over_time, results.depth_over_time)
    return RunPicture(classes, ports, [(each.name, each.utilisation) for each in results.hottest_ports(16)])


def _print(summary: Summary) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=160)
    ended = "all flows finished" if summary.complete else f"NOT ENDED ({summary.status})"
    flows = f"{summary.finished:,} of {summary.flows:,}"
    out.print(f"{ended}: {flows}, the last after {summary.makespan_us:,.4f} us", markup=False, soft_wrap=True)
    work = f"{summary.events:,} events, {summary.data_hops:,} data packet-hops, seed {summary.seed}"
    out.print(work, markup=False, soft_wrap=True)
    for line in summary.hangs:
        out.print(line, markup=False, soft_wrap=True)
    for table in (_classes(summary), _queues(summary), _ports(summary)):
        if table.rows:
            out.print()
            print_table(out, table)


def _classes(summary: Summary) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (
            each.name,
            f"{each.finished:,}",
            *(_time(time) for time in (each.completion_us.p50, each.completion_us.p99, each.completion_us.max)),
            *(_time(time) for time in (each.latency_us.p50, each.latency_us.p99, each.latency_us.max)),
            f"{each.goodput / 1e9:,.1f}",
            "-" if each.fairness is None else f"{each.fairness:.3f}",
            f"{each.retransmitted_packets:,}",
            f"{each.reorder_depth:,}",
        )
        for each in summary.classes
    )
    columns = ("class", "flows", "done p50", "p99", "max us", "packet p50", "p99 ", "max us ")
    more = ("Gbit/s", "fairness", "resent", "reordered")
    return Table(title="", columns=(*columns, *more), rows=rows)


def _queues(summary: Summary) -> Table:
    from fourlane.report.tables import Table, byte_text

    rows = tuple(
        (
            each.name,
            byte_text(each.sent_bytes),
            *(f"{count:,}" for count in (each.sent_packets, each.marks, each.drops, each.trims, each.pauses)),
            _time(each.paused_us),
        )
        for each in summary.queues
    )
    columns = ("queue", "sent, all hops", "packets", "marked", "dropped", "trimmed", "pauses", "paused us")
    return Table(title="", columns=columns, rows=rows)


def _ports(summary: Summary) -> Table:
    from fourlane.report.tables import Table, byte_text, percent

    rows = tuple(
        (
            each.name,
            percent(each.utilisation),
            byte_text(each.max_depth_bytes),
            f"{each.drops:,}",
            f"{each.marks:,}",
            _time(each.paused_us),
        )
        for each in summary.hottest_ports
    )
    return Table(title="", columns=("busiest ports", "sending", "deepest", "dropped", "marked", "paused us"), rows=rows)


def _time(value: float | None) -> str:
    """Write microseconds to the nanosecond below 100 us, to a tenth of one above."""
    if value is None:
        return "-"
    return f"{value:,.4f}" if value < 100 else f"{value:,.2f}"
