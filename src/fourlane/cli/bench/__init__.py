"""`fourlane bench`: measure a service, or a part of it. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["bench"]

_COMMANDS = {
    "kv": "Measure every KV transport of this machine beside line rate and memcpy.",
    "serve": "Measure a service under load.",
}

bench = LazyGroup(
    name="bench",
    summaries=_COMMANDS,
    package="fourlane.cli.bench",
    help="""Measure a service under load, or the transports that carry its KV.

    \b
    Examples:
      fourlane bench serve            the default deployment, 16 requests at a time
      fourlane bench kv               each KV transport here, several sizes
    """,
)
