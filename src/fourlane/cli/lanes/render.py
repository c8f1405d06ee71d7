"""`fourlane lanes render`: write a plan in the words of switches, NICs, libraries and hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.cli.lanes.inputs import cluster_option, plan_argument, plan_of, set_option

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["render"]

EXAMPLES = """\b
Examples:
  fourlane lanes render lanes.toml --cluster h800-ft --target all -o rendered
  fourlane lanes render lanes.toml --cluster cluster.toml --target sonic,nic,env -o rendered
  fourlane lanes render --cluster lab --target host -o rendered
"""
ALL = "all"


def _list(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted:
        from fourlane.lanes.render import TARGETS

        for name, target in TARGETS.items():
            click.echo(f"{name:8}{target.summary}")
        ctx.exit()


@click.command(epilog=EXAMPLES)
@plan_argument
@cluster_option(required=True)
@set_option
@click.option("--target", "targets", required=True, metavar="NAME,...", help="What for; see --targets.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@click.option(
    "--targets",
    "listed",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the targets there are.",
)
def render(*, plan: Path | None, cluster: str, overrides: tuple[str, ...], targets: str, output: Path) -> None:
    """Write PLAN (or the default one) for the targets named, a folder each, below --output.

    The plan is proven first: if a check finds an error, it is told and nothing is written (exit code
    1). Files are written all together or not at all. `all` means every target the cluster has use for.
    """
    from fourlane.lanes.check import check_plan, errors_of
    from fourlane.lanes.render.folder import strangers, write_files
    from fourlane.spec.load import load_cluster

    names = _named(targets)
    read = load_cluster(cluster)
    made = plan_of(plan, read, overrides)
    findings = check_plan(made, read)
    errors = errors_of(findings)
    warnings = [finding for finding in findings if finding.severity == "warning"]
    for finding in (*warnings, *errors):
        click.echo(str(finding), err=True)
    if errors:
        click.echo("error: nothing was written; mend the errors above", err=True)
        sys.exit(1)
    files = _rendered(made, read, names, everything=targets == ALL)
    for path in write_files(files, output):
        click.echo(f"wrote {path}")
    for path in strangers(files, output):
        click.echo(f"not of this plan, left as it was: {path}")


def _named(text: str) -> list[str]:
    """Return the targets named, each once.

    Raises:
        SpecError: one is not a target.
    """
    from fourlane.errors import SpecError
    from fourlane.lanes.render import TARGETS

    if text == ALL:
        return list(TARGETS)
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise SpecError(f'--target: expected {ALL} or some of {",".join(TARGETS)}, got "{unknown[0]}"')
    return list(dict.fromkeys(names))


def _rendered(plan: LanePlan, cluster: Cluster, names: list[str], *, everything: bool) -> dict[str, str]:
    """Render the targets named.

    Raises:
        SpecError: the cluster has nothing of a kind that was asked for by name.
    """
    from fourlane.errors import SpecError
    from fourlane.lanes.render import TARGETS
    from fourlane.lanes.render import render as render_target

    files: dict[str, str] = {}
    for name in names:
        made = render_target(plan, cluster, name)
        if not made and not everything:
            raise SpecError(f"--target {name}: cluster {cluster.name} has nothing it is for ({TARGETS[name].summary})")
        files |= made
    return files
