"""`fourlane lanes init`: write the default plan of a cluster, every figure with its reason."""

from __future__ import annotations

from pathlib import Path

import click

from fourlane.cli.lanes.inputs import cluster_option

__all__ = ["init"]

EXAMPLES = """\b
Examples:
  fourlane lanes init                                     lanes.toml for the catalog's h800-ft
  fourlane lanes init --cluster one-network -o -          print it
  fourlane lanes init --cluster cluster.toml -o lanes.toml --force
"""


@click.command(epilog=EXAMPLES)
@cluster_option(required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    default=Path("lanes.toml"),
    show_default=True,
    help="Where to; - prints it.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(*, cluster: str, output: Path, force: bool) -> None:
    """Write the default plan of a cluster as TOML to edit, every figure with its reason and source."""
    from fourlane.errors import SpecError
    from fourlane.lanes.commented import commented_plan
    from fourlane.spec.load import load_cluster

    text = commented_plan(load_cluster(cluster))
    if str(output) == "-":
        click.echo(text, nl=False)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{output}: is there already; name another file, or replace it with --force") from None
    except OSError as error:
        raise SpecError(f"{output}: cannot be written: {error.strerror}") from error
    click.echo(f"wrote {output}; prove it with: fourlane lanes check {output} --cluster {cluster}")
