"""`fourlane plan search`, which is `fourlane plan FILE`: ways to serve a load, ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fourlane.planner.values import PlanResult
    from fourlane.twin.serving.results import ServingResults

__all__ = ["search"]

EXAMPLES = """\b
Examples:
  fourlane plan deepseek-512                                 512 H800s: the greatest rate within the SLO
  fourlane plan deepseek-512 --set workload.rate=200         as few GPUs as serve 200 requests a second
  fourlane plan mine.toml --set slo.tpot=30ms -o plan        writes plan/plan.json, index.html, pareto.png
  fourlane plan mine.toml --simulate 3                       the first three rows request by request as well
  fourlane plan mine.toml --row 2 -o plan                    and plan/row-2.toml, a twin to run, change or render
"""


@click.command(epilog=EXAMPLES)
@click.argument("file")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field; again for more.")
@click.option("--rows", type=click.IntRange(1), default=12, show_default=True, help="Rows of the table to print.")
@click.option("--row", type=click.IntRange(1), help="Write this row as a twin file: to -o, or to standard output.")
@click.option("--simulate", type=click.IntRange(0), default=0, metavar="N", help="Simulate the first N rows as well.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write plan.json and pictures.")
@click.option("--processes", type=click.IntRange(1), help="Processes at once.  [default: as many as processors]")
def search(
    *,
    file: str,
    overrides: tuple[str, ...],
    rows: int,
    row: int | None,
    as_json: bool,
    output: Path | None,
    **settings: int | None,
) -> None:
    """Plan a service: how many prefill and decode units, which EP degree, redundancy, batch, streams, KV network.

    FILE says model, cluster, GPUs, load and SLO, or is a name of the catalog. Ways to serve are ranked by the requests
    within the SLO that each GPU yields. Exchange times that are not known yet are simulated first, and kept.

    Exit codes: 1 nothing meets the SLO (which bound binds is told, and by how much it is missed), 2 the file is wrong
    or the model fits on nothing that it allows (by how many GB is told).
    """
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.errors import CheckFailed
    from fourlane.planner.search import plan
    from fourlane.report.plan_tables import verdict
    from fourlane.spec.load import load_plan_spec

    spec = load_plan_spec(file, overrides=overrides)
    with steps_bar() as show:
        result = plan(spec, processes=settings["processes"], progress=show)
    found = _simulated(result, settings["simulate"] or 0)
    document = result.summary()
    for entry, results in zip(document["rows"], found, strict=False):
        entry["simulated"] = results.summary()
    written = _written(result, document, row, output)
    if as_json:
        click.echo(json.dumps(document, indent=1))
    elif row is not None and output is None:
        click.echo(_row(result, row), nl=False)
    else:
        _show(result, rows, found)
    for path in written:
        click.echo(f"wrote {path}", err=True)
    if not result.met:
        raise CheckFailed(verdict(result))


def _simulated(result: PlanResult, most: int) -> list[ServingResults]:
    """Return what the simulation makes of the first rows."""
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.planner.simulated import simulated

    found = []
    with steps_bar() as show:
        for place, row in enumerate(result.rows[:most], start=1):
            found.append(simulated(row))
            show(place, most, "rows simulated")
    return found


def _show(result: PlanResult, rows: int, found: list[ServingResults]) -> None:
    from fourlane.report.plan_tables import plan_table, simulated_table, verdict
    from fourlane.report.tables import console, print_table

    out = console(width=220)
    print_table(out, plan_table(result, rows))
    worked = (
        f"{result.points} operating points of {result.shapes:,} pairs of units that fit, in {result.seconds:.1f} s."
    )
    out.print(worked, markup=False)
    for why, count in result.refused.items():
        out.print(f"left out, {count}: {why}", markup=False)
    if found:
        print_table(out, simulated_table(result, found))
    if result.met:
        out.print(verdict(result), markup=False, soft_wrap=True)


def _row(result: PlanResult, row: int) -> str:
    """Return a row as a twin file.

    Raises:
        SpecError: there is no such row.
    """
    from fourlane.errors import SpecError
    from fourlane.spec.writing import render

    if row > len(result.rows):
        raise SpecError(f"--row: expected 1 to {len(result.rows)}, got {row}")
    return render(result.rows[row - 1].twin)


def _written(result: PlanResult, document: dict[str, Any], row: int | None, output: Path | None) -> list[Path]:
    """Write what -o asks for; return the files."""
    if output is None:
        return []
    from fourlane.cli.fabric.run import make_folder
    from fourlane.report.page import write_page
    from fourlane.report.plan_plots import plot_pareto
    from fourlane.report.plan_tables import candidates, plan_page
    from fourlane.report.tables import write_json

    make_folder(output)
    found = [output / "plan.json", output / "index.html"]
    write_json(found[0], document)
    write_page(found[1], plan_page(result))
    if drawn := candidates(result.rows):
        found.append(output / "pareto.png")
        plot_pareto(found[2:3], drawn, title=f"{result.spec.name}: ways to serve")
    if row is not None:
        found.append(output / f"row-{row}.toml")
        found[-1].write_text(_row(result, row), encoding="utf-8")
    return found
