"""`fourlane lanes explain`: say why each figure of a class is what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fourlane.cli.lanes.inputs import cluster_option, plan_argument, plan_of, set_option

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.explain import Explained

__all__ = ["explain"]

EXAMPLES = """\b
Examples:
  fourlane lanes explain expert
  fourlane lanes explain kv --cluster one-network
  fourlane lanes explain collective lanes.toml --cluster cluster.toml     what is yours, and what the default was
  fourlane lanes explain pfc
"""


@click.command(epilog=EXAMPLES)
@click.argument("subject", metavar="CLASS")
@plan_argument
@cluster_option(required=False)
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def explain(*, subject: str, plan: Path | None, cluster: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say why each figure of CLASS is what it is, and where that was read or worked out.

    CLASS is expert, collective, kv, control, bulk or default; or pfc or trimming, which hold for all.
    Figures in parentheses follow from the plan and the cluster.
    """
    import msgspec

    from fourlane.errors import SpecError
    from fourlane.lanes.explain import SUBJECTS
    from fourlane.lanes.explain import explain as explain_class
    from fourlane.spec.load import load_cluster

    if subject not in SUBJECTS:
        raise SpecError(f'CLASS: expected one of {", ".join(SUBJECTS)}, got "{subject}"')
    read = load_cluster(cluster)
    explained = explain_class(plan_of(plan, read, overrides), read, subject)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(explained), indent=2))
    else:
        _print(f"{subject}, on cluster {read.name}", explained)


def _print(title: str, explained: list[Explained]) -> None:
    import shutil
    import textwrap

    width = max(60, min(110, shutil.get_terminal_size((100, 24)).columns))
    click.echo(title)
    for line in explained:
        click.echo(
            f"\n{line.field} = {line.value}" if not line.field.startswith("(") else f"\n{line.field}: {line.value}"
        )
        for text in (line.text, f"Source: {line.source}"):
            click.echo(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
