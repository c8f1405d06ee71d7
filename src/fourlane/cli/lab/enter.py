"""`fourlane lab enter`: run a command in a host of a lab that is up."""

from __future__ import annotations

import os

import click

__all__ = ["enter"]

EXAMPLES = """\b
Examples:
  fourlane lab enter h0                                  a shell
  fourlane lab enter h0 ip address
  fourlane lab enter hpn-switch tc -s class show dev to-h1
"""


@click.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--name", default="lab", show_default=True, help="Of the lab.")
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def enter(*, name: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND (a shell unless given) in HOST, a host or switch of a lab that is up."""
    from fourlane.lab.state import enter_command, read_state

    words = [*enter_command(read_state(name), host), *(command or (os.environ.get("SHELL", "/bin/sh"),))]
    os.execv(words[0], words)  # noqa: S606 - a command without a shell is what is wanted
