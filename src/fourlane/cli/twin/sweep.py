"""`fourlane twin sweep`: a service over ranges of its fields, in one table and one picture."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import CheckFailed, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.report.sweep_plots import Swept
    from fourlane.report.tables import Table
    from fourlane.twin.sweep import SweepProgress, SweepResult, SweepRow

__all__ = ["sweep"]

EXAMPLES = """\b
Examples:
  fourlane twin sweep deepseek-512 --vary decode.ranks=72,144 --vary lanes.routing=ecmp,adaptive -o found
  fourlane twin sweep deepseek-512 --vary workload.rate=50,100,150,200 --requests -o found
  fourlane twin sweep mine.toml --vary decode.units=1,2,4 --ray -o found        on the machines of a Ray cluster
"""
_SHOWN = ("requests_s", "output_tokens_s_gpu", "goodput", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s")
_DRAWN = ("output_tokens_s_gpu", "goodput", "ttft_mean_s", "tpot_mean_s")


@click.command(epilog=EXAMPLES)
@click.argument("file")
@click.option(
    "--vary", multiple=True, required=True, metavar="PATH=VALUE,...", help="Values of a field; again for more."
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field; again for more.")
@click.option("--requests", is_flag=True, help="Simulate requests one by one, instead of the steady state.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write all here, and go on.")
@click.option("--processes", type=click.IntRange(1), help="Points at once. [default: the processors there are]")
@click.option("--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS]", help="Run on a Ray cluster instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def sweep(
    *,
    file: str,
    vary: tuple[str, ...],
    overrides: tuple[str, ...],
    output: Path | None,
    **options: object,
) -> None:
    """Work out a service for every combination of values of some of its fields.

    FILE is a twin file or a name of the catalog. With -o every point is written down as it comes: the same command goes
    on where it ended. A value that holds commas stands in brackets: --vary "workload.input_len=['64..128', '512']".

    \b
    Exit codes: 0 done, 1 no point could be worked out, 2 a file, field or value is wrong, or the folder holds another
    sweep, 3 --ray without Ray, 130 interrupted.
    """  # noqa: D301 - click wants the character
    import json

    from fourlane.cli.fabric.run import make_folder
    from fourlane.report.tables import console, print_table
    from fourlane.spec.load import load_twin
    from fourlane.twin.sweep import sweep as run

    twin, values = load_twin(file, overrides=overrides), _values(vary)
    if output is not None:
        make_folder(output)
    processes, ray = options["processes"], options["ray"]
    with _bar() as show:
        result = run(
            twin,
            values,
            output,
            requests=bool(options["requests"]),
            processes=processes if isinstance(processes, int) else None,
            ray=str(ray) if ray is not None else None,
            progress=show,
        )
    if output is not None:
        _write(output, result)
    if options["as_json"]:
        click.echo(json.dumps(result.summary(), indent=2))
    else:
        print_table(console(width=200), _table(result))
        click.echo(_said(result))
    if result.failed == len(result.rows):
        raise CheckFailed(f"none of {len(result.rows)} points could be worked out; the first: {result.rows[0].error}")


def _values(vary: tuple[str, ...]) -> dict[str, list[str]]:
    """Read --vary.

    Raises:
        SpecError: some are not of the form path=value,...
    """
    import tomllib

    found: dict[str, list[str]] = {}
    for text in vary:
        path, equals, values = text.partition("=")
        if not equals or not path.strip() or not values.strip():
            raise SpecError(f'--vary: expected a field and its values such as "decode.ranks=32,64", got "{text}"')
        if path.strip() in found:
            raise SpecError(f"--vary: {path.strip()} is there twice; write all its values into one")
        listed = values.strip()
        if listed.startswith("["):
            try:
                found[path.strip()] = [str(each) for each in tomllib.loads(f"values = {listed}")["values"]]
            except tomllib.TOMLDecodeError as error:
                raise SpecError(f"--vary: {path.strip()}: {error}") from error
        else:
            found[path.strip()] = [each.strip() for each in listed.split(",")]
    return found


@contextmanager
def _bar() -> Iterator[Callable[[SweepProgress], None]]:
    from fourlane.cli.progress_bar import ProgressBar

    bar = ProgressBar()

    def show(now: SweepProgress) -> None:
        resumed = f", {now.resumed} from before" if now.resumed else ""
        text = f"{now.done:,} of {now.total:,} points{resumed} ({now.what})"
        bar.show(now.share, text, elapsed_s=now.elapsed_s, eta_s=now.eta_s)

    try:
        yield show
    finally:
        bar.close()


def _table(result: SweepResult) -> Table:
    from fourlane.report.tables import Table
    from fourlane.twin.sweep import FIGURES

    headings = [f"{FIGURES[name].title} {_unit(name)}".strip() for name in _SHOWN]
    rows = tuple(
        (
            *(row.values[path] for path in result.vary),
            f"{row.figures['gpus']:,}" if "gpus" in row.figures else "-",
            *(_cell(row, name) for name in _SHOWN),
            _slo(row),
            row.error.splitlines()[0] if row.error else str(row.figures.get("binds") or "-"),
        )
        for row in result.rows
    )
    columns = (*result.vary, "GPUs", *headings, "SLO", "binds")
    return Table(title=f"{result.name}: {len(rows)} points", columns=columns, rows=rows, left=frozenset({"binds"}))


def _unit(name: str) -> str:
    """Return the unit of a figure in tables, where times are ms."""
    from fourlane.twin.sweep import FIGURES

    return "ms" if FIGURES[name].unit == "s" else FIGURES[name].unit


def _cell(row: SweepRow, name: str) -> str:
    from fourlane.report.tables import number

    value = row.figures.get(name)
    if value is None:
        return "-"
    return number(value * (1000 if _unit(name) == "ms" else 1), 4)


def _slo(row: SweepRow) -> str:
    met = row.figures.get("slo_met")
    return "-" if met is None else "met" if met else "missed"


def _said(result: SweepResult) -> str:
    """Return in words which point gives most, and how many failed."""
    best = result.best("output_tokens_s_gpu")
    lines = []
    if best is not None:
        where = ", ".join(f"{path} = {value}" for path, value in best.values.items())
        met = "of those that meet the SLO" if best.figures.get("slo_met") else "though none meets the SLO"
        lines.append(f"Most tokens for each GPU, {met}: {where}")
    if result.failed:
        lines.append(f"{result.failed} of {len(result.rows)} points make no service; the table says why")
    return "\n".join(lines)


def _write(folder: Path, result: SweepResult) -> None:
    from fourlane.report.sweep_plots import plot_sweep
    from fourlane.report.tables import write_json

    write_json(folder / "sweep.json", result.summary())
    if result.failed == len(result.rows):
        return
    across = next((path for path, values in result.vary.items() if len(values) > 1), next(iter(result.vary)))
    paths = [folder / "sweep.png", folder / "sweep.html"]
    plot_sweep(paths, _panels(result, across), varied=across, values=result.vary[across], title=result.name)


def _panels(result: SweepResult, across: str) -> list[Swept]:
    """Return the panels of the picture: a line for every combination of the other fields' values."""
    from fourlane.report.sweep_plots import Swept
    from fourlane.twin.sweep import FIGURES

    others = [path for path in result.vary if path != across]
    lines: dict[str, dict[str, SweepRow]] = {}
    for row in result.rows:
        name = ", ".join(f"{path.rsplit('.', 1)[-1]} {row.values[path]}" for path in others) or result.name
        lines.setdefault(name, {})[row.values[across]] = row
    return [
        Swept(
            title=FIGURES[figure].title,
            unit=FIGURES[figure].unit,
            lines={
                name: [points[value].figures.get(figure) for value in result.vary[across]]
                for name, points in lines.items()
                if any(row.figures for row in points.values())
            },
        )
        for figure in _DRAWN
    ]
