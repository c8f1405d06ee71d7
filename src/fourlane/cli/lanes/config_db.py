"""`fourlane lanes config-db`: prove SONiC tables, and hold a device against the plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.cli.lanes.inputs import plan_of, set_option

if TYPE_CHECKING:
    from collections.abc import Sized

    from fourlane.lanes.plan import LanePlan
    from fourlane.lanes.ports import Switch
    from fourlane.lanes.render.sonic_reading import Difference

__all__ = ["config_db"]

EXAMPLES = """\b
Examples:
  fourlane lanes config-db config_db.json                              errors of meaning alone
  fourlane lanes config-db config_db.json --cluster h800-ft --switch hpn-leaf
  fourlane lanes config-db config_db.json --cluster cluster.toml --switch hpn-leaf --plan lanes.toml
  fourlane lanes config-db hpn-leaf.ports.json hpn-leaf.config_db.json --cluster h800-ft --switch hpn-leaf
"""


@click.command(epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE...")
@click.option("--cluster", metavar="FILE|NAME", help="Cluster file, or a name of the catalog.")
@click.option("--switch", metavar="KIND", help="Which of the cluster's switches this is: hpn-leaf, dcn-spine, ...")
@click.option("--plan", type=click.Path(path_type=Path), help="The plan to hold it against; by default the cluster's.")
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print findings and differences as JSON.")
def config_db(
    *,
    files: tuple[Path, ...],
    cluster: str | None,
    switch: str | None,
    plan: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prove what SONiC's YANG models cannot of config_db tables; with a cluster, compare them with the plan.

    FILE is a device's config_db.json, or tables rendered from a plan (with their ports file); tables of
    several files are taken together; - is standard input. Without --cluster and --switch, eight queues are
    assumed, buffers are not added up, and nothing is compared.

    Exit code 0 if all is proven and nothing differs, 1 otherwise, 2 for what cannot be read.
    """
    import msgspec

    from fourlane.lanes.render.sonic_proof import prove_config_db
    from fourlane.lanes.render.sonic_reading import config_db_differences

    tables: dict[str, Any] = {}
    for file in files:
        tables |= _tables(file)
    known = _known(cluster, switch, plan, overrides)
    differences: list[Difference] = []
    if known is None:
        findings = prove_config_db(tables)
    else:
        kind, wanted = known
        findings = prove_config_db(tables, chip=kind.model, plan=wanted, network=kind.network)
        differences = config_db_differences(tables, wanted, kind.network)
    if as_json:
        told = {"findings": findings, "differences": [str(difference) for difference in differences]}
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
    else:
        for line in [*map(str, findings), *map(str, differences)]:
            click.echo(line)
        compared = "nothing to compare with" if known is None else f"{_count(differences, 'difference')} from the plan"
        click.echo(f"{_count(findings, 'error')} of meaning, {compared}")
    if findings or differences:
        sys.exit(1)


def _count(things: Sized, name: str) -> str:
    return f"1 {name}" if len(things) == 1 else f"{len(things)} {name}s"


def _tables(file: Path) -> dict[str, Any]:
    """Read tables from a file.

    Raises:
        SpecError: it cannot be read, or holds no tables.
    """
    from fourlane.errors import SpecError

    try:
        with click.open_file(str(file), encoding="utf-8") as opened:
            tables = json.load(opened)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{file}: expected SONiC tables as JSON, but: {error}") from error
    if not isinstance(tables, dict):
        raise SpecError(f"{file}: expected an object of tables, got {type(tables).__name__}")
    return tables


def _known(
    cluster: str | None, switch: str | None, plan: Path | None, overrides: tuple[str, ...]
) -> tuple[Switch, LanePlan] | None:
    """Return the kind of switch and the plan; None if neither was named.

    Raises:
        SpecError: one of --cluster and --switch is missing, or the cluster has no such switch.
    """
    from fourlane.errors import SpecError
    from fourlane.lanes.ports import switches
    from fourlane.spec.load import load_cluster

    if cluster is None and switch is None and plan is None and not overrides:
        return None
    if cluster is None or switch is None:
        missing = "--cluster" if cluster is None else "--switch"
        raise SpecError(f"{missing}: expected beside the other options, to know the chip and what was planned for it")
    read = load_cluster(cluster)
    kinds = {kind.name: kind for kind in switches(read)}
    if switch not in kinds:
        raise SpecError(f'--switch: expected one of {", ".join(kinds)}, those of {read.name}; got "{switch}"')
    return kinds[switch], plan_of(plan, read, overrides)
