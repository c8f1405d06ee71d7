"""`fourlane twin show`: a twin as a file with every field written out."""

from __future__ import annotations

import click

__all__ = ["show"]

EXAMPLES = """\b
Examples:
  fourlane twin show
  fourlane twin show deepseek-h800 > my.toml
  fourlane twin show my.toml --set decode.ranks=72 > wider.toml
"""


@click.command(epilog=EXAMPLES)
@click.argument("file", required=False)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field; again for more.")
def show(*, file: str | None, overrides: tuple[str, ...]) -> None:
    """Write a twin out as TOML with all its fields, or list the catalog if none is given.

    FILE is a twin file, or a name of the catalog. What is written reads back as the same twin.
    """
    from fourlane.spec.load import load_twin, render, twins

    if file is None:
        for name in twins():
            twin = load_twin(name)
            units = ", ".join(f"{pool.units} x {pool.ranks} {phase}" for phase, pool in twin.pools().items())
            click.echo(f"{name:14}  {twin.model} on {twin.cluster}: {units} = {twin.gpus:,} GPUs")
        return
    click.echo(render(load_twin(file, overrides=overrides)), nl=False)
