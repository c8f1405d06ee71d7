"""`fourlane plan`: the subcommands, each a module of its own, imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.cli import LazyGroup

if TYPE_CHECKING:
    import click

__all__ = ["plan"]

_SEARCH = "search"


class _PlanGroup(LazyGroup):
    """A group whose usual subcommand need not be named: `fourlane plan FILE` is `fourlane plan search FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the usual subcommand where a file stands first."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            args = [_SEARCH, *args]
        return super().parse_args(ctx, args)


plan = _PlanGroup(
    name="plan",
    package="fourlane.cli.plan",
    summaries={
        "render": "Write launch files of a plan's row: fourlane, SGLang or vLLM; bash or Kubernetes.",
        _SEARCH: "Search for the best units, degrees and batches (the usual one: fourlane plan FILE).",
    },
    help="""Plan a service from model, hardware, GPUs, load and SLO; end in files that launch it.

    \b
    Examples:
      fourlane plan deepseek-512 -o plan               a ranked table; plan.json, a page, a Pareto plot
      fourlane plan deepseek-512 --row 2 > row2.toml   the second row as a twin
      fourlane plan render plan/plan.json --row 1 --engine sglang --target bash -o launch
    """,
)
