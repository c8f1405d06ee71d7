"""`fourlane fabric latency`: where the time goes from memory to memory, hop by hop, on idle paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fourlane.cli.fabric.topologies import USUAL_LATENCY_CLUSTER

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.spec.cluster import NetworkName
    from fourlane.twin.fabric.latency import PathBudget
    from fourlane.twin.fabric.published_latency import Comparison
    from fourlane.units import Duration, Size

__all__ = ["latency"]

EXAMPLES = """\b
Examples:
  fourlane fabric latency                                  the catalog's low-latency cluster, a packet of 64 bytes
  fourlane fabric latency --cluster h800-10k --size 4160B --json
  fourlane fabric latency --set hpn.leaf.latency=250ns --set hpn.spine.latency=250ns
  fourlane fabric latency --published                      published measurements beside the budget
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--cluster",
    default=USUAL_LATENCY_CLUSTER,
    show_default=True,
    metavar="FILE|NAME",
    help="Cluster file, or a name of the catalog.",
)
@click.option("--network", type=click.Choice(["hpn", "dcn"]), default="hpn", show_default=True, help="Of the cluster.")
@click.option("--size", default="64B", show_default=True, help="Of the packet on the wire.")
@click.option("--published", is_flag=True, help="Hold published measurements against the budget.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def latency(
    *, cluster: str, network: NetworkName, size: str, published: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show where the time goes on the idle paths of a cluster, hop by hop, with the source of each figure."""
    import msgspec

    from fourlane.report.tables import console, print_table
    from fourlane.spec.load import load_cluster
    from fourlane.twin.fabric.latency import latency_budgets
    from fourlane.twin.fabric.published_latency import against_published

    budgets = latency_budgets(load_cluster(cluster, overrides=overrides), network, size=_size(size))
    compared = against_published() if published else []
    if as_json:
        shown = {"paths": [_as_data(budget) for budget in budgets], "published": compared}
        click.echo(msgspec.json.format(msgspec.json.encode(shown, enc_hook=str), indent=2))
        return
    out = console(width=200)
    notes: dict[str, int] = {}
    for budget in budgets:
        print_table(out, _budget(budget, notes))
        out.print()
    for source, number in notes.items():
        out.print(f"[{number}] {source}", markup=False, soft_wrap=True)
    if compared:
        out.print()
        print_table(out, _published(compared))


def _size(text: str) -> Size:
    from fourlane.errors import SpecError
    from fourlane.units import Size

    try:
        return Size.parse(text)
    except ValueError as error:
        raise SpecError(f"--size: {error}") from error


def _as_data(budget: PathBudget) -> dict[str, object]:
    import msgspec

    return {**msgspec.structs.asdict(budget), "total": budget.total}


def _budget(budget: PathBudget, notes: dict[str, int]) -> Table:
    """Return the table of a path; `notes` gets the number of each source."""
    from fourlane.report.tables import Table
    from fourlane.units import Duration

    rows: list[tuple[str, ...]] = []
    passed = 0
    for row in budget.rows:
        passed += int(row.time)
        number = notes.setdefault(row.source, len(notes) + 1)
        rows.append((row.where, row.what, nanoseconds(row.time), nanoseconds(Duration(passed)), f"[{number}]"))
    total = f"{int(budget.total) / 1e6:.3f} us"
    title = f"{budget.name}, {budget.source} to {budget.destination}, {budget.size}: {total}"
    return Table(title=title, columns=("where", "what", "ns", "so far", "source"), rows=tuple(rows), left=_LEFT)


_LEFT = frozenset({"what"})


def nanoseconds(time: Duration) -> str:
    """Write a duration in ns with two decimals."""
    return f"{int(time) / 1e3:,.2f}"


def _published(compared: list[Comparison]) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (
            row.network,
            row.path,
            f"{row.published_us:.1f}",
            f"{row.budget_us:.2f}",
            f"{row.error:+.1%}",
            row.assumed,
            row.source,
        )
        for row in compared
    )
    columns = ("published", "path", "us", "budget", "off", "assumed", "source")
    return Table(title="", columns=columns, rows=rows, left=frozenset({"path", "assumed", "source"}))
