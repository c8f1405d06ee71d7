"""`fourlane fabric compare`: the same workload in several networks, in one table and one picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import CheckFailed

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.twin.fabric.compare import Compared

__all__ = ["compare"]

DEFAULT = "expert-beside-kv"
EXAMPLES = """\b
Examples:
  fourlane fabric compare                             experts' all-to-all beside KV on one network of 256 GPUs
  fourlane fabric compare A128_64K -o compared        a scenario by name; picture and figures in a folder
  fourlane fabric compare scenario.toml --class kv --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("scenario", default=DEFAULT)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the scenario.")
@click.option("--class", "traffic", default="expert", show_default=True, help="The class whose network changes.")
@click.option("--processes", type=click.IntRange(1), help="Runs at once. [default: the processors there are]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write picture and figures here."
)
def compare(
    *,
    scenario: str,
    overrides: tuple[str, ...],
    traffic: str,
    processes: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Simulate SCENARIO, a file or a name, under every routing, with shared and own queues, ECN on and off.

    All runs send the same flows. The plan says how own queues and marking are; a "shared" queue holds every class.
    Runs go on side by side over processes. Ctrl-C shows those that are done.

    \b
    Exit codes: 0 all runs ended by themselves, 1 some did not, 2 the scenario or an option is wrong,
    130 interrupted.
    """  # noqa: D301 - click wants the character
    import msgspec

    from fourlane.cli.fabric.progress import many_bar
    from fourlane.cli.fabric.run import make_folder
    from fourlane.cli.fabric.scenarios import scenario_of
    from fourlane.report.tables import console, print_table
    from fourlane.twin.fabric.compare import compare as simulate

    read = scenario_of(scenario, overrides)
    if output is not None:
        make_folder(output)
    with many_bar() as show:
        found = simulate(read, traffic, processes=processes, progress=show)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        print_table(console(width=160), _table(found, f"{Path(scenario).stem}: class {traffic}"))
    if output is not None:
        _write(output, found, f"{Path(scenario).stem}: {traffic} flows, the same in every network")
    if any(each.status == "interrupted" for each in found):
        raise KeyboardInterrupt
    unfinished = [f"{each.routing}, {each.queue} queue: {each.status}" for each in found if each.status != "done"]
    if unfinished:
        raise CheckFailed(f"{len(unfinished)} runs did not end by themselves: {'; '.join(unfinished)}")


def _table(found: list[Compared], title: str) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (
            each.routing,
            each.queue,
            "on" if each.ecn else "off",
            each.status if each.done_us is None else _time(each.done_us),
            "-" if each.factor is None else f"{each.factor:.2f}",
            *map(_time, (each.flow_p99_us, each.packet_p50_us, each.packet_p99_us)),
            *(f"{rate / 1e9:,.1f}" for rate in (each.goodput, each.others_goodput)),
            *(f"{count:,}" for count in (each.pauses, each.marks, each.drops, each.reorder_depth)),
        )
        for each in found
    )
    columns = ("routing", "queue", "ECN", "all done us", "factor", "flow p99", "packet p50", "packet p99")
    more = ("Gbit/s", "others", "pauses", "marks", "drops", "reordered")
    return Table(title=title, columns=(*columns, *more), rows=rows, left=frozenset({"queue", "ECN"}))


def _time(value: float | None) -> str:
    from fourlane.report.tables import number

    return "-" if value is None else number(value, 4)


def _write(folder: Path, found: list[Compared], title: str) -> None:
    from fourlane.report.fabric_plots import BarPanel, plot_comparison
    from fourlane.report.tables import write_json

    write_json(folder / "compare.json", found)
    panels = [
        BarPanel(title="all flows done (us)", values=[each.done_us or 0.0 for each in found]),
        BarPanel(title="packets, p99 (us)", values=[each.packet_p99_us or 0.0 for each in found]),
    ]
    if any(each.others_goodput for each in found):
        others = [each.others_goodput / 1e9 for each in found]
        panels.append(BarPanel(title="other classes (Gbit/s)", values=others, lower_is_better=False))
    ecn = {True: "ECN on", False: "ECN off"}
    runs = [(each.routing, f"{each.routing}, {each.queue} queue, {ecn[each.ecn]}") for each in found]
    paths = [folder / "compare.png", folder / "compare.html"]
    plot_comparison(paths, panels, runs=runs, title=title)
    click.echo(f"written: {', '.join(map(str, paths))}, {folder / 'compare.json'}", file=sys.stderr)
