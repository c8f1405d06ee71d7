"""`fourlane lab run incast`."""

from __future__ import annotations

from fourlane.cli.lab.run.experiment import experiment_command

__all__ = ["incast"]

incast = experiment_command("incast")
