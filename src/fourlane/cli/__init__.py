"""The command line. Each command is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from fourlane import __version__
from fourlane.cli.errors import exit_code_for
from fourlane.errors import FourlaneError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LazyGroup", "main"]

_COMMANDS = {
    "bench": "Measure a service under load, its expert exchange, or its KV transports.",
    "demo": "Serve the bundled model here, stream answers, measure a short load.",
    "doctor": "Check whether this machine can run fourlane, and say what to mend.",
    "experts": "Balance experts over ranks: place, split, advise, show, compare, export; on files.",
    "fabric": "Simulate the network packet by packet; show its topology and its latency.",
    "lab": "Show on this one machine what each lane does, with real packets.",
    "lanes": "Plan what each class of traffic gets; prove it, and render it to every device.",
    "plan": "Plan a service for model, GPUs, load and SLO; write the files that launch it.",
    "serve": "Serve a model: start the ranks and answer HTTP until Ctrl-C.",
    "twin": "Simulate a whole service on its cluster: latency, throughput, what each measure brings.",
    "worker": "Run one rank of a service whose gateway runs elsewhere.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, not to list it.

    Args:
        summaries: the commands there are, with the line `--help` shows.
        package: where each has a module of its name, with _ for -, and in it a command of that name.
        settings: those of `click.Group`.
    """

    def __init__(self, *, summaries: Mapping[str, str], package: str = "fourlane.cli", **settings: Any) -> None:
        super().__init__(**settings)
        self._summaries = summaries
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        del ctx
        if cmd_name not in self._summaries:
            return None
        name = cmd_name.replace("-", "_")
        return getattr(importlib.import_module(f"{self._package}.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self._summaries.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an error raised on purpose becomes one message and its exit code."""
        try:
            return super().invoke(ctx)
        except (FourlaneError, KeyboardInterrupt) as error:
            return ctx.exit(exit_code_for(error))


main = LazyGroup(
    name="fourlane",
    summaries=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Serve mixture-of-experts models, prefill and decode separated, every kind of traffic on its own lane.

    \b
    Examples:
      fourlane demo                      see it work: 2 + 2 ranks on the bundled model
      fourlane serve                     serve the bundled model at http://127.0.0.1:8000
      fourlane serve deployment.toml     serve what a file describes
      fourlane lanes init                write a lane plan to start from; then check, show, render it
      fourlane doctor                    check this machine

    Exit codes: 0 done, 1 something failed, 2 a file or option is wrong, 3 this machine lacks something,
    130 interrupted.
    """,
)
main = click.version_option(__version__, prog_name="fourlane")(main)
