"""What the subcommands of `fourlane lanes` have in common: plan, cluster, overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["USUAL_CLUSTER", "cluster_option", "plan_argument", "plan_of", "set_option"]

USUAL_CLUSTER = "h800-ft"

plan_argument = click.argument("plan", required=False, type=click.Path(path_type=Path))
set_option = click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the plan.")


def cluster_option(*, required: bool) -> Callable[[Any], Any]:
    """Make the option --cluster; where it is not required, the usual one of the catalog is meant."""
    text = "Cluster file, or a name of the catalog."
    if required:
        return click.option("--cluster", required=True, metavar="FILE|NAME", help=text)
    return click.option("--cluster", default=USUAL_CLUSTER, show_default=True, metavar="FILE|NAME", help=text)


def plan_of(path: Path | None, cluster: Cluster, overrides: Sequence[str]) -> LanePlan:
    """Read a plan, or work out the default one, and change what the overrides say.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    from fourlane.lanes.default_plan import default_plan
    from fourlane.lanes.plan import load_plan, parse_plan
    from fourlane.spec.load import render

    if path is not None:
        return load_plan(path, overrides=overrides)
    plan = default_plan(cluster)
    return parse_plan(render(plan), source="default plan", overrides=overrides) if overrides else plan
