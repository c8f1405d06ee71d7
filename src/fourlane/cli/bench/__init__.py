"""`fourlane bench`: measure a service, or a part of it. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["bench"]

_COMMANDS = {
    "exchange": "Measure every expert exchange of this machine beside gloo, memcpy and the line.",
    "kv": "Measure every KV transport of this machine beside line rate and memcpy.",
    "overlap": "Measure whole forward passes in one stream and in two, over links.",
    "serve": "Measure a service under load.",
}

bench = LazyGroup(
    name="bench",
    summaries=_COMMANDS,
    package="fourlane.cli.bench",
    help="""Measure a service under load, the exchanges of its experts' tokens, or the transports that carry its KV.

    \b
    Examples:
      fourlane bench serve            the default deployment, 16 requests at a time
      fourlane bench exchange         each expert exchange here: 2, 4 and 8 ranks, several sizes
      fourlane bench kv               each KV transport here, several sizes
      fourlane bench overlap          forward passes in one stream and in two, over 500 Mbit/s links
    """,
)
