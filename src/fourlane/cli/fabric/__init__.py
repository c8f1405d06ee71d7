"""`fourlane fabric`: the network simulated packet by packet. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["fabric"]

_COMMANDS = {
    "compare": "Simulate one workload under ECMP, adaptive routing, spray; shared and own queues; ECN on and off.",
    "latency": "Show where the time goes from memory to memory, hop by hop, and latency under load.",
    "run": "Simulate a scenario packet by packet and show what came of it.",
    "show": "Show a topology: switches, cables, bisection, hops; as tables, JSON, a picture.",
}

fabric = LazyGroup(
    name="fabric",
    summaries=_COMMANDS,
    package="fourlane.cli.fabric",
    help="""Show what the network of a cluster is, and what traffic does to it, packet by packet.

    \b
    Examples:
      fourlane fabric show h800-ft                   switches, cables, bisection, hops of a cluster
      fourlane fabric latency --cluster low-latency  4 us, hop by hop
      fourlane fabric show --builder fat-tree --set k=16 -o fat-tree.svg
      fourlane fabric run A64_64K --set every.routing=adaptive -o found
      fourlane fabric compare -o compared            one workload in twelve networks: a table and a picture

    Exit codes: 0 done, 1 a check did not pass or a run did not end, 2 a file or option is wrong,
    130 interrupted.
    """,
)
