"""`fourlane lanes`: the lane plan, from a cluster to the configuration of every device. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["lanes"]

_COMMANDS = {
    "check": "Prove that a plan makes sense on a cluster.",
    "config-db": "Prove SONiC tables, and compare a device with the plan.",
    "diff": "Compare two plans, field by field.",
    "explain": "Say why each figure of a class is what it is, and where that was read.",
    "init": "Write the default plan of a cluster, every figure with its reason.",
    "lint-env": "Say what an environment of NCCL, DeepEP, UCX and others really does, and where it errs.",
    "render": "Write a plan in the words of switches, NICs, libraries and hosts.",
    "show": "Show what each class gets, and what becomes of each switch's buffer.",
}

lanes = LazyGroup(
    name="lanes",
    summaries=_COMMANDS,
    package="fourlane.cli.lanes",
    help="""Plan what each class of traffic gets - queue, buffer, bandwidth, pauses, ECN, routing, network - once.

    \b
    Examples:
      fourlane lanes init --cluster h800-ft -o lanes.toml     a plan to start from, with reasons
      fourlane lanes check lanes.toml --cluster h800-ft       prove it
      fourlane lanes show lanes.toml --cluster h800-ft        see it: classes, buffers, queues
      fourlane lanes explain expert                           why each figure is what it is
      fourlane lanes render lanes.toml --cluster h800-ft --target all -o rendered
      fourlane lanes config-db config_db.json                 find what SONiC's own models do not see
      fourlane lanes lint-env job.env --cluster h800-ft       what an environment really does

    --cluster is a file, or a name of the catalog: h800-ft, one-network, lab. Where PLAN is left out, the
    default plan of the cluster is meant.

    Exit codes: 0 fine, 1 a check did not pass, 2 a file or option is wrong.
    """,
)
