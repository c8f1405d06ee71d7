"""`fourlane lab run`: one experiment."""

from __future__ import annotations

from fourlane.cli import LazyGroup
from fourlane.lab.experiments import EXPERIMENTS

__all__ = ["run"]

run = LazyGroup(
    name="run",
    summaries={**EXPERIMENTS, "ladder": "The live engine while its network gets better, step by step."},
    package="fourlane.cli.lab.run",
    help="Run one experiment in a lab of its own, and take the lab down again.",
)
