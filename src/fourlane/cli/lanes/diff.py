"""`fourlane lanes diff`: compare two plans, field by field."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fourlane.cli.lanes.inputs import cluster_option, plan_of

__all__ = ["diff"]

EXAMPLES = """\b
Examples:
  fourlane lanes diff old.toml new.toml
  fourlane lanes diff lanes.toml --cluster h800-ft        what is yours, beside the default plan
  fourlane lanes diff old.toml new.toml --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", required=False, type=click.Path(path_type=Path))
@cluster_option(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def diff(*, a: Path, b: Path | None, cluster: str, as_json: bool) -> None:
    """Compare two plans field by field: A with B, or with the default plan of a cluster.

    Exit code 0 if they are alike, 1 if they differ, 2 if one cannot be read.
    """
    import msgspec

    from fourlane.lanes.compare import differences
    from fourlane.report.tables import Table, console, print_table
    from fourlane.spec.load import load_cluster

    read = load_cluster(cluster)
    found = differences(plan_of(a, read, ()), plan_of(b, read, ()))
    other = str(b) if b is not None else f"default of {read.name}"
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    elif found:
        columns = ("field", str(a), other)
        rows = tuple((line.place, line.a or "not set", line.b or "not set") for line in found)
        print_table(console(width=200), Table(title="", columns=columns, rows=rows, left=frozenset(columns)))
    else:
        click.echo(f"{a} and {other} say the same")
    if found:
        sys.exit(1)
