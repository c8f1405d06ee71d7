"""`fourlane lab`: hosts and switches on this one machine, with real queues between them. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["lab"]

_COMMANDS = {
    "doctor": "Say what of a lab this machine can do, and how to get what is missing.",
    "down": "End a lab that is up.",
    "enter": "Run a command in a host of a lab that is up.",
    "run": "Show what each lane does, with real packets.",
    "up": "Bring a lab up and hold it.",
}

lab = LazyGroup(
    name="lab",
    summaries=_COMMANDS,
    package="fourlane.cli.lab",
    help="""Show on this one machine what each lane does: hosts as network namespaces, real queues, real packets.

    \b
    Examples:
      fourlane lab doctor                         can this machine, may this user?
      fourlane lab run isolation                  expert traffic beside KV: one FIFO, own queue, own network
      fourlane lab up --detach                    four hosts, two networks, lanes of the default plan
      fourlane lab enter h0 ip address            a command in one of them
      fourlane lab down

    Exit codes: 0 fine, 1 a run is invalid or a bar was missed, 2 an option is wrong, 3 this machine lacks something.
    """,
)
