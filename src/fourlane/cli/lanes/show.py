"""`fourlane lanes show`: a plan at a glance, as tables, as JSON, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.cli.lanes.inputs import cluster_option, plan_argument, plan_of, set_option

if TYPE_CHECKING:
    from fourlane.lanes.overview import ClassRow, Overview, SwitchView
    from fourlane.report.tables import Table

__all__ = ["show"]

EXAMPLES = """\b
Examples:
  fourlane lanes show                                     the default plan of the catalog's h800-ft
  fourlane lanes show lanes.toml --cluster cluster.toml
  fourlane lanes show lanes.toml --cluster h800-ft --plot lanes.png
  fourlane lanes show --cluster one-network --set classes.kv.weight=20 --json
"""


@click.command(epilog=EXAMPLES)
@plan_argument
@cluster_option(required=False)
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw shares of bandwidth and buffer here (.png, .html).")
def show(*, plan: Path | None, cluster: str, overrides: tuple[str, ...], as_json: bool, plot: Path | None) -> None:
    """Show what each class gets on each network, and what becomes of each switch's buffer."""
    import msgspec

    from fourlane.lanes.overview import overview
    from fourlane.report.tables import console, print_table
    from fourlane.spec.load import load_cluster

    read = load_cluster(cluster)
    view = overview(plan_of(plan, read, overrides), read)
    if plot is not None:
        _draw(plot, view)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(view), indent=2))
        return
    out = console(width=200)
    tables = [_classes(name, rows) for name, rows in view.networks.items()]
    for switch in view.switches:
        tables += [_budget(switch), _queues(switch)]
    out.print(f"{plan or 'Default plan'} on cluster {view.cluster}", markup=False, soft_wrap=True)
    for table in tables:
        out.print()
        print_table(out, table)
    if plot is not None:
        out.print(f"\nplot: {plot}", markup=False, soft_wrap=True)


def _classes(network: str, rows: list[ClassRow]) -> Table:
    from fourlane.report.tables import Table, byte_text

    names = "class, DSCP, ToS, priority, queue, link, alpha, reserved, loss, ECN, routing, carried by"
    columns = tuple(names.split(", "))
    cells = tuple(
        (
            row.name,
            str(row.dscp) + (f" + {row.more_dscps} more" if row.more_dscps else ""),
            f"{row.tos} (0x{row.tos:02X})",
            str(row.priority),
            str(row.queue),
            _link(row),
            f"{row.alpha:g}",
            byte_text(row.reserved) if row.reserved else "-",
            "pauses" if row.lossless else "trims" if row.trim else "drops",
            row.ecn,
            row.routing,
            ", ".join(row.carriers) or "-",
        )
        for row in rows
    )
    return Table(title=f"Network {network}", columns=columns, rows=cells, left=frozenset({"link", "ECN", "carried by"}))


def _link(row: ClassRow) -> str:
    if row.scheduler == "strict":
        return f"first, up to {row.cap} %" if row.cap is not None else "first, without a cap"
    return f"{row.weight} %" + (f", at most {row.cap} %" if row.cap is not None else "")


def _budget(switch: SwitchView) -> Table:
    from fourlane.report.tables import Table, percent

    def line(purpose: str, ports: str, each: str, total: int) -> tuple[str, ...]:
        return (purpose, ports, each, f"{total / 1e6:,.2f} MB", percent(total / switch.buffer))

    rows = [line(item.purpose, str(item.ports), f"{item.each:,} B", item.ports * item.each) for item in switch.lines]
    rows += [line("no headroom figure published", rate, "unknown", 0) for rate in switch.unknown]
    needed = sum(item.ports * item.each for item in switch.lines if "headroom" in item.purpose)
    if needed != switch.headroom:
        rows.append(line("headroom, shared", "", "", switch.headroom))
    rows.append(line("left to share" if switch.shared > 0 else "TOO LITTLE: over by", "", "", abs(switch.shared)))
    title = (
        f"Buffer of {switch.name}: {switch.count} x {switch.model} ({switch.os}), {switch.buffer / 1e6:,.1f} MB each"
    )
    return Table(title=title, columns=("", "ports", "each", "total", "of the buffer"), rows=tuple(rows))


def _queues(switch: SwitchView) -> Table:
    from fourlane.lanes.overview import CONGESTED
    from fourlane.report.tables import Table

    rows = tuple(
        (queue.name, f"{queue.alpha:g}", *(f"{queue.longest[count] / 1e6:,.2f} MB" for count in CONGESTED))
        for queue in switch.queues
    )
    columns = (f"longest queue at {switch.name}", "alpha", *(f"{count} full" for count in CONGESTED))
    return Table(title="", columns=columns, rows=rows)


def _draw(path: Path, view: Overview) -> None:
    from fourlane.report.lane_plots import ClassShare, SwitchShares, plot_lanes

    drawn = [
        SwitchShares(
            name=switch.name,
            classes=[
                ClassShare(name=row.name, share=row.weight, cap=row.cap, longest=queue.longest)
                for row, queue in zip(view.networks[switch.network], switch.queues, strict=True)
            ],
            buffer={"headroom": switch.headroom, "reserved": switch.reserved, "shared": max(switch.shared, 0)},
        )
        for switch in view.switches
    ]
    plot_lanes(path, drawn, title=f"Lane plan {view.plan} on cluster {view.cluster}")
