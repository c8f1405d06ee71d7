"""`fourlane lab run marks`."""

from __future__ import annotations

from fourlane.cli.lab.run.experiment import experiment_command

__all__ = ["marks"]

marks = experiment_command("marks")
