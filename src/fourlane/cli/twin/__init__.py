"""`fourlane twin`: a whole service simulated on its cluster. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["twin"]

_COMMANDS = {
    "calibrate": "Measure this machine by ranks and a service on it; write a hardware profile.",
    "ladder": "Take the measures one after another: what each brings, as table and waterfall.",
    "run": "Simulate a service under its load: latencies, throughput, what bounds each part.",
    "show": "Write out a twin with all that it leaves to defaults; or the catalog's names.",
    "sweep": "Work a twin out over ranges of its fields, over processes or machines; goes on where it ended.",
    "validate": "Hold the twin to published figures; say what each input that is not known contributes.",
}

twin = LazyGroup(
    name="twin",
    summaries=_COMMANDS,
    package="fourlane.cli.twin",
    help="""Simulate a whole service on its cluster: requests, expert-parallel units, experts, lanes, network.

    A twin is a file that says which model runs on which cluster, how, and under which load; some are in the catalog.

    \b
    Examples:
      fourlane twin show                          the catalog
      fourlane twin show deepseek-h800            every field of one of its twins
      fourlane twin show deepseek-h800 > my.toml  a file to start from
      fourlane twin run my.toml -o found          requests one by one; tables and a page
      fourlane twin run my.toml --steady          the steady state in closed form, at once
      fourlane twin ladder h800-10k -o ladder     what each measure brings: table and waterfall

    Exit codes: 0 fine, 1 a check did not pass, 2 a file or option is wrong, 3 this machine lacks something,
    130 interrupted.
    """,
)
