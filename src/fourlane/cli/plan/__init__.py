"""`fourlane plan`: the subcommands, each a module of its own, imported when it is called."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["plan"]

plan = LazyGroup(
    name="plan",
    package="fourlane.cli.plan",
    summaries={"render": "Write launch files of a plan's row: fourlane, SGLang or vLLM; bash or Kubernetes."},
    help="""Plan a service, and write the files that launch it.

    \b
    Examples:
      fourlane plan render deepseek-h800 --engine sglang --target bash -o launch
    """,
)
