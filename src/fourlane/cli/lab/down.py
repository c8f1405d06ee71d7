"""`fourlane lab down`: end a lab that is up."""

from __future__ import annotations

import click

__all__ = ["down"]

EXAMPLES = """\b
Examples:
  fourlane lab down
  fourlane lab down --all
"""


@click.command(epilog=EXAMPLES)
@click.argument("name", default="lab")
@click.option("--all", "all_of_them", is_flag=True, help="End every lab of this user.")
def down(*, name: str, all_of_them: bool) -> None:
    """End the lab NAME ("lab" unless said otherwise) and wait until it is gone."""
    from fourlane.lab.state import end_lab, labs_up

    for each in [state.name for state in labs_up()] if all_of_them else [name]:
        end_lab(each)
        click.echo(f"lab {each!r} is down")
