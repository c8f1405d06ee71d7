"""What the commands of plain probe flows have in common: options, progress, table, verdict, picture."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.errors import CheckFailed, SpecError
from fourlane.lab.experiments import EXPERIMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.lab.experiment import Metric, Shown
    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.report.tables import Table

__all__ = ["experiment_command"]


def experiment_command(name: str) -> click.Command:
    """Make the command that runs an experiment and shows what came of it."""

    @click.command(name=name, help=_help(name), epilog=_examples(name))
    @click.option("--rate", help="Of every link, such as 500Mbps. [default: 200Mbps, marks 500Mbps]")
    @click.option("--repeats", type=click.IntRange(1, 50), default=3, show_default=True, help="Medians count.")
    @click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="A lane plan instead of the default.")
    @click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
    @click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write picture and figures.")
    def command(*, as_json: bool, output: Path | None, **options: Any) -> None:
        _run(name, _settings(options), as_json=as_json, output=output)

    return command


def _help(name: str) -> str:
    return (
        f"{EXPERIMENTS[name]}\n\nBrings a lab up, checks it, measures all arrangements in turn, takes it down. "
        "Exit code 1 when the run is invalid (the verdict says why) or a bar was missed."
    )


def _examples(name: str) -> str:
    return f"\b\nExamples:\n  fourlane lab run {name}\n  fourlane lab run {name} --repeats 5 -o shown"


def _settings(options: dict[str, Any]) -> Settings:
    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.lanes.plan import load_plan
    from fourlane.units import Rate

    try:
        rate = Rate.parse(options["rate"]) if options["rate"] else None
    except ValueError as error:
        raise SpecError(f"--rate: {error}") from error
    plan = load_plan(options["plan_path"]) if options["plan_path"] else None
    return Settings(rate=rate, repeats=options["repeats"], plan=plan)


def _run(name: str, settings: Settings, *, as_json: bool, output: Path | None) -> None:
    import msgspec

    from fourlane.lab.experiments import experiment
    from fourlane.report.tables import console, print_table

    if output is not None:
        _make(output)
    with _progress() as show:
        shown = experiment(name)(settings, show)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_figures(shown)), indent=2))
    else:
        out = console()
        for table in (_figures_table(shown), _bars_table(shown)):
            if table.rows:
                print_table(out, table)
                out.print()
        out.print(f"verdict: {shown.verdict}", markup=False, soft_wrap=True)
    if output is not None:
        _write(output, shown)
    if not shown.verdict.valid:
        raise CheckFailed(f"{name}: the run does not count")
    if not shown.passed:
        raise CheckFailed(f"{name}: " + "; ".join(f"missed: {bar.claim}" for bar in shown.bars if not bar.met))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with an estimate of the time left on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
        task = progress.add_task("bringing up", total=None)
        yield lambda text, done, total: progress.update(task, description=text, completed=done, total=total)


def _figures_table(shown: Shown) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (each.name, *(_cell(metric, each.middle(metric.name)) for metric in shown.metrics))
        for each in shown.arrangements
    )
    columns = ("", *(metric.title for metric in shown.metrics))
    return Table(title=f"{shown.title}\n{shown.setting}", columns=columns, rows=rows)


def _bars_table(shown: Shown) -> Table:
    from fourlane.report.tables import Table, number

    rows = tuple(
        (
            bar.claim,
            number(bar.measured),
            f"{'>=' if bar.at_least else '<='} {number(bar.bound)}",
            "yes" if bar.met else "NO",
        )
        for bar in shown.bars
    )
    return Table(title="", columns=("what must be shown", "measured", "bound", "met"), rows=rows)


def _cell(metric: Metric, value: float) -> str:
    from fourlane.report.tables import milliseconds, number, percent

    if metric.unit == "seconds":
        return milliseconds(value)
    return percent(value) if metric.unit == "share" else number(value)


def _figures(shown: Shown) -> dict[str, object]:
    import msgspec

    plain = msgspec.to_builtins(shown)
    bars = [{**msgspec.to_builtins(bar), "met": bar.met} for bar in shown.bars]
    return {**plain, "bars": bars, "passed": shown.passed}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--output {folder}: cannot be made: {error.strerror}") from error


def _write(folder: Path, shown: Shown) -> None:
    from fourlane.report.experiment_plots import Panel, plot_experiment
    from fourlane.report.tables import write_json

    write_json(folder / f"{shown.name}.json", _figures(shown))
    panels = [
        Panel(
            title=metric.title + (" (ms)" if metric.unit == "seconds" else ""),
            rows={
                each.name: [value * (1e3 if metric.unit == "seconds" else 1.0) for value in each.figures[metric.name]]
                for each in shown.arrangements
            },
            logarithmic=metric.logarithmic,
        )
        for metric in shown.metrics
    ]
    title = f"{shown.title}; {shown.setting}; {'valid' if shown.verdict.valid else 'INVALID'}"
    plot_experiment([folder / f"{shown.name}.png", folder / f"{shown.name}.html"], panels, title=title)
    names = ", ".join(f"{folder}/{shown.name}.{suffix}" for suffix in ("png", "html", "json"))
    click.echo(f"picture and figures: {names}", file=sys.stderr)
