"""`fourlane lab`: hosts and switches on this one machine, with real queues between them."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["lab"]

lab = LazyGroup(
    name="lab",
    summaries={"run": "Show what each lane does, with real packets."},
    package="fourlane.cli.lab",
    help="Show on this one machine what each lane does: hosts as network namespaces, real queues, real packets.",
)
