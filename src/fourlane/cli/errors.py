"""How the command line tells a person what went wrong."""

from __future__ import annotations

import click

from fourlane.errors import FourlaneError, SpecError

__all__ = ["INTERRUPTED", "exit_code_for"]

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT."""


def exit_code_for(error: FourlaneError | KeyboardInterrupt) -> int:
    """Write an error to standard error and return the exit code it asks for."""
    if isinstance(error, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, SpecError) and len(error.faults) > 1:
        click.echo(f"error: {len(error.faults)} faults", err=True)
        for fault in error.faults:
            click.echo(f"  {fault}", err=True)
    else:
        click.echo(f"error: {error}", err=True)
    return error.exit_code
