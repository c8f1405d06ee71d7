"""`fourlane fabric show`: a topology at a glance, as tables, as JSON, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fourlane.cli.fabric.topologies import BUILDERS, built

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.twin.fabric.figures import TopologyFigures

__all__ = ["show"]

EXAMPLES = """\b
Examples:
  fourlane fabric show --builder leaf-spine --set leaves=4 --set spines=2
  fourlane fabric show --builder fat-tree --set k=16 --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--builder", type=click.Choice(BUILDERS), required=True, help="A plain topology.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="An argument of the builder.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(*, builder: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a topology is made of and what it can carry."""
    import msgspec

    from fourlane.report.tables import console, print_table
    from fourlane.twin.fabric.figures import figures

    found = figures(built(builder, overrides))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=2))
        return
    out = console(width=160)
    counts = f"{found.servers:,} servers, {found.gpus:,} GPUs, {found.hosts:,} hosts, {found.switches:,} switches"
    out.print(f"{found.name}: {counts}", markup=False, soft_wrap=True)
    for table in (_tiers(found), _cables(found), _networks(found)):
        out.print()
        print_table(out, table)


def _tiers(found: TopologyFigures) -> Table:
    from fourlane.report.tables import Table

    columns = ("switches", "network", "count", "model", "ports of one", "down", "up", "oversubscribed")
    rows = tuple(
        (
            tier.tier,
            tier.network,
            f"{tier.switches:,}",
            tier.model or "-",
            str(tier.ports_of_one),
            str(tier.down),
            str(tier.up) if tier.up else "-",
            f"{tier.oversubscription:.3g} : 1" if tier.oversubscription is not None else "-",
        )
        for tier in found.tiers
    )
    return Table(title="", columns=columns, rows=rows, left=frozenset({"network", "model"}))


def _cables(found: TopologyFigures) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (each.between, each.network, f"{each.count:,}", str(each.rate), str(each.length) if each.length else "-")
        for each in found.cables
    )
    columns = ("cables", "network", "count", "rate", "length")
    return Table(title="", columns=columns, rows=rows, left=frozenset({"network"}))


def _networks(found: TopologyFigures) -> Table:
    from fourlane.report.tables import Table, percent

    rows = tuple(
        (
            each.name,
            f"{each.hosts:,}",
            str(each.parts),
            f"{each.bisection / 1e12:,.4g} Tbit/s",
            percent(each.full),
            ", ".join(f"{hops}: {percent(share)}" for hops, share in each.hops.items()),
            f"{each.fewest_paths:,}" + (f" to {each.most_paths:,}" if each.most_paths > each.fewest_paths else ""),
        )
        for each in found.networks
    )
    columns = ("network", "hosts", "parts", "bisection", "of full", "pairs by switches passed", "paths")
    return Table(title="", columns=columns, rows=rows, left=frozenset({"pairs by switches passed"}))
