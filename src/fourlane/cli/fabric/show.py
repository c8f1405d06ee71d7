"""`fourlane fabric show`: a topology at a glance, as tables, as JSON, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.cli.fabric.topologies import BUILDERS, built

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.spec.cluster import NetworkName
    from fourlane.twin.fabric.figures import TopologyFigures

__all__ = ["show"]

EXAMPLES = """\b
Examples:
  fourlane fabric show                                       the GPUs' network of the catalog's h800-ft
  fourlane fabric show h800-10k -o fabric.svg                10,240 GPUs, with a picture
  fourlane fabric show low-latency --network dcn
  fourlane fabric show h800-ft --set hpn.leaf.up_ports=8     oversubscribed four to one
  fourlane fabric show --builder fat-tree --set k=16 --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("cluster", required=False)
@click.option("--builder", type=click.Choice(BUILDERS), help="A plain topology in place of a cluster's.")
@click.option("--network", type=click.Choice(["hpn", "dcn"]), default="hpn", show_default=True, help="Of the cluster.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change the cluster, or the builder's.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw it here (.svg, .png, .pdf, .html).")
def show(
    *,
    cluster: str | None,
    builder: str | None,
    network: NetworkName,
    overrides: tuple[str, ...],
    as_json: bool,
    output: Path | None,
) -> None:
    """Show what the network of a CLUSTER (file, or a name of the catalog) is made of and what it can carry."""
    import msgspec

    from fourlane.report.tables import console, print_table
    from fourlane.twin.fabric.figures import figures

    topology = built(cluster, builder, overrides, network=network)
    found = figures(topology)
    if output is not None:
        from fourlane.report.fabric_topology_plot import plot_topology

        plot_topology(output, topology, found)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=2))
        return
    out = console(width=160)
    counts = f"{found.servers:,} servers, {found.gpus:,} GPUs, {found.hosts:,} hosts, {found.switches:,} switches"
    out.print(f"{found.name}: {counts}", markup=False, soft_wrap=True)
    for table in (_tiers(found), _cables(found), _networks(found)):
        out.print()
        print_table(out, table)
    if output is not None:
        out.print(f"\npicture: {output}", markup=False, soft_wrap=True)


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
